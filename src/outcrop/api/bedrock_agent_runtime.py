"""RetrieveAndGenerate over a document that comes with the call, in the shape of ``bedrock-agent-runtime/2023-07-26``.

There are no knowledge bases here; ``EXTERNAL_SOURCES`` needs none. A session keeps its questions and answers in this
server's memory, so that the next question may refer to them.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from outcrop.access.identities import Principal
from outcrop.api.bedrock_runtime import Handler
from outcrop.api.generation import Generation, Measured
from outcrop.errors import DependencyFailed, EngineFault, InvalidRequest, ResourceNotFound
from outcrop.inference import fields, guardrails, passages
from outcrop.inference.canonical import GenerateRequest
from outcrop.inference.converse_content import NO_DOCUMENTS
from outcrop.serving.catalogue import Catalogue, Served

OPERATIONS = {"RetrieveAndGenerate": "retrieve_and_generate"}
TEXT_TYPES = ("text/plain", "text/markdown", "text/csv", "text/html")
DEFAULT_MAX_TOKENS = 512
PASSAGE_CHARS = (1200, 600, 300, 150)  # about 300 tokens, Bedrock's default chunk, and less
MOST_SESSIONS, MOST_TURNS = 1000, 10

Turn = tuple[str, str]


class BedrockAgentRuntime:
    """Parameters are already parsed and validated against the service model."""

    def __init__(self, catalogue: Catalogue, generation: Generation) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._sessions: OrderedDict[tuple[str, str], list[Turn]] = OrderedDict()
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def retrieve_and_generate(
        self, params: Mapping[str, Any], principal: Principal, measured: Measured
    ) -> dict[str, Any]:
        """Raises InvalidRequest, ResourceNotFound for a knowledge base, and what generation raises."""
        external, generating = _asked(params)
        session_id, turns = self._session(params.get("sessionId"), principal)
        served = self._catalogue.find(principal.account, external["modelArn"])
        measured.of_engine(served.spec.engine)
        measured.of_model(served.facts.name, served.facts.model_id)
        (source,) = external["sources"]
        identifier, text = _document(source)
        question = params["input"]["text"]
        asking = _Asking(served, question, _template(generating), _sampling(generating, served), turns)
        if not text.strip():
            raise InvalidRequest(f"The document {identifier} holds no text.", param="sources")
        try:
            chosen = await self._fitting(asking, text, measured)
            completion = await self._generation.complete(served, asking.request(chosen), measured)
        except EngineFault as exc:
            raise DependencyFailed(exc.message) from exc
        answer, citations = passages.cited(completion.choices[0].text, len(chosen))
        self._sessions[principal.account, session_id] = [*turns, (question, answer)][-MOST_TURNS:]
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return {
            "sessionId": session_id,
            "output": {"text": answer},
            "citations": _citations(answer, citations, chosen, identifier),
            "guardrailAction": "NONE",
        }

    def _session(self, session_id: str | None, principal: Principal) -> tuple[str, list[Turn]]:
        if session_id is None:
            return str(uuid.uuid4()), []
        key = principal.account, session_id
        if key not in self._sessions:
            raise InvalidRequest(
                f"Session with Id {session_id} is not valid. Please check and try again.", param="sessionId"
            )
        self._sessions.move_to_end(key)
        return session_id, self._sessions[key]

    async def _fitting(self, asking: _Asking, text: str, measured: Measured) -> list[str]:
        """All passages of *text*, or the best of them that the model's context holds, in their order.

        They are shorter where not one would fit.
        """
        room = asking.served.facts.context_tokens - asking.sampling["max_tokens"]
        apart = dataclasses.replace(measured, attempts=[])  # counting is no attempt to answer
        for limit in PASSAGE_CHARS:
            found = passages.split(text, limit)
            order = passages.ranked(found, asking.question)
            count = len(order)
            while count:
                chosen = [found[index] for index in sorted(order[:count])]
                tokens = await self._generation.count_tokens(asking.served, asking.request(chosen), apart)
                if tokens <= room:
                    return chosen
                count = min(count - 1, max(1, int(count * room / tokens)))
        return chosen  # too long even so, which the engine says with its numbers


@dataclasses.dataclass(frozen=True, slots=True)
class _Asking:
    """One question to one model."""

    served: Served
    question: str
    template: str
    sampling: dict[str, Any]
    turns: list[Turn]

    def request(self, chosen: Sequence[str]) -> GenerateRequest:
        text = passages.prompt(self.template, chosen, self.question)
        if self.served.facts.has_chat_template:
            messages = [
                {"role": role, "content": content}
                for turn in self.turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
            body = {"messages": [*messages, {"role": "user", "content": text}], **self.sampling}
            return GenerateRequest(kind="chat", body=body)
        before = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in self.turns)
        return GenerateRequest(kind="completion", body={"prompt": f"{before}{text}\nAnswer:", **self.sampling})


def _asked(params: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The external sources that are asked, and how the answer is to be generated."""
    config = params.get("retrieveAndGenerateConfiguration")
    if not config:
        raise InvalidRequest("retrieveAndGenerateConfiguration is required.", param="retrieveAndGenerateConfiguration")
    if config["type"] == "KNOWLEDGE_BASE":
        base = (config.get("knowledgeBaseConfiguration") or {}).get("knowledgeBaseId", "")
        raise ResourceNotFound(
            f"Knowledge Base with id {base} does not exist: there are none here. Send the document itself "
            "(type EXTERNAL_SOURCES, sourceType BYTE_CONTENT)."
        )
    external = config.get("externalSourcesConfiguration")
    if not external:
        raise InvalidRequest(
            "type EXTERNAL_SOURCES needs externalSourcesConfiguration.", param="externalSourcesConfiguration"
        )
    generating = external.get("generationConfiguration") or {}
    guardrail = generating.get("guardrailConfiguration") or {}
    guardrails.refuse_unknown(guardrail.get("guardrailId"), guardrail.get("guardrailVersion"), {})
    return external, generating


