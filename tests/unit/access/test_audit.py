"""The audit log: its chain, what breaks it, what a crash leaves, and what a record may hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outcrop.access import audit_log
from outcrop.access.audit_chain import HEAD, entries, files, verify
from outcrop.access.audit_log import AuditLog, load_key
from outcrop.access.audit_query import Question, answers
from outcrop.access.audit_record import HIDDEN, Call, encode
from outcrop.errors import BadSetting

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
ADMIN = "arn:aws:iam::000000000000:user/admin"
MODEL = "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456"


def opened(folder: Path, **changed: Any) -> AuditLog:
    return AuditLog(folder, KEY, **{"file_bytes": 1 << 20, "account": "000000000000", **changed})


def filled(folder: Path, count: int = 5, **changed: Any) -> AuditLog:
    log = opened(folder, **changed)
    for number in range(count):
        log.append({"eventName": f"Call{number}", "eventTime": f"2026-01-02T03:04:0{number % 10}Z"})
    log.close()
    return log


def lines(folder: Path, file: int = 0) -> list[bytes]:
    return files(folder)[file].read_bytes().splitlines(keepends=True)


def rewrite(folder: Path, change: Callable[[list[bytes]], list[bytes]], file: int = 0) -> None:
    path = files(folder)[file]
    path.write_bytes(b"".join(change(lines(folder, file))))


def call(**changed: Any) -> dict[str, Any]:
    given = {
        "request_id": "r-1",
        "at": 1_767_323_045.0,
        "source": "bedrock.amazonaws.com",
        "name": "GetImportedModel",
        "region": "us-east-1",
        "recipient": "000000000000",
        "source_ip": "192.0.2.7",
        "user_agent": "Boto3/1.44",
        "account": "000000000000",
        "principal": ADMIN,
    }
    found: dict[str, Any] = json.loads(encode(Call(**{**given, **changed})))
    return found


def test_a_log_is_whole_over_restarts_and_files(tmp_path: Path) -> None:
    for _ in range(3):
        filled(tmp_path, 20, file_bytes=2000)

    verdict = verify(tmp_path, KEY)

    assert verdict.broken is None
    assert verdict.records == 3 * 22  # each start and end is a record
    assert verdict.files > 3
    assert [entry.n for entry in entries(tmp_path)] == list(range(1, 67))


@pytest.mark.parametrize(
    ("change", "n", "reason"),
    [
        (lambda rows: [*rows[:2], rows[2].replace(b"Call1", b"Call9"), *rows[3:]], 3, "content was changed"),
        (lambda rows: [*rows[:2], *rows[3:]], 3, "records 3 to 3 are missing"),
        (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], 2, "records 2 to 2 are missing"),
        (lambda rows: [*rows[:3], rows[2], *rows[3:]], 4, "out of order"),
        (lambda rows: rows[:-1], 7, "cut off: records 7 to 7 are missing"),
        (lambda rows: rows[:2], 3, "cut off: records 3 to 7 are missing"),
        (lambda rows: [], 1, "cut off: records 1 to 7 are missing"),
        (lambda rows: [*rows[:3], b"{}\n", *rows[3:]], 4, "the line is no record"),
        (lambda rows: rows[1:], 1, "records 1 to 1 are missing"),
        (lambda rows: [*rows[:2], rows[2].replace(b'"n":3', b'"n":4'), *rows[3:]], 3, "record 4 stands here"),
        (lambda rows: [*rows[:-1], rows[-1][:-30]], 7, "cut off"),
    ],
)
def test_the_first_broken_record_is_named(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], n: int, reason: str
) -> None:
    filled(tmp_path)
    rewrite(tmp_path, change)

    broken = verify(tmp_path, KEY).broken

    assert broken is not None
    assert broken.n == n
    assert reason in broken.reason


def test_a_chain_made_anew_without_the_key_is_found(tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    AuditLog(forged, OTHER_KEY, file_bytes=1 << 20).close()

    broken = verify(forged, KEY).broken

    assert broken is not None
    assert "not sealed with this key" in broken.reason


def test_a_log_that_was_put_back_with_its_old_head_is_found_by_a_head_kept_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    filled(tmp_path)
    n, mac = verify(tmp_path, KEY).head.split(":")
    for path in tmp_path.iterdir():
        path.unlink()
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)

    assert verify(tmp_path, KEY).broken is None  # nothing here knows better
    broken = verify(tmp_path, KEY, anchors={int(n): mac}).broken
    assert broken is not None
    assert "cut off" in broken.reason


@pytest.mark.parametrize("cut", [1, 10, 300])
def test_a_torn_last_line_is_cut_off_and_noted_and_the_chain_goes_on(tmp_path: Path, cut: int) -> None:
    log = opened(tmp_path)
    log.append({"eventName": "Whole"})
    log.sync()
    log.append({"eventName": "Torn", "more": "x" * 400})
    path = files(tmp_path)[0]
    os.truncate(path, path.stat().st_size - cut)

    opened(tmp_path).close()

    names = [entry.value()["eventName"] for entry in entries(tmp_path)]
    assert names == ["AuditLogOpened", "Whole", "AuditLogOpened", "AuditLogClosed"]
    noted = list(entries(tmp_path))[2].value()["additionalEventData"]
    assert noted["tornBytes"] > 0
    assert verify(tmp_path, KEY).broken is None


def test_a_log_cut_off_before_a_start_shows_its_gap_for_ever(tmp_path: Path) -> None:
    filled(tmp_path)
    rewrite(tmp_path, lambda rows: rows[:3])

    filled(tmp_path)

    broken = verify(tmp_path, KEY).broken
    assert broken is not None
    assert (broken.n, "records 4 to 7 are missing" in broken.reason) == (4, True)
    noted = next(entry.value() for entry in entries(tmp_path) if entry.n == 8)["additionalEventData"]
    assert (noted["missingFrom"], noted["missingTo"]) == (4, 7)


def test_a_removed_log_shows_its_gap(tmp_path: Path) -> None:
    filled(tmp_path)
    for path in files(tmp_path):
        path.unlink()
    filled(tmp_path)

    broken = verify(tmp_path, KEY).broken
    assert broken is not None
    assert "records 1 to 7 are missing" in broken.reason


def test_retention_removes_whole_files_and_the_rest_still_verifies(tmp_path: Path) -> None:
    filled(tmp_path, 60, file_bytes=2000)
    old = files(tmp_path)
    for path in old[:3]:
        os.utime(path, (0, 0))

    log = opened(tmp_path, keep_days=1)
    assert log.expire(1e9) == 3
    log.close()

    assert files(tmp_path)[0] == old[3]
    verdict = verify(tmp_path, KEY)
    assert verdict.broken is None
    assert verdict.first_n == int(old[3].stem)
    assert "AuditFilesRemoved" in [entry.value()["eventName"] for entry in entries(tmp_path)]
    # What retention left may not go unnoticed.
    old[3].unlink()
    broken = verify(tmp_path, KEY).broken
    assert broken is not None
    assert "are missing" in broken.reason


def test_retention_by_size_keeps_the_newest(tmp_path: Path) -> None:
    filled(tmp_path, 200, file_bytes=2000, most_bytes=10_000)

    assert sum(path.stat().st_size for path in files(tmp_path)) < 15_000
    assert verify(tmp_path, KEY).broken is None


def test_a_crash_within_retention_leaves_files_too_many_and_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 60, file_bytes=2000)
    os.utime(files(tmp_path)[0], (0, 0))
    log = opened(tmp_path, keep_days=1)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            log.expire(1e9)

    opened(tmp_path).close()
    assert verify(tmp_path, KEY).broken is None


def test_records_that_cannot_be_written_are_counted_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    real = os.write
    with monkeypatch.context() as patched:
        # A full disk takes a part of the line.
        patched.setattr(audit_log.os, "write", lambda handle, line: real(handle, line[:20]))
        log.append({"eventName": "Lost1"})
        log.append({"eventName": "Lost2"})
    log.append({"eventName": "Kept"})
    log.close()

    found = [entry.value() for entry in entries(tmp_path)]
    assert [record["eventName"] for record in found] == ["AuditLogOpened", "AuditRecordsLost", "Kept", "AuditLogClosed"]
    assert found[1]["additionalEventData"] == {"records": 2}
    assert log.lost == 2
    assert verify(tmp_path, KEY).broken is None


def test_a_head_that_was_changed_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    head = json.loads((tmp_path / HEAD).read_bytes())
    (tmp_path / HEAD).write_text(json.dumps({**head, "n": 3}))

    broken = verify(tmp_path, KEY).broken
    assert broken is not None
    assert "not sealed" in broken.reason


def test_the_key_is_made_once_private_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    with pytest.raises(BadSetting, match="does not exist"):
        load_key(path)
    key = load_key(path, create=True)
    assert load_key(path, create=True) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(BadSetting, match="chmod 600"):
        load_key(path)
    path.chmod(0o600)
    path.write_text("abc")
    with pytest.raises(BadSetting, match="64 hexadecimal digits"):
        load_key(path)


def test_a_record_has_cloudtrails_shape() -> None:
    record = call(params={"modelIdentifier": MODEL}, access_key_id="AKIAIOSFODNN7EXAMPLE")

    record.pop("eventID")
    assert record == {
        "eventVersion": "1.11",
        "userIdentity": {
            "type": "IAMUser",
            "arn": ADMIN,
            "accountId": "000000000000",
            "userName": "admin",
            "accessKeyId": "AKIAIOSFODNN7EXAMPLE",
        },
        "eventTime": "2026-01-02T03:04:05Z",
        "eventSource": "bedrock.amazonaws.com",
        "eventName": "GetImportedModel",
        "awsRegion": "us-east-1",
        "sourceIPAddress": "192.0.2.7",
        "userAgent": "Boto3/1.44",
        "requestParameters": {"modelIdentifier": MODEL},
        "responseElements": None,
        "requestID": "r-1",
        "readOnly": True,
        "resources": [{"ARN": MODEL, "accountId": "000000000000", "type": "AWS::Bedrock::ImportedModel"}],
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": "000000000000",
        "eventCategory": "Management",
    }


def test_no_prompt_no_answer_and_no_secret_gets_into_a_record() -> None:
    said = "zanzibar"
    invocation = call(
        name="Converse",
        params={"modelId": MODEL, "messages": [{"content": [{"text": said}]}], "system": said},
        answer={"output": said, "stopReason": said},
        error="ValidationException",
        message=f"cannot read {said}",
    )
    assert said not in json.dumps(invocation)
    assert invocation["requestParameters"] == {"modelId": MODEL}
    assert invocation["readOnly"] is True

    unheard_of = call(name="AskOracle", params={"question": said}, is_invocation=True, error="X", message=said)
    assert said not in json.dumps(unheard_of)

    made = call(
        name="CreateModel",
        params={"ModelName": "m", "PrimaryContainer": {"Environment": {"KEY": said}}, "clientRequestToken": said},
        answer={
            "ModelArn": "arn:aws:sagemaker:us-east-1:000000000000:model/m",
            "SecretAccessKey": said,
            "Key": {"x": said},
        },
    )
    assert said not in json.dumps(made)
    assert made["requestParameters"]["PrimaryContainer"]["Environment"] == HIDDEN
    assert made["responseElements"] == {"ModelArn": "arn:aws:sagemaker:us-east-1:000000000000:model/m"}
    assert made["readOnly"] is False


def test_a_strangers_record_says_whom_it_claimed_to_be() -> None:
    record = call(account="", principal="", access_key_id="AKIAIOSFODNN7EXAMPLE", error="InvalidSignatureException")

    assert record["userIdentity"] == {"type": "Unknown", "accessKeyId": "AKIAIOSFODNN7EXAMPLE"}
    assert (record["errorCode"], record["recipientAccountId"]) == ("InvalidSignatureException", "000000000000")


def test_huge_parameters_are_left_out_by_name() -> None:
    record = call(name="TagResource", params={"tags": [{"key": "k" * 900}] * 30})

    assert record["requestParameters"] == {"omitted": True, "keys": ["tags"]}


def test_questions_find_records_by_who_what_when_and_on_what(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append(call(name="Converse", params={"modelId": MODEL}))
    log.append(call(name="CreateModelImportJob", at=1_767_400_000.0, principal="arn:aws:iam::000000000000:user/eve"))
    log.append(call(name="ConverseStream", error="AccessDeniedException", params={"modelId": "other"}))
    log.close()

    def asked(**question: Any) -> list[str]:
        return [record["eventName"] for record in answers(entries(tmp_path), Question(**question))]

    assert asked(action="converse") == ["Converse", "ConverseStream"]
    assert asked(action="Converse*", only_errors=True) == ["ConverseStream"]
    assert asked(principal="user/eve") == ["CreateModelImportJob"]
    assert asked(principal="*:user/ad?in") == ["Converse", "ConverseStream"]
    assert asked(resource="abcdef123456") == ["Converse"]
    assert asked(action="C*", since=1_767_390_000.0, until=1_767_410_000.0) == ["CreateModelImportJob"]
    assert asked(limit=1) == ["AuditLogClosed"]


def test_calls_of_one_caller_and_model_keep_what_is_said_besides_apart() -> None:
    told = [{}, {"migration": "one"}, {"migration": "two", "copy": "true"}, {}]

    records = [call(name="InvokeModel", is_invocation=True, params={"modelId": "m"}, more=more) for more in told]

    assert [record.get("additionalEventData", {}) for record in records] == told
