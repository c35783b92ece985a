"""The weight store under SIGKILL before every single change that it makes to the disk, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outcrop.errors import StorageFull
from outcrop.importing.disk import DiskLedger
from outcrop.importing.inventory import inventory
from outcrop.importing.weights import WeightStore, link, write_atomically

# Job, model, files. Both models share the tokenizer and the first shard, and are converted to the same artefact.
PLAN = (
    ("job-a", "model-a", {"tokenizer.json": b"shared words", "1.safetensors": b"base", "2.safetensors": b"only a"}),
    ("job-b", "model-b", {"tokenizer.json": b"shared words", "1.safetensors": b"base", "2.safetensors": b"only b"}),
)
CHANGES = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def bring(store: WeightStore, job: str, files: dict[str, bytes], source: Path) -> None:
    """What a job does with the store, in its order; safe to repeat."""
    folder = store.prepare(job)
    notes = store.noted(job)
    for name, body in files.items():
        if name in notes:
            continue
        assert link(source / job / name, folder / name)
        sha256 = hashlib.sha256(body).hexdigest()
        store.keep(folder / name, sha256)
        notes[name] = {"sha256": sha256, "size_bytes": len(body), "etag": name}
        store.note(job, notes)
    store.mark_fetched(job, f"s3://{job}/", notes)
    if not store.reuse_artifact("key", store.staging(job)):
        write_atomically(store.staging(job) / "model.gguf", b"artefact")
        write_atomically(store.staging(job) / "model.json", b"{}")
    store.keep_artifact("key", store.staging(job))


class Life:
    """Two imports and a deletion over a registry that is one file, as the server does them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.book = root / "registry.json"
        self.store = WeightStore(root / "store")

    @property
    def records(self) -> dict[str, list[str]]:
        empty: dict[str, list[str]] = {"jobs": [], "models": [], "deleted": []}
        return json.loads(self.book.read_bytes()) if self.book.exists() else empty

    def record(self, change: Callable[[dict[str, list[str]]], None]) -> None:
        records = self.records
        change(records)
        write_atomically(self.book, json.dumps(records).encode())

    def recover(self) -> None:
        records = self.records
        models = {job: model for job, model, _ in PLAN}
        self.store.sweep(records["jobs"], records["models"] + [models[job] for job in records["jobs"]])

    def run(self) -> None:
        self.recover()
        for job, model, files in PLAN:
            if model in self.records["models"] + self.records["deleted"]:
                continue
            if job not in self.records["jobs"]:
                self.record(lambda records, job=job: records["jobs"].append(job))
            if not self.store.model(model).exists():
                bring(self.store, job, files, self.root / "source")
                self.store.publish(job, model)
            self.record(
                lambda records, job=job, model=model: (records["jobs"].remove(job), records["models"].append(model))
            )
        if "model-a" in self.records["models"]:
            self.record(lambda records: (records["models"].remove("model-a"), records["deleted"].append("model-a")))
        self.store.remove_model("model-a")

    def check(self) -> None:
        """What must hold after any crash and the sweep that follows it."""
        records, store = self.records, self.store
        contents = {model: files for _, model, files in PLAN}
        assert {path.name for path in (store.root / "staging").iterdir()} <= set(records["jobs"])
        for model in records["models"]:
            assert (store.model(model) / "model.gguf").read_bytes() == b"artefact"
            for name, body in contents[model].items():
                assert (store.model(model) / "checkpoint" / name).read_bytes() == body
        assert store.unused_blobs() == []
        assert store.unused_artifacts() == []
        for blob in (store.root / "blobs").glob("*/*"):
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def prepared(root: Path) -> Life:
    for job, _, files in PLAN:
        (root / "source" / job).mkdir(parents=True)
        for name, body in files.items():
            (root / "source" / job / name).write_bytes(body)
    return Life(root)