def _document(source: Mapping[str, Any]) -> tuple[str, str]:
    """Name and text."""
    content = source.get("byteContent")
    if source["sourceType"] != "BYTE_CONTENT" or not content:
        raise InvalidRequest("Documents in S3 are not read here. Send sourceType BYTE_CONTENT.", param="sourceType")
    if content["contentType"] not in TEXT_TYPES:
        raise InvalidRequest(NO_DOCUMENTS, param="contentType")
    try:
        return content["identifier"], content["data"].decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The document {content['identifier']} is not UTF-8 text: {exc.reason}.") from exc


def _template(generating: Mapping[str, Any]) -> str:
    template: str = (generating.get("promptTemplate") or {}).get("textPromptTemplate") or passages.DEFAULT_TEMPLATE
    if "$search_results$" not in template:
        raise InvalidRequest("The prompt template must contain $search_results$.", param="textPromptTemplate")
    return template


def _sampling(generating: Mapping[str, Any], served: Served) -> dict[str, Any]:
    config = (generating.get("inferenceConfig") or {}).get("textInferenceConfig") or {}
    wanted = {
        "max_tokens": config.get("maxTokens") or min(DEFAULT_MAX_TOKENS, served.facts.context_tokens // 4),
        "temperature": config.get("temperature", 0),
        "top_p": fields.top_p(config, "topP"),
        "stop": fields.stop_sequences(config, "stopSequences"),
        **fields.other_sampling(fields.mapping(generating, "additionalModelRequestFields") or {}),
    }
    return fields.without_none(wanted)


def _citations(
    answer: str, citations: Sequence[passages.Citation], chosen: Sequence[str], identifier: str
) -> list[dict[str, Any]]:
    spans = citations or [passages.Citation(0, len(answer), ())]
    return [
        {
            "generatedResponsePart": {
                "textResponsePart": {
                    "text": answer[span.start : span.end],
                    "span": {"start": span.start, "end": max(span.start, span.end - 1)},
                }
            },
            "retrievedReferences": [
                {
                    "content": {"text": chosen[index].strip(), "type": "TEXT"},
                    "location": {"type": "CUSTOM", "customDocumentLocation": {"id": identifier}},
                }
                for index in span.passages
            ],
        }
        for span in spans
    ]
