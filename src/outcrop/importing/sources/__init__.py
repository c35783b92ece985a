"""Where checkpoints come from: one small protocol (``base``), folders (``folder``), S3-compatible stores (``s3``).

A source gives names, sizes and bytes of the files directly under a prefix, and says what kept it from doing so in
errors of ``outcrop.errors``. It knows nothing of checkpoints, jobs or the weight store.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit

from outcrop.access.identities import Reader
from outcrop.errors import SourceMissing
from outcrop.importing.sources.as_role import AsRole
from outcrop.importing.sources.base import Source, SourceFile
from outcrop.importing.sources.folder import FolderSource, embedded
from outcrop.settings import ObjectStore, Settings

__all__ = ["Source", "SourceFile", "open_local", "open_source", "store_of"]


def store_of(bucket: str, settings: Settings) -> ObjectStore | None:
    """The configured object store that claims *bucket*; None when it is a folder of the home."""
    for store in settings.object_stores:
        if any(fnmatchcase(bucket, pattern) for pattern in store.buckets):
            return store
    return None


def assumes_itself(uri: str, settings: Settings) -> bool:
    """Whether the store of *uri* has its own STS assume the job's role, which then is none of this server's."""
    store = store_of(uri.removeprefix("s3://").partition("/")[0], settings)
    return store is not None and store.assume_role


def open_source(
    uri: str,
    settings: Settings,
    *,
    role_arn: str | None = None,
    session: str = "check",
    reader: Callable[[], Reader] | None = None,
) -> Source:
    """The source that ``s3://bucket/prefix`` names on this server; nothing is read yet.

    *role_arn* is assumed where the store is set so, under the session name ``outcrop-<session>``, and that store
    decides what it may read; everywhere else *reader* does. Raises SourceMissing for a bucket that neither a store nor
    the home has, SourceDenied.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    store = store_of(bucket, settings)
    if reader is not None and not assumes_itself(uri, settings):
        may = reader()
        return AsRole(open_source(uri, settings, role_arn=role_arn, session=session), may)
    if store is None:
        return embedded(uri, settings.buckets)
    from outcrop.importing.sources.s3 import S3Source  # boto3 and obstore, which folders need not wait for

    return S3Source(uri, bucket, prefix, store, settings, role_arn=role_arn, session=f"outcrop-{session}")


def open_local(place: str) -> FolderSource:
    """The folder that a path or a ``file://`` URL names; for commands, never for what comes over the wire."""
    path = Path(unquote(urlsplit(place).path)) if place.startswith("file://") else Path(place).expanduser()
    if not path.is_dir():
        raise SourceMissing(f"There is no folder at {place}. Give the folder of a Hugging Face checkpoint.")
    return FolderSource(place, path, confined=False)
