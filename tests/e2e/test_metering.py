"""The ledger against the process table: scaling, kills at random points, and the bill as a person asks for it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
from tests.api.test_commands import outcrop
from tests.support.server import Server, wait_for

from outcrop.bench.process_table import Sampler
from outcrop.metering.ledger import Ledger
from outcrop.metering.usage import Key, Usage
from outcrop.registry.store import Registry
from outcrop.registry.usage_records import UsageRecords

SEED = int(os.environ.get("OUTCROP_TEST_SEED") or random.SystemRandom().randrange(2**32))  # repeats a run
KILLS = int(os.environ.get("OUTCROP_TEST_KILLS") or 4)
ONE, OF_COPIES = Key(0, "a", "m", "p"), Key(0, "a", "m")
WRITER = """
import sys
from pathlib import Path
from outcrop.metering.ledger import Ledger
from outcrop.metering.usage import Key, Usage
from outcrop.registry.store import Registry
from outcrop.registry.usage_records import UsageRecords

ledger, number = Ledger(UsageRecords(Registry.open(Path(sys.argv[1])))), 0
while True:
    number += 1
    rows = {Key(0, "a", "m", "p"): Usage(requests=1), Key(0, "a", "m"): Usage(busy_ms=7)}
    ledger.apply(sys.argv[2], number, rows)
    print(number, flush=True)
"""
BODY = '{"prompt": "for each", "max_gen_len": 24}'


def ledger(server: Server) -> list[dict[str, int]]:
    rows: list[dict[str, int]] = server.admin(f"/outcrop/v1/usage/0/{2**53}")["rows"]
    return rows


def copy_seconds(rows: list[dict[str, int]]) -> float:
    states = ("starting", "idle", "busy", "evictable", "draining", "asleep", "proving")
    return sum(row[f"{state}_ms"] for row in rows for state in states) / 1000


def test_copy_seconds_equal_the_process_table_and_outlast_a_server_that_is_killed(tmp_path: Path, tiny: Path) -> None:
    draw = random.Random(SEED)
    server = Server(tmp_path / "home", cpu_threads=1, max_copies=2, keep_alive_s=0.5, stop_idle=True)
    answered = 0
    with Sampler(b"llama_cpp_child") as sampler:
        server.start()
        sampler.parent = server.process.pid  # type: ignore[union-attr]
        server.import_model(tiny, "metered")
        for phase in range(KILLS + 1):
            runtime = server.client("bedrock-runtime", attempts=3)
            # Some kills come while a copy starts, some while it works, rests or ends.
            until = time.monotonic() + (draw.uniform(0.1, 2.5) if phase < KILLS else 5)
            while time.monotonic() < until or (phase == KILLS and answered < 20):
                runtime.invoke_model(modelId="metered", body=BODY)["body"].read()
                answered += 1
                time.sleep(draw.choice([0.0, 0.1, 0.9]))
            if phase < KILLS:
                server.kill()
                server.start()
                sampler.parent = server.process.pid  # type: ignore[union-attr]
        wait_for(lambda: not server.status()["copies"], 20)
        rows = ledger(server)
        wait_for(lambda: not sampler.alive(), 5)

    counted, seen = copy_seconds(rows), sampler.seconds()
    # A kill loses at most what no batch had taken: a second while something happens.
    assert seen - KILLS * 1.2 - 0.01 * seen - 0.03 * len(sampler.lives) <= counted, f"seed {SEED}"
    # A copy counts from just before its process is there.
    assert counted <= seen * 1.01 + 0.1 * len(sampler.lives), f"seed {SEED}"
    requests = sum(row["requests"] for row in rows)
    assert answered - 12 * KILLS <= requests <= answered, f"seed {SEED}"
    assert len({(row["hour_ms"], row["model_id"], row["principal"]) for row in rows}) == len(rows) <= 6
    server.stop()


def test_a_batch_is_in_the_ledger_whole_or_not_at_all_wherever_its_writer_is_killed(tmp_path: Path) -> None:
    draw, database, acknowledged, kills = random.Random(SEED), tmp_path / "registry.db", 0, 5
    for kill in range(kills):
        command = [sys.executable, "-c", WRITER, str(database), f"writer-{kill}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            mine = int(writer.stdout.readline())
            until = time.monotonic() + draw.uniform(0.0, 0.3)
            while time.monotonic() < until:
                mine = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            # What it said before it died counts too.
            mine = max([mine, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        acknowledged += mine
        registry = Registry.open(database)
        records = Ledger(UsageRecords(registry))
        records.apply(f"writer-{kill}", mine, {ONE: Usage(requests=1)})  # told again after a lost answer
        rows = records.between("a", 0, 1)
        registry.close()

        assert acknowledged <= rows[ONE].requests <= acknowledged + kill + 1, f"seed {SEED}"
        assert rows[OF_COPIES].busy_ms == 7 * rows[ONE].requests, f"seed {SEED}"
        assert len(rows) == 2


def test_usage_and_bill_answer_in_every_form(server: Server, tiny: Path, tmp_path: Path) -> None:
    server.import_model(tiny, "billed")
    runtime = server.client("bedrock-runtime")
    for _ in range(3):
        runtime.invoke_model(modelId="billed", body=BODY)["body"].read()

    def record(*words: str) -> dict[str, object]:
        done = outcrop(server, *words, "--json")
        assert done.returncode == 0, done.stderr
        return next(row for row in json.loads(done.stdout) if row["group"] == "billed")

    used = record("usage")
    assert (used["requests"], used["windows"], used["window_units"]) == (3, 1, 1)
    assert used["cold_starts"] == 1
    assert float(str(used["busy_s"])) > 0

    billed = record("bill", "--own-copy-hour", "0.40", "--as-of", "2025-06-01")
    # Whole cents that sum to the total's: a line is rounded up or down, as the others' remainders have it.
    assert billed["cmi_usd"] in (0.39, 0.40)  # 0.0785 x 5
    assert billed["sagemaker_usd"] in (2.60, 2.61, 2.62)
    assert "own_used_usd" in billed

    for suffix in ("csv", "json", "parquet"):
        done = outcrop(server, "bill", "--by", "principal", "--out", str(tmp_path / f"bill.{suffix}"))
        assert done.returncode == 0, done.stderr
    rows = pyarrow.parquet.read_table(tmp_path / "bill.parquet").to_pylist()
    assert any(str(row["group"]).startswith("arn:aws:iam::") for row in rows)
    assert "cmu-v1-minute: 0.05718 USD, us-east-1, 2026-07-21" in outcrop(server, "bill").stderr
    assert outcrop(server, "bill", "--by", "colour").returncode == 2
