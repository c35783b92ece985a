"""Traffic to plan for: when requests came and how long they were. Many layouts in, three arrays out."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from outcrop.errors import BadSetting
from outcrop.planning.copy_model import CopyModel

Numbers = NDArray[np.float64]
Counts = NDArray[np.float32]  # of tokens; exact up to 16 million, at half the memory


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order they came; *at_s* from the beginning of the trace."""

    name: str
    at_s: Numbers
    tokens_in: Counts
    tokens_out: Counts

    def __len__(self) -> int:
        return len(self.at_s)

    def work_s(self, copy: CopyModel, some: slice = slice(None)) -> Numbers:
        """Seconds that each of *some* requests takes alone on *copy*."""
        tokens_in, tokens_out = self.tokens_in[some].astype(np.float64), self.tokens_out[some].astype(np.float64)
        return copy.c0_s + copy.c_in_s * tokens_in + copy.c_out_s * tokens_out

    def first(self, days: float) -> Trace:
        """The trace's first *days*."""
        kept = self.at_s < days * 86400
        return Trace(self.name, self.at_s[kept], self.tokens_in[kept], self.tokens_out[kept])


Layout = tuple[str, float | None, str, str]  # columns: arrival, its seconds per unit (None: a date), input, output
LAYOUTS: Mapping[str, Layout] = {
    "outcrop": ("arrival_ms", 0.001, "input_tokens", "output_tokens"),
    "azure": ("TIMESTAMP", None, "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", 1.0, "Request tokens", "Response tokens"),
    "request log": ("at", 1.0, "input_tokens", "output_tokens"),
    "bench": ("due_s", 1.0, "tokens_in", "tokens_out"),
    "mooncake": ("timestamp", 0.001, "input_length", "output_length"),
}


LONGEST_S = 10 * 366 * 86400.0  # later than that is a time since 1970, not since the trace began


def read_trace(path: Path) -> Trace:
    """The trace in *path*: .csv, .jsonl (both also .gz) or .parquet, in one of ``LAYOUTS``. Raises BadSetting."""
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            at, tokens_in, tokens_out = _parquet(path)
        elif name.endswith((".jsonl", ".json")):
            at, tokens_in, tokens_out = _columns(_json_lines(path), path)
        else:
            at, tokens_in, tokens_out = _columns(_csv(path), path)
    except (OSError, EOFError, zlib.error) as exc:
        raise BadSetting(f"the trace {path} cannot be read: {getattr(exc, 'strerror', None) or exc}.") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise BadSetting(
            f"{path} is no text that can be read: {exc}. Give .csv, .jsonl (also .gz) or .parquet."
        ) from exc
    order = np.argsort(at, kind="stable")
    counts = tokens_in[order].astype(np.float32), tokens_out[order].astype(np.float32)
    return Trace(name.partition(".")[0], at[order], *counts)


def layout_of(names: Iterable[str], path: Path) -> Layout:
    """The layout whose columns are all among *names*. Raises BadSetting."""
    present = set(names)
    for at, unit, tokens_in, tokens_out in LAYOUTS.values():
        if {at, tokens_in, tokens_out} <= present:
            return at, unit, tokens_in, tokens_out
    known = "; ".join(f"{name}: {at}, {i}, {o}" for name, (at, _, i, o) in LAYOUTS.items())
    found = ", ".join(sorted(map(str, present))[:12])
    raise BadSetting(f"{path} has the columns {found}; known layouts: {known}.")


def _columns(rows: Iterable[Any], path: Path) -> tuple[Numbers, Numbers, Numbers]:
    """Seconds and tokens, in flat arrays: a row of ten million is not held as objects."""
    at, tokens_in, tokens_out = array("d"), array("d"), array("d")
    layout: Layout | None = None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise BadSetting(f"{path}, row {number} is no object with names.")
        layout = layout or layout_of(row, path)
        when, unit, of_in, of_out = layout
        if row.get(of_out) in (None, ""):
            continue  # refused or cut off: nothing was generated
        try:
            seconds = _seconds(str(row[when])) if unit is None else float(row[when]) * unit
            counts = float(row.get(of_in) or 0), float(row[of_out])
        except (ValueError, KeyError, TypeError) as exc:
            raise BadSetting(f"{path}, row {number}: {exc}") from exc
        if not (math.isfinite(seconds) and seconds >= 0 and all(0 <= count < math.inf for count in counts)):
            raise BadSetting(
                f"{path}, row {number}: {when}={row[when]}, {of_in}={row.get(of_in)}, {of_out}={row[of_out]}; "
                "times and tokens must be finite and at least 0."
            )
        at.append(seconds)
        tokens_in.append(counts[0])
        tokens_out.append(counts[1])
    if layout is None or not at:
        raise BadSetting(f"{path} holds no answered request.")
    return _from_the_beginning(np.frombuffer(at), layout, path), np.frombuffer(tokens_in), np.frombuffer(tokens_out)


