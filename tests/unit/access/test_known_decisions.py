"""Decisions that are kept: only those that no context can change, and only until a policy with a say is another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outcrop.access.authorizer import Authorizer, Origin, ResourcePolicies
from outcrop.access.directory import Directory, document_of
from outcrop.access.identities import Identity, IdentityKind, Principal, Session
from outcrop.access.sealing import Sealer
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry

ACCOUNT = "000000000000"
MODEL = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:imported-model/abcdefabcdef"
ACTION = "bedrock:InvokeModel"


def statement(effect: str = "Allow", **more: object) -> dict[str, object]:
    return {"Effect": effect, "Action": ACTION, "Resource": "*", **more}


class Town:
    def __init__(self, folder: Path) -> None:
        self.registry = Registry.open(folder / "db")
        self.directory = Directory(IdentityRecords(self.registry), Sealer(b"k" * 32), account=ACCOUNT)
        resources = ResourcePolicies(self.registry.attachments)
        self.authorizer = Authorizer(self.directory, resources, region="us-east-1")

    async def user(self, *statements: dict[str, object]) -> Identity:
        policies = {"p": document_of(*statements)} if statements else {}
        return await self.directory.create(ACCOUNT, IdentityKind.USER, "ann", policies=policies)

    def may(self, who: Identity, origin: Origin | None = None, **session: object) -> bool:
        """Twice, so that what was kept is what answers."""
        held = Session(session_name="s", role_arn=who.arn, issued_at=0, expires_at=0, **session) if session else None  # type: ignore[arg-type]
        principal = Principal(ACCOUNT, who.arn, who.identity_id, held)
        answers = [self.authorizer.decide(principal, ACTION, MODEL, origin or Origin()).is_allowed for _ in range(2)]
        assert answers[0] == answers[1]
        return answers[0]


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    town = Town(tmp_path)
    yield town
    town.registry.close()


async def test_a_policy_that_is_put_changed_or_taken_away_has_a_say_at_once(town: Town) -> None:
    ann = await town.user()
    assert not town.may(ann)
    await town.directory.put_policy(ann, "p", document_of(statement()))
    assert town.may(ann)
    await town.directory.put_policy(ann, "no", document_of(statement("Deny")))
    assert not town.may(ann)
    await town.directory.delete_policy(ann, "no")
    assert town.may(ann)
    await town.directory.change(ann, boundary=document_of(statement("Allow", Action="bedrock:Other")))
    assert not town.may(ann)
    await town.directory.change(ann, boundary=None)
    assert town.may(ann)
    await town.directory.delete_policy(ann, "p")
    await town.directory.delete(ann)
    assert not town.may(ann)


async def test_a_resource_s_policy_has_a_say_at_once(town: Town) -> None:
    ann = await town.user(statement())
    assert town.may(ann)
    place = (ACCOUNT, "imported-model/abcdefabcdef")
    denial = {"Effect": "Deny", "Principal": "*", "Action": ACTION, "Resource": MODEL}
    town.registry.attachments.put_policy(*place, document_of(denial))
    assert not town.may(ann)
    town.registry.attachments.delete_policy(*place)
    assert town.may(ann)


async def test_what_looks_at_the_context_is_asked_anew(town: Town) -> None:
    near = {"Condition": {"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}}
    ann = await town.user(statement(), statement("Deny", Condition={"Bool": {"aws:SecureTransport": "false"}}))
    assert town.may(ann, Origin("10.0.0.1", is_secure=True))
    assert not town.may(ann, Origin("10.0.0.1"))
    await town.directory.put_policy(ann, "p", document_of(statement(**near)))
    assert town.may(ann, Origin("10.0.0.1"))
    assert not town.may(ann, Origin("192.0.2.1"))


async def test_a_session_s_own_policies_limit_it_alone(town: Town) -> None:
    from outcrop.access.policy import Kind, parse

    ann = await town.user(statement())
    narrow = parse(document_of(statement("Allow", Action="bedrock:Other")), Kind.SESSION, "session policy")
    assert town.may(ann)
    assert not town.may(ann, policies=(narrow,))
    assert town.may(ann)
