"""What the adapters of engines for GPUs share: a derived command line, started by the parent process of engines."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from outcrop.engines.base import CopySpec
from outcrop.engines.custom import OpenAIServer
from outcrop.engines.hardware import Hardware

SERVED_NAME = "model"  # what every copy calls its only model; callers never see it
HOST_BYTES = 4_000_000_000  # of RAM that the processes of a copy on GPUs take
GPU_START_S = 60.0  # processes, imports, graphs


class Options(Struct, frozen=True):
    """What an operator may set. *extra*: further arguments, which win over the derived ones.

    *work*: folder of what is kept between starts, such as compile caches, one a model.
    """

    command: str
    work: Path
    memory_share: float = 0.9
    load_format: str = "auto"
    sleep: str = "auto"  # the level at which copies sleep: auto, 1, 2 or off
    extra: tuple[str, ...] = ()


class Served(Struct, frozen=True):
    """How one model is served. *argv* has ``{socket}`` or ``{port}`` where it listens; *reasons* are for people."""

    argv: tuple[str, ...]
    context_tokens: int
    slots: int
    gpus: int
    host_bytes: int
    start_s: float
    environment: Mapping[str, str] = {}
    sleep_levels: tuple[int, ...] = ()  # ``base.Asleep.level``, the soonest to wake first
    reasons: tuple[str, ...] = ()


class DerivedServer(OpenAIServer):
    """A server whose command line follows from the checkpoint and the hardware (*derive*, pure)."""

    takes_arguments = True

    def __init__(
        self,
        derive: Callable[[CopySpec, Hardware, Options], Served],
        options: Options,
        hardware: Hardware,
        *,
        request_timeout_s: float,
    ) -> None:
        super().__init__(request_timeout_s=request_timeout_s)
        self._derive = derive
        self._options = options
        self._hardware = hardware

    def served(self, spec: CopySpec) -> Served:
        """How *spec* is served here, with the reasons. Raises EngineMissing when it does not fit."""
        options = structs.replace(self._options, extra=(*self._options.extra, *spec.arguments))
        return self._derive(spec, self._hardware, options)

    def fitted(self, spec: CopySpec) -> CopySpec:
        """Its processes share nothing with one another: all memory is the copy's own."""
        found = self.served(spec)
        return structs.replace(
            spec,
            context_tokens=found.context_tokens,
            slots=found.slots,
            threads=spec.threads if not found.gpus else 0,
            gpus=found.gpus,
            weight_bytes=0,
            kv_bytes=found.host_bytes,
            start_s=found.start_s + spec.model.weight_bytes / 1e9,  # a slow disk's gigabyte a second
        )

    def command(self, spec: CopySpec) -> list[str]:
        return [sys.executable, "-P", "-m", "outcrop.engines.custom_child"]

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        found = self.served(spec)
        environment = dict(found.environment)
        if spec.devices:
            indices = [self._hardware.gpus[device].index for device in spec.devices]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, indices))
        config = {
            "argv": list(found.argv),
            "secret": secret,
            "environment": environment,
            # Compile caches are found by the path of the model, which differs between the import and later.
            "links": {str(checkpoint_of(self._options, spec)): str(spec.artifact.parent / "checkpoint")},
            "is_guarded": not any("{socket}" in word for word in found.argv),
        }
        return msgspec.json.encode(config) + b"\n"


def sweep(work: Path, model_ids: Collection[str]) -> None:
    """Remove what engines kept of models that are gone."""
    for folder in work.glob("*"):
        if folder.name not in model_ids:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_of(options: Options, spec: CopySpec) -> Path:
    """Where a copy finds the checkpoint: a link that has the same path for all of a model's life."""
    return options.work / spec.model_id / "checkpoint"
