"""A recorded run beside the simulator's replay of the same arrivals: how far the planner is off. Pure but for reading.

Of the recording, closed loops on one copy and on two give the copy's numbers, the ledger the cold start; nothing is
fitted to the run that is replayed.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from outcrop.errors import BadSetting
from outcrop.planning.copy_model import CopyModel, Fit, Timed, fit
from outcrop.planning.played import Result
from outcrop.planning.rules import Ours
from outcrop.planning.simulator import simulate
from outcrop.planning.traces import Trace
from outcrop.planning.virtual import Tenant
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Scaling

GOAL = 0.10  # error of the P95 below four fifths of saturation
TRUSTED_LOAD = 0.80


class Request(Struct, frozen=True):
    """Seconds; *due_s* since the run began."""

    due_s: float
    latency_s: float
    tokens_in: int | None = None
    tokens_out: int | None = None
    error: str | None = None


class Recording(Struct, frozen=True):
    """What ``outcrop.bench.recording`` keeps. *closed*: requests of one pinned copy by users at a time; *beside*: of
    *beside_copies* pinned copies, by users of all together.

    *copy_s*: by the ledger, starts and drains included; *cold_start_s*: the mean of the run's own. *slip_p99_s*: how
    late the client sent; latencies count from the intended time, so that much of them is the client's.
    """

    closed: dict[str, list[Request]]
    beside: dict[str, list[Request]]
    beside_copies: int
    open: list[Request]
    engine: str
    slots: int
    scaling: dict[str, Any]
    copy_s: float
    cold_starts: int
    cold_start_s: float
    cores: int
    slip_p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure of both; *error*: simulated over measured, less one."""

    measure: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1 if self.measured else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """*load*: offered work over what all copies that the limits allow could serve; *busiest*: of its fullest 10 s."""

    rows: tuple[Row, ...]
    fitted: Fit
    load: float
    busiest: float
    result: Result

    def row(self, measure: str) -> Row:
        return next(row for row in self.rows if row.measure == measure)

    @property
    def holds(self) -> bool | None:
        """Whether the P95 is within the goal; None where the load is beyond what the model is trusted for."""
        return abs(self.row("P95 s").error) <= GOAL if self.load < TRUSTED_LOAD else None


def read(path: Path) -> Recording:
    """The recording in *path*, .json or .json.gz. Raises BadSetting."""
    try:
        raw = path.read_bytes()
        return msgspec.json.decode(gzip.decompress(raw) if path.suffix == ".gz" else raw, type=Recording)
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError) as exc:
        raise BadSetting(f"{path} is no recording of outcrop.bench.recording: {exc}.") from exc


def validate(recording: Recording) -> Validation:
    """Fit the copy, replay the arrivals under the live policy with the recorded limits, compare. Raises BadSetting."""
    answered = [each for each in recording.open if each.error is None]
    if len(answered) < len(recording.open) or not answered:
        raise BadSetting(f"{len(recording.open) - len(answered)} requests of the recording failed; record it again.")
    fitted = fit(
        {int(users): list(_timed(each)) for users, each in recording.closed.items()},
        recording.slots,
        {(recording.beside_copies, int(users)): list(_timed(each)) for users, each in recording.beside.items()},
    )
    trace = _trace(answered)
    scaling = msgspec.convert({k: v for k, v in recording.scaling.items() if k != "slots"}, Scaling)
    # The live fleet is not told what was fitted here: it decides with its defaults, and so does the replay.
    rule = Ours("outcrop", Params(), fitted.model, recording.cold_start_s, scaling)
    result = simulate(Tenant(trace=trace, rule=rule, copy=fitted.model, cold_start_s=recording.cold_start_s))
    measured = np.sort(np.array([each.latency_s for each in answered]))
    p95 = float(measured[int(np.ceil(0.95 * len(measured))) - 1])
    load, busiest = _loads(trace, fitted.model, scaling.max_copies or Params().max_copies)
    return Validation(
        rows=(
            Row(measure="mean s", measured=float(measured.mean()), simulated=result.mean_s),
            Row(measure="P95 s", measured=p95, simulated=result.p95_s),
            Row(measure="copy-seconds", measured=recording.copy_s, simulated=3600 * result.copy_hours),
            Row(measure="cold starts", measured=recording.cold_starts, simulated=result.starts),
        ),
        fitted=fitted,
        load=load,
        busiest=busiest,
        result=result,
    )


def _trace(requests: list[Request]) -> Trace:
    at = np.array([each.due_s for each in requests])
    tokens = [np.array([value or 0 for value in column], dtype=np.float32) for column in _columns(requests)]
    return Trace("recording", at, *tokens)


def _columns(requests: list[Request]) -> tuple[list[int | None], list[int | None]]:
    return [each.tokens_in for each in requests], [each.tokens_out for each in requests]


def _timed(requests: list[Request]) -> Iterator[Timed]:
    for each in requests:
        if each.error is None and each.tokens_in and each.tokens_out:
            yield Timed(each.tokens_in, each.tokens_out, each.latency_s)


def _loads(trace: Trace, copy: CopyModel, most_copies: int, step_s: float = 10.0) -> tuple[float, float]:
    """Share of what *most_copies* full copies serve: over the run, and in its fullest *step_s*."""
    slower = (1 + copy.kappa * (copy.slots - 1)) * (1 + copy.nu * (most_copies - 1))
    serves = most_copies * copy.slots / slower  # seconds of work a second
    work = trace.work_s(copy)
    span = max(step_s, float(trace.at_s.max()))
    by_step = np.bincount((trace.at_s // step_s).astype(int), weights=work)
    return float(work.sum()) / span / serves, float(by_step.max()) / step_s / serves
