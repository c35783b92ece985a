"""One copy as five numbers, and how a load test gives them. Pure.

A request alone takes ``c0 + c_in * input + c_out * output`` seconds, b requests each run ``1 + kappa (b - 1)`` slower,
at most ``slots`` fit. Copies that share a machine's cores, as those of the CPU engine do, slow each other too: with n
of them at work all run ``1 + nu (n - 1)`` slower; copies on GPUs of their own have nu 0. Trust it below four fifths of
saturation: it knows no batches of tokens and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outcrop.errors import BadSetting


@dataclass(frozen=True, slots=True)
class CopyModel:
    """One copy; the defaults are near a 14 B model on an A100 with 40 GB."""

    c0_s: float = 0.05
    c_in_s: float = 0.00025
    c_out_s: float = 0.0236
    kappa: float = 0.0215
    slots: int = 32
    nu: float = 0.0

    def work_s(self, tokens_in: float, tokens_out: float) -> float:
        return self.c0_s + self.c_in_s * tokens_in + self.c_out_s * tokens_out


@dataclass(frozen=True, slots=True)
class Timed:
    """One measured request: tokens and seconds on the copy."""

    tokens_in: int
    tokens_out: int
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """*error_alone*: median of |predicted - measured| / measured at one user; *error_mean*: of the mean, by users.

    *nus*: by (copies, users).
    """

    model: CopyModel
    error_alone: float
    error_mean: Mapping[int, float]
    kappas: Mapping[int, float]
    nus: Mapping[tuple[int, int], float]


def fit(
    levels: Mapping[int, Sequence[Timed]],
    slots: int,
    beside: Mapping[tuple[int, int], Sequence[Timed]] | None = None,
) -> Fit:
    """The five numbers from a closed-loop test of one copy: requests by users at a time, 1 among them.

    Alone: least squares of latency on (1, in, out), no coefficient negative. kappa: the mean over the other levels of
    (sum of latencies / sum of work - 1) / (users - 1). *beside*: requests by (copies, users of them all), of a load
    that kept several copies at work; without it they are taken to share nothing. Raises BadSetting when a level is
    missing or too small.
    """
    alone = levels.get(1, ())
    if len(alone) < 10:
        raise BadSetting(f"the fit needs a level of 1 user with at least 10 requests, got {len(alone)}.")
    coefficients = _least_squares(alone)
    bare = CopyModel(*coefficients, kappa=0.0, slots=slots)
    kappas = {}
    for users, timed in sorted(levels.items()):
        if users > 1 and timed:
            slower = sum(each.latency_s for each in timed) / sum(bare.work_s(t.tokens_in, t.tokens_out) for t in timed)
            kappas[users] = max(0.0, (slower - 1) / (min(users, slots) - 1)) if users <= slots else None
    known = {users: kappa for users, kappa in kappas.items() if kappa is not None}
    if not known:
        raise BadSetting(f"the fit needs a level of 2 to {slots} users beside that of 1.")
    kappa = sum(known.values()) / len(known)
    nus = {place: _nu(bare, kappa, *place, timed) for place, timed in (beside or {}).items() if timed}
    nu = sum(nus.values()) / len(nus) if nus else 0.0
    model = CopyModel(*coefficients, kappa=kappa, slots=slots, nu=nu)
    return Fit(
        model=model,
        error_alone=float(
            np.median([abs(bare.work_s(t.tokens_in, t.tokens_out) - t.latency_s) / t.latency_s for t in alone])
        ),
        error_mean={users: _error_of_mean(model, users, levels[users]) for users in [1, *known]},
        kappas=known,
        nus=nus,
    )


def _nu(bare: CopyModel, kappa: float, copies: int, users: int, timed: Sequence[Timed]) -> float:
    """What is left of the slowness once each copy's own share of the users is accounted for."""
    own = 1 + kappa * max(0.0, users / copies - 1)
    expected = own * sum(bare.work_s(each.tokens_in, each.tokens_out) for each in timed)
    return max(0.0, (sum(each.latency_s for each in timed) / expected - 1) / (copies - 1))


def _error_of_mean(model: CopyModel, users: int, timed: Sequence[Timed]) -> float:
    slower = 1 + model.kappa * (users - 1)
    predicted = sum(model.work_s(each.tokens_in, each.tokens_out) for each in timed) * slower
    return predicted / sum(each.latency_s for each in timed) - 1


def _least_squares(timed: Sequence[Timed]) -> tuple[float, float, float]:
    """Coefficients of (1, in, out), each at least 0: what would be negative is left out and the rest fitted again."""
    columns = np.array([[1.0, each.tokens_in, each.tokens_out] for each in timed])
    wanted = np.array([each.latency_s for each in timed])
    used = [0, 1, 2]
    while used:
        found, *_ = np.linalg.lstsq(columns[:, used], wanted, rcond=None)
        if (found >= 0).all():
            break
        used.remove(used[int(np.argmin(found))])
    result = [0.0, 0.0, 0.0]
    for place, value in zip(used, found, strict=True):
        result[place] = float(value)
    return result[0], result[1], result[2]
