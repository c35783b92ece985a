"""What recording a request costs it, without a socket or an engine (``make bench-telemetry``).

Microseconds of one request's way through the recorder: facts, headers, metrics, the record in memory and on its way to
the file; with traces on, the entry in the exporter's queue; with a log line. Per token of a stream: the one addition
that is made for each batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import typer

from outcrop.access.audit_log import AuditLog
from outcrop.access.audit_record import Call, encode
from outcrop.inference.canonical import Usage
from outcrop.telemetry import logs
from outcrop.telemetry.metrics import Metrics
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.request_log import MOST_PENDING, RequestLog
from outcrop.telemetry.requests import RequestFacts, RequestRecord

ROUNDS = 7
REQUESTS = MOST_PENDING // 4
USAGE = Usage(120, 80)


def passes(recorder: Recorder, number: int) -> None:
    """One streamed request, as the api records it."""
    facts = RequestFacts(
        time.perf_counter(),
        f"{number:036d}",
        time.time(),
        operation="ConverseStream",
        account="000000000000",
        principal="arn:aws:iam::000000000000:user/admin",
        invocation_id="5f2a7c1e-0d9b-4f5e-9a52-1f6c7c2d9a10",
        sdk_attempt="attempt=1; max=4",
    )
    recorder.begin(facts)
    facts.of_model("model", "model-id")
    facts.is_stream = True
    facts.asks(is_cold=False)
    facts.placed("copy-id0", 0.0, None)
    facts.first_byte_at = time.perf_counter()
    facts.headers()
    facts.answered(USAGE)
    facts.left()
    recorder.end(facts)


def us_per_request(recorder: Recorder, log: RequestLog) -> float:
    """Microseconds, the median of ROUNDS rounds."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for number in range(REQUESTS):
            passes(recorder, number)
        rounds.append((time.perf_counter() - begun) / REQUESTS * 1e6)
        asyncio.run(log.flush())
    return statistics.median(rounds)


def us_per_token() -> float:
    """Microseconds that a stream pays for each batch of tokens."""
    facts = RequestFacts(0.0, "r", 0.0)
    batch, count = [object()], 1_000_000

    def timed(add: Callable[[], None]) -> float:
        begun = time.perf_counter()
        add()
        return (time.perf_counter() - begun) / count * 1e6

    def with_it() -> None:
        for _ in range(count):
            facts.chunks += len(batch)

    def without() -> None:
        for _ in range(count):
            pass

    return min(timed(with_it) for _ in range(3)) - min(timed(without) for _ in range(3))


def us_per_audit_record(folder: Path) -> float:
    """Microseconds of one call's audit record: made, chained and handed to the operating system."""
    log = AuditLog(folder, bytes(32), file_bytes=64 << 20, most_bytes=256 << 20)
    call = Call(
        request_id="5f2a7c1e-0d9b-4f5e-9a52-1f6c7c2d9a10",
        at=time.time(),
        source="bedrock.amazonaws.com",
        name="ConverseStream",
        region="us-east-1",
        recipient="000000000000",
        source_ip="127.0.0.1",
        user_agent="Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux md/arch#x86_64 lang/python",
        account="000000000000",
        principal="arn:aws:iam::000000000000:user/admin",
        access_key_id="AKIAIOSFODNN7EXAMPLE",
        params={"modelId": "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456"},
        model_arn="arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456",
    )
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(REQUESTS):
            log.append_encoded(encode(call))
        rounds.append((time.perf_counter() - begun) / REQUESTS * 1e6)
    log.close()
    return statistics.median(rounds)


def main() -> int:
    def ignore(record: RequestRecord) -> None:
        pass

    with contextlib.redirect_stderr(io.StringIO()):
        logs.configure("info", as_json=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, slow_s, export in (
            ("recorded", 5.0, None),
            ("recorded, handed to an exporter", 5.0, ignore),
            ("recorded and logged", 0.0, None),
        ):
            log = RequestLog(Path(folder) / "requests.jsonl", most_bytes=64 << 20, kept=5000)
            recorder = Recorder(Metrics(), log, slow_s=slow_s, export=export)
            typer.echo(f"{name:<34} {us_per_request(recorder, log):6.2f} us a request")
        typer.echo(f"{'audit record':<34} {us_per_audit_record(Path(folder) / 'audit'):6.2f} us a request")
    typer.echo(f"{'stream':<34} {us_per_token():6.3f} us a batch of tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
