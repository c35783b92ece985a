"""How full a copy is, in the engine's own words: llama.cpp's slots, the Prometheus pages of the others. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct


class Occupancy(Struct, frozen=True):
    """*kv_use*: part of the key-value cache that running requests take, 0 to 1; None where the engine does not say."""

    running: int
    waiting: int = 0
    kv_use: float | None = None


class _Names(Struct, frozen=True):
    running: str
    waiting: str
    kv_use: str = ""


# Names on each engine's own page: llama.cpp's server README ("GET /metrics"), vLLM's "Production metrics",
# SGLang's "Production metrics"; the simulated engine's is ours (simulated_child).
DIALECTS: Mapping[str, _Names] = {
    "vllm": _Names("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "sglang": _Names("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
    "simulated": _Names(
        "outcrop_simulated_requests_running",
        "outcrop_simulated_requests_waiting",
        "outcrop_simulated_kv_cache_usage",
    ),
    "llamacpp": _Names("llamacpp:requests_processing", "llamacpp:requests_deferred"),
}
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE)


class _Slot(Struct):
    n_ctx: int = 0
    is_processing: bool = False
    n_prompt_tokens: int = 0  # read and generated so far


_decode_slots = msgspec.json.Decoder(list[_Slot]).decode


def from_slots(data: bytes) -> Occupancy | None:
    """What llama.cpp's ``GET /slots`` says; None when it is something else."""
    try:
        slots = _decode_slots(data)
    except msgspec.MsgspecError:
        return None
    busy = [slot for slot in slots if slot.is_processing]
    room = sum(slot.n_ctx for slot in slots)
    return Occupancy(len(busy), kv_use=sum(slot.n_prompt_tokens for slot in busy) / room if room else None)


def from_prometheus(page: str) -> Occupancy | None:
    """What an engine's metrics page says; None when it is none that we know. Series of several ranks are added up."""
    names = next((names for names in DIALECTS.values() if names.running in page), None)
    if names is None:
        return None
    sums: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(page):
        if name in (names.running, names.waiting, names.kv_use):
            sums.setdefault(name, []).append(float(value))
    kv = sums.get(names.kv_use)
    return Occupancy(
        running=int(sum(sums.get(names.running, ()))),
        waiting=int(sum(sums.get(names.waiting, ()))),
        kv_use=sum(kv) / len(kv) if kv else None,
    )
