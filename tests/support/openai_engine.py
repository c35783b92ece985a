"""A server of the OpenAI API that writes down what it is asked: ``python -m tests.support.openai_engine PORT FILE``.

It takes the place of an engine that somebody else wrote, where a test is about what reaches it. Each request becomes one
line of JSON in FILE. Answers say how many images came; prompt log-probabilities have vLLM's form and places. It sleeps
and wakes by the routes of vLLM's development mode and in their order: asleep it fails, without its weights it answers
with garbage.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from array import array
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROMPT_LOGPROBS = [None, {"7": {"logprob": -1.5, "rank": 3, "decoded_token": "x"}}]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: Path
    gone: set[str] = set()  # noqa: RUF012  # of weights, kv_cache, values: what is not on the GPU now

    def do_GET(self) -> None:
        is_sleeping = bool(self.gone & {"weights", "kv_cache"})
        self._answer(json.dumps({"is_sleeping": is_sleeping} if self.path == "/is_sleeping" else {}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.log.open("a") as log:
            log.write(json.dumps({"path": self.path, "body": body}) + "\n")
        if self._is_about_sleep(body):
            return
        if self.gone & {"weights", "kv_cache"}:
            self.send_error(500, "asleep")
            return
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        if self.path.endswith("/embeddings"):
            data = [{"index": index, "embedding": _vector(text)} for index, text in enumerate(body["input"])]
            self._answer(json.dumps({"data": data, "usage": usage}).encode())
            return
        images = sum(part["type"] == "image_url" for part in _parts(body))
        text = "!!!!" if self.gone else f"{images} images"
        is_chat = "chat" in self.path
        key = "delta" if body.get("stream") else "message"
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice |= {key: {"role": "assistant", "content": text}} if is_chat else {"text": text}
        answer: dict[str, Any] = {"choices": [choice], "usage": usage}
        if "prompt_logprobs" in body:
            (answer if is_chat else choice)["prompt_logprobs"] = PROMPT_LOGPROBS
        if body.get("stream"):
            self._answer(f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")
        else:
            self._answer(json.dumps(answer).encode())

    def _is_about_sleep(self, body: dict[str, Any]) -> bool:
        """Whether the request was one, which then is answered."""
        where = urlsplit(self.path)
        asked = parse_qs(where.query)
        if where.path == "/sleep":
            self.gone |= {"weights", "kv_cache", *(["values"] if asked["level"] == ["2"] else [])}
        elif where.path == "/wake_up":
            self.gone -= set(asked.get("tags", ["weights", "kv_cache"]))
        elif where.path == "/collective_rpc" and body["method"] == "reload_weights":
            if "weights" in self.gone:
                self.send_error(500, "no memory for the weights")
                return True
            self.gone.discard("values")
        else:
            return False
        self._answer(b"")
        return True

    def log_message(self, *args: Any) -> None:
        return

    def _answer(self, body: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _vector(text: Any) -> str:
    """One of length 1 for each text."""
    angle = 1 + len(str(text)) / 100
    return base64.b64encode(array("f", [math.cos(angle), math.sin(angle)]).tobytes()).decode()


def _parts(body: dict[str, Any]) -> list[Any]:
    contents = [message.get("content") for message in body.get("messages") or []]
    return [part for content in contents if isinstance(content, list) for part in content]


if __name__ == "__main__":
    Handler.log = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
