"""A simulated engine: a real process with the real HTTP interface that takes an engine's time and computes nothing.

For planning, and for tests of scaling at sizes that a machine cannot hold. It is never chosen by itself, and every
answer of it says so (``x-outcrop-engine: simulated``).
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import msgspec
from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.engines.custom import OpenAIServer
from outcrop.engines.llama_cpp_request import Plan
from outcrop.engines.simulated_child import ChildConfig
from outcrop.engines.simulated_timing import Calibration
from outcrop.errors import BadSetting, InvalidRequest
from outcrop.inference.canonical import GenerateRequest
from outcrop.settings import Simulated as Choice

NAME = "simulated"
_REFUSED = ("tools", "response_format", "structured_outputs", "prompt_logprobs")


def calibrations() -> dict[str, Calibration]:
    """Those that are part of the package, by name."""
    raw = files("outcrop.engines").joinpath("calibrations.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, Calibration])


def calibration(name: str) -> Calibration:
    """The calibration of that name, or in the JSON file at that path. Raises BadSetting."""
    known = calibrations()
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise BadSetting(
            f"simulated.calibration={name!r} is neither a file nor one of {', '.join(sorted(known))} "
            "(OUTCROP_SIMULATED)"
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except msgspec.MsgspecError as exc:
        raise BadSetting(f"simulated.calibration={name!r} is no calibration: {exc} (OUTCROP_SIMULATED)") from exc


class Simulated(OpenAIServer):
    """Client and command of simulated copies."""

    name = NAME

    def __init__(self, choice: Choice, *, request_timeout_s: float) -> None:
        super().__init__(request_timeout_s=request_timeout_s)
        found = calibration(choice.calibration)
        self.calibration = found if choice.start_s is None else structs.replace(found, start_s=choice.start_s)
        self._choice = choice

    def fitted(self, spec: CopySpec) -> CopySpec:
        """It holds no weights and takes no core; its slots are the calibration's."""
        slots = min(self.calibration.slots, spec.slots_limit or self.calibration.slots)
        return structs.replace(
            spec, slots=slots, threads=0, weight_bytes=0, kv_bytes=0, start_s=self.calibration.start_s
        )

    def command(self, spec: CopySpec) -> list[str]:
        return [sys.executable, "-P", "-m", "outcrop.engines.simulated_child"]

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        config = ChildConfig(
            calibration=self.calibration,
            secret=secret,
            context_tokens=spec.context_tokens,
            seed=self._choice.seed,
            speedup=self._choice.speedup,
        )
        return msgspec.json.encode(config) + b"\n"

    def planned(self, request: GenerateRequest) -> Plan:
        refused = [key for key in _REFUSED if request.body.get(key)]
        if refused:
            raise InvalidRequest(
                f"{refused[0]} is not supported by this model's engine (simulated); leave it out", param=refused[0]
            )
        return super().planned(request)
