"""``outcrop keepwarm`` as a person, cron and Lambda run it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.api.test_commands import outcrop
from tests.proxy.test_lambda import run
from tests.support.server import Server
from tests.support.target import target as stand_in

ARN = "arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdef123456"
KEYS = {"AWS_ACCESS_KEY_ID": "k" * 20, "AWS_SECRET_ACCESS_KEY": "s" * 40}
COMMAND = [sys.executable, "-m", "outcrop.cli.main", "keepwarm"]


def test_our_own_server_is_refused_without_waking_a_model_and_the_remedy_is_named(server: Server, tiny: Path) -> None:
    server.import_model(tiny, "asleep")

    for target in ("bedrock:asleep", f"bedrock:asleep@{server.url}", f"openai:asleep@{server.url}/v1"):
        done = outcrop(server, "keepwarm", "once", target)
        assert done.returncode == 2
        assert "outcrop scaling set asleep --min 1" in done.stderr
    assert not [copy for copy in server.status()["copies"] if copy["model_name"] == "asleep"]


async def once(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, env={**os.environ, **KEYS}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def test_one_call_tells_its_price_first_and_a_model_that_does_not_answer_fails_it() -> None:
    async with stand_in() as served:
        target = f"bedrock:{ARN}@{served.url}"
        code, out, err = await once("once", target, "--json")
        assert (code, json.loads(out)[0]["is_warm"]) == (0, True)
        assert "at most 0.2859 USD each" in err

        code, _, err = await once("once", target, "--hours", "mon-sun 00:00-00:00")
        assert code == 0
        served.refusals = [(400, {"x-amzn-errortype": "ValidationException"}, b'{"message":"no such model"}')]
        code, out, _ = await once("once", target)
        assert code == 1
        assert "did not answer" in out
        assert "no such model" in out


async def test_the_daemon_says_what_it_costs_calls_and_ends_at_sigterm() -> None:
    async with stand_in() as served:
        words = ["run", f"bedrock:{ARN}@{served.url}", "--hours", "always", "--units", "2"]
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *words, env={**os.environ, **KEYS}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 10)

        assert b"answered after" in line
        assert process.returncode == 0
        assert b"about 3129 calls in 730 hours a month" in err
        assert b"1,788.92 USD a month (2 units" in err
        assert len(served.requests) == 1


async def test_the_same_calls_are_a_lambda_function_and_a_cold_target_fails_the_invocation(tmp_path: Path) -> None:
    async with stand_in() as served:
        settings = {"OUTCROP_KEEPWARM_TARGETS": f"bedrock:{ARN}@{served.url}", "OUTCROP_KEEPWARM_HOURS": "always"}
        event = {"source": "aws.events", "detail-type": "Scheduled Event"}
        served.refusals = [(200, {}, b"{}"), (400, {"x-amzn-errortype": "ValidationException"}, b'{"message":"no"}')]
        handler = "outcrop.delivery.keepwarm_lambda.handler"

        runtime, log = await run(tmp_path, served.url, event, event, handler=handler, **settings, **KEYS)

        assert runtime.answers[0]["status"] == "warm", log
        assert runtime.errors[1]["errorType"] == "NotWarm"
        assert "ValidationException" in runtime.errors[1]["errorMessage"]
