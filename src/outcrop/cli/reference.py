"""The generated pages of ``docs/reference``: commands, settings, compatibility, errors, checkpoints, metrics.

``--check`` fails when one is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from outcrop.api import (
    bedrock,
    bedrock_agent_runtime,
    bedrock_resources,
    bedrock_runtime,
    iam,
    sagemaker,
    sagemaker_runtime,
    sts,
)
from outcrop.api.refusals import REFUSED_FOR_IMPORTED_MODELS
from outcrop.api.wire_errors import AWS, OPENAI
from outcrop.awswire.service import Service
from outcrop.checkpoints.engines import HARDWARE, LLAMA_CPP
from outcrop.checkpoints.families import FAMILIES, Family
from outcrop.checkpoints.pre_tokenizers import LOOSE, PRE_TOKENIZERS
from outcrop.checkpoints.quantisation import METHODS
from outcrop.cli.main import application
from outcrop.engines.gguf_plan import QUANTISED
from outcrop.errors import Faulty, Passing, Refused, ServiceError
from outcrop.proxy.settings import PREFIX, SAGEMAKER, ProxySettings
from outcrop.settings import Settings
from outcrop.telemetry.metric_table import TABLE
from outcrop.telemetry.metrics import MOST_MODELS, OTHER, UNKNOWN

DOCS = Path(__file__).parents[3] / "docs" / "reference"
IMPLEMENTED = {
    "bedrock": {**bedrock.OPERATIONS, **bedrock_resources.OPERATIONS},
    "bedrock-runtime": bedrock_runtime.OPERATIONS,
    "bedrock-agent-runtime": bedrock_agent_runtime.OPERATIONS,
    "sagemaker-runtime": sagemaker_runtime.OPERATIONS,
}
# Where an operation does something that a reader of AWS's documentation would not expect.
NOTES = {
    "RetrieveAndGenerate": "of a text document that comes with the call (EXTERNAL_SOURCES, BYTE_CONTENT); there are no "
    "knowledge bases here.",
    "ApplyGuardrail": "no guardrail can be made here, so the one that is named is a ResourceNotFoundException.",
    "Converse": "for every model with a chat template, also where AWS has none of it (Qwen).",
    "ConverseStream": "as Converse.",
    "CreateModelImportJob": "a known `clientRequestToken` gives the first job, whatever else is asked. A name that is "
    "taken is a ConflictException. `vpcConfig` is kept and given back; there is no network behind it. "
    "`importedModelKmsKeyId` encrypts the weights where the server has keys (`OUTCROP_WEIGHT_KEYS`), and is a "
    "ValidationException when it is none of them; a server without keys keeps it, gives it back and encrypts nothing.",
    "DeleteImportedModel": "running requests end, new ones get ResourceNotFoundException at once.",
    "GetImportedModel": "by ARN or name; one that does not exist is a ResourceNotFoundException.",
    "GetModelImportJob": "by ARN or name; one that does not exist is a ResourceNotFoundException.",
    "ListImportedModels": "`nameContains` ignores case. A token is good for the filters it was made with.",
    "ListModelImportJobs": "`nameContains` ignores case. A token is good for the filters it was made with.",
    "PutModelInvocationLoggingConfiguration": "per account, to buckets of the home or of an "
    "object store; `cloudWatchConfig` is refused by name.",
    "PutResourcePolicy": "for imported models; takes part in every decision about the model.",
    "TagResource": "import jobs and imported models, 50 tags each.",
}


def settings_page() -> str:
    rows = ["# Settings", "", "Flags over `OUTCROP_*` variables over `outcrop.toml` over defaults.", ""]
    return "\n".join(rows + _settings_rows(Settings, "OUTCROP_", "`~/.outcrop`")) + "\n"


def proxy_settings_page() -> str:
    rows = [
        "# Settings of a proxy container",
        "",
        "Flags over `OUTCROP_PROXY_*` variables over SageMaker's own over defaults. SageMaker's: "
        + ", ".join(f"`{variable}` (`{name}`)" for variable, name in SAGEMAKER.items())
        + ", `SAGEMAKER_BASE_DIR` (its `model` folder is `model_dir`), `SAGEMAKER_MAX_PAYLOAD_IN_MB`, "
        "`SAGEMAKER_CONTAINER_LOG_LEVEL`.",
        "",
    ]
    return "\n".join(rows + _settings_rows(ProxySettings, PREFIX, "none; must be set")) + "\n"


def _settings_rows(settings: type[BaseSettings], prefix: str, undefined: str) -> list[str]:
    rows = ["| setting | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in settings.model_fields.items():
        default = undefined if field.default is PydanticUndefined else f"`{field.default}`"
        rows.append(f"| `{name}` | `{prefix}{name.upper()}` | {default} | {field.description} |")
    return rows


def cli_page() -> str:
    group = typer.main.get_command(application())
    parts = ["# Commands", ""]
    _describe(group, "outcrop", parts)
    return "\n".join(parts) + "\n"


def compatibility_page() -> str:
    parts = [
        "# Compatibility",
        "",
        "Every operation of the AWS service models. *yes*: served. *refused*: AWS has the operation and refuses it for",
        "imported models, and so does this service, with a ValidationException. *no*: answered with",
        "UnknownOperationException (501), which names the operation.",
    ]
    for name, done in IMPLEMENTED.items():
        parts += ["", f"## {name}", "", "| operation | implemented | notes |", "| --- | --- | --- |"]
        parts += [_operation_row(operation, done) for operation in sorted(Service(name).operations)]
    parts += [
        "",
        "## sagemaker",
        "",
        "Of SageMaker's control plane what endpoints need: " + ", ".join(sagemaker.OPERATIONS) + ".",
        "Every other operation is answered with UnknownOperationException. Images are not run; serverless and",
        "multi-container models are refused by name; alarms are our own ([how-to](../how-to/sagemaker.md)).",
        "",
        "## iam, sts",
        "",
        "Of IAM: " + ", ".join(iam.OPERATIONS) + ".",
        "Of STS: " + ", ".join(sts.OPERATIONS) + ".",
        "There are no managed policies and no groups ([how-to](../how-to/access.md)).",
        "",
        "## OpenAI",
        "",
        "`POST /v1/chat/completions`, `POST /v1/completions`, `POST /v1/embeddings`, `GET /v1/models[/{model}]`,",
        "`POST /v1/responses[/input_tokens]`, `GET` and `DELETE /v1/responses/{id}`",
        "([how-to](../how-to/ask-a-model.md)).",
    ]
    return "\n".join(parts) + "\n"


def errors_page() -> str:
    parts = [
        "# Errors",
        "",
        "What goes wrong, and what each kind of client is told. Errors that pass if retried come with the headers",
        "`x-amz-retry-after` (milliseconds) and `retry-after` (seconds). Inside a stream that is open, AWS clients get",
        "the exception as an event, OpenAI clients as a last `data:` line.",
        "",
        "| what | AWS code | status | OpenAI code | status | retry helps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cls in _leaves(ServiceError):
        (aws, aws_status), (openai, openai_status) = (
            next(table[base] for base in cls.__mro__ if base in table) for table in (AWS, OPENAI)
        )
        # What follows a semicolon is about the class, not about the fact.
        meaning = " ".join((cls.__doc__ or cls.__name__).split()).partition(";")[0].removesuffix(".")
        helps = "yes" if issubclass(cls, Passing) else ""
        parts.append(f"| {meaning} | {aws} | {aws_status} | {openai} | {openai_status} | {helps} |")
    return "\n".join(parts) + "\n"


def _leaves(cls: type[ServiceError]) -> list[type[ServiceError]]:
    children = [found for child in cls.__subclasses__() for found in _leaves(child)]
    return children if cls in (ServiceError, Refused, Passing, Faulty) else [cls, *children]


def _operation_row(operation: str, done: Mapping[str, str]) -> str:
    if operation in done:
        return f"| {operation} | yes | {NOTES.get(operation, '')} |"
    if reason := REFUSED_FOR_IMPORTED_MODELS.get(operation):
        return f"| {operation} | refused | {reason} |"
    return f"| {operation} | no | |"


def checkpoints_page() -> str:
    """Families by engine, with the tests that prove them."""
    parts = [
        "# Checkpoints",
        "",
        "Hugging Face checkpoints in safetensors (F32, F16, BF16) of these families can be imported. *proven* names",
        "the tests that hold the engine to transformers' own classes; *declared* is what the engine's documentation",
        "says and was not run by us. What no engine of an installation serves is kept; calls to it say which would.",
        "",
        f"| family | `model_type` | in AWS's list | {' | '.join(HARDWARE)} |",
        f"| --- | --- | --- | {' | '.join('---' for _ in HARDWARE)} |",
    ]
    for family in FAMILIES.values():
        cells = [_serves(family, engine) for engine in HARDWARE]
        listed = "yes" if family.aws else "no"
        parts.append(f"| {family.label} | `{family.model_type}` | {listed} | {' | '.join(cells)} |")
    parts += ["", "Hardware: " + "; ".join(f"{engine}: {where}" for engine, where in HARDWARE.items()) + "."]
    parts += [
        "",
        "## Quantised checkpoints",
        "",
        "Recognised by `quantization_config`; refused where no engine here reads them.",
        "",
    ]
    parts += ["| method | engines (declared) |", "| --- | --- |"]
    parts += [f"| {method} | {', '.join(sorted(engines))} |" for method, engines in METHODS.items()]
    loose = " and ".join(f"`{name}`" for name in sorted(LOOSE))
    parts += [
        "",
        "MXFP4 checkpoints of GPT-OSS are also served by llama.cpp: their blocks are rearranged without a change of",
        "value (`tests/exactness/test_mxfp4.py`); the engine rounds what it multiplies with them to eight bits.",
        "",
        "## Tokenizers of the CPU engine",
        "",
        "`tokenizer.json` (byte-level BPE and what was made from SentencePiece), `tokenizer.model` alone (BPE,",
        "Unigram), `tekken.json`, `vocab.json` with `merges.txt` (GPT-2's, CodeGen's and Qwen2's classes).",
        "A BPE is taken by how it splits text, whoever trained it; llama.cpp's names for the",
        "ways it knows: " + ", ".join(f"`{name}`" for name in sorted(set(PRE_TOKENIZERS.values()))) + ".",
        f"Of {loose} it splits words at combining marks, which the tokenizer does not; an import notes it.",
        "",
        "## Precision",
        "",
        "The CPU engine keeps the checkpoint's precision, or widens it. `outcrop import --quantize` packs the matrices",
        f"({' or '.join(QUANTISED)}; embedding and output never below eight bits), and the model says so.",
    ]
    return "\n".join(parts) + "\n"


def _serves(family: Family, engine: str) -> str:
    if engine == LLAMA_CPP:
        return "proven: `tests/exactness`, `tests/parity`" if family.gguf else "no"
    return "declared" if engine in family.engines else "no"


def _describe(command: Any, path: str, parts: list[str]) -> None:
    parts += [f"## `{path}`", "", (command.help or "").strip(), ""]
    for parameter in command.params:
        names = ", ".join(f"`{opt}`" for opt in (*parameter.opts, *parameter.secondary_opts))
        variable = f" (`{parameter.envvar}`)" if isinstance(parameter.envvar, str) else ""
        parts.append(f"- {names}{variable}: {getattr(parameter, 'help', None) or ''}")
    parts.append("")
    for name, child in getattr(command, "commands", {}).items():
        _describe(child, f"{path} {name}", parts)


def metrics_page() -> str:
    parts = [
        "# Metrics",
        "",
        "`GET /metrics` of the server, in Prometheus's text format; it asks for credentials as everything does",
        "([how to scrape it](../how-to/observe.md)). Beside these there are the usual `process_*` metrics.",
        "",
        "*CloudWatch* names the metric of the namespace AWS/Bedrock that teams alarm on; its dimension ModelId is the",
        f"label `model`, the model's name. There are at most {MOST_MODELS} values of it; further models are counted as",
        f"`{OTHER}`, and requests that name no model that exists as `{UNKNOWN}`. Times are in seconds (CloudWatch:",
        "milliseconds). A histogram has `_bucket`, `_sum` and `_count` behind its name. Series of a deleted model go.",
        "",
        "| metric | kind | labels | CloudWatch | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in TABLE:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        parts.append(f"| `{row.exported}` | {row.kind} | {labels} | {row.cloudwatch} | {row.help} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    pages = {
        "metrics.md": metrics_page(),
        "settings.md": settings_page(),
        "proxy-settings.md": proxy_settings_page(),
        "cli.md": cli_page(),
        "compatibility.md": compatibility_page(),
        "errors.md": errors_page(),
        "checkpoints.md": checkpoints_page(),
    }
    stale = [name for name, text in pages.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if "--check" in sys.argv:
        for name in stale:
            typer.echo(f"docs/reference/{name} is stale; run: make docs", err=True)
        return bool(stale)
    DOCS.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (DOCS / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
