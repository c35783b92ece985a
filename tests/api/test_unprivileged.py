"""The whole server as a user without any right: started, a model imported and asked, ended."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.server import Server

NOBODY = 65534
WITHOUT_RIGHTS = [
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"),
]


def with_its_interpreter() -> list[str]:
    """Words before a command that let every user reach this interpreter, where it lies in somebody's private folder."""
    place = Path(sys.base_prefix).resolve()
    hidden = [folder for folder in place.parents if not folder.stat().st_mode & 0o001]
    if not hidden:
        return []
    script = (
        'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 tmpfs "$2" && mkdir -p "$1" && mount --bind /mnt "$1"'
        ' && shift 2 && exec "$@"'
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(place), str(hidden[-1])]


@pytest.fixture
def home(tiny: Path) -> Iterator[Path]:
    """A home that is nobody's, in a folder that nobody may enter, with the checkpoint in a bucket."""
    folder = Path(tempfile.mkdtemp(prefix="outcrop-nobody-"))
    home = folder / "home"
    shutil.copytree(tiny, home / "buckets" / "artifacts" / "tiny")
    for path in (folder, home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
    yield home
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests run without root then")
def test_a_server_without_any_right_imports_and_serves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    server = Server(
        home, cpu_threads=1, weight_keys='{"default": "env:MASTER"}', prefix=[*with_its_interpreter(), *WITHOUT_RIGHTS]
    )
    monkeypatch.setenv("MASTER", "7b" * 32)
    server.start()
    try:
        assert server.process is not None
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status
        job = server.ended_job(server.create_job("s3://artifacts/tiny/", "tiny"))
        assert job["status"] == "Completed", job.get("failureMessage")
        answer = server.client("bedrock-runtime").invoke_model(
            modelId=job["importedModelArn"], body='{"prompt":"x","max_gen_len":1}'
        )
        assert b'"generation_token_count":1' in answer["body"].read()
    finally:
        server.stop()
    owners = {path.lstat().st_uid for path in home.rglob("*") if path.name != "server.log"}
    assert owners == {NOBODY}
