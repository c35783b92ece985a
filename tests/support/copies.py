"""What listens in the processes of copies, as the kernel says, and connections straight to it."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterable
from pathlib import Path

BODY = b'{"prompt":"Hello","max_tokens":1,"messages":[{"role":"user","content":"Hello"}]}'


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at *path*."""

    def __init__(self, path: Path, timeout_s: float = 20) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def listening_sockets(pids: Iterable[int], folder: Path) -> dict[int, Path]:
    """The Unix socket in *folder* that each of *pids* listens on; those that listen on none are left out."""
    # Columns of /proc/net/unix: Flags is the fourth (00010000: it listens), Inode and Path are the last two.
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    names = {row[6]: Path(row[7]).name for row in rows if len(row) == 8 and row[3] == "00010000"}
    found = {}
    for pid in pids:
        for inode in _inodes(pid):
            if inode in names and (folder / names[inode]).is_socket():
                found[pid] = folder / names[inode]
    return found


def listening_ports(pids: Iterable[int]) -> list[tuple[int, str, int]]:
    """Process, address and port of every TCP socket that *pids* listen on."""
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        inodes = {row[9]: row[1] for row in rows if row[3] == "0A"}
        for pid in pids:
            for inode in _inodes(pid):
                if inode in inodes:
                    raw, _, port = inodes[inode].partition(":")
                    size = 4 if family == socket.AF_INET else 16
                    words = bytes.fromhex(raw)
                    address = b"".join(words[at : at + 4][::-1] for at in range(0, size, 4))
                    found.append((pid, socket.inet_ntop(family, address), int(port, 16)))
    return sorted(set(found))


def asked(connection: http.client.HTTPConnection, method: str, path: str, key: str | None) -> tuple[int, bytes]:
    """Status and body of one request; status 0 when the connection was closed without an answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, BODY if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _inodes(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            found.add(match[1])
    return found
