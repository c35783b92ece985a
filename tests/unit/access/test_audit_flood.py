"""A flood of strangers in the audit log: recorded up to a rate, added up beyond it, and nobody else is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from outcrop.access.audit_chain import entries, verify
from outcrop.access.audit_flood import MOST_ADDRESSES, TELL_EVERY_S, Strangers
from outcrop.access.audit_log import AuditLog
from outcrop.access.identities import Principal
from outcrop.api.audit_trail import AuditTrail
from outcrop.awswire.service import Router
from outcrop.errors import MissingCredentials

ADDRESS = "192.0.2.1"


def test_strangers_are_recorded_up_to_the_rate_and_added_up_beyond() -> None:
    strangers = Strangers(2, 0.0)

    assert [strangers.is_recorded(ADDRESS, 0.0) for _ in range(25)] == [True] * 20 + [False] * 5
    assert strangers.is_recorded(ADDRESS, 0.5)
    assert not strangers.is_recorded("192.0.2.2", 0.5)
    assert strangers.summary(30.0) is None
    assert strangers.summary(TELL_EVERY_S) == {
        "calls": 6,
        "seconds": 60,
        "addresses": {ADDRESS: 5, "192.0.2.2": 1},
    }
    assert strangers.summary(1000.0) is None


def test_what_is_counted_is_told_at_the_stop() -> None:
    strangers = Strangers(0.1, 0.0)
    for _ in range(3):
        strangers.is_recorded(ADDRESS, 0.0)

    found = strangers.summary(1.0, is_last=True)
    assert found is not None
    assert found["calls"] == 2


def test_addresses_are_counted_in_bounded_memory() -> None:
    strangers = Strangers(0.001, 0.0)
    for number in range(3 * MOST_ADDRESSES):
        strangers.is_recorded(f"address {number}", 0.0)

    found = strangers.summary(100.0)
    assert found is not None
    addresses: Any = found["addresses"]
    assert found["calls"] == 3 * MOST_ADDRESSES
    assert len(addresses) <= 20
    assert addresses["others"] == 2 * MOST_ADDRESSES


def test_no_rate_records_every_stranger() -> None:
    strangers = Strangers(0, 0.0)

    assert all(strangers.is_recorded(ADDRESS, 0.0) for _ in range(1000))
    assert strangers.summary(1e9) is None


def request(principal: Principal | None) -> Any:
    return SimpleNamespace(
        is_audited=False,
        migrated={},
        called=None,
        facts=None,
        principal=principal,
        error=None if principal else MissingCredentials("Missing Authentication Token"),
        header_map=dict,
        raw_path=b"/metrics",
        method="GET",
        request_id="r",
        started=0.0,
        source_ip=ADDRESS,
    )


def test_a_flood_leaves_the_records_of_others_alone_and_its_own_sum(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, bytes(32), file_bytes=1 << 20)
    trail = AuditTrail(log, router=Router([]), region="us-east-1", account="000000000000", strangers_per_s=1)
    for _ in range(500):
        trail.record(request(None))
    trail.record(request(Principal("000000000000", "arn:aws:iam::000000000000:user/admin")))
    trail.tell_of_strangers(is_last=True)
    log.close()

    records = [entry.value() for entry in entries(tmp_path)]
    refused = [record for record in records if record.get("errorCode") == "MissingAuthenticationTokenException"]
    (told,) = [record for record in records if record["eventName"] == "RefusedCallsSummarised"]
    assert len(refused) + told["additionalEventData"]["calls"] == 500
    assert len(refused) < 20
    assert told["additionalEventData"]["addresses"] == {ADDRESS: 500 - len(refused)}
    assert [record["userIdentity"].get("userName") for record in records if "errorCode" not in record].count(
        "admin"
    ) == 1
    assert verify(tmp_path, bytes(32)).broken is None
