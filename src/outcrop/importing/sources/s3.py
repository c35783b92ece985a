"""S3-compatible object stores: obstore for lists and bytes, boto3 for credentials, STS and HeadObject.

Every ranged GET carries ``If-Match``, and the answer's own ETag and size are compared as well, since not every store
honours the header. obstore repeats a request a few times within seconds; what still fails is repeated here, with
growing pauses, until ``source_retry_s`` is over. Refusals (403, 404, 412) are final, except that expired credentials
are asked for anew once.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store

from outcrop.checkpoints.files import IN_FOLDERS
from outcrop.errors import ServiceError, SourceChanged, SourceDenied, SourceMissing, SourceUnavailable
from outcrop.importing.sources.base import SourceFile
from outcrop.importing.sources.folder import absent
from outcrop.settings import ObjectStore, Settings

log = structlog.get_logger(__name__)

HEADS_AT_A_TIME = 16
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
# Credentials that boto3 renews by itself are looked up again this often.
CREDENTIALS_LIVE = timedelta(minutes=10)
WHOLE_CHECKSUMS = ("CRC64NVME", "CRC32C", "CRC32", "SHA256")
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REMEDIES = {
    "AccessDenied": "Allow s3:GetObject and s3:ListBucket on the bucket to these credentials",
    "SignatureDoesNotMatch": "The secret access key is not the one of that access key, or the region differs",
    "InvalidAccessKeyId": "The store does not know the access key",
    "InvalidToken": "The session token is not one of the store's",
    "AuthorizationHeaderMalformed": "Set the store's region to the bucket's",
    "RequestTimeTooSkewed": "Set this machine's clock",
    **dict.fromkeys(_EXPIRED, "Renew the session token or let the store's settings name a profile that renews itself"),
}
_T = TypeVar("_T")


class S3Source:
    """The objects directly under *prefix* of *bucket*."""

    def __init__(
        self,
        uri: str,
        bucket: str,
        prefix: str,
        store: ObjectStore,
        settings: Settings,
        *,
        role_arn: str | None,
        session: str,
    ) -> None:
        self.uri = uri
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._settings = store
        self._region = store.region or settings.region
        self._retry_s = settings.source_retry_s
        self._stall_s = settings.source_stall_s
        self._role_arn = role_arn if store.assume_role else None
        self._session_name = session
        self._lock = asyncio.Lock()
        self._open: S3Store | None = None

    async def files(self) -> dict[str, SourceFile]:
        listing = await self._try("list", lambda store: obstore.list_with_delimiter_async(store, self._prefix))
        objects = list(listing["objects"])
        here = {prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]}
        for folder in sorted({name.partition("/")[0] for name in IN_FOLDERS} & here):
            objects += await self._below(folder)
        found = {}
        for entry in objects:
            name = entry["path"].removeprefix(self._prefix.rstrip("/")).strip("/")
            if name and not entry["path"].endswith("/"):
                found[name] = SourceFile(name=name, size_bytes=entry["size"], etag=entry["e_tag"] or "")
        if not found:
            raise absent(self.uri)
        return found

    async def _below(self, folder: str) -> list[Any]:
        """The objects of ``IN_FOLDERS`` in a *folder* of the prefix."""
        key = self._key(folder)
        listing = await self._try("list", lambda store: obstore.list_with_delimiter_async(store, key))
        wanted = {self._key(name) for name in IN_FOLDERS}
        return [entry for entry in listing["objects"] if entry["path"] in wanted]

    async def vouched(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        gate = asyncio.Semaphore(HEADS_AT_A_TIME)

        async def one(file: SourceFile) -> SourceFile:
            async with gate:
                return await self._head(file)

        return list(await asyncio.gather(*(one(file) for file in files)))

    async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        if end <= start:
            return memoryview(b"")

        async def get(store: S3Store) -> memoryview:
            result = await obstore.get_async(
                store, self._key(file.name), options={"range": (start, end), "if_match": file.etag or None}
            )
            if (file.etag and result.meta["e_tag"] != file.etag) or result.meta["size"] != file.size_bytes:
                raise _changed(file.name)
            body = memoryview(await result.bytes_async())
            if len(body) != end - start:
                raise _Short(f"{len(body)} bytes came where {end - start} were asked for")
            return body

        return await self._try(file.name, get)

    async def write(self, name: str, content: bytes) -> None:
        """Put one object of that name. Raises what ``read`` raises."""
        await self._try(name, lambda store: obstore.put_async(store, self._key(name), content))

    async def aclose(self) -> None:
        self._open = None

    def _key(self, name: str) -> str:
        return self._prefix + name

    # -- asking, and asking again ------------------------------------------------------------------

    async def _try(self, what: str, ask: Callable[[S3Store], Awaitable[_T]]) -> _T:
        """The answer, however often it takes within the time that the settings give. *what*: a file or ``list``."""
        until = time.monotonic() + self._retry_s
        pause_s = FIRST_PAUSE_S
        is_renewed = False
        while True:
            store = await self._store()
            try:
                return await ask(store)
            except (BaseError, FileNotFoundError, _Short, OSError, TimeoutError) as exc:
                refusal = self._refusal(exc, what)
                if isinstance(refusal, _Expired) and not is_renewed:
                    is_renewed = True
                    await self._renew(store)
                    continue
                wait_s = pause_s * (0.5 + random.random())  # noqa: S311  (spreads clients; guards nothing)
                if not isinstance(refusal, SourceUnavailable) or time.monotonic() + wait_s > until:
                    raise refusal from exc
                log.warning("the object store failed; asking again", uri=self.uri, file=what, reason=_short(exc))
                await asyncio.sleep(wait_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _refusal(self, exc: BaseException, what: str) -> ServiceError:
        """The fact behind an exception of obstore; SourceUnavailable for all that may pass."""
        text = str(exc)
        code, status = _CODE.search(text), _STATUS.search(text)
        name = code.group(1) if code else type(exc).__name__
        if isinstance(exc, PreconditionError) or name == "PreconditionFailed":
            return _changed(what)
        if isinstance(exc, FileNotFoundError) or (status and status.group(1) == "404"):
            if name == "NoSuchBucket":
                return absent(self.uri, f" (the store at {self.place} has no bucket {self._bucket})")
            return absent(self.uri) if what == "list" else SourceMissing(f"{self._place(what)} is gone from the store.")
        is_refused = status is not None and status.group(1) in ("400", "401", "403")
        if name in _EXPIRED or is_refused:
            return (_Expired if name in _EXPIRED else SourceDenied)(self._denied(name, what))
        if name == "InvalidRange":
            return _changed(what)
        if name == "UnauthenticatedError":
            return SourceDenied(self._denied("NoCredentials", what))
        return SourceUnavailable(
            f"The object store at {self.place} keeps failing ({_short(exc)}) for {self._place(what)}. "
            f"Gave up after {self._retry_s:g} s (OUTCROP_SOURCE_RETRY_S)."
        )

    def _denied(self, code: str, what: str) -> str:
        who = f"as {self._role_arn}" if self._role_arn else "with the store's credentials"
        remedy = _REMEDIES.get(code, "Check the store's credentials and the bucket's policy")
        return f"Access to {self._place(what)} was denied by {self.place} {who} ({code}). {remedy}."

    def _place(self, what: str) -> str:
        return self.uri if what == "list" else f"s3://{self._bucket}/{self._key(what)}"

    # -- clients and credentials -------------------------------------------------------------------

    @property
    def place(self) -> str:
        return self._settings.endpoint or f"AWS ({self._region})"

    async def _store(self) -> S3Store:
        async with self._lock:
            if self._open is None:
                self._open = await asyncio.to_thread(self._connect)
            return self._open

    async def _renew(self, broken: S3Store) -> None:
        async with self._lock:
            if self._open is broken:
                self._open = None
                self.__dict__.pop("_boto", None)
                self.__dict__.pop("_s3", None)

    def _connect(self) -> S3Store:
        url, bucket = self._settings.endpoint, self._bucket
        is_path_style = url is not None if self._settings.path_style is None else self._settings.path_style
        if url is not None:
            url = url.rstrip("/")
            if not is_path_style:  # obstore wants the bucket's own host name then
                scheme, rest = url.split("://", 1)
                url = f"{scheme}://{bucket}.{rest}"
        client: dict[str, Any] = {
            "allow_http": url is not None and urlsplit(url).scheme == "http",
            "connect_timeout": timedelta(seconds=min(5.0, self._stall_s)),
            "read_timeout": timedelta(seconds=self._stall_s),
            "timeout": timedelta(hours=1),  # a slow line is no failure; a silent one is
        }
        if self._settings.ca_bundle is not None:
            client["root_certificate"] = self._settings.ca_bundle.read_bytes()
        config: dict[str, Any] = {"region": self._region, "virtual_hosted_style_request": not is_path_style}
        if url is not None:
            # The second, or a variable of the environment would win over the settings.
            config |= {"endpoint": url, "aws_endpoint_url_s3": url}
        self._credentials()  # failures show here, by name
        return S3Store(
            bucket,
            config=config,  # type: ignore[arg-type]  # a TypedDict there
            client_options=client,  # type: ignore[arg-type]
            retry_config={
                "max_retries": 3,
                "retry_timeout": timedelta(seconds=min(self._retry_s, 30.0)),
                "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=2), "base": 2},
            },
            credential_provider=self._credentials,  # type: ignore[arg-type]
        )

    def _credentials(self) -> dict[str, Any]:
        """Keys for obstore. Raises SourceDenied when there are none or the role is refused."""
        store, secret = self._settings, self._settings.secret_access_key
        if store.access_key_id is not None and secret is not None and self._role_arn is None:
            # Known without boto3, whose import alone would take longer than a check.
            token = store.session_token.get_secret_value() if store.session_token else None
            keys = {"access_key_id": store.access_key_id, "secret_access_key": secret.get_secret_value()}
            return {**keys, "token": token, "expires_at": None}
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            credentials = self._boto.get_credentials()
            if credentials is None:
                raise SourceDenied(
                    f"No credentials were found for {self.uri}. Give the store access_key_id and secret_access_key or "
                    "a profile, or start the server with AWS credentials in its environment."
                )
            frozen = credentials.get_frozen_credentials()
        except (BotoCoreError, ClientError) as exc:
            failed = f"The provided IAM role could not be assumed ({self._role_arn})"
            failed = failed if self._role_arn else f"The credentials for {self.uri} could not be loaded"
            raise SourceDenied(f"{failed}: {exc}. Check the role's trust policy and the store's settings.") from exc
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_LIVE,
        }

    @cached_property
    def _boto(self) -> Any:
        """A boto3 session with the store's own keys, a profile's or the chain's; behind a role if so set."""
        import boto3
        import botocore.session
        from botocore.credentials import DeferredRefreshableCredentials

        store = self._settings
        secret, token = store.secret_access_key, store.session_token
        own = boto3.Session(
            aws_access_key_id=store.access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            aws_session_token=token.get_secret_value() if token else None,
            profile_name=store.profile,
            region_name=self._region,
        )
        if self._role_arn is None:
            return own
        sts = own.client("sts", endpoint_url=store.sts_endpoint or store.endpoint)

        def assume() -> dict[str, str]:
            found = sts.assume_role(RoleArn=self._role_arn, RoleSessionName=self._session_name[:64])["Credentials"]
            return {
                "access_key": found["AccessKeyId"],
                "secret_key": found["SecretAccessKey"],
                "token": found["SessionToken"],
                "expiry_time": found["Expiration"].isoformat(),
            }

        inner = botocore.session.get_session()
        inner._credentials = DeferredRefreshableCredentials(refresh_using=assume, method="sts-assume-role")
        return boto3.Session(botocore_session=inner, region_name=self._region)

    @cached_property
    def _s3(self) -> Any:
        from botocore.config import Config

        style = {None: "auto", True: "path", False: "virtual"}
        is_path_style = self._settings.path_style
        if is_path_style is None and self._settings.endpoint is not None:
            is_path_style = True
        return self._boto.client(
            "s3",
            endpoint_url=self._settings.endpoint,
            verify=str(self._settings.ca_bundle) if self._settings.ca_bundle else None,
            config=Config(
                s3={"addressing_style": style[is_path_style]},
                retries={"mode": "standard", "total_max_attempts": 5},
                connect_timeout=min(5.0, self._stall_s),
                read_timeout=self._stall_s,
                max_pool_connections=HEADS_AT_A_TIME,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def _head(self, file: SourceFile) -> SourceFile:
        """*file* with the checksums that HeadObject offers; a store without them, or that refuses, offers none."""
        from botocore.exceptions import BotoCoreError, ClientError

        await self._store()
        async with self._lock:  # boto3's clients may be shared by threads, but not made in several at once
            client = await asyncio.to_thread(getattr, self, "_s3")
        try:
            head = await asyncio.to_thread(
                client.head_object, Bucket=self._bucket, Key=self._key(file.name), ChecksumMode="ENABLED"
            )
        except (ClientError, BotoCoreError) as exc:
            # GET is what counts: it will say the same in its own words, or work without checksums.
            log.warning("no checksum from the object store", uri=self.uri, file=file.name, reason=str(exc)[:200])
            return file
        if head["ContentLength"] != file.size_bytes or (file.etag and head["ETag"] != file.etag):
            raise _changed(file.name)
        checksums = {
            name: head[f"Checksum{name}"]
            for name in WHOLE_CHECKSUMS
            if f"Checksum{name}" in head
            and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
            # Composite values of multipart uploads carry the number of parts.
            and "-" not in head[f"Checksum{name}"]
        }
        etag = head["ETag"].strip('"')
        if re.fullmatch(r"[0-9a-f]{32}", etag) and not head.get("ServerSideEncryption", "").startswith("aws:kms"):
            checksums["MD5"] = etag
        return SourceFile(name=file.name, size_bytes=file.size_bytes, etag=file.etag, checksums=checksums)


class _Short(Exception):
    """Fewer bytes came than the answer promised."""


class _Expired(SourceDenied):
    """Refused for the age of the credentials: worth one more try with new ones."""


def _changed(name: str) -> SourceChanged:
    return SourceChanged(
        f"{name} was replaced in the bucket while it was being imported. Upload the checkpoint completely, then "
        "import it again."
    )


def _short(exc: BaseException) -> str:
    """The first line of an exception, without obstore's debug dump."""
    code, status = _CODE.search(str(exc)), _STATUS.search(str(exc))
    if status:
        return f"HTTP {status.group(1)}{f' {code.group(1)}' if code else ''}"
    return (str(exc).splitlines() or [type(exc).__name__])[0].rsplit(" - ", 1)[-1][:200]
