"""What operators ask of copies, through the commands against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tests.api.test_commands import outcrop
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server


def test_warm_starts_a_copy_and_status_says_how_soon_models_answer(server: Server, model: str) -> None:
    done = outcrop(server, "warm", "tiny")
    shown = outcrop(server, "status")
    found = next(row for row in server.status()["models"] if row["model_name"] == "tiny")

    assert done.returncode == 0, done.stderr
    assert found["state"] in ("ready", "evictable")
    assert found["wake_s"]["cached"] > 0
    assert "WAKE S, CACHED" in shown.stdout


def test_scaling_explains_the_start_with_the_facts_that_it_saw(server: Server, model: str) -> None:
    outcrop(server, "warm", "tiny")

    found = json.loads(outcrop(server, "scaling", "explain", "tiny", "--json").stdout)
    shown = outcrop(server, "scaling", "explain", "tiny").stdout

    start = next(row for row in found if row["current"] == 0 and row["desired"] == 1)
    assert start["facts"]["held"] >= 1
    assert start["reason"] in shown


def test_what_is_set_for_a_model_outlives_the_command_and_nonsense_is_refused(server: Server, model: str) -> None:
    set_ = outcrop(server, "scaling", "set", "tiny", "--max", "2", "--floor", "0 8 * * 1-5;3600;0;2")
    shown = json.loads(outcrop(server, "scaling", "show", "tiny").stdout)
    refused = outcrop(server, "scaling", "set", "tiny", "--min", "5", "--max", "2")
    unread = outcrop(server, "scaling", "set", "tiny", "--floor", "always")
    outcrop(server, "scaling", "set", "tiny")

    assert set_.returncode == 0, set_.stderr
    assert shown["max_copies"] == 2
    assert shown["floors"][0]["cron"] == "0 8 * * 1-5"
    assert refused.returncode == 2
    assert "min_copies=5 is more than max_copies=2" in refused.stderr
    assert unread.returncode == 2


def test_logs_are_those_of_the_copy_that_is_named(server: Server, model: str) -> None:
    outcrop(server, "warm", "tiny")

    newest = json.loads(outcrop(server, "logs", "tiny", "--json").stdout)
    absent = outcrop(server, "logs", "tiny", "--copy", "zzz")
    outside = outcrop(server, "logs", "tiny", "--copy", "../../x")

    assert newest["copy_id"] in newest["copies"]
    assert "There is no log of zzz" in absent.stderr
    assert "is no copy id" in outside.stderr


def test_an_alias_is_asked_like_a_model_and_moves(server: Server, model: str, tmp_path: Path) -> None:
    other = server.import_model(make_checkpoint(tmp_path / "other", seed=5), "tiny-next")
    runtime = server.client("bedrock-runtime")

    def answered() -> str:
        answer = runtime.invoke_model(
            modelId="live", body='{"messages":[{"role":"user","content":"x"}],"max_tokens":1}'
        )
        label: str = json.loads(answer["body"].read())["model"]
        return label

    assert outcrop(server, "alias", "set", "live", "tiny").returncode == 0
    assert answered().endswith(model.rsplit("/", 1)[1])
    assert outcrop(server, "alias", "set", "live", "tiny-next").returncode == 0
    assert answered().endswith(other.rsplit("/", 1)[1])
    assert "tiny-next" in outcrop(server, "alias", "list").stdout
    assert outcrop(server, "alias", "remove", "live").returncode == 0
    with pytest.raises(ClientError, match="live"):
        answered()


def test_an_alias_never_hides_a_model(server: Server, model: str) -> None:
    refused = outcrop(server, "alias", "set", "tiny", model)

    assert refused.returncode == 2
    assert "is the name of an imported model" in refused.stderr
