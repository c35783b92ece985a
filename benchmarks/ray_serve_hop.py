"""A pass-through hop in Ray Serve, as its documentation would have it written: a deployment that forwards with aiohttp.

``python benchmarks/ray_serve_hop.py PORT UPSTREAM``, in an environment with ``benchmarks/ray.txt``.
"""

from __future__ import annotations

import sys
import time

import aiohttp
from ray import serve
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Hop:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, request: Request) -> Response:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = await request.body()
        headers = {"Content-Type": "application/json"}
        url = self._upstream + request.url.path
        if b'"stream": true' not in body and b'"stream":true' not in body:
            async with self._session.post(url, data=body, headers=headers) as answer:
                return Response(await answer.read(), media_type="application/json")

        async def parts():
            async with self._session.post(url, data=body, headers=headers) as answer:
                async for part in answer.content.iter_any():
                    yield part

        return StreamingResponse(parts(), media_type="text/event-stream")


def main() -> None:
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Hop.bind(sys.argv[2]))
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
