"""Foreign clients live in environments of their own, which ``make test`` and ``make test-clients`` install."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

FOREIGN = Path(os.environ.get("OUTCROP_FOREIGN", Path(__file__).parents[2] / ".foreign"))
PROGRAMS = Path(__file__).parent / "foreign"
_MISSING = [
    name
    for name in ("awscli", "node", "frameworks", "strands", "sagemaker")
    if not (FOREIGN / name / ".installed").exists()
]

collect_ignore_glob = [
    *(["test_aws_cli.py"] if "awscli" in _MISSING else []),
    *(["test_javascript_sdk.py", "test_heartbeats.py", "test_policy_oracle.py"] if "node" in _MISSING else []),
    *(["frameworks/*.py"] if _MISSING else []),
    # In no registry that it could be installed from.
    *([] if os.environ.get("OUTCROP_TEST_TERRAFORM_PLUGINS") else ["test_terraform.py"]),
]

# Llama.cpp recognises a template that writes calls as <tool_call>JSON</tool_call>.
TOOL_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call these functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Write each call as
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user
<tool_response>
{{ m['content'] }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ m['role'] }}
{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}<tool_call>
{"name": "{{ call['function']['name'] }}", "arguments": {{ call['function']['arguments'] | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

Scenarios = dict[str, dict[str, Any]]


def value(found: Scenarios, name: str) -> Any:
    """What the scenario gave; fails with its error when it gave none."""
    assert "value" in found[name], found[name]
    return found[name]["value"]


def pytest_report_header() -> str | None:
    return f"tests/clients: {', '.join(_MISSING)} not installed (make test-clients)" if _MISSING else None


@pytest.fixture(scope="session")
def roomy_model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """ARN of a chat model with room for the long prompts that frameworks write."""
    return server.import_model(make_checkpoint(tmp_path_factory.mktemp("roomy") / "roomy", context=4096), "roomy")


@pytest.fixture(scope="session")
def tool_model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """ARN of a model whose chat template knows tools."""
    folder = make_checkpoint(tmp_path_factory.mktemp("tools") / "tools", context=4096, seed=1)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TOOL_TEMPLATE}))
    return server.import_model(folder, "tools")


@pytest.fixture(scope="session")
def environment(server: Server, roomy_model: str, tool_model: str) -> dict[str, str]:
    """What a foreign program needs to reach the server: AWS's own variables, and what to ask."""
    keys = server.credentials
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(server.home),  # no configuration of the person who runs the tests
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        "AWS_REGION": keys.region,
        "AWS_DEFAULT_REGION": keys.region,
        "AWS_ENDPOINT_URL_BEDROCK": server.url,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": server.url,
        "AWS_ENDPOINT_URL_SAGEMAKER": server.url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": server.url,
        "AWS_ENDPOINT_URL_IAM": server.url,
        "AWS_ENDPOINT_URL_STS": server.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "OUTCROP_URL": server.url,
        "OUTCROP_MODEL_ARN": roomy_model,
        "OUTCROP_TOOL_MODEL_ARN": tool_model,
        "OUTCROP_BEARER_KEY": keys.bearer_key,
        "OUTCROP_ROLE_ARN": keys.import_role_arn,
        "OUTCROP_SOURCE": "s3://artifacts/roomy/",
    }


@pytest.fixture(scope="session")
def run_python(environment: dict[str, str]) -> Callable[[str], Scenarios]:
    """What a program of ``foreign/`` printed when it ran with the frameworks."""
    return lambda name: _run([str(FOREIGN / "frameworks" / "bin" / "python"), str(PROGRAMS / name)], environment)


@pytest.fixture(scope="session")
def run_strands(environment: dict[str, str]) -> Callable[[str], Scenarios]:
    """What a program of ``foreign/`` printed when it ran with Strands, instructor and aioboto3."""
    return lambda name: _run([str(FOREIGN / "strands" / "bin" / "python"), str(PROGRAMS / name)], environment)


@pytest.fixture(scope="session")
def run_sagemaker(environment: dict[str, str]) -> Callable[[str], Scenarios]:
    """What a program of ``foreign/`` printed when it ran with the SageMaker Python SDK."""
    return lambda name: _run([str(FOREIGN / "sagemaker" / "bin" / "python"), str(PROGRAMS / name)], environment)


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript programs of ``foreign/`` beside the packages that they import."""
    # Node looks for packages beside the program, so the program moves to them.
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(FOREIGN / "node" / "node_modules")
    for program in PROGRAMS.glob("*.mjs"):
        (folder / program.name).write_text(program.read_text())
    return folder


@pytest.fixture(scope="session")
def run_node(environment: dict[str, str], node_folder: Path) -> Callable[[str], Scenarios]:
    """What a JavaScript program of ``foreign/`` printed."""
    return lambda name: _run(["node", str(node_folder / name)], environment)


def _run(command: list[str], environment: dict[str, str]) -> Scenarios:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: Scenarios = json.loads(done.stdout.splitlines()[-1])
    return found
