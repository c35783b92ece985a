"""Encrypted files, the keys that wrap their keys, and their plain content in memory."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from outcrop.access.weight_keys import Envelope, WeightKeys
from outcrop.errors import BadSetting, EngineFault, InvalidRequest, KeyUnavailable
from outcrop.launchers import sealed
from outcrop.launchers.sealed import CHUNK_BYTES, HEADER, NotOpened, plain_bytes, seal, unseal
from outcrop.serving.unsealed import ENVELOPE, Unsealer, work

KEY = bytes(range(32))
ACCOUNT, MODEL = "000000000000", "abcdef123456"


def opened(path: Path, key: bytes = KEY) -> bytes:
    handle = os.memfd_create("test")
    try:
        unseal(path, handle, key)
        os.lseek(handle, 0, os.SEEK_SET)
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read()
    finally:
        os.close(handle)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17])
def test_what_was_sealed_is_opened_again_and_cannot_be_read_closed(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "plain").write_bytes(content)
    seal(tmp_path / "plain", tmp_path / "sealed", KEY)

    assert opened(tmp_path / "sealed") == content
    assert plain_bytes(tmp_path / "sealed") == size
    raw = (tmp_path / "sealed").read_bytes()
    assert size < 32 or content[:32] not in raw
    seal(tmp_path / "plain", tmp_path / "again", KEY)
    assert (tmp_path / "again").read_bytes()[HEADER.size :] != raw[HEADER.size :]


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sealed file of five small chunks."""
    monkeypatch.setattr(sealed, "CHUNK_BYTES", 64)
    (tmp_path / "plain").write_bytes(random.Random(1).randbytes(4 * 64 + 10))
    seal(tmp_path / "plain", tmp_path / "sealed", KEY)
    return tmp_path / "sealed"


def test_no_bit_can_be_changed(whole: Path) -> None:
    raw = whole.read_bytes()
    for place in range(len(raw)):
        whole.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(NotOpened):
            opened(whole)


def test_records_cannot_be_cut_off_added_moved_or_taken_from_another_file(whole: Path, tmp_path: Path) -> None:
    raw = whole.read_bytes()
    head, records = raw[: HEADER.size], [raw[at : at + 80] for at in range(HEADER.size, len(raw), 80)]
    seal(tmp_path / "plain", tmp_path / "other", KEY)
    foreign = (tmp_path / "other").read_bytes()[HEADER.size : HEADER.size + 80]
    for changed in (
        records[:-1],
        [*records, records[0]],
        [records[1], records[0], *records[2:]],
        [foreign, *records[1:]],
        [],
    ):
        whole.write_bytes(head + b"".join(changed))
        with pytest.raises(NotOpened):
            opened(whole)
    whole.write_bytes(raw)
    with pytest.raises(NotOpened, match="its key is another one"):
        opened(whole, bytes(32))


@pytest.mark.parametrize("form", [lambda key: key, lambda key: key.hex().encode(), base64.b64encode])
async def test_a_data_key_is_wrapped_by_a_key_file(tmp_path: Path, form: Any) -> None:
    path = tmp_path / "master"
    path.write_bytes(form(os.urandom(31) + b"\xff"))
    path.chmod(0o600)
    keys = WeightKeys({"alias/models": f"file:{path}"}, "us-east-1")
    arn = keys.chosen("alias/models", ACCOUNT)
    assert arn == "arn:aws:kms:us-east-1:000000000000:alias/models"

    envelope = await keys.wrap(arn, KEY, MODEL)

    assert await keys.unwrap(envelope, MODEL) == KEY
    with pytest.raises(KeyUnavailable, match="another key"):
        await keys.unwrap(envelope, "another-model")
    path.chmod(0o644)
    with pytest.raises(KeyUnavailable, match="chmod 600"):
        await keys.unwrap(envelope, MODEL)
    path.chmod(0o600)
    path.write_bytes(os.urandom(32))
    with pytest.raises(KeyUnavailable, match="another key"):
        await keys.unwrap(envelope, MODEL)
    path.unlink()
    with pytest.raises(KeyUnavailable, match="cannot be read"):
        await keys.unwrap(envelope, MODEL)


async def test_a_data_key_is_wrapped_by_a_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER", base64.b64encode(KEY).decode())
    keys = WeightKeys({"*": "env:MASTER"}, "us-east-1")
    envelope = await keys.wrap(str(keys.chosen("1234", ACCOUNT)), KEY, MODEL)
    assert envelope.key_arn == "arn:aws:kms:us-east-1:000000000000:key/1234"
    assert await keys.unwrap(envelope, MODEL) == KEY
    monkeypatch.setenv("MASTER", "short")
    with pytest.raises(KeyUnavailable, match="no key of 32 bytes"):
        await keys.unwrap(envelope, MODEL)
    monkeypatch.delenv("MASTER")
    with pytest.raises(KeyUnavailable, match="is not set"):
        await keys.unwrap(envelope, MODEL)


