"""How far a vLLM copy has come, and where its start went, from what it logs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

# The last of these that the log shows is the stage that was reached.
STAGES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("process started", re.compile(r"Initializing a V1 LLM engine|non-default args")),
    ("loading weights", re.compile(r"Starting to load model")),
    ("weights loaded", re.compile(r"Loading weights took|Model loading took")),
    ("cache allocated", re.compile(r"KV cache size: [\d,]+ tokens")),
    ("graphs captured", re.compile(r"Graph capturing finished|init engine \(profile, create kv cache")),
    ("listening", re.compile(r"Starting vLLM server on|Starting vLLM API server")),
)
_SECONDS: Mapping[str, re.Pattern[str]] = {
    "weights_s": re.compile(r"Loading weights took ([\d.]+) seconds"),
    "compile_s": re.compile(r"torch\.compile took ([\d.]+) s"),
    "graphs_s": re.compile(r"Graph capturing finished in ([\d.]+) secs"),
    "engine_s": re.compile(r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s"),
}
_FILES = re.compile(r"[Ll]oading \w+ checkpoint shards: +\d+% Completed \| (\d+)/(\d+)")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")


def stage(log: str) -> str | None:
    """The last stage that *log* shows, of weights with the files that were read; None before the first."""
    found = next((name for name, mark in reversed(STAGES) if mark.search(log)), None)
    if found == "loading weights" and (files := _FILES.findall(log)):
        read, all_files = files[-1]
        return f"{found}, {read} of {all_files} files"
    return found


def stage_seconds(log: str) -> dict[str, float]:
    """Seconds of a start by stage, as the engine itself measured them; of several ranks the slowest."""
    found = {name: [float(value) for value in mark.findall(log)] for name, mark in _SECONDS.items()}
    return {name: max(values) for name, values in found.items() if values}


def kv_tokens(log: str) -> int | None:
    """Tokens that the key-value cache holds."""
    found = _KV_TOKENS.search(log)
    return int(found[1].replace(",", "")) if found else None
