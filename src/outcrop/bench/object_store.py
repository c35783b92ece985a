"""A read-only object store over a folder, for the benchmark: lists, heads and ranged reads, with a set latency.

``python -m outcrop.bench.object_store --folder F --latency-ms 20`` prints its URL and serves ``F/bucket/key`` on
loopback until its standard input closes. It asks for no credentials and checks none; files are sent by the kernel
(sendfile), so that it costs the reader's processor as little as a server can.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web


class FolderStore:
    def __init__(self, folder: Path, latency_s: float) -> None:
        self._folder = folder
        self._latency_s = latency_s

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


async def serve(folder: Path, latency_s: float) -> None:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", FolderStore(folder, latency_s).answer)
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
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.folder, arguments.latency_ms / 1000))


if __name__ == "__main__":
    main()
