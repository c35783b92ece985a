"""``outcrop check`` as a pipeline runs it: exit codes, JSON, and every problem by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import copy_of, drop_tensor, set_config, truncate_shard
from tests.support.s3 import MotoServer

from outcrop.bench.children import object_store, run
from outcrop.bench.imports import stores
from outcrop.bench.large_checkpoint import BIG, make_checkpoint

INDEX = "model.safetensors.index.json"


def check(*words: str, home: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUTCROP_HOME": str(home or "/nonexistent"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "outcrop.cli.main", "check", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def set_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def move_tensor(index: dict[str, Any]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"][name] = next(shard for shard in shards if shard != index["weight_map"][name])


def test_a_sound_checkpoint_is_described_and_exits_with_0(tiny: Path) -> None:
    done = check(str(tiny), "--json")

    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert told["importable"] is True
    assert told["family"] == "qwen2"
    assert told["context_tokens"] == 512
    assert told["chat"] is True
    assert told["units_per_copy"] == 1
    assert told["problems"] == []
    assert {"engine", "hardware"} <= set(told["engines"][0])
    assert told["memory_per_copy_bytes"] > told["weight_bytes"]
    assert told["expected_import_s"] > 0
    assert told["expected_from_jobs"] == 0


def test_people_get_the_same_in_words(tiny: Path) -> None:
    done = check(f"file://{tiny}")

    assert done.returncode == 0
    assert "qwen2 (Qwen2ForCausalLM, text)" in done.stdout
    assert "The checkpoint can be imported." in done.stdout


@pytest.mark.parametrize(
    ("break_it", "file", "tensor", "told"),
    [
        (truncate_shard, ".safetensors", None, "1000 bytes are missing"),
        (
            lambda folder: drop_tensor(folder, "model.layers.1.mlp.up_proj.weight"),
            "",
            "model.layers.1.mlp.up_proj.weight",
            "is missing",
        ),
        (
            lambda folder: set_index(folder, move_tensor),
            INDEX,
            "model.layers.0.mlp.up_proj.weight",
            f"{INDEX} says that tensor",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}"),
            "",
            None,
            "does not render a test conversation",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("always the same"),
            "",
            None,
            "does not hold the user's message",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(
                "{{ messages.__class__.__mro__[1].__subclasses__() }}"
            ),
            "",
            None,
            "does not render a test conversation",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            ),
            "",
            None,
            "processor time",
        ),
        (lambda folder: set_config(folder, intermediate_size=96), "", None, "config.json implies [96, 64]"),
    ],
    ids=["cut", "no tensor", "wrong shard", "template syntax", "template deaf", "escape", "endless", "shape"],
)
def test_a_problem_is_named_and_exits_with_1(
    tiny: Path, tmp_path: Path, break_it: Callable[[Path], object], file: str, tensor: str | None, told: str
) -> None:
    folder = copy_of(tiny, tmp_path / "broken")
    break_it(folder)

    done = check(str(folder), "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["importable"] is False
    problem = next(problem for problem in found["problems"] if told in problem["message"])
    assert file in problem["file"]
    assert tensor is None or problem["tensor"] == tensor
    assert problem["remedy"].endswith(".")


def test_an_index_that_miscounts_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "miscounted")
    set_index(folder, lambda index: index.update(metadata={"total_size": 1}))

    found = json.loads(check(str(folder), "--json").stdout)

    assert found["importable"] is True
    assert any("total_size 1" in warning for warning in found["warnings"])


def test_a_template_that_refuses_system_messages_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "no-system")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )

    found = json.loads(check(str(folder), "--json").stdout)

    assert found["importable"] is True
    assert any("no system here" in warning for warning in found["warnings"])


def test_what_is_not_there_exits_with_3(tmp_path: Path) -> None:
    done = check(str(tmp_path / "absent"), "--json")

    assert done.returncode == 3
    assert json.loads(done.stdout)["importable"] is False
    assert "There is no folder at" in done.stderr


def test_an_object_store_is_checked_without_a_server(moto: MotoServer, tiny: Path, tmp_path: Path) -> None:
    uri = moto.upload(tiny, "checked-models", "v1")
    stores = json.dumps([moto.store(buckets=["checked-*"])])

    done = check(uri, "--json", home=tmp_path, OUTCROP_OBJECT_STORES=stores)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == uri
    assert check("s3://checked-models/v2/", home=tmp_path, OUTCROP_OBJECT_STORES=stores).returncode == 3


def test_a_check_of_30_gb_in_16_shards_takes_less_than_100_mb_of_memory(tmp_path: Path) -> None:
    size = make_checkpoint(tmp_path / "store" / "bench" / "big", BIG, 16, sparse=True)
    with object_store(tmp_path / "store") as url:
        environment = {"OUTCROP_OBJECT_STORES": stores(url), "OUTCROP_HOME": str(tmp_path / "none")}
        words = ["-m", "outcrop.cli.main", "check", "s3://bench/big/", "--json"]
        ran = run([sys.executable, *words], environment)

    assert ran.said["importable"] is True
    assert ran.said["total_bytes"] == size > 30e9
    assert ran.peak_bytes < 100e6


def test_the_standard_chain_of_credentials_is_used_where_a_store_has_none(
    moto: MotoServer, tiny: Path, tmp_path: Path
) -> None:
    uri = moto.upload(tiny, "chained-models", "v1")
    keys = {"AWS_ACCESS_KEY_ID": moto.admin.access_key_id, "AWS_SECRET_ACCESS_KEY": moto.admin.secret_access_key}
    stores = json.dumps([{"buckets": ["chained-*"], "endpoint": moto.url}])

    assert check(uri, home=tmp_path, OUTCROP_OBJECT_STORES=stores, **keys).returncode == 0