SERVICE = """
import base64, os, pathlib, sys
order, arn, model = sys.argv[1:]
here = pathlib.Path(__file__).parent
if (here / "disabled").exists():
    sys.exit("KMSInvalidStateException: the key is disabled")
data = base64.b64decode(sys.stdin.readline())
pad = b"\\x5a" * 32
flipped = bytes(a ^ b for a, b in zip(data[-32:], pad))
out = model.encode() + flipped if order == "wrap" else flipped
sys.stdout.write(base64.b64encode(out).decode())
"""


async def test_a_data_key_is_wrapped_by_a_key_services_command(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    keys = WeightKeys({"default": f"command:{sys.executable} {script}"}, "us-east-1")
    envelope = await keys.wrap(str(keys.chosen(None, ACCOUNT)), KEY, MODEL)

    assert await keys.unwrap(envelope, MODEL) == KEY
    assert base64.b64decode(envelope.wrapped).startswith(MODEL.encode())
    (tmp_path / "disabled").touch()
    with pytest.raises(KeyUnavailable, match="refused to unwrap: KMSInvalidStateException: the key is disabled"):
        await keys.unwrap(envelope, MODEL)
    gone = WeightKeys({"default": "command:/nowhere/kms"}, "us-east-1")
    with pytest.raises(KeyUnavailable, match="cannot be run"):
        await gone.unwrap(envelope, MODEL)


def test_keys_are_chosen_by_the_names_that_aws_takes() -> None:
    arn = "arn:aws:kms:us-east-1:000000000000:key/1234"
    for name in ("1234", arn, "key/1234"):
        assert WeightKeys({name: "env:X"}, "us-east-1").chosen(arn, ACCOUNT) == arn
    only = WeightKeys({"1234": "env:X"}, "us-east-1")
    assert only.chosen(None, ACCOUNT) is None
    with pytest.raises(InvalidRequest, match=r"which this server has not\. Its keys are 1234"):
        only.chosen("5678", ACCOUNT)
    assert WeightKeys({}, "us-east-1").chosen("5678", ACCOUNT) is None
    for source in ("vault:x", "file:", "secret"):
        with pytest.raises(BadSetting, match="file:PATH"):
            WeightKeys({"a": source}, "us-east-1")


def handles_of_this_process() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


class Ending:
    """A process that ends when told to."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> int:
        await self.ended.wait()
        return 0


async def test_copies_share_one_file_in_memory_that_goes_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER", KEY.hex())
    keys = WeightKeys({"*": "env:MASTER"}, "us-east-1")
    content = random.Random(2).randbytes(2 * CHUNK_BYTES + 5)
    (tmp_path / "plain").write_bytes(content)
    data_key = os.urandom(32)
    await work(data_key, [[str(tmp_path / "plain"), str(tmp_path / "m" / "model.gguf.sealed")]])
    target = tmp_path / "m" / "model.gguf.sealed"
    (target.parent / ENVELOPE).write_bytes((await keys.wrap("arn:x:key/1", data_key, MODEL)).encoded())
    unsealer = Unsealer(keys)
    first, second = Ending(), Ending()

    handles = []
    for process in (first, second):
        async with unsealer.opened(target, MODEL) as memory:
            unsealer.held_by(process, target, memory)  # type: ignore[arg-type]
            handles.append(memory.handle)
    assert handles[0] == handles[1]
    assert memory.path.read_bytes() == content
    assert stat.S_ISREG(os.fstat(memory.handle).st_mode)
    assert "memfd:" in str(memory.path.readlink())

    first.ended.set()
    await asyncio.sleep(0.01)
    os.fstat(memory.handle)
    second.ended.set()
    await asyncio.sleep(0.01)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.handle)

    monkeypatch.delenv("MASTER")
    with pytest.raises(KeyUnavailable, match="MASTER is not set"):
        async with unsealer.opened(target, MODEL):
            pass
    monkeypatch.setenv("MASTER", KEY.hex())
    target.write_bytes(target.read_bytes()[:-1])
    before = handles_of_this_process()
    with pytest.raises(EngineFault, match="cut off"):
        async with unsealer.opened(target, MODEL):
            pass
    assert handles_of_this_process() == before
    (target.parent / ENVELOPE).write_bytes(Envelope("", "").encoded()[:-3])
    with pytest.raises(KeyUnavailable, match="data key"):
        async with unsealer.opened(target, MODEL):
            pass
