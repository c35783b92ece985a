"""Traces in every known layout, and what is wrong with those that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from outcrop.cli.plan import app
from outcrop.errors import BadSetting
from outcrop.planning.traces import read_trace

HEAD = "arrival_ms,input_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "arrival_ms,input_tokens,output_tokens\n2000,7,9\n500,3,4\n"),
        (
            "a.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 00:00:02.0000000,7,9\n2023-11-16 00:00:00.5000000,3,4\n",
        ),
        (
            "a.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n2,G,7,9,16,C\n0.5,G,3,4,7,C\n",
        ),
        (
            "a.jsonl",
            '{"request_id":"r","at":86402,"input_tokens":7,"output_tokens":9}\n{"request_id":"s","at":86400.5,"input_tokens":3,"output_tokens":4}\n{"request_id":"t","at":86401}\n',
        ),
        (
            "a.jsonl",
            '{"timestamp":2000,"input_length":7,"output_length":9}\n{"timestamp":500,"input_length":3,"output_length":4}\n',
        ),
    ],
)
def test_traces_are_read_in_every_known_layout(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_trace(tmp_path / name)

    assert found.at_s.tolist() == pytest.approx([0.5, 2])
    assert (found.tokens_in.tolist(), found.tokens_out.tolist()) == ([3, 7], [4, 9])


def test_a_parquet_trace_is_read_and_an_unknown_layout_is_refused_by_its_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = {"arrival_ms": [500, 2000], "input_tokens": [3, 7], "output_tokens": [4, 9]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("when,what\n1,2\n")

    assert read_trace(tmp_path / "a.parquet").at_s.tolist() == [0.5, 2]
    with pytest.raises(BadSetting, match="what, when"):
        read_trace(tmp_path / "b.csv")


def test_dates_of_both_years_of_azure_s_traces_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        AZURE + "2024-05-10 00:00:02.000000+00:00,7,9\n2024-05-10 02:00:00.500000+02:00,3,4\n"
    )

    assert read_trace(tmp_path / "a.csv").at_s.tolist() == pytest.approx([0.5, 2])


def test_dates_in_parquet_count_from_midnight_of_the_first_day(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    import pyarrow
    import pyarrow.parquet

    times = [
        datetime(2024, 5, 10, 8, tzinfo=UTC),
        datetime(2024, 5, 10, 9, tzinfo=UTC),
        datetime(2024, 5, 11, tzinfo=UTC),
    ]
    table = {"TIMESTAMP": times, "ContextTokens": [1, 2, 3], "GeneratedTokens": [4, None, 6]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")

    found = read_trace(tmp_path / "a.parquet")

    assert found.at_s.tolist() == [8 * 3600, 86400]  # the second was never answered
    assert found.tokens_out.tolist() == [4, 6]


def test_milliseconds_since_1970_count_from_midnight_of_the_first_day(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "\ufeff" + HEAD + f"{1_760_054_400_000 + 3_600_000},1,2\n"
    )  # with a byte order mark

    assert read_trace(tmp_path / "a.csv").at_s.tolist() == [3600]


def test_levels_of_a_benchmark_follow_one_another(tmp_path: Path) -> None:
    rows = [{"level": level, "due_s": at, "tokens_in": 1, "tokens_out": 2} for level in "ab" for at in (3, 0, 5)]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))

    assert read_trace(tmp_path / "requests.jsonl").at_s.tolist() == [0, 3, 5, 5, 8, 10]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", b"", "no answered request"),
        ("a.csv", HEAD.encode(), "no answered request"),
        ("a.csv", (HEAD + "1,nan,3\n").encode(), "row 1: .*at least 0"),
        ("a.csv", (HEAD + "1,2,3\nnan,2,3\n").encode(), "row 2: .*at least 0"),
        ("a.csv", (HEAD + "-5,2,3\n").encode(), "at least 0"),
        ("a.csv", (HEAD + "5,2,-3\n").encode(), "at least 0"),
        ("a.csv", (HEAD + "inf,2,3\n").encode(), "at least 0"),
        ("a.csv", (HEAD + "1,2,3\n1e300,2,3\n").encode(), "spans .* days"),
        ("a.csv", (AZURE + "yesterday,2,3\n").encode(), "row 1"),
        ("a.csv", b"\x00\xff\xfe", "no text"),
        ("a.csv.gz", b"x", "cannot be read"),
        ("a.csv.gz", gzip.compress((HEAD + "1,2,3\n" * 9).encode(), mtime=0)[:-9], "cannot be read"),
        ("a.parquet", b"garbage", "no Parquet file"),
        ("a.jsonl", b"[1, 2]\n", "no object"),
        ("a.jsonl", b"{\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"request_id": "r"}\n', "no answered request"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_place(tmp_path: Path, name: str, text: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(text)

    with pytest.raises(BadSetting, match=said):
        read_trace(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "{trace}", "--nodes", "1", "--node-gb", "10"], "fits on no node"),
        (["simulate", "{trace}", "--min", "5", "--max", "1"], "more than max_copies"),
        (["simulate", "{late}", "--days", "1"], "no request in its first 1 days"),
        (["simulate", "{trace}", "--copy", "{copy}"], "slots=0"),
        (["simulate", "{trace}", "--copy", "{other}"], "speed unknown"),
        (["cost", "{trace}", "--as-of", "yesterday"], "is no day"),
        (["cost", "{trace}", "--out", "a.pdf"], "neither .html nor .json"),
        (["cost", "{trace}", "--out", "{none}/a.html"], "there is no folder"),
    ],
)
def test_what_cannot_be_planned_is_said_before_the_work(tmp_path: Path, words: list[str], said: str) -> None:
    files = {name: tmp_path / f"{name}.csv" for name in ("trace", "late", "copy", "other", "none")}
    files["trace"].write_text(HEAD + "1,2,3\n")
    files["late"].write_text(HEAD + f"{2 * 86400_000},2,3\n")
    files["copy"].write_text(json.dumps({"c0_s": 0.1, "slots": 0}))
    files["other"].write_text(json.dumps({"speed": 3}))

    done = CliRunner().invoke(app, [word.format(**files) for word in words])

    assert done.exit_code
    assert said in f"{done.exception}{done.output}"