def _from_the_beginning(at: Numbers, layout: Layout, path: Path) -> Numbers:
    """*at* since the trace began; dates and times since 1970 count from midnight (UTC) of the first day, for
    schedules."""
    first, last = float(at.min()), float(at.max())
    is_absolute = layout[1] is None or layout[0] == "at" or first > LONGEST_S
    begin = first // 86400 * 86400 if is_absolute else 0.0
    if last - begin > LONGEST_S:
        raise BadSetting(f"{path} spans {(last - begin) / 86400:.4g} days: are its times in the unit of its layout?")
    return at - begin


def _parquet(path: Path) -> tuple[Numbers, Numbers, Numbers]:
    try:
        import pyarrow
        from pyarrow import compute, parquet
    except ImportError as exc:
        raise BadSetting(f"{path} needs pyarrow: pip install 'outcrop[parquet]', or give a .csv.gz.") from exc
    try:
        layout = layout_of(parquet.read_schema(path).names, path)
        at, unit, tokens_in, tokens_out = layout
        table = parquet.read_table(path, columns=[at, tokens_in, tokens_out])
        table = table.filter(compute.is_valid(table.column(tokens_out)))
        when = table.column(at)
        if unit is None and not pyarrow.types.is_timestamp(when.type):
            seconds = np.array([_seconds(str(text)) for text in when.to_pylist()], dtype=np.float64)
        elif unit is None:
            seconds = when.cast(pyarrow.timestamp("us")).cast(pyarrow.int64()).to_numpy() / 1e6
        else:
            seconds = np.asarray(when.to_numpy(), dtype=np.float64) * unit
        counts = [np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in (tokens_in, tokens_out)]
    except (pyarrow.ArrowException, ValueError, TypeError) as exc:
        raise BadSetting(f"{path} is no Parquet file of requests: {exc}") from exc
    if not len(seconds):
        raise BadSetting(f"{path} holds no answered request.")
    good = np.isfinite(seconds) & (seconds >= 0)
    for each in counts:
        good &= np.isfinite(each) & (each >= 0)
    if not good.all():
        row = int(np.argmin(good))
        raise BadSetting(
            f"{path}, row {row + 1}: {seconds[row]} s, {counts[0][row]} and {counts[1][row]} tokens; times and tokens "
            "must be finite and at least 0."
        )
    return _from_the_beginning(seconds, layout, path), counts[0], counts[1]


def _csv(path: Path) -> Iterable[Mapping[str, Any]]:
    with open_text(path) as file:
        yield from csv.DictReader(file)


def _json_lines(path: Path) -> Iterable[Any]:
    level, begun_s, latest_s = None, 0.0, 0.0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise BadSetting(f"{path}, line {number} is not JSON: {exc}") from exc
            if isinstance(row, dict) and "level" in row and isinstance(row.get("due_s"), int | float):
                if row["level"] != level:  # levels of a benchmark ran one after the other, each from 0 on
                    level, begun_s = row["level"], latest_s
                row["due_s"] += begun_s
                latest_s = max(latest_s, row["due_s"])
            # The request log leaves out what is empty; a request that failed has no tokens.
            if isinstance(row, dict) and "request_id" in row:
                row = {name: row.get(name) for name in ("at", "input_tokens", "output_tokens")}
            yield row


def open_text(path: Path) -> IO[str]:
    """*path* as text, unpacked where it ends in .gz."""
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")


def _seconds(text: str) -> float:
    """Seconds since the epoch of a date and time as Azure's traces write it, of 2023 (without a zone) and of 2024."""
    found = datetime.fromisoformat(text.strip())
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
