"""A read-only object store over a folder, for the benchmark: lists, heads and ranged reads, at a set latency and rate.

``python -m outcrop.bench.object_store --folder F --latency-ms 20 --mb-per-s 300`` prints its URL and serves
``F/bucket/key`` on loopback until its standard input closes. It asks for no credentials and checks none; files are sent
by the kernel (sendfile), so that it costs the reader's processor as little as a server can.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web


class FolderStore:
    """*bytes_per_s*: of all answers together, as a link of that rate would give them; None for the machine's own."""

    def __init__(self, folder: Path, latency_s: float, bytes_per_s: float | None) -> None:
        self._folder = folder
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._link_free_at = 0.0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        bucket, _, key = request.match_info["path"].partition("/")
        if not key:
            return web.Response(text=self._listing(bucket, request.query), content_type="application/xml")
        path = self._folder / bucket / key
        if not path.is_file():
            return web.Response(
                status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml"
            )
        if self._bytes_per_s and request.method == "GET":
            wanted = request.http_range
            size = (wanted.stop or path.stat().st_size) - (wanted.start or 0)
            now = time.monotonic()
            self._link_free_at = max(now, self._link_free_at) + size / self._bytes_per_s
            await asyncio.sleep(self._link_free_at - now)
        return web.FileResponse(path)

    def _listing(self, bucket: str, query: object) -> str:
        assert hasattr(query, "get")
        prefix = str(query.get("prefix", ""))
        folder = self._folder / bucket / prefix
        entries = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            state = path.stat()
            entries.append(
                f"<Contents><Key>{escape(prefix + path.name)}</Key><Size>{state.st_size}</Size>"
                # The form that aiohttp gives FileResponse.
                f"<ETag>&quot;{state.st_mtime_ns:x}-{state.st_size:x}&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(entries)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        )


async def serve(folder: Path, latency_s: float, bytes_per_s: float | None) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", FolderStore(folder, latency_s, bytes_per_s).answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to every answer")
    parser.add_argument("--mb-per-s", type=float, help="the rate of the link; without it as fast as the machine")
    arguments = parser.parse_args()
    bytes_per_s = arguments.mb_per_s * 1e6 if arguments.mb_per_s else None
    asyncio.run(serve(arguments.folder, arguments.latency_ms / 1000, bytes_per_s))


if __name__ == "__main__":
    main()
