"""Objects written to buckets: those of the home as files, others by their object store."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from outcrop.errors import ServiceError, SourceMissing, SourceUnavailable
from outcrop.importing.sources import store_of
from outcrop.settings import Settings

TRY_FOR_S = 60.0  # that a failing store is asked again


class Buckets:
    """Where ``s3://bucket/key`` is written on this server. Stores are written with their own credentials."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"source_retry_s": min(settings.source_retry_s, TRY_FOR_S)})

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write one object. Raises SourceMissing, SourceDenied or SourceUnavailable; then it is not there."""
        store = store_of(bucket, self._settings)
        if store is None:
            await asyncio.to_thread(_write, self._settings.buckets, bucket, key, content)
            return
        from outcrop.importing.sources.s3 import S3Source  # boto3 and obstore, which folders need not wait for

        target = S3Source(f"s3://{bucket}/", bucket, "", store, self._settings, role_arn=None, session="outcrop-write")
        await target.write(key, content)


def _write(buckets: Path, bucket: str, key: str, content: bytes) -> None:
    parts = key.split("/")
    root = buckets / bucket
    if bucket in (".", "..") or "/" in bucket or not root.is_dir():
        raise SourceMissing(f"There is no bucket {bucket} here, and no object store claims it: mkdir {root}.")
    if any(part in ("", ".", "..") for part in parts):
        raise ServiceError(f"The key {key} has an empty or a dot segment, which a bucket of the home cannot hold.")
    place = root.joinpath(*parts)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(buckets.resolve()):
            raise SourceMissing(f"s3://{bucket}/{key} leads out of the buckets folder by a link.")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        part.replace(place)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise SourceUnavailable(f"Writing s3://{bucket}/{key} failed: {exc}. Check the folder {root}.") from exc
