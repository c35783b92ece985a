"""The end of an import: who reads "Completed" may ask the model, and a model that the registry refused is not there."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.virtual import FakeLauncher, make_fleet

from outcrop.access.authorizer import Authorizer, ResourcePolicies
from outcrop.access.bootstrap import READ_BUCKETS, import_trust
from outcrop.access.credentials_file import IMPORT_ROLE
from outcrop.access.directory import Directory
from outcrop.access.identities import IdentityKind
from outcrop.access.import_roles import ImportRoles
from outcrop.access.sealing import Sealer
from outcrop.access.weight_keys import WeightKeys
from outcrop.engines.base import CopySpec
from outcrop.errors import StorageFull
from outcrop.ids import JobId, ModelId
from outcrop.importing.jobs import Importer
from outcrop.importing.weights import WeightStore
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.settings import Settings


class Told(Registry):
    """Notes what was known when the model was registered; *is_full* refuses it as a full disk would."""

    known: set[str]
    known_then: set[str] | None = None
    is_full = False

    def complete_job(self, model: ImportedModel, job_id: JobId, **values: Any) -> None:
        self.known_then = set(self.known)
        if self.is_full:
            raise StorageFull("The registry has no space left.")
        super().complete_job(model, job_id, **values)


async def roles(registry: Registry) -> ImportRoles:
    """The role of ``job``, which may read every bucket."""
    account = "000000000000"
    directory = Directory(IdentityRecords(registry), Sealer(b"k" * 32), account=account)
    trust = import_trust("0", "us-east-1")
    await directory.create(account, IdentityKind.ROLE, IMPORT_ROLE, policies={"read": READ_BUCKETS}, trust=trust)
    authorizer = Authorizer(directory, ResourcePolicies(registry.attachments), region="us-east-1")
    return ImportRoles(directory, authorizer, region="us-east-1")


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_model_can_be_asked_before_its_job_says_completed(tmp_path: Path, tiny: Path, is_full: bool) -> None:
    settings = Settings(home=tmp_path)
    for folder in (settings.store, settings.buckets):
        folder.mkdir(parents=True, exist_ok=True)
    registry = Told.open(settings.database)
    registry.known, registry.is_full = set(), is_full
    shutil.copytree(tiny, settings.buckets / "artifacts" / "tiny")

    async def withdrawn(model: ImportedModel) -> None:
        registry.known.discard(model.model_id)

    importer = Importer(
        settings=settings,
        registry=registry,
        store=WeightStore(settings.store),
        fleet=make_fleet(asyncio.get_running_loop(), FakeLauncher()),
        roles=await roles(registry),
        engines=(),  # so the checkpoint is kept and not proven
        spec=no_spec,
        on_model=lambda model: registry.known.add(model.model_id),
        on_withdrawn=withdrawn,
        keys=WeightKeys({}, "us-east-1"),
    )
    await importer.submit(job())
    while not (ended := registry.job("0", "job")).ended_at:
        await asyncio.sleep(0.01)
    await importer.close()

    assert registry.known_then == {"abcdefghijkl"}
    assert ended.phase == ("FAILED" if is_full else "COMPLETED"), ended.failure
    assert registry.known == (set() if is_full else {"abcdefghijkl"})
    registry.close()


def job() -> ImportJob:
    return ImportJob(
        job_id=JobId("jobjobjobjob"),
        account="0",
        job_name="job",
        model_name="tiny",
        model_id=ModelId("abcdefghijkl"),
        role_arn="arn:aws:iam::000000000000:role/outcrop-import",
        s3_uri="s3://artifacts/tiny/",
        client_token=None,
        request={},
        phase="QUEUED",
        progress=0.0,
        failure=None,
        timings={},
        created_at=0.0,
        modified_at=0.0,
        ended_at=None,
    )


def no_spec(model: ImportedModel) -> CopySpec:
    raise AssertionError("nothing is started")
