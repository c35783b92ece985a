"""What a variant's model.tar.gz may hold: nothing that leaves its folder, floods the disk or cannot be read."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from outcrop.serving import variants
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.rollout import Plan
from outcrop.serving.watch import Watch

ME = "000000000000"


def packed(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(data * member.size) if member.isreg() else None)
    return found.getvalue()


def member(name: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, to
    return found


def huge() -> bytes:
    """A header that promises 2 GiB, and nothing of it."""
    return gzip.compress(member("weights", size=2 << 30).tobuf() + bytes(4096))


BUNDLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "out of its folder": (lambda: packed(member("../../evil.py", size=1), data=b"x"), "outside the destination"),
    "an absolute link": (lambda: packed(member("model.py", kind=tarfile.SYMTYPE, to="/etc/passwd")), "absolute path"),
    "a link out": (
        lambda: packed(member("model.py", kind=tarfile.SYMTYPE, to="../../../x")),
        "outside the destination",
    ),
    "a device": (lambda: packed(member("model.py", kind=tarfile.CHRTYPE)), "special file"),
    "more than fits": (huge, "unpacks to more than 1 GiB"),
    "too many files": (lambda: packed(*(member(f"f{number}") for number in range(6))), "or 5 files"),
    "no archive": (lambda: b"PK no tar", "cannot be unpacked"),
    "cut off": (lambda: packed(member("model.py", size=200_000), data=b"x")[:120], "cannot be unpacked"),
    "broken inside": (lambda: packed(member("a", size=9), data=b"x")[:20] + b"\0" * 80, "cannot be unpacked"),
}


@pytest.fixture
async def endpoints(tmp_path: Path) -> AsyncIterator[Endpoints]:
    async def settings(account: str, endpoint: str) -> dict[str, str]:
        return {}

    async def changed(endpoint: Any) -> None:
        return None

    found = Endpoints(
        folder=tmp_path / "run" / "proxies",
        logs=tmp_path / "logs",
        buckets=tmp_path / "buckets",
        region="us-east-1",
        settings_of=settings,
        changed=changed,
        watch=Watch(),
    )
    yield found
    await found.close(0)


@pytest.mark.parametrize("what", BUNDLES)
async def test_a_bundle_that_cannot_be_used_fails_its_endpoint_by_name_and_leaves_nothing(
    endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(variants, "_MOST_FILES", 5)
    make, said = BUNDLES[what]
    bundle = tmp_path / "buckets" / "b" / "model.tar.gz"
    bundle.parent.mkdir(parents=True)
    bundle.write_bytes(make())
    container = {"ModelDataUrl": "s3://b/model.tar.gz", "Environment": {"OUTCROP_PROXY_TARGET": "m"}}
    plan = Plan(config_name="c", variants=[({"VariantName": "v"}, {"PrimaryContainer": container})])
    endpoint = endpoints.create(ME, "e", plan)
    assert endpoint.task is not None
    await endpoint.task

    assert endpoint.status == "Failed"
    assert said in endpoint.failure
    assert "s3://b/model.tar.gz" in endpoint.failure
    assert _files(tmp_path) == [bundle]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


async def test_a_defect_leaves_no_endpoint_in_service_that_has_no_copy(
    endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(endpoints.copies, "grow", broken)
    container = {"Environment": {"OUTCROP_PROXY_TARGET": "m"}}
    plan = Plan(config_name="c", variants=[({"VariantName": "v"}, {"PrimaryContainer": container})])
    endpoint = endpoints.create(ME, "e", plan)
    assert endpoint.task is not None
    await endpoint.task

    assert endpoint.status == "Failed"
