"""What a server does TLS with: a certificate of the operator's or of the installation's own authority.

A certificate that is replaced on the disk is shown from the next handshake on; connections that are open go on with
the one that they have. One that cannot be used (half written, of another key, expired) is left alone and told of, and
the old one stays.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509

from outcrop.access.certificates import ensure_certificate
from outcrop.errors import BadSetting

log = structlog.get_logger(__name__)

WATCH_S = 10.0  # between looks at the files
WARN_DAYS = 14


class ServerTls:
    """The context of one server. *certificate*, *key*: files of the operator's; None: made in *folder* for *hosts*.

    Raises BadSetting when they cannot be used.
    """

    def __init__(
        self, folder: Path, hosts: list[str], *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        if (certificate is None) != (key is None):
            raise BadSetting("tls_certificate and tls_key go together; give both or neither.")
        self._folder = folder
        self._hosts = hosts
        self._files = (certificate, key) if certificate is not None and key is not None else None
        self._seen: object = None
        self._complaint = ""
        self.context = _context()
        self.loaded = 0
        if problem := self.reload():
            raise BadSetting(problem)

    def reload(self) -> str:
        """Show what the files hold from now on; why not, when they cannot be used. Blocks for milliseconds."""
        try:
            certificate, key = self._files or self._own()
            _check(certificate, key)
            self.context.load_cert_chain(certificate, key)
            self._seen = self._state()
        except (OSError, ssl.SSLError, ValueError, BadSetting) as exc:
            places = " and ".join(map(str, self._files or (self._folder,)))
            return f"the TLS certificate cannot be used: {exc} ({places})"
        self.loaded += 1
        return ""

    def _own(self) -> tuple[Path, Path]:
        made = ensure_certificate(self._folder, self._hosts)
        return made.certificate, made.key

    def _state(self) -> object:
        """Changes when a file is written or replaced."""
        paths = self._files or (self._folder / "server.pem", self._folder / "server.key")
        states = [path.stat() for path in paths]
        return [(state.st_ino, state.st_mtime_ns, state.st_size) for state in states]

    def look(self) -> None:
        """Reload what has changed; a certificate of our own that is about to expire is made anew."""
        try:
            is_changed = self._state() != self._seen
        except OSError:
            is_changed = True
        if is_changed or self._files is None:
            self.renew(is_forced=is_changed)

    def renew(self, *, is_forced: bool = True) -> None:
        """``reload``, and say how it went; a complaint that was made is not made again."""
        if not is_forced and not self._is_expiring():
            return
        problem = self.reload()
        if problem and problem != self._complaint:
            log.error("the TLS certificate in use stays", reason=problem)
        elif not problem:
            log.info("a TLS certificate was loaded")
        self._complaint = problem

    def _is_expiring(self) -> bool:
        try:
            return ends_at(self._folder / "server.pem").timestamp() - datetime.now(UTC).timestamp() < 30 * 86400
        except (OSError, ValueError):
            return True

    async def watch(self, asked: asyncio.Event) -> None:
        """Look at the files for ever, at once when *asked* is set."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await asked.wait()
            # On the loop's own thread: OpenSSL lets no other one change a context that handshakes use.
            if asked.is_set():
                asked.clear()
                self.renew()
            else:
                self.look()


def ends_at(certificate: Path) -> datetime:
    """When the first certificate in a PEM file expires."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check(certificate: Path, key: Path) -> None:
    """Raise unless the pair fits and is valid now; a context that failed half-way would show neither."""
    if key.stat().st_mode & 0o077:
        raise BadSetting(f"{key} can be read by others; chmod 600 {key}")
    _context().load_cert_chain(certificate, key)
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    now = datetime.now(UTC)
    if not found.not_valid_before_utc <= now < found.not_valid_after_utc:
        raise BadSetting(
            f"{certificate} is valid from {found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d}"
        )
    if (found.not_valid_after_utc - now).days < WARN_DAYS:
        at = f"{found.not_valid_after_utc:%Y-%m-%d}"
        log.warning("the TLS certificate expires soon", file=str(certificate), at=at)
