"""Where copies listen: Unix sockets in a folder that only the server's user may enter.

A process that is started finds the path of its own socket in ``OUTCROP_COPY_SOCKET``. Paths of sockets are short
(``sun_path``: 108 bytes), those of a home need not be; on Linux a path goes by the descriptor of the folder, which
children inherit under the same number.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from outcrop.errors import EngineFault

VARIABLE = "OUTCROP_COPY_SOCKET"  # what engines.copy_socket reads
_MOST_PATH_BYTES = 100


class Sockets:
    """The folder of the sockets. *folder*: None, or one that cannot hold sockets, makes one that lasts as long as this.

    Owned by one server: what is in the folder when it is opened is left over.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._wanted = folder
        self._folder: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._turn = threading.Lock()
        self.handle: int | None = None  # of the folder; a child has to inherit it

    def fresh(self) -> tuple[str, Path]:
        """A path that a process listens on, and the file that it will be. Raises EngineFault."""
        with self._turn:
            folder = self._opened()
        name = f"{secrets.token_hex(8)}.sock"
        path = str(folder / name) if self.handle is None else f"/proc/self/fd/{self.handle}/{name}"
        if len(os.fsencode(path)) > _MOST_PATH_BYTES:
            raise EngineFault(f"the path {path} is too long for a socket; put the home (OUTCROP_HOME) at a shorter one")
        return path, folder / name

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
        if self._temporary is not None:
            self._temporary.cleanup()
        self._folder = self._temporary = self.handle = None

    def _opened(self) -> Path:
        if self._folder is None:
            if self._wanted is None or not _holds_sockets(self._wanted):
                self._temporary = tempfile.TemporaryDirectory(prefix="outcrop-")  # 0700
            self._folder = self._wanted if self._temporary is None else Path(self._temporary.name)
            assert self._folder is not None
            if Path("/proc/self/fd").is_dir():
                self.handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._folder


def _holds_sockets(folder: Path) -> bool:
    """Make *folder* ours alone and empty; False where its file system takes no sockets. Raises EngineFault."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for old in folder.glob("*.sock"):
            old.unlink(missing_ok=True)
    except OSError as exc:
        raise EngineFault(f"cannot keep the sockets of copies in {folder}: {exc}") from exc
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    place = f"/proc/self/fd/{handle}" if Path("/proc/self/fd").is_dir() else str(folder)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(f"{place}/probe.sock")
    except OSError:
        return False
    finally:
        os.close(handle)
        with suppress(OSError):
            (folder / "probe.sock").unlink(missing_ok=True)
    return True
