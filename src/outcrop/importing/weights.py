"""The weight store: what was imported, kept by content.

::

    store/blobs/ab/ab12…      one file per content, read-only, named by its SHA-256
    store/artifacts/<key>/    what was converted for an engine: model.gguf, model.json, by what it was made from
    store/staging/<job>/      a job's work: checkpoint/<name>, files.json, model.gguf
    store/models/<model>/     the same folder after its one rename; visible means whole. Of an encrypted model:
                              envelope.json, model.gguf.sealed, checkpoint/<name>.sealed (vault.py)

A file of the same file system arrives by reflink (shared blocks, private to the store) or, where there are none, by
hard link: no bytes move. A hard link shares its content with the source, so a source that is rewritten *in place*
afterwards would change it too; uploads that replace files (as S3 clients and ``mv`` do) are safe, and the engine's
artefact is the store's own in any case.

Whatever a folder under ``staging`` or ``models`` links to is in use; everything else under ``blobs`` and ``artifacts``
is not. Nothing counts references, so no crash can leave a count wrong: a half-done deletion is finished by the next
``sweep``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ARTIFACT, RECORD = "model.gguf", "model.json"  # the engine's file, and what its converter said of it
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


class WeightStore:
    """Files of checkpoints and artefacts below one folder. Blocking; call it from a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()  # between giving a blob a new link and dropping blobs without one
        for name in ("blobs", "artifacts", "staging", "models"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def staging(self, job_id: str) -> Path:
        return self.root / "staging" / job_id

    def model(self, model_id: str) -> Path:
        return self.root / "models" / model_id

    # -- what a job brings ------------------------------------------------------------------------

    def prepare(self, job_id: str) -> Path:
        """The folder that a job's files go to."""
        target = self.staging(job_id) / "checkpoint"
        target.mkdir(parents=True, exist_ok=True)
        return target

    def noted(self, job_id: str) -> dict[str, Any]:
        """Facts of the files that earlier tries of the job brought, by name; those whose file is there."""
        notes = self.staging(job_id) / "files.json"
        found: dict[str, Any] = json.loads(notes.read_bytes()) if notes.exists() else {}
        folder = self.staging(job_id) / "checkpoint"
        return {name: entry for name, entry in found.items() if (folder / name).exists()}

    def note(self, job_id: str, entries: Mapping[str, Any]) -> None:
        write_atomically(self.staging(job_id) / "files.json", json.dumps(entries).encode())

    def keep(self, staged: Path, sha256: str) -> None:
        """Make *staged* one with the blob of its content; the first of a content becomes the blob."""
        blob = self._blob(sha256)
        with self._lock:
            blob.parent.mkdir(exist_ok=True)
            try:
                blob.hardlink_to(staged)
            except FileExistsError:
                _replace_by_link(staged, blob)

    def reuse(self, sha256: str, staged: Path) -> bool:
        """Link *staged* to the blob of that content; False when the store has none."""
        with self._lock:
            blob = self._blob(sha256)
            if not blob.exists():
                return False
            _replace_by_link(staged, blob)
            return True

    def keep_artifact(self, key: str, folder: Path) -> None:
        """Make the artefact in *folder* one with the store's own of that *key*; the first of a key becomes it."""
        home = self.root / "artifacts" / key
        with self._lock:
            home.mkdir(exist_ok=True)
            for name in (RECORD, ARTIFACT):
                try:
                    (home / name).hardlink_to(folder / name)
                except FileExistsError:
                    _replace_by_link(folder / name, home / name)

    def reuse_artifact(self, key: str, folder: Path) -> bool:
        """Link the artefact of that *key* into *folder*; False when the store has none."""
        home = self.root / "artifacts" / key
        with self._lock:
            if not all((home / name).exists() for name in (RECORD, ARTIFACT)):
                return False
            for name in (RECORD, ARTIFACT):
                _replace_by_link(folder / name, home / name)
            return True

    def known(self, uri: str) -> dict[str, Any]:
        """Facts by name of the files that models were imported with from *uri*; the latest import wins."""
        records = []
        for path in (self.root / "models").glob("*/fetched"):
            with suppress(FileNotFoundError):  # its model was deleted just now
                records.append((path.stat().st_mtime, json.loads(path.read_bytes())))
        found: dict[str, Any] = {}
        for _, record in sorted(records, key=lambda entry: entry[0]):
            if record["uri"] == uri:
                found.update(record["files"])
        return found

    def mark_fetched(self, job_id: str, uri: str, files: Mapping[str, Any]) -> None:
        """Everything is there. *files*: facts by name (``sha256``, ``size_bytes``, ``etag``, ``scan``, …)."""
        write_atomically(self.staging(job_id) / "fetched", json.dumps({"uri": uri, "files": dict(files)}).encode())

    def fetched(self, folder: Path) -> dict[str, Any] | None:
        """The facts of a finished transfer by name; None while one is outstanding."""
        whole = folder / "fetched"
        return dict(json.loads(whole.read_bytes())["files"]) if whole.exists() else None

    def publish(self, job_id: str, model_id: str) -> None:
        """Make the job's folder the model's, in one rename; nothing to do when an earlier try did."""
        final = self.model(model_id)
        if not final.exists():
            self.staging(job_id).rename(final)
            _sync_folder(final.parent)

    def synced(self, folder: Path) -> None:
        """Bring a rename within *folder* to the disk."""
        _sync_folder(folder)

    def discard_job(self, job_id: str) -> None:
        remove(self.staging(job_id))

    def remove_model(self, model_id: str) -> int:
        """Remove the model's folder and what nobody else uses; the bytes that came free."""
        folder = self.model(model_id)
        if not folder.exists():
            return 0
        freed = _bytes_only_here(folder.glob("*"))
        shutil.rmtree(folder, ignore_errors=True)
        return freed + self.collect()

    def sweep(self, job_ids: Iterable[str], model_ids: Iterable[str]) -> int:
        """Remove what no unfinished job and no model owns: the leavings of a crash. The bytes that came free."""
        freed = 0
        for folder, known in (("staging", set(job_ids)), ("models", set(model_ids))):
            for entry in (self.root / folder).iterdir():
                if entry.name not in known:
                    freed += _bytes_only_here(entry.rglob("*"))
                    remove(entry)
        return freed + self.collect()

    def collect(self) -> int:
        """Drop blobs and artefacts that no staging or model folder links to; the bytes that came free."""
        freed = 0
        with self._lock:
            for blob in self.unused_blobs():
                freed += _bytes_only_here([blob])
                blob.unlink(missing_ok=True)
            for home in self.unused_artifacts():
                freed += _bytes_only_here(home.iterdir())
                shutil.rmtree(home, ignore_errors=True)
        return freed

    def unused_blobs(self) -> list[Path]:
        used = self._linked("*/checkpoint/*")
        return [blob for blob in (self.root / "blobs").glob("*/*") if blob.stat().st_ino not in used]

    def unused_artifacts(self) -> list[Path]:
        """Folders of artefacts; one that a crash left without its file among them."""
        used = self._linked(f"*/{ARTIFACT}")
        return [
            home
            for home in (self.root / "artifacts").iterdir()
            if not (home / ARTIFACT).exists() or (home / ARTIFACT).stat().st_ino not in used
        ]

    def _linked(self, pattern: str) -> set[int]:
        return {entry.stat().st_ino for folder in ("staging", "models") for entry in (self.root / folder).glob(pattern)}

    def free_bytes(self) -> int:
        """What the disk has left for this process."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def is_same_file_system(self, path: Path) -> bool:
        return path.stat().st_dev == self.root.stat().st_dev

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256


def _bytes_only_here(paths: Iterable[Path]) -> int:
    """Bytes of the files among *paths* that have no other name: what removing them frees."""
    states = [path.lstat() for path in paths if path.is_file()]
    return sum(state.st_size for state in states if state.st_nlink == 1)


def _replace_by_link(staged: Path, blob: Path) -> None:
    part = staged.with_name(staged.name + ".link")
    part.unlink(missing_ok=True)
    part.hardlink_to(blob)
    part.replace(staged)  # two names of one file: POSIX then leaves both, so
    part.unlink(missing_ok=True)


def link(source: Path, target: Path) -> bool:
    """*target* becomes *source* by reflink, else hard link; False when the file systems allow neither."""
    part = target.with_name(target.name + ".link")
    part.unlink(missing_ok=True)
    real = source.resolve()
    with real.open("rb") as reader, part.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), FICLONE, reader.fileno())
            is_cloned = True
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
                raise
            is_cloned = False
    if not is_cloned:
        part.unlink()
        try:
            part.hardlink_to(real)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            return False
    part.replace(target)
    part.unlink(missing_ok=True)
    return True


def remove(folder: Path) -> None:
    """Remove *folder* with all that is in it; of a link, what it leads to as well."""
    if folder.is_symlink():
        shutil.rmtree(folder.resolve(), ignore_errors=True)
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


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
