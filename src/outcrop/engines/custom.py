"""Any command line that serves the OpenAI API over HTTP, as an engine.

The command comes from the settings and is split as a shell would, but run without one. ``{socket}`` in it becomes the
path of the Unix socket to listen on, which nobody but the server's user reaches, ``{port}`` a port of loopback, which
every process of the machine does; ``{model}`` the folder of the imported checkpoint. The copy's key is in its
environment (``VLLM_API_KEY``, ``OPENAI_API_KEY``), because an argument vector is readable by others. Ready means that
``GET /health``, or ``GET /v1/models`` where there is no such page, answers 200.
"""

from __future__ import annotations

import shlex
import sys

import msgspec

from outcrop.engines.base import CopySpec, Endpoint
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.engines.llama_cpp_request import CHAT, COMPLETION, Plan, alternatives
from outcrop.engines.occupancy import Occupancy, from_prometheus
from outcrop.errors import BadSetting, EngineFault, InvalidRequest
from outcrop.inference.canonical import Completion, GenerateRequest
from outcrop.inference.embeddings import Embeddings, EmbedRequest

NAME = "custom"


class OpenAIServer(LlamaCpp):
    """Client of a server that speaks the OpenAI API and nothing else that we know of.

    A llama.cpp copy is asked through the OpenAI API as well, so its client serves here; what llama.cpp alone
    understands is left out.
    """

    can_tokenize = False
    gather_s = 0.004  # its processors are its own, as a rule; nobody reads 250 tokens a second

    async def is_ready(self, endpoint: Endpoint) -> bool:
        status = await self._answers(endpoint, "/health")
        return (await self._answers(endpoint, "/v1/models") if status == 404 else status) == 200

    def planned(self, request: GenerateRequest) -> Plan:
        """The canonical body as it is: it has OpenAI's field names, and vLLM's where OpenAI has none."""
        body = {key: value for key, value in request.body.items() if key != "n"}
        path = CHAT if request.kind == "chat" else COMPLETION
        return Plan(path, body, choices=request.body.get("n") or 1, top_logprobs=alternatives(request))

    async def _plan(self, endpoint: Endpoint, request: GenerateRequest) -> Plan:
        return self.planned(request)

    async def _with_prompt_logprobs(self, endpoint: Endpoint, how: Plan, whole: Completion, top: int) -> Completion:
        if whole.prompt_logprobs is None:
            raise InvalidRequest(
                "This model's engine answered without prompt_logprobs; leave it out.", param="prompt_logprobs"
            )
        return whole

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        """What the engine says it read when it is asked for one token: the OpenAI API has no cheaper way."""
        dropped = (
            *("n", "max_tokens", "max_completion_tokens", "response_format", "structured_outputs"),
            "prompt_logprobs",
        )
        body = {key: value for key, value in request.body.items() if key not in dropped}
        one = await self.complete(endpoint, GenerateRequest(kind=request.kind, body=body | {"max_tokens": 1}))
        return one.usage.prompt_tokens

    async def occupancy(self, endpoint: Endpoint) -> Occupancy | None:
        page = await self._page(endpoint, "/metrics")
        return None if page is None else from_prometheus(page.decode(errors="replace"))

    async def embed(self, endpoint: Endpoint, request: EmbedRequest, *, normalize: bool) -> Embeddings:
        """All inputs at once: such an engine batches by itself. Whether vectors have unit length is its own matter."""
        body = {"input": request.inputs, "encoding_format": "base64"}
        return await self._vectors(endpoint, body, len(request.inputs))

    async def tokenize(self, endpoint: Endpoint, text: str, *, add_special: bool = False) -> list[int]:
        raise EngineFault("the OpenAI API has no tokenizer to ask")

    async def detokenize(self, endpoint: Endpoint, tokens: list[int]) -> str:
        raise NotImplementedError


class Custom(OpenAIServer):
    """Client and command of a server that somebody else wrote."""

    name = NAME
    takes_arguments = True

    def __init__(self, command: str, *, request_timeout_s: float) -> None:
        super().__init__(request_timeout_s=request_timeout_s)
        try:
            self._argv = shlex.split(command)
        except ValueError as exc:
            raise BadSetting(f"custom_engine={command!r} cannot be split into words: {exc}") from exc
        if not any(place in word for word in self._argv for place in ("{socket}", "{port}")):
            raise BadSetting(
                f"custom_engine={command!r} does not say where it listens; write {{socket}} or {{port}} "
                "(OUTCROP_CUSTOM_ENGINE)"
            )

    def command(self, spec: CopySpec) -> list[str]:
        return [sys.executable, "-P", "-m", "outcrop.engines.custom_child"]

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        checkpoint = str(spec.artifact.parent / "checkpoint")
        argv = [*(word.replace("{model}", checkpoint) for word in self._argv), *spec.arguments]
        return msgspec.json.encode({"argv": argv, "secret": secret}) + b"\n"
