"""Models whose weights are encrypted at rest: worked on in memory, published encrypted.

A job that is to be encrypted has its staging folder on a tmpfs; ``staging/<job>`` of the weight store is a link to it.
Published are ``model.gguf.sealed``, ``checkpoint/*.sealed`` and ``envelope.json``, the model's data key wrapped by the
master key that the import named. Nothing of it shares content with other models: that would tell who has the same.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from outcrop.access.weight_keys import KEY_BYTES, WeightKeys
from outcrop.errors import BadSetting, StorageFull
from outcrop.importing.tasks import in_thread
from outcrop.importing.weights import ARTIFACT, RECORD, WeightStore, remove, write_atomically
from outcrop.registry.records import ImportJob
from outcrop.serving.unsealed import ENVELOPE, SUFFIX, work

MEMORY = Path("/dev/shm")  # noqa: S108  (a tmpfs: what is there is on no disk)
_TMPFS = frozenset({"tmpfs", "ramfs"})


class Vault:
    """Encrypted jobs and models of one weight store."""

    def __init__(self, store: WeightStore, keys: WeightKeys, memory: Path = MEMORY) -> None:
        self._store = store
        self._keys = keys
        self._memory = memory
        home = hashlib.sha256(str(store.root.resolve()).encode()).hexdigest()[:16]
        self._folder = memory / f"outcrop-{os.getuid()}-{home}"

    def key_of(self, job: ImportJob) -> str | None:
        """The key that *job* is encrypted with; None for a plain one. Raises InvalidRequest for an unknown key."""
        return self._keys.chosen(job.request.get("importedModelKmsKeyId"), job.account)

    def prepare(self, job_id: str, needed_bytes: int) -> None:
        """Have the job's staging folder in memory. Blocks. Raises StorageFull with the numbers, BadSetting."""
        if not _is_memory(self._memory):
            raise BadSetting(f"{self._memory} is no tmpfs, so weights cannot be encrypted without touching a disk.")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid() or self._folder.is_symlink():
            raise BadSetting(f"{self._folder} is another user's; remove it.")
        target, link = self._folder / job_id, self._store.staging(job_id)
        if not target.exists():
            state = os.statvfs(self._memory)
            free = state.f_bavail * state.f_frsize
            if free < needed_bytes:
                raise StorageFull(
                    f"Encrypting needs {needed_bytes} bytes in memory ({self._memory}), {free} are free. Free memory, "
                    "or mount a larger tmpfs there."
                )
            try:
                target.mkdir(mode=0o700)
            except FileNotFoundError:  # another job, the last one there, has just tidied up
                self._folder.mkdir(mode=0o700, exist_ok=True)
                target.mkdir(mode=0o700)
        if not link.is_symlink():
            remove(link)
            link.symlink_to(target)

    async def publish(self, job: ImportJob, arn: str) -> None:
        """Encrypt the job's folder into the model's, which appears by one rename. Raises KeyUnavailable, OSError."""
        final = self._store.model(job.model_id)
        if await in_thread(final.exists):
            return
        staged, part = self._store.staging(job.job_id), final.with_name(f".{job.model_id}.part")
        data_key = secrets.token_bytes(KEY_BYTES)
        envelope = await self._keys.wrap(arn, data_key, job.model_id)
        names = await in_thread(_begin, staged, part)
        await work(data_key, [[str(staged / name), str(part / f"{name}{SUFFIX}")] for name in names])
        await in_thread(write_atomically, part / ENVELOPE, envelope.encoded())
        await in_thread(part.rename, final)
        await in_thread(self._store.synced, final.parent)
        await in_thread(self._store.discard_job, job.job_id)
        await in_thread(self._tidy)

    def reopen(self, job: ImportJob) -> None:
        """Begin a job again that was published and never completed: its plain files are gone. Blocks."""
        self._store.remove_model(job.model_id)

    def sweep(self, job_ids: Iterable[str]) -> None:
        """Remove what no unfinished job owns: the leavings of a crash. Blocks."""
        known = set(job_ids)
        for entry in self._folder.glob("*"):
            if entry.name not in known:
                shutil.rmtree(entry, ignore_errors=True)
        self._tidy()

    def _tidy(self) -> None:
        with suppress(OSError):  # it is not there, or a job is at work in it
            self._folder.rmdir()


def _begin(staged: Path, part: Path) -> list[str]:
    """An empty *part*, with what is no secret in it; the names of the files to encrypt."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copyfile(staged / "fetched", part / "fetched")
    names = [name for name in (ARTIFACT, RECORD) if (staged / name).exists()]
    files = [path for path in sorted((staged / "checkpoint").rglob("*")) if path.is_file()]
    return [*names, *(path.relative_to(staged).as_posix() for path in files)]


def _is_memory(folder: Path) -> bool:
    """Whether *folder* is the root of a file system that lives in memory (proc(5), mounts)."""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return False
    found = [fields[2] for line in mounts if len(fields := line.split()) > 2 and fields[1] == str(folder)]
    return bool(found) and found[-1] in _TMPFS
