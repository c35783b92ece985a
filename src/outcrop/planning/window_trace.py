"""Traffic that is known by windows only, as metrics tell it (how many, how bursty, how long), made into requests.

Arrivals of a window are a renewal process with the window's coefficient of variation (gamma), rescaled to fill it;
lengths are log-normal. So a trace is a sample of such traffic, the same one for the same seed, and not a log.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

from outcrop.errors import BadSetting
from outcrop.planning.traces import Numbers, Trace, open_text

COLUMNS = ("tenant", "start_s", "seconds", "requests", "cv", "input_tokens", "input_cv", "output_tokens", "output_cv")

MOST = 1e9  # of any value: seconds, requests of one window, tokens


def has_windows(path: Path) -> bool:
    """Whether *path* is a .csv (.gz) of windows and not of requests."""
    if not path.name.removesuffix(".gz").endswith(".csv"):
        return False
    try:
        with open_text(path) as file:
            return set(COLUMNS) <= set(next(csv.reader(file), ()))
    except (OSError, UnicodeDecodeError):
        return False


def read_windows(path: Path) -> list[Trace]:
    """The tenants in *path*, each as a trace of its name. Raises BadSetting."""
    tenants: dict[str, list[dict[str, float]]] = {}
    try:
        with open_text(path) as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                tenants.setdefault(row["tenant"], []).append(_window(row, f"{path}, line {number}"))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as exc:
        raise BadSetting(f"the windows {path} cannot be read: {exc}.") from exc
    if not tenants:
        raise BadSetting(f"{path} holds no window.")
    return [realised(name, rows, seed=crc32(name.encode())) for name, rows in tenants.items()]


def _window(row: Mapping[str, str], where: str) -> dict[str, float]:
    try:
        values = {name: float(row[name]) for name in COLUMNS[1:]}
    except (TypeError, ValueError) as exc:
        raise BadSetting(f"{where}: {exc}") from exc
    for name, value in values.items():
        if not 0 <= value < MOST:
            raise BadSetting(f"{where}: {name}={value} is outside 0..{MOST:g}.")
    return values


def realised(name: str, windows: Iterable[Mapping[str, float]], *, seed: int) -> Trace:
    """Requests as *windows* (``COLUMNS``) tell them."""
    rng = np.random.default_rng(seed)
    at, tokens_in, tokens_out = list[Numbers](), list[Numbers](), list[Numbers]()
    for window in windows:
        count = int(window["requests"])
        if count < 1:
            continue
        gaps = rng.gamma(1 / max(window["cv"], 0.05) ** 2, size=count + 1)
        at.append(window["start_s"] + window["seconds"] * np.cumsum(gaps[:-1]) / gaps.sum())
        for kind, into in (("input", tokens_in), ("output", tokens_out)):
            spread = math.sqrt(math.log(1 + window[f"{kind}_cv"] ** 2))
            centre = math.log(max(1.0, window[f"{kind}_tokens"])) - spread**2 / 2
            into.append(np.maximum(1, rng.lognormal(centre, spread, count)).round())
    if not at:
        raise BadSetting(f"the tenant {name} has no request.")
    order = np.argsort(np.concatenate(at), kind="stable")
    counts = [np.concatenate(each)[order].astype(np.float32) for each in (tokens_in, tokens_out)]
    return Trace(name, np.concatenate(at)[order], *counts)
