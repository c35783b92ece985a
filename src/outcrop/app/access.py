"""Who may come in: identities, their keys and sessions, policies, quotas."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from outcrop.access import sealing
from outcrop.access.authorizer import Authorizer, ResourcePolicies
from outcrop.access.bootstrap import ensure
from outcrop.access.credentials_file import Credentials, load_or_create
from outcrop.access.directory import Directory
from outcrop.access.quotas import Quotas
from outcrop.access.sessions import Sessions
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry
from outcrop.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """*credentials*: of the server's own administrator."""

    credentials: Credentials
    directory: Directory
    sessions: Sessions
    authorizer: Authorizer
    quotas: Quotas


async def make_access(settings: Settings, registry: Registry) -> Access:
    credentials = load_or_create(settings.home, settings.account, settings.region)
    sealer = await asyncio.to_thread(sealing.load_or_create, settings.secret_key)
    directory = Directory(IdentityRecords(registry), sealer, account=credentials.account)
    await ensure(directory, credentials)
    quotas = Quotas(IdentityRecords(registry))
    await asyncio.to_thread(quotas.load)
    return Access(
        credentials=credentials,
        directory=directory,
        sessions=Sessions(sealer),
        authorizer=Authorizer(directory, ResourcePolicies(registry.attachments), region=settings.region),
        quotas=quotas,
    )
