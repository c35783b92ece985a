"""A source that is read as a role: every object is asked for before it is opened."""

from __future__ import annotations

from collections.abc import Iterable

from outcrop.access.identities import Reader
from outcrop.importing.sources.base import Source, SourceFile


class AsRole:
    """*source*, as far as *may* lets its objects be listed and read; what it does not raises SourceDenied."""

    def __init__(self, source: Source, may: Reader) -> None:
        self._source = source
        self._may = may
        self._bucket, _, prefix = source.uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._allowed: set[str] = set()

    @property
    def uri(self) -> str:
        return self._source.uri

    @property
    def place(self) -> str:
        return self._source.place

    async def files(self) -> dict[str, SourceFile]:
        self._may("s3:ListBucket", self._bucket, self._prefix)
        return await self._source.files()

    async def vouched(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        wanted = list(files)  # whoever has these may also link to them, where they lie on this machine
        for file in wanted:
            self._ask(file)
        return await self._source.vouched(wanted)

    async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        self._ask(file)
        return await self._source.read(file, start, end)

    async def aclose(self) -> None:
        await self._source.aclose()

    def _ask(self, file: SourceFile) -> None:
        if file.name not in self._allowed:
            self._may("s3:GetObject", self._bucket, self._prefix + file.name)
            self._allowed.add(file.name)
