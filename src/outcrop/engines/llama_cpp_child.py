"""The process of one llama.cpp copy: ``python -m outcrop.engines.llama_cpp_child``.

Standard input carries one line of JSON (``ChildConfig``) and is then held open by the parent; its end means that the
parent is gone, by whatever death, and ends this process. Standard output carries one line back: ``{"url": "...",
"stages": {"import": s, "load": s}}`` once the model is loaded and its socket (``copy_socket``) listens, or
``{"error": "..."}``. The engine's own log goes to standard error.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from outcrop.engines import copy_socket

# llama.cpp asks no key for a list of paths (/health, /v1/models); with another beginning they are none of these.
PREFIX = "/copy"


class ChildConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The line on standard input; the key is here because an argument vector is readable by others."""

    model: str
    secret: str
    context_tokens: int
    slots: int
    threads: int
    kv_f32: bool
    pooling: str | None = None  # the copy gives embeddings
    data_bytes: int = 0  # memory of its own that it may take, beside the weights that it maps; 0: any


def server_params(config: ChildConfig, socket: str) -> Any:
    """llama.cpp's parameters for *config*. *socket* is a path; that it ends in ``.sock`` makes it one to llama.cpp."""
    import xllamacpp as xlc  # a copy of another engine never loads it

    params = xlc.CommonParams()
    params.model.path = config.model
    params.hostnames = [socket]
    params.api_prefix = PREFIX
    params.api_keys = [config.secret]
    params.n_parallel = config.slots
    # Each slot owns its part of the cache, so that a full context in one never evicts another's request.
    params.kv_unified = False
    params.n_ctx = config.context_tokens * config.slots
    params.cpuparams.n_threads = config.threads
    params.cpuparams_batch.n_threads = config.threads
    params.n_gpu_layers = 0
    cache_type = xlc.ggml_type.GGML_TYPE_F32 if config.kv_f32 else xlc.ggml_type.GGML_TYPE_F16
    params.cache_type_k = cache_type
    params.cache_type_v = cache_type
    if config.kv_f32:  # flash attention on the CPU rounds to half precision
        params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if config.pooling is not None:
        params.embedding = True
        params.pooling_type = getattr(xlc.llama_pooling_type, f"LLAMA_POOLING_TYPE_{config.pooling.upper()}")
        if config.pooling != "last":  # all tokens of a text must be in one batch
            params.n_batch = params.n_ubatch = config.context_tokens
    params.warmup = False
    params.use_jinja = True
    # An assistant's message at the end is said, not to be gone on with: as with vLLM, a turn of its own follows it.
    params.prefill_assistant = False
    params.ui = False
    params.ctx_shift = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.fit_params = False
    params.endpoint_metrics = True
    params.verbosity = 2  # warnings and errors
    params.n_threads_http = config.slots + 8
    return params


def _leave(status: int) -> None:
    # Not sys.exit: native threads may be in the middle of a batch, and nothing here needs to be saved.
    sys.stderr.flush()
    os._exit(status)


def _watch_parent() -> None:
    while os.read(0, 4096):
        pass
    _leave(0)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            _leave(0)
        line += part
    return line


def main() -> None:
    announce = os.dup(1)
    os.dup2(2, 1)  # what native code prints must not reach the announcement
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # dies at once even while native code runs
    config = msgspec.json.decode(_read_line(), type=ChildConfig)
    if config.data_bytes:  # a chat template that writes for ever fails here, and not the machine
        resource.setrlimit(resource.RLIMIT_DATA, (config.data_bytes, config.data_bytes))
    threading.Thread(target=_watch_parent, name="parent-watch", daemon=True).start()
    begun = time.monotonic()
    try:
        import xllamacpp as xlc

        imported = time.monotonic()
        socket = copy_socket.path()
        _server = xlc.Server(server_params(config, socket))
    except Exception as exc:  # whatever the native loader throws is the parent's to report
        os.write(announce, msgspec.json.encode({"error": f"{type(exc).__name__}: {exc}"}) + b"\n")
        _leave(1)
    stages = {"import": round(imported - begun, 4), "load": round(time.monotonic() - imported, 4)}
    os.write(announce, msgspec.json.encode({"url": copy_socket.url(socket, PREFIX), "stages": stages}) + b"\n")
    os.close(announce)
    threading.Event().wait()


if __name__ == "__main__":
    main()
