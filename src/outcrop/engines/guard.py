"""Keeps everybody but the server away from an engine that listens on ports only: its own network, one door with a lock.

The engine's parent (``custom_child``) leaves for a network namespace of its own, where the engine listens on a loopback
that nothing else of the machine can reach. Unix sockets belong to no network, so the copy's is the door: each
connection whose first request bears the copy's key is let in.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hmac
import os
import socket
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

_NEWUSER, _NEWNET = 0x10000000, 0x40000000  # clone(2)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)
_IFREQ = "16sH22x"
_HEAD_S = 10.0
_BACKLOG = 256
_HEAD_BYTES = 65536
_BLOCK_BYTES = 65536
_NO_KEY = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_NOT_UP = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def isolate() -> None:
    """Put this process, and what it starts from now on, into a network of their own. Raises OSError.

    Without root it needs user namespaces, and must not have a second thread yet.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    is_privileged = libc.unshare(_NEWNET) == 0
    if not is_privileged and libc.unshare(_NEWUSER | _NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(
            number,
            f"cannot give the engine a network of its own, without which every user of this machine could ask it "
            f"({os.strerror(number)}). Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0), or put the model on llama.cpp or vLLM, which need none",
        )
    if not is_privileged:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as any_socket:
        asked = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        flags: int = struct.unpack(_IFREQ, asked)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack(_IFREQ, b"lo", flags | _IFF_UP))


async def relay(path: str, port: int, secret: str, listening: Callable[[], object]) -> None:
    """Let connections on the socket *path* through to loopback's *port* of this network, for ever.

    Calls *listening* once there is somebody to connect to.
    """
    expected = f"Bearer {secret}".encode()

    async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            try:
                async with asyncio.timeout(_HEAD_S):
                    head = await reader.readuntil(b"\r\n\r\n")
            except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
                return
            if not hmac.compare_digest(_authorization(head), expected):
                writer.write(_NO_KEY)
                return
            try:
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.write(_NOT_UP)
                return
            with closing(inner_writer):
                inner_writer.write(head)
                ways = [
                    asyncio.create_task(_copied(reader, inner_writer)),
                    asyncio.create_task(_copied(inner_reader, writer)),
                ]
                # A caller that leaves ends the generation; an engine that closes ends the answer.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    server = await asyncio.start_unix_server(let_in, path, limit=_HEAD_BYTES, backlog=_BACKLOG)
    listening()
    async with server:
        await server.serve_forever()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while block := await reader.read(_BLOCK_BYTES):
            writer.write(block)
            await writer.drain()


def _authorization(head: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"authorization":
            return value.strip()
    return b""
