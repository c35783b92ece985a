"""Checkpoints that are meant to harm: pickles by another name, archives, links, paths, code, templates."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from outcrop.importing.preflight import Preflight, preflight
from outcrop.importing.sources.folder import FolderSource

SHARD = "model-00001-of-00002.safetensors"


class Bomb:
    """Its unpickling makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "buckets" / "b" / "checkpoint"))


async def checked(folder: Path) -> Preflight:
    return await preflight(FolderSource("s3://b/checkpoint/", folder, confined=True))


def without_weights(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return out.getvalue()


def tarred(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("../../evil")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("make", ["dict", "list", "object"])
async def test_a_pickle_named_safetensors_is_refused_by_its_content_and_not_run(
    checkpoint: Path, tmp_path: Path, protocol: int, make: str
) -> None:
    bomb = Bomb(tmp_path / "harm")
    value = {"dict": {"a": bomb}, "list": [bomb], "object": bomb}[make]
    (checkpoint / SHARD).write_bytes(pickle.dumps(value, protocol=protocol))

    found = await checked(checkpoint)

    (problem,) = [problem for problem in found.problems if problem.file == SHARD]
    assert f"{SHARD} is a pickle under the name of a safetensors file" in problem.message
    assert "loading one can run code" in problem.message
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped(b"\x80\x02}."), "a zip archive (PyTorch's own format)"),
        (tarred(b"x"), "a tar archive"),
        (b"\x1f\x8b" + bytes(100), "a gzip archive"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"\x93NUMPY" + bytes(100), "a NumPy file"),
    ],
)
async def test_an_archive_named_safetensors_is_refused_by_its_content(
    checkpoint: Path, content: bytes, kind: str
) -> None:
    (checkpoint / SHARD).write_bytes(content)

    found = await checked(checkpoint)

    assert found.checkpoint is None
    assert any(f"{SHARD} is {kind} under the name" in problem.message for problem in found.problems)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model.bin", "pickles are not read: loading one can run code"),
        ("consolidated.00.pth", "pickles are not read: loading one can run code"),
        ("checkpoint.tar.gz", "archives such as checkpoint.tar.gz are not unpacked"),
    ],
)
async def test_pickles_and_archives_alone_are_no_checkpoint(checkpoint: Path, name: str, told: str) -> None:
    without_weights(checkpoint)
    (checkpoint / name).write_bytes(zipped(b"x"))

    found = await checked(checkpoint)

    assert any(told in problem.message for problem in found.problems)


async def test_a_pickle_and_code_beside_the_weights_are_neither_read_nor_brought(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    (checkpoint / "modeling_evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM", "AutoConfig": "modeling_evil.C"}
    (checkpoint / "config.json").write_text(json.dumps(config))

    found = await checked(checkpoint)

    assert found.accepted()
    assert {name.rpartition(".")[2] for name in found.names} == {"json", "safetensors"}
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/passwd", "sub/../../x.safetensors"])
async def test_an_index_that_names_files_elsewhere_is_refused(checkpoint: Path, name: str) -> None:
    shutil.copy(checkpoint / SHARD, checkpoint.parent.parent / "outside.safetensors")
    index = checkpoint / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"] = dict.fromkeys(document["weight_map"], name)
    index.write_text(json.dumps(document))

    found = await checked(checkpoint)

    assert any("which was not uploaded" in problem.message for problem in found.problems)
    assert all("/" not in each for each in found.names)


@pytest.mark.parametrize("place", ["../../../secret", "../../other/file"])
async def test_links_out_of_a_checkpoint_are_not_followed(checkpoint: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "buckets" / "other").mkdir()
    (tmp_path / "buckets" / "other" / "file").write_text("{}")
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to(place)
    assert (checkpoint / "config.json").exists()

    found = await checked(checkpoint)

    assert "config.json" not in found.sources
    assert any("config.json is missing" in problem.message for problem in found.problems)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{% for i in range(10000000000) %}x{% endfor %}", "Range too big"),
        ("{{ 'x' * 100000000000 }}", "processor time or 1024 MiB"),
        (
            "{% set ns = namespace(a='x' * 1000000) %}{% for i in range(99999) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
            "1024 MiB",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", ""),
    ],
)
async def test_a_hostile_template_ends_in_its_sandbox_and_is_named(checkpoint: Path, template: str, told: str) -> None:
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))

    found = await checked(checkpoint)

    (problem,) = [problem for problem in found.problems if "chat template" in problem.message]
    assert told in problem.message
    with pytest.raises(Exception, match="chat template"):
        found.accepted()


def test_nothing_trusts_remote_code() -> None:
    source = Path(__file__).parents[3] / "src" / "outcrop"
    using = [
        path
        for path in source.rglob("*.py")
        if "trust_remote_code" in path.read_text() or "trust-remote-code" in path.read_text()
    ]

    assert using == []


@pytest.mark.parametrize(
    "word", ["import pickle", "pickle.load", "torch.load", "import marshal", "shelve", "dill", "joblib"]
)
def test_nothing_loads_pickles(word: str) -> None:
    source = Path(__file__).parents[3] / "src" / "outcrop"

    assert [path.name for path in source.rglob("*.py") if word in path.read_text()] == []
