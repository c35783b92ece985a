"""What engines can run on: the GPUs and the processor of this machine, as the system says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

_ASK_TIMEOUT_S = 10.0
_NVIDIA = ("nvidia-smi", "--query-gpu=index,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_AMD_DEVICES = Path("/sys/class/kfd/kfd/topology/nodes")


class Gpu(Struct, frozen=True):
    """*compute*: NVIDIA's compute capability (8.0 for an A100); 0 where the vendor has no such number."""

    index: int
    name: str
    memory_bytes: int
    vendor: str = "nvidia"
    compute: float = 0.0


class Hardware(Struct, frozen=True):
    """*cpu_flags*: instruction sets by the kernel's names; empty where it does not say."""

    cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    cpu_flags: frozenset[str] = frozenset()

    def described(self) -> str:
        cpu = f"{self.cores} cores, {self.memory_bytes / 1e9:.0f} GB"
        if not self.gpus:
            return f"{cpu}, no GPU"
        return f"{cpu}, {len(self.gpus)} x {self.gpus[0].name} of {self.gpus[0].memory_bytes / 1e9:.0f} GB"


def detect(cores: int, memory_bytes: int, only: Collection[int] | None = None) -> Hardware:
    """The hardware here. Blocks for a moment.

    *cores* and *memory_bytes* are what this process was granted of it, *only* the GPUs by index; None is all.
    """
    gpus = nvidia_gpus() or amd_gpus()
    granted = tuple(gpu for gpu in gpus if only is None or gpu.index in only)
    return Hardware(cores, memory_bytes, granted, cpu_flags())


def nvidia_gpus() -> tuple[Gpu, ...]:
    """What the driver's own tool lists; nothing where there is no driver."""
    try:
        asked = subprocess.run(_NVIDIA, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_nvidia(asked.stdout)


def read_nvidia(text: str) -> tuple[Gpu, ...]:
    """GPUs from the lines of ``nvidia-smi`` (index, name, MiB, compute capability)."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with suppress(ValueError, IndexError):
            found.append(Gpu(int(parts[0]), parts[1], int(parts[2]) << 20, "nvidia", float(parts[3])))
    return tuple(found)


def amd_gpus(nodes: Path = _AMD_DEVICES) -> tuple[Gpu, ...]:
    """GPUs of AMD's kernel driver; its nodes without SIMD units are processors."""
    found: list[Gpu] = []
    for node in sorted(nodes.glob("*"), key=lambda path: path.name):
        with suppress(OSError, ValueError):
            properties = dict(line.split(maxsplit=1) for line in (node / "properties").read_text().splitlines())
            if int(properties.get("simd_count", "0")):
                banks = [path.read_text() for path in node.glob("mem_banks/*/properties")]
                sizes = [
                    int(line.split()[1]) for text in banks for line in text.splitlines() if "size_in_bytes" in line
                ]
                name = (node / "name").read_text().strip() or "AMD GPU"
                found.append(Gpu(len(found), name, sum(sizes), "amd"))
    return tuple(found)


def cpu_flags() -> frozenset[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset({os.uname().machine})
