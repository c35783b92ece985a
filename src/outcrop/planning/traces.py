"""Traffic to plan for: when requests came and how long they were. Many layouts in, three arrays out."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
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


# Layouts by the columns that give them away: arrival, its seconds per unit (None: a date), input, output.
LAYOUTS: Mapping[str, tuple[str, float | None, str, str]] = {
    "outcrop": ("arrival_ms", 0.001, "input_tokens", "output_tokens"),
    "azure": ("TIMESTAMP", None, "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", 1.0, "Request tokens", "Response tokens"),
    "request log": ("at", 1.0, "input_tokens", "output_tokens"),
    "bench": ("due_s", 1.0, "tokens_in", "tokens_out"),
    "mooncake": ("timestamp", 0.001, "input_length", "output_length"),
}


def read_trace(path: Path) -> Trace:
    """The trace in *path*: .csv, .jsonl (both also .gz) or .parquet, in one of ``LAYOUTS``. Raises BadSetting."""
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            columns = _parquet(path)
        elif name.endswith((".jsonl", ".json")):
            columns = _columns(_json_lines(path), path)
        else:
            columns = _columns(_csv(path), path)
    except OSError as exc:
        raise BadSetting(f"the trace {path} cannot be read: {exc.strerror or exc}.") from exc
    at, tokens_in, tokens_out = columns
    order = np.argsort(at, kind="stable")
    counts = tokens_in[order].astype(np.float32), tokens_out[order].astype(np.float32)
    return Trace(name.partition(".")[0], at[order], *counts)


def layout_of(names: Iterable[str], path: Path) -> tuple[str, float | None, str, str]:
    """The layout whose columns are all among *names*. Raises BadSetting."""
    present = set(names)
    for at, unit, tokens_in, tokens_out in LAYOUTS.values():
        if {at, tokens_in, tokens_out} <= present:
            return at, unit, tokens_in, tokens_out
    known = "; ".join(f"{name}: {at}, {i}, {o}" for name, (at, _, i, o) in LAYOUTS.items())
    raise BadSetting(f"{path} has the columns {', '.join(sorted(present)[:12])}; known layouts: {known}.")


def _columns(rows: Iterable[Mapping[str, Any]], path: Path) -> tuple[Numbers, Numbers, Numbers]:
    found: list[tuple[float, float, float]] = []
    layout: tuple[str, float | None, str, str] | None = None
    for number, row in enumerate(rows, 1):
        layout = layout or layout_of(row, path)
        at, unit, tokens_in, tokens_out = layout
        if row.get(tokens_out) in (None, ""):
            continue  # refused or cut off: nothing was generated
        try:
            seconds = _seconds(str(row[at])) if unit is None else float(row[at]) * unit
            found.append((seconds, float(row[tokens_in] or 0), float(row[tokens_out])))
        except (ValueError, KeyError, TypeError) as exc:
            raise BadSetting(f"{path}, row {number}: {exc}") from exc
    if layout is None or not found:
        raise BadSetting(f"{path} holds no answered request.")
    table = np.array(found)
    is_absolute = layout[0] in ("TIMESTAMP", "at")  # times of day count from midnight, for schedules
    begin = (table[:, 0].min() // 86400) * 86400 if is_absolute else 0.0
    return table[:, 0] - begin, table[:, 1], table[:, 2]


def _parquet(path: Path) -> tuple[Numbers, Numbers, Numbers]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise BadSetting(f"{path} needs pyarrow: pip install 'outcrop[parquet]', or give a .csv.gz.") from exc
    at, unit, tokens_in, tokens_out = layout_of(parquet.read_schema(path).names, path)
    table = parquet.read_table(path, columns=[at, tokens_in, tokens_out])
    arrays = [np.asarray(table.column(name).to_numpy(), dtype=np.float64) for name in (at, tokens_in, tokens_out)]
    return arrays[0] * (unit or 1.0), arrays[1], arrays[2]


def _csv(path: Path) -> Iterable[Mapping[str, Any]]:
    with open_text(path) as file:
        yield from csv.DictReader(file)


def _json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise BadSetting(f"{path}, line {number} is not JSON: {exc}") from exc
            # The request log leaves out what is empty; a request that failed has no tokens.
            if isinstance(row, dict) and "request_id" in row:
                row = {
                    "at": row["at"],
                    "input_tokens": row.get("input_tokens"),
                    "output_tokens": row.get("output_tokens"),
                }
            yield row


def open_text(path: Path) -> IO[str]:
    """*path* as text, unpacked where it ends in .gz."""
    opener: Callable[..., IO[str]] = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8")


def _seconds(text: str) -> float:
    """Seconds since the epoch of Azure's timestamps, which have seven digits after the second."""
    whole, _, fraction = text.strip().partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + (float(f"0.{fraction[:9]}") if fraction else 0.0)
