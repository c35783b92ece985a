"""Rows of SageMaker's resources as its calls see them: by name, in pages, with ARNs and tags."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.api.pages import when
from outcrop.errors import InvalidRequest
from outcrop.registry.sagemaker_records import Resource, SageMakerRecords

_ROWS = 10
_MOST_TAGS = 50
_ARN = re.compile(r"arn:aws:sagemaker:([a-z0-9-]+):([0-9]{12}):(model|endpoint-config|endpoint)/(.+)")


class Rows:
    """Every kind of resource of one region."""

    def __init__(self, region: str, records: SageMakerRecords) -> None:
        self.region = region
        self.records = records

    def arn(self, account: str, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self.region}:{account}:{kind}/{name.lower()}"

    async def add(
        self, principal: Principal, kind: str, name: str, body: Mapping[str, Any], field: str
    ) -> dict[str, Any]:
        """Keep a new resource; its ARN under *field*. Raises InvalidRequest for a name that is taken."""
        tags = _tags(body.get("Tags", ()))
        plain = msgspec.to_builtins(body)
        if not await asyncio.to_thread(self.records.add, principal.account, kind, name, plain, tags):
            arn = self.arn(principal.account, kind, name)
            raise InvalidRequest(f'Cannot create already existing {kind.replace("-", " ")} "{arn}".')
        return {field: self.arn(principal.account, kind, name)}

    async def find(self, account: str, kind: str, name: str) -> Resource:
        """Raises InvalidRequest for one that is not there."""
        row = await asyncio.to_thread(self.records.get, account, kind, name)
        if row is None:
            raise self.missing(account, kind, name)
        return row

    def missing(self, account: str, kind: str, name: str) -> InvalidRequest:
        what = kind.replace("endpoint-config", "endpoint configuration")
        return InvalidRequest(f'Could not find {what} "{self.arn(account, kind, name)}".')

    async def remove(self, principal: Principal, kind: str, name: str) -> dict[str, Any]:
        if not await asyncio.to_thread(self.records.remove, principal.account, kind, name):
            raise self.missing(principal.account, kind, name)
        return {}

    async def page(
        self,
        params: Mapping[str, Any],
        principal: Principal,
        kind: str,
        prefix: str,
        more: Callable[[Resource], dict[str, Any] | None] = lambda row: {},
    ) -> dict[str, Any]:
        """A page of a List call; *more*: further fields of a row, None for one that is not shown.

        A token is the number of rows that were given.
        """
        rows = await asyncio.to_thread(self.records.all, kind, principal.account)
        after, before = params.get("CreationTimeAfter"), params.get("CreationTimeBefore")
        shown = [
            {
                f"{prefix}Name": row.name,
                f"{prefix}Arn": self.arn(row.account, kind, row.name),
                "CreationTime": when(row.created_at),
                **further,
            }
            for row in rows
            if params.get("NameContains", "").lower() in row.name.lower()
            and (after is None or row.created_at >= after.timestamp())
            and (before is None or row.created_at <= before.timestamp())
            and (further := more(row)) is not None
        ]
        if status := params.get("StatusEquals"):
            shown = [row for row in shown if row["EndpointStatus"] == status]
        if params.get("SortBy") == "Name":
            shown.sort(key=lambda row: str(row[f"{prefix}Name"]))
        if params.get("SortOrder", "Descending") == "Descending":
            shown.reverse()
        limit, start = params.get("MaxResults", _ROWS), _position(params.get("NextToken"))
        token = _token(start + limit) if start + limit < len(shown) else None
        return {f"{prefix}s": shown[start : start + limit], "NextToken": token}

    # -- tags -----------------------------------------------------------------------------------------

    async def add_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._tagged(params, principal)
        tags = {**row.tags, **_tags(params["Tags"])}
        if len(tags) > _MOST_TAGS:
            raise InvalidRequest(f"{params['ResourceArn']} would have {len(tags)} tags; {_MOST_TAGS} are allowed.")
        await asyncio.to_thread(self.records.change, row.account, row.kind, row.name, tags=tags)
        return {"Tags": _as_list(tags)}

    async def list_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        tags = _as_list((await self._tagged(params, principal)).tags)
        limit, start = params.get("MaxResults", _MOST_TAGS), _position(params.get("NextToken"))
        more = start + limit < len(tags)
        return {"Tags": tags[start : start + limit], "NextToken": _token(start + limit) if more else None}

    async def delete_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._tagged(params, principal)
        tags = {key: value for key, value in row.tags.items() if key not in params["TagKeys"]}
        await asyncio.to_thread(self.records.change, row.account, row.kind, row.name, tags=tags)
        return {}

    async def _tagged(self, params: Mapping[str, Any], principal: Principal) -> Resource:
        found = _ARN.fullmatch(params["ResourceArn"])
        if found is None or found[1] != self.region or found[2] != principal.account:
            raise InvalidRequest(f"{params['ResourceArn']} is no resource of this account and region.")
        rows = await asyncio.to_thread(self.records.all, found[3], principal.account)
        for row in rows:
            if row.name.lower() == found[4].lower():
                return row
        raise self.missing(principal.account, found[3], found[4])


def refuse(params: Mapping[str, Any], *names: str, why: str) -> None:
    """Raise InvalidRequest for the first of *names* that is given."""
    for name in names:
        if params.get(name):
            raise InvalidRequest(f"{name} is not supported: {why}. Leave it out.")


def without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def _tags(tags: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _token(start: int) -> str:
    return base64.urlsafe_b64encode(str(start).encode()).decode()


def _position(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest("The NextToken is invalid. Use the token of the previous page.") from exc
