"""How fast imports run here, learnt from those that ended: what ``outcrop check`` expects of the next one.

A stage's rate is all the bytes that it took over all its seconds, of the last few jobs; what is assumed before any job
stands among them as one that moved ``ASSUMED_BYTES``. A job of a few megabytes, whose seconds are those of starting
something, so moves the expectation by as little as it says about large ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outcrop.checkpoints.engines import LLAMA_CPP
from outcrop.importing.preflight import Preflight
from outcrop.importing.weights import write_atomically

FILE = "rates.json"
CONVERT, PROVE, LINKED, COPIED = "convert", "prove", "linked", "copied"
TRANSFER = "transferring"  # the job's phase of every stage that is not among these
PHASES: Mapping[str, str] = {CONVERT: "converting", PROVE: "proving"}
# Before any job: one core for digest and scan, a disk of a virtual machine, a CPU that answers slowly in bf16.
ASSUMED_BYTES_PER_S: Mapping[str, float] = {LINKED: 800e6, COPIED: 250e6, CONVERT: 250e6, PROVE: 250e6}
ASSUMED_BYTES = 1e9
FIXED_S = 2.0  # starting the check, the converter and the proof copy
KEPT = 8  # jobs of a stage


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds of an import, and how many earlier jobs' rates they rest on (0: assumed ones)."""

    seconds: float
    jobs: int


class Rates:
    """Samples (bytes, seconds) by stage in one small file of the weight store. Blocking; call it from a thread.

    A stage is ``convert``, ``prove``, or for the transfer ``linked``, ``copied`` or the address of an object store.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / FILE
        self._samples: dict[str, list[list[float]]] = {}
        with suppress(OSError, ValueError):  # none yet, or damaged: then what is assumed holds
            self._samples = json.loads(self._path.read_bytes())

    def learn(self, took: Mapping[str, tuple[int, float]]) -> None:
        """Keep what one job took: bytes and seconds by stage."""
        for stage, (count, seconds) in took.items():
            if count > 0 and seconds > 0:
                self._samples[stage] = [*self._samples.get(stage, []), [count, round(seconds, 4)]][-KEPT:]
        write_atomically(self._path, json.dumps(self._samples).encode())

    def expected(self, stages: Mapping[str, int]) -> Expected:
        """What an import takes that moves so many bytes in each of the *stages*."""
        seconds = FIXED_S + sum(count / self._bytes_per_s(stage) for stage, count in stages.items())
        return Expected(round(seconds, 1), max((len(self._samples.get(stage, [])) for stage in stages), default=0))

    def _bytes_per_s(self, stage: str) -> float:
        assumed = ASSUMED_BYTES_PER_S.get(stage, ASSUMED_BYTES_PER_S[COPIED])
        samples = self._samples.get(stage, [])
        count = ASSUMED_BYTES + sum(sample[0] for sample in samples)
        return count / (ASSUMED_BYTES / assumed + sum(sample[1] for sample in samples))


def learn(store: Path, took: Mapping[str, tuple[int, float]]) -> None:
    """Add to the rates of the weight store at *store* what one job took. One at a time."""
    Rates(store).learn(took)


def import_stages(found: Preflight, store: Path) -> dict[str, int]:
    """Bytes by stage of the import of *found* into the weight store at *store*; of the stages that it has."""
    checkpoint = found.checkpoint
    if checkpoint is None:
        return {}
    served = checkpoint.weight_bytes if checkpoint.engine is not None else 0
    converted = served if checkpoint.engine == LLAMA_CPP else 0
    stages = {transfer_stage(found, store): found.total_bytes, CONVERT: converted, PROVE: served}
    return {stage: count for stage, count in stages.items() if count}


def transfer_stage(found: Preflight, store: Path) -> str:
    """How files arrive: the store's address, or whether they are linked or copied on this machine."""
    path = next((file.path for file in found.sources.values() if file.path is not None), None)
    if path is None:
        return found.place
    home = next((folder for folder in (store, *store.parents) if folder.exists()), store)
    return LINKED if path.stat().st_dev == home.stat().st_dev else COPIED
