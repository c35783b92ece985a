"""Where a checkpoint comes from: the files directly under a prefix of an embedded bucket.

``s3://bucket/key`` is ``OUTCROP_HOME/buckets/bucket/key``. Nothing outside the buckets folder is ever read, whatever
dots or symbolic links a key or a bucket holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outcrop.checkpoints.inspect import CheckpointFiles, wanted_texts
from outcrop.checkpoints.problems import CheckpointRejected, Problem

LARGEST_TEXT_BYTES = 256_000_000  # tokenizer.json of the largest vocabularies is about 35 MB
LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True)
class Prefix:
    """One checkpoint's folder inside the buckets."""

    uri: str
    folder: Path

    @classmethod
    def resolve(cls, uri: str, buckets: Path) -> Prefix:
        """The folder that *uri* names. Raises CheckpointRejected when there is none."""
        parts = uri.removeprefix("s3://").strip("/").split("/")
        folder = buckets.joinpath(*parts)
        inside = not any(part in ("", ".", "..") for part in parts)
        if inside and folder.is_dir():
            inside = folder.resolve().is_relative_to(buckets.resolve())
        if not inside or not folder.is_dir():
            raise CheckpointRejected([_absent(uri)])
        return cls(uri, folder)

    def sizes(self) -> dict[str, int]:
        """Name and bytes of each regular file directly under the prefix, links followed inside the buckets only."""
        bucket = self.folder.resolve()
        return {
            entry.name: entry.stat().st_size
            for entry in sorted(self.folder.iterdir())
            if entry.is_file() and entry.resolve().is_relative_to(bucket)
        }

    def read_facts(self) -> CheckpointFiles:
        """Texts and tensor headers: all that the check needs, and no weights."""
        sizes = self.sizes()
        texts = {
            name: (self.folder / name).read_bytes()
            for name in wanted_texts(list(sizes))
            if sizes[name] <= LARGEST_TEXT_BYTES
        }
        headers = {name: _header(self.folder / name) for name in sizes if name.endswith(".safetensors")}
        return CheckpointFiles(sizes=sizes, texts=texts, headers=headers)


def _header(path: Path) -> bytes:
    """The length field and the JSON header of a safetensors file; what is there when it is cut off."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little") if len(prefix) == 8 else 0
        return prefix + file.read(min(length, LARGEST_HEADER_BYTES))


def _absent(uri: str) -> Problem:
    return Problem(
        file=uri,
        tensor=None,
        found="no such prefix",
        expected="a prefix with config.json and *.safetensors",
        remedy="upload the checkpoint there or correct s3Uri",
        message=f"No checkpoint was found at {uri}. Upload config.json, the tokenizer and *.safetensors to that "
        "prefix, or correct s3Uri.",
    )
