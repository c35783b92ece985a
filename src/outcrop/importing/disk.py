"""Disk space promised to running jobs, so that two imports are not both told that the last gigabytes are theirs."""

from __future__ import annotations

from pathlib import Path

from outcrop.errors import StorageFull


class DiskLedger:
    """Bytes that running jobs will still write. Owned by the event loop."""

    def __init__(self, root: Path, spare_bytes: int) -> None:
        self._root = root
        self._spare = spare_bytes
        self._promised: dict[str, int] = {}

    def reserve(self, job_id: str, need_bytes: int, free_bytes: int) -> None:
        """Promise *need_bytes* to the job, in place of what it was promised before. Raises StorageFull."""
        others = sum(size for job, size in self._promised.items() if job != job_id)
        left = free_bytes - others - self._spare
        if need_bytes > left:
            taken = f", {_size(others)} are promised to other import jobs" if others else ""
            raise StorageFull(
                f"The import needs {_size(need_bytes)} in the weight store {self._root} (files and the engine's "
                f"artefact); {_size(free_bytes)} are free{taken}, and {_size(self._spare)} stay free "
                f"(OUTCROP_STORE_SPARE_BYTES). Free {_size(need_bytes - left)} more (outcrop store shows what is held) "
                "and import again."
            )
        self._promised[job_id] = need_bytes

    def written(self, job_id: str, count: int) -> None:
        """So much of the promise has become part of the disk's own count."""
        if job_id in self._promised:
            self._promised[job_id] = max(0, self._promised[job_id] - count)

    def release(self, job_id: str) -> None:
        self._promised.pop(job_id, None)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"