def run_killed_before_change(life: Life, number: int) -> bool:
    """Run in a child that is killed before its *number*-th change of the disk; whether it came that far."""
    pid = os.fork()
    if pid == 0:
        left = number

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or is_write:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            life.run()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: the test synchronises thousands of files."""
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else tmp_path) as folder:
        yield Path(folder)


def test_a_kill_before_any_change_of_the_disk_loses_nothing_and_leaves_nothing(memory: Path) -> None:
    killed = 0
    while True:
        life = prepared(memory / str(killed))
        if not run_killed_before_change(life, killed + 1):
            break
        killed += 1
        life.recover()
        life.check()
        life.run()
        life.check()
        assert life.records["models"] == ["model-b"]
        assert {blob.read_bytes() for blob in (life.store.root / "blobs").glob("*/*")} == set(PLAN[1][2].values())
    assert killed > 50


def test_a_deletion_frees_exactly_what_nobody_else_uses(tmp_path: Path) -> None:
    life = prepared(tmp_path)
    for job, model, files in PLAN:
        bring(life.store, job, files, tmp_path / "source")
        life.store.publish(job, model)
    for path in (tmp_path / "source").rglob("*.*"):
        path.unlink()  # the store is now the only place
    names = {"model-a": "reviews", "model-b": "triage"}
    before = inventory(life.store, names, [])

    told = next(model["own_bytes"] for model in before["models"] if model["model_name"] == "reviews")
    own = len(b"only a") + sum(
        (life.store.model("model-a") / name).stat().st_size for name in ("files.json", "fetched")
    )
    freed = life.store.remove_model("model-a")

    assert told == freed == own
    assert before["shared"] == [
        {"sha256": digest, "file": name, "bytes": len(body), "models": ["reviews", "triage"]}
        for name, body, digest in (
            ("tokenizer.json", b"shared words", hashlib.sha256(b"shared words").hexdigest()),
            ("model.gguf", b"artefact", None),
            ("1.safetensors", b"base", hashlib.sha256(b"base").hexdigest()),
        )
    ]
    assert inventory(life.store, names, [])["shared"] == []
    assert (life.store.model("model-b") / "checkpoint" / "1.safetensors").read_bytes() == b"base"
    assert (life.store.model("model-b") / "model.gguf").read_bytes() == b"artefact"

    life.store.remove_model("model-b")

    assert [path for path in life.store.root.rglob("*") if path.is_file()] == []


def test_bytes_that_still_lie_in_the_source_are_told_as_linked_and_free_nothing(tmp_path: Path) -> None:
    life = prepared(tmp_path)
    job, model, files = PLAN[0]
    bring(life.store, job, files, tmp_path / "source")
    life.store.publish(job, model)

    found = inventory(life.store, {"model-a": "reviews"}, [])["models"][0]

    assert found["linked_bytes"] == found["checkpoint_bytes"] == sum(map(len, files.values()))
    assert found["own_bytes"] == found["artifact_bytes"]
    assert life.store.remove_model(model) == found["artifact_bytes"]


def test_a_collection_tells_beforehand_what_it_frees(tmp_path: Path) -> None:
    life = prepared(tmp_path)
    for job, model, files in PLAN:
        bring(life.store, job, files, tmp_path / "source")
        life.store.publish(job, model)
    for path in (tmp_path / "source").rglob("*.*"):
        path.unlink()

    told = inventory(life.store, {"model-b": "triage"}, [])["collectable"]
    freed = life.store.sweep([], ["model-b"])

    assert told["folders"] == 1
    assert freed == told["bytes"]
    assert inventory(life.store, {"model-b": "triage"}, [])["collectable"] == {"bytes": 0, "blobs": 0, "folders": 0}


def test_disk_that_is_promised_to_one_job_is_not_promised_to_another() -> None:
    ledger = DiskLedger(Path("/store"), spare_bytes=10_000_000_000)
    ledger.reserve("first", 50_000_000_000, free_bytes=100_000_000_000)

    with pytest.raises(StorageFull) as refused:
        ledger.reserve("second", 50_000_000_000, free_bytes=100_000_000_000)
    for number in (
        "needs 50.00 GB",
        "100.00 GB are free",
        "50.00 GB are promised",
        "10.00 GB stay free",
        "Free 10.00 GB",
    ):
        assert number in str(refused.value)

    ledger.written("first", 45_000_000_000)  # now part of what the disk itself counts
    ledger.reserve("second", 40_000_000_000, free_bytes=55_000_000_000)
    ledger.release("first")
    ledger.reserve("third", 4_000_000_000, free_bytes=55_000_000_000)
