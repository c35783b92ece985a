"""The weight store: what was imported, kept by content.

::

    store/blobs/ab/ab12…      one file per content, read-only, named by its SHA-256
    store/staging/<job>/      a job's work: checkpoint/<name>, digests.json, model.gguf
    store/models/<model>/     the same folder after its one rename; visible means whole

On the same file system a file arrives by reflink (shared blocks, private to the store) or, where the file system has
none, by hard link: no bytes move. A hard link shares its content with the source, so a source that is rewritten *in
place* afterwards would change it too; uploads that replace files (as S3 clients and ``mv`` do) are safe, and the
engine's artefact is the store's own in any case.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_CHUNK_BYTES = 4 << 20


class WeightStore:
    """Files of checkpoints and artefacts below one folder. Blocking; call it from a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("blobs", "staging", "models"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def staging(self, job_id: str) -> Path:
        return self.root / "staging" / job_id

    def model(self, model_id: str) -> Path:
        return self.root / "models" / model_id

    def fetch(self, folder: Path, names: Iterable[str], job_id: str, progress: Callable[[int], None]) -> dict[str, str]:
        """Bring *names* from *folder* into the job's staging folder; name -> SHA-256 of each.

        *progress* hears the bytes done. Files that an earlier try brought are not read again.
        """
        target = self.staging(job_id) / "checkpoint"
        target.mkdir(parents=True, exist_ok=True)
        journal = self.staging(job_id) / "digests.json"
        digests: dict[str, str] = json.loads(journal.read_bytes()) if journal.exists() else {}
        done = 0
        for name in names:
            staged = target / name
            if not (name in digests and staged.exists()):
                staged.unlink(missing_ok=True)
                bring(folder / name, staged)
                digests[name] = self._keep(staged, partial(_from, progress, done))
                write_atomically(journal, json.dumps(digests).encode())
            done += staged.stat().st_size
            progress(done)
        return digests

    def fetched(self, job_id: str) -> dict[str, str] | None:
        """The digests of a finished fetch; None while one is outstanding."""
        whole = self.staging(job_id) / "fetched"
        return json.loads(whole.read_bytes()) if whole.exists() else None

    def mark_fetched(self, job_id: str, digests: dict[str, str]) -> None:
        write_atomically(self.staging(job_id) / "fetched", json.dumps(digests).encode())

    def publish(self, job_id: str, model_id: str) -> None:
        """Make the job's folder the model's, in one rename; nothing to do when an earlier try did."""
        final = self.model(model_id)
        if not final.exists():
            self.staging(job_id).rename(final)
            _sync_folder(final.parent)

    def discard_job(self, job_id: str) -> None:
        shutil.rmtree(self.staging(job_id), ignore_errors=True)

    def remove_model(self, model_id: str) -> None:
        shutil.rmtree(self.model(model_id), ignore_errors=True)
        self.collect()

    def sweep(self, job_ids: Iterable[str], model_ids: Iterable[str]) -> None:
        """Remove what no unfinished job and no model owns: the leavings of a crash."""
        for folder, known in (("staging", set(job_ids)), ("models", set(model_ids))):
            for entry in (self.root / folder).iterdir():
                if entry.name not in known:
                    shutil.rmtree(entry, ignore_errors=True)
        self.collect()

    def collect(self) -> None:
        """Drop blobs that no staging or model folder links to."""
        used = {
            entry.stat().st_ino
            for folder in ("staging", "models")
            for entry in (self.root / folder).glob("*/checkpoint/*")
        }
        for blob in (self.root / "blobs").glob("*/*"):
            if blob.stat().st_ino not in used:
                blob.unlink(missing_ok=True)

    def _keep(self, staged: Path, progress: Callable[[int], None]) -> str:
        """Digest *staged*, make it one with the blob of that content, return the digest."""
        digest = hashlib.sha256()
        done = 0
        with staged.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                progress(done)
        name = digest.hexdigest()
        blob = self.root / "blobs" / name[:2] / name
        blob.parent.mkdir(exist_ok=True)
        try:
            blob.hardlink_to(staged)
        except FileExistsError:
            link = staged.with_name(staged.name + ".part")
            link.unlink(missing_ok=True)
            link.hardlink_to(blob)
            link.replace(staged)
        return name


def _from(progress: Callable[[int], None], base: int, done: int) -> None:
    progress(base + done)


def bring(source: Path, target: Path) -> None:
    """*target* becomes a file with *source*'s content: reflink, else hard link, else copy. Never half a file."""
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    real = source.resolve()
    with real.open("rb") as reader, part.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
            cloned = True
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
                raise
            cloned = False
    if not cloned:
        part.unlink()
        try:
            part.hardlink_to(real)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(real, part)
            with part.open("rb") as copied:
                os.fsync(copied.fileno())
    part.replace(target)


def write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
