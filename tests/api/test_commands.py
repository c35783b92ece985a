"""The commands as a person types them, against a real server."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import openai
from tests.support.checkpoints import copy_of, set_config
from tests.support.server import Server


def outcrop(server: Server, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outcrop.cli.main", *words],
        env={**os.environ, "OUTCROP_HOME": str(server.home)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_follows_the_job_and_prints_the_model(server: Server, tiny: Path) -> None:
    done = outcrop(server, "import", str(tiny), "--name", "by-command")

    assert done.returncode == 0, done.stderr
    found = server.client("bedrock").get_imported_model(modelIdentifier="by-command")
    assert done.stdout.strip() == found["modelArn"]
    assert "Imported as by-command: checking" in done.stderr


def test_import_in_json_gives_the_job_with_its_timings(server: Server, tiny: Path) -> None:
    done = outcrop(server, "import", str(tiny), "--name", "by-json", "--json")

    job = json.loads(done.stdout)
    assert job["status"] == "Completed"
    assert set(job["timings"]) >= {"checking", "transferring", "converting", "proving"}


def test_a_failed_import_exits_with_1_and_the_failure_message(server: Server, tiny: Path, tmp_path: Path) -> None:
    broken = copy_of(tiny, tmp_path / "broken")
    set_config(broken, intermediate_size=96)

    done = outcrop(server, "import", str(broken), "--name", "broken-by-command")

    assert done.returncode == 1
    assert "config.json implies [96, 64]" in done.stderr
    assert not done.stdout


def test_a_folder_without_a_checkpoint_is_refused_before_anything_is_sent(server: Server, tmp_path: Path) -> None:
    done = outcrop(server, "import", str(tmp_path), "--name", "nothing")

    assert done.returncode != 0
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_jobs_and_models_are_listed_for_people_and_for_machines(server: Server, model: str) -> None:
    assert "job-tiny" in outcrop(server, "jobs").stdout
    assert "job-tiny" in [job["jobName"] for job in json.loads(outcrop(server, "jobs", "--json").stdout)]
    assert model in outcrop(server, "models").stdout
    assert model in [found["modelArn"] for found in json.loads(outcrop(server, "models", "--json").stdout)]


def test_invoke_streams_what_it_prints_whole_without_streaming(server: Server, model: str) -> None:
    words = ("invoke", "tiny", "for each record", "--max-tokens", "12")
    streamed, whole = outcrop(server, *words), outcrop(server, *words, "--no-stream")

    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout == whole.stdout
    assert json.loads(outcrop(server, *words, "--json").stdout)["usage"]["completion_tokens"] == 12


def test_invoke_reads_a_prompt_from_standard_input(server: Server, model: str) -> None:
    done = outcrop(server, "invoke", "tiny", "-", "--max-tokens", "4", stdin="for each record")

    assert done.stdout == outcrop(server, "invoke", "tiny", "for each record", "--max-tokens", "4").stdout


def test_invoke_holds_the_answer_to_a_schema_and_a_model_to_a_dialect(
    server: Server, tiny: Path, tmp_path: Path
) -> None:
    server.import_model(tiny, "by-dialect")
    schema = tmp_path / "yes.json"
    schema.write_text('{"type": "boolean"}')

    held = outcrop(server, "invoke", "by-dialect", "x", "--schema", str(schema), "--system", "Be brief.", "--seed", "1")
    changed = outcrop(server, "models", "set", "by-dialect", "--dialect", "mistral")
    absent = outcrop(server, "models", "set", "absent", "--dialect", "llama")

    assert held.stdout.strip() in ("true", "false")
    assert changed.stderr.strip() == "by-dialect answers in mistral."
    assert absent.returncode == 2
    assert "Could not find imported model absent" in absent.stderr


def test_invoking_a_model_that_is_not_there_says_so_without_a_traceback(server: Server) -> None:
    done = outcrop(server, "invoke", "absent", "x")

    assert done.returncode != 0
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_shows_the_copies_with_state_age_and_requests(server: Server, model: str) -> None:
    outcrop(server, "invoke", "tiny", "x", "--max-tokens", "1")

    assert "ready" in outcrop(server, "status").stdout
    copies = json.loads(outcrop(server, "status", "--json").stdout)["copies"]
    ours = next(copy for copy in copies if copy["model_arn"] == model)
    assert ours["state"] == "ready"
    assert ours["requests"] >= 1
    assert ours["age_s"] > 0


def test_env_prints_exports_with_which_unmodified_clients_reach_the_server(server: Server, model: str) -> None:
    lines = outcrop(server, "env").stdout.splitlines()
    exports = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    script = "import boto3; print(boto3.client('bedrock').list_imported_models()['modelSummaries'][0]['modelName'])"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OPENAI_"))}

    asked = subprocess.run([sys.executable, "-c", script], env={**inherited, **exports}, capture_output=True, text=True)
    sdk = openai.OpenAI(base_url=exports["OPENAI_BASE_URL"], api_key=exports["OPENAI_API_KEY"])

    assert asked.returncode == 0, asked.stderr
    assert "tiny" in [entry.id for entry in sdk.models.list()]


def test_deleting_a_model_takes_it_away(server: Server, tiny: Path) -> None:
    server.import_model(tiny, "to-delete")

    done = outcrop(server, "models", "delete", "to-delete", "--json")

    assert json.loads(done.stdout) == {"deleted": "to-delete"}
    assert "to-delete" not in outcrop(server, "models").stdout


def test_a_home_without_a_server_names_the_command_that_starts_one(tmp_path: Path) -> None:
    done = outcrop(Server(tmp_path / "nobody"), "status")

    assert done.returncode != 0
    assert "outcrop serve" in done.stderr


def test_store_shows_what_models_share_and_what_a_deletion_frees(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1).start()
    try:
        server.import_model(tiny, "one")
        server.import_model(set_config(copy_of(tiny, tmp_path / "two"), rope_theta=20000.0), "two")
        found = json.loads(outcrop(server, "store", "--json").stdout)
        shown = outcrop(server, "store").stdout
        leaving = server.home / "store" / "staging" / "left-by-a-crash"
        leaving.mkdir()
        (leaving / "half.part").write_bytes(bytes(1000))
        told = json.loads(outcrop(server, "store", "--json").stdout)["collectable"]["bytes"]
        freed = json.loads(outcrop(server, "store", "gc", "--json").stdout)["freed_bytes"]
        one = next(model for model in found["models"] if model["model_name"] == "one")
        free = server.store_bytes()
        outcrop(server, "models", "delete", "one")

        assert {tuple(entry["models"]) for entry in found["shared"]} == {("one", "two")}
        assert one["shared_bytes"] > one["checkpoint_bytes"] / 2
        assert "FREED BY DELETION" in shown
        assert freed == told == 1000
        assert not leaving.exists()
        # The files of the bucket are linked, so what comes free is the artefact and its records.
        assert free - server.store_bytes() >= one["own_bytes"]
        assert json.loads(outcrop(server, "store", "--json").stdout)["shared"] == []
    finally:
        server.stop()


def test_models_show_tells_what_the_scan_and_the_proof_found(server: Server, model: str) -> None:
    told = json.loads(outcrop(server, "models", "show", "tiny", "--json").stdout)
    shown = outcrop(server, "models", "show", "tiny").stdout

    assert told["facts"]["scan"]["not_finite"] == []
    assert told["facts"]["scan"]["values"] == told["facts"]["parameters"]
    assert {"checking", "transferring", "converting", "proving"} <= set(told["timings"])
    assert model in shown
    assert "all finite" in shown
    assert outcrop(server, "models", "show", "absent").returncode == 2


def test_engines_says_what_this_machine_can_use_and_why_not_the_rest(server: Server) -> None:
    told = outcrop(server, "engines")
    found = json.loads(outcrop(server, "engines", "--json").stdout)

    assert told.returncode == 0
    assert "This machine grants" in told.stdout
    by_name = {engine["engine"]: engine for engine in found["engines"]}
    assert by_name["llama.cpp"]["is_usable"]
    assert by_name["llama.cpp"]["version"]
    assert not by_name["custom"]["is_usable"]
    assert "OUTCROP_CUSTOM_ENGINE" in by_name["custom"]["reason"]
    assert not by_name["simulated"]["is_choosable"]
    assert found["hardware"]["cores"] > 0


def test_models_show_says_why_a_model_runs_on_its_engine(server: Server, model: str) -> None:
    told = outcrop(server, "models", "show", "tiny").stdout

    assert "runs on   llama.cpp" in told
    assert "the first that serves it here" in told


def test_alarms_are_set_listed_replaced_and_removed(server: Server) -> None:
    asked = ("alarms", "set", "by/command", "--endpoint", "reviews", "--metric")
    done = outcrop(server, *asked, "ModelLatency", "--threshold", "2e6", "--statistic", "p95", "--periods", "2")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["AlarmName"], made["EndpointName"], made["Statistic"]) == ("by/command", "reviews", "p95")
    assert (made["Threshold"], made["EvaluationPeriods"], made["Period"]) == (2e6, 2, 60)

    replaced = outcrop(
        server, *asked, "Invocation5XXErrors", "--threshold", "5", "--variant", "v", "--missing", "breaching"
    )
    assert json.loads(replaced.stdout)["VariantName"] == "v"
    rows = json.loads(outcrop(server, "alarms", "list", "--json").stdout)
    (row,) = [row for row in rows if row["AlarmName"] == "by/command"]
    assert (row["MetricName"], row["StateValue"]) == ("Invocation5XXErrors", "ALARM")  # no traffic, which breaches
    assert "by/command" in outcrop(server, "alarms", "list").stdout

    odd = outcrop(server, *asked, "Nothing", "--threshold", "1")
    assert odd.returncode != 0
    assert "MetricName" in odd.stderr
    assert outcrop(server, "alarms", "remove", "by/command").returncode == 0
    gone = outcrop(server, "alarms", "remove", "by/command")
    assert gone.returncode != 0
    assert "There is no alarm by/command" in gone.stderr
