"""Continuous load by unmodified boto3 with its own default retries, counted per request."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EventStreamError

from tests.support.server import Server

PROGRAMS = 10  # that a load with retries stands for
BODY = {"prompt": "for each", "temperature": 0}


def default_client(server: Server, *, as_advised: bool = False) -> Any:
    """A runtime client exactly as boto3 makes it, but for where it connects.

    *as_advised*: with the retries that AWS advises for imported models (ten attempts, standard mode); by default boto3
    gives up on a refused connection within a fraction of a second.
    """
    keys = server.credentials
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=server.url,
        region_name=keys.region,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        config=Config(retries={"total_max_attempts": 10, "mode": "standard"}) if as_advised else None,
    )


class Load:
    """*closed* callers, each asking again once answered, and one request every *open_s* seconds whatever happens.

    Every other request streams. ``failed`` holds every failure but streams that broke after their first byte in the
    modelled way, which are in ``broken``.
    """

    def __init__(
        self,
        server: Server,
        models: list[str],
        *,
        closed: int = 3,
        open_s: float | None = 0.3,
        tokens: int = 16,
        as_advised: bool = False,
    ) -> None:
        # botocore gives up retrying once a client has spent its quota of retries: advice is for programs, not one for all.
        self._clients = [default_client(server, as_advised=as_advised) for _ in range(PROGRAMS if as_advised else 1)]
        self._models = models
        self._closed = closed
        self._open_s = open_s
        self._tokens = tokens
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answered: Counter[str] = Counter()
        self.broken: list[str] = []
        self.failed: list[str] = []

    def __enter__(self) -> Load:
        loops = [threading.Thread(target=self._close, args=(number,)) for number in range(self._closed)]
        if self._open_s:
            loops.append(threading.Thread(target=self._open))
        self._threads = loops
        for thread in loops:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        deadline = time.monotonic() + 120
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        self.failed += [f"{thread.name} was never answered" for thread in self._threads if thread.is_alive()]

    @property
    def total(self) -> int:
        return sum(self.answered.values())

    def ask(self, number: int) -> None:
        """One request, counted."""
        model = self._models[number % len(self._models)]
        # Streams alternate with whole answers on every model.
        is_streamed = bool((number // len(self._models)) % 2)
        client = self._clients[number % len(self._clients)]
        begun, has_begun, is_open = time.monotonic(), False, False
        try:
            body = json.dumps({**BODY, "max_gen_len": self._tokens})
            if not is_streamed:
                json.loads(client.invoke_model(modelId=model, body=body)["body"].read())
            else:
                stream = client.invoke_model_with_response_stream(modelId=model, body=body)["body"]
                is_open = True
                for _ in stream:
                    has_begun = True
            self.answered[model] += 1
        except EventStreamError as exc:
            code = exc.response["Error"]["Code"]
            is_modelled = has_begun and code == "modelStreamErrorException"
            (self.broken if is_modelled else self.failed).append(f"{code}: {exc}")
        except (ClientError, BotoCoreError) as exc:
            self.failed.append(f"after {time.monotonic() - begun:.1f} s, streamed={is_streamed}: {exc!r}")
        except Exception as exc:
            # A connection cut inside an open stream, after its head and maybe before its first event, reaches the caller
            # as urllib3's own error: the server was killed.
            kind = self.broken if is_open else self.failed
            kind.append(f"after {time.monotonic() - begun:.1f} s, streamed={is_streamed}: {exc!r}")

    def _close(self, number: int) -> None:
        while not self._stop.is_set():
            self.ask(number)
            number += 1

    def _open(self) -> None:
        assert self._open_s is not None
        number, asked = 0, []
        while not self._stop.wait(self._open_s):
            thread = threading.Thread(target=self.ask, args=(number,))
            thread.start()
            asked.append(thread)
            number += 1
        for thread in asked:
            thread.join(90)
