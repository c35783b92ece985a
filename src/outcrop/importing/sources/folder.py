"""Folders of this machine as sources: the embedded buckets, and any folder for the commands.

``s3://bucket/key`` is ``OUTCROP_HOME/buckets/bucket/key``. Nothing outside a prefix of the buckets folder is ever
read over the wire, whatever dots or symbolic links a key or a bucket holds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

from outcrop.checkpoints.files import IN_FOLDERS
from outcrop.errors import SourceChanged, SourceMissing, SourceUnavailable
from outcrop.importing.sources.base import SourceFile


def embedded(uri: str, buckets: Path) -> FolderSource:
    """The prefix of an embedded bucket. Raises SourceMissing when there is none."""
    parts = uri.removeprefix("s3://").strip("/").split("/")
    folder = buckets.joinpath(*parts)
    inside = not any(part in ("", ".", "..") for part in parts)
    if inside and folder.is_dir():
        inside = folder.resolve().is_relative_to(buckets.resolve())
    if not inside or not folder.is_dir():
        hint = "" if (buckets / parts[0]).is_dir() else f" (no bucket {parts[0]} here, and no object store claims it)"
        raise absent(uri, hint)
    return FolderSource(uri, folder, confined=True)


def absent(uri: str, hint: str = "") -> SourceMissing:
    return SourceMissing(
        f"No checkpoint was found at {uri}{hint}. Upload config.json, the tokenizer and *.safetensors to that "
        "prefix, or correct s3Uri."
    )


class FolderSource:
    """Regular files directly in *folder*, and those of ``IN_FOLDERS`` below it.

    *confined*: links that lead out of it are not followed.
    """

    place = ""

    def __init__(self, uri: str, folder: Path, *, confined: bool) -> None:
        self.uri = uri
        self.folder = folder
        self._confined = confined

    async def files(self) -> dict[str, SourceFile]:
        return await asyncio.to_thread(self._files)

    async def vouched(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        return list(files)

    async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        return memoryview(await asyncio.to_thread(read_range, file, start, end))

    async def aclose(self) -> None:
        return

    def _files(self) -> dict[str, SourceFile]:
        root = self.folder.resolve()
        found = {}
        try:
            for entry in [*sorted(self.folder.iterdir()), *(self.folder / name for name in IN_FOLDERS)]:
                real = entry.resolve()
                if entry.is_file() and (not self._confined or real.is_relative_to(root)):
                    state = real.stat()
                    name = entry.relative_to(self.folder).as_posix()
                    found[name] = SourceFile(name=name, size_bytes=state.st_size, etag=etag_of(state), path=real)
        except OSError as exc:
            raise SourceUnavailable(f"Reading {self.uri} failed: {exc}. Check the folder's permissions.") from exc
        return found


def etag_of(state: os.stat_result) -> str:
    """Changes when a file is written or replaced; linking to it changes nothing."""
    return f"{state.st_ino:x}-{state.st_size:x}-{state.st_mtime_ns:x}"


def read_range(file: SourceFile, start: int, end: int) -> bytes:
    """Bytes of a local *file*. Raises SourceChanged when it is not the file that was listed."""
    assert file.path is not None
    try:
        handle = os.open(file.path, os.O_RDONLY)
    except FileNotFoundError as exc:
        raise SourceChanged(f"{file.name} was removed from the source while it was being read.") from exc
    try:
        if etag_of(os.fstat(handle)) != file.etag:
            raise SourceChanged(f"{file.name} was changed in the source while it was being read. Import again.")
        parts = []
        while start < end and (part := os.pread(handle, end - start, start)):
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(handle)
