"""vLLM, on GPUs and on the processor: how a copy is started, asked, measured and put to sleep.

It lives in an environment of its own; a setting names its command, else it is looked for on PATH.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import structs

from outcrop.engines import vllm_logs
from outcrop.engines.base import Asleep, CopySpec, Endpoint
from outcrop.engines.gpu_fit import slots_for
from outcrop.engines.hardware import Hardware
from outcrop.engines.llama_cpp_request import Plan
from outcrop.engines.on_gpus import SERVED_NAME, DerivedServer, Options
from outcrop.engines.openai_answers import read
from outcrop.engines.vllm_command import served
from outcrop.errors import EngineFault
from outcrop.inference.canonical import GenerateRequest

NAME = "vllm"


class _Sleeping(msgspec.Struct):
    is_sleeping: bool


class _Count(msgspec.Struct):
    count: int
    tokens: list[int]


class _Text(msgspec.Struct):
    prompt: str


_decode_count = msgspec.json.Decoder(_Count).decode
_decode_text = msgspec.json.Decoder(_Text).decode


class Vllm(DerivedServer):
    """Client and command of vLLM copies."""

    name = NAME
    can_tokenize = True

    def __init__(self, options: Options, hardware: Hardware, *, request_timeout_s: float) -> None:
        super().__init__(served, options, hardware, request_timeout_s=request_timeout_s)

    def stage(self, log: str) -> str | None:
        return vllm_logs.stage(log)

    def stage_seconds(self, log: str) -> dict[str, float]:
        return vllm_logs.stage_seconds(log)

    def planned(self, request: GenerateRequest) -> Plan:
        """OpenAI's field names, and vLLM's own where OpenAI has none, which are the canonical ones."""
        plan = super().planned(request)
        return structs.replace(plan, body={**plan.body, "model": SERVED_NAME})

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        """Renders the chat template and tokenizes; nothing is generated."""
        kept = ("messages", "tools", "chat_template_kwargs") if request.kind == "chat" else ("prompt",)
        body = {key: request.body[key] for key in kept if key in request.body}
        if isinstance(body.get("prompt"), list):
            return len(body["prompt"])
        return (await self._tokenized(endpoint, body)).count

    async def tokenize(self, endpoint: Endpoint, text: str, *, add_special: bool = False) -> list[int]:
        return (await self._tokenized(endpoint, {"prompt": text, "add_special_tokens": add_special})).tokens

    async def detokenize(self, endpoint: Endpoint, tokens: list[int]) -> str:
        async with self._ask(endpoint, "/detokenize", {"model": SERVED_NAME, "tokens": tokens}) as response:
            return read(_decode_text, await response.read()).prompt

    async def _tokenized(self, endpoint: Endpoint, body: dict[str, Any]) -> _Count:
        async with self._ask(endpoint, "/tokenize", {"model": SERVED_NAME, **body}) as response:
            return read(_decode_count, await response.read())

    def slots(self, spec: CopySpec, log: str) -> int | None:
        found = vllm_logs.kv_tokens(log)
        return None if found is None else slots_for(found, spec.context_tokens)

    def asleep(self, spec: CopySpec) -> Sequence[Asleep]:
        """On the processor vLLM answers 200 and does nothing, so it is never asked there."""
        weights = f"{spec.model.weight_bytes / 1e9:.1f} GB of weights"
        kept = structs.replace(spec, gpus=0, devices=(), kv_bytes=spec.kv_bytes + spec.model.weight_bytes)
        dropped = structs.replace(spec, gpus=0, devices=())
        ways = {
            1: Asleep(1, kept, f"{weights} stay in the node's memory"),
            2: Asleep(2, dropped, f"{weights} are read again at the wake"),
        }
        return [ways[level] for level in self.served(spec).sleep_levels]

    async def sleep(self, endpoint: Endpoint, level: int) -> None:
        """The cache is dropped, processes and graphs are kept; the weights go to RAM (1) or nowhere (2)."""
        await self._told(endpoint, f"/sleep?level={level}")
        if not await self._is_sleeping(endpoint):
            raise EngineFault("vLLM says that it sleeps and does not")

    async def wake(self, endpoint: Endpoint, level: int) -> None:
        """At level 2 in the order of vLLM's documentation: memory of the weights, the weights, then the cache's."""
        if level == 1:
            await self._told(endpoint, "/wake_up")
        else:
            await self._told(endpoint, "/wake_up?tags=weights")
            await self._told(endpoint, "/collective_rpc", {"method": "reload_weights"})
            await self._told(endpoint, "/wake_up?tags=kv_cache")
        if await self._is_sleeping(endpoint):
            raise EngineFault("vLLM says that it is awake and is not")

    async def _told(self, endpoint: Endpoint, path: str, body: dict[str, Any] | None = None) -> None:
        async with self._ask(endpoint, path, body or {}) as response:
            await response.read()

    async def _is_sleeping(self, endpoint: Endpoint) -> bool:
        page = await self._page(endpoint, "/is_sleeping")
        try:
            return msgspec.json.decode(page or b"", type=_Sleeping).is_sleeping
        except msgspec.MsgspecError as exc:
            raise EngineFault(f"vLLM does not say whether it sleeps: {exc}") from exc
