"""What the weight store holds and why: who shares which file, what a deletion or a collection would free."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from outcrop.importing.weights import ARTIFACT, WeightStore
from outcrop.serving.unsealed import ENVELOPE

LOOKS = 5


def inventory(store: WeightStore, names: Mapping[str, str], job_ids: Collection[str]) -> dict[str, Any]:
    """JSON-shaped. *names*: model name by id of the registered models; *job_ids*: unfinished jobs. All values in bytes.

    ``own_bytes`` of a model is what deleting it would free: files that no other model or job uses and that have no
    other name outside the store, its artefact among them. ``shared_bytes`` is used by others as well, ``linked_bytes``
    also lies where it was imported from and costs the disk nothing more.
    """
    for _ in range(LOOKS - 1):
        with suppress(FileNotFoundError):  # a deletion went through meanwhile: look again
            return _looked(store, names, job_ids)
    return _looked(store, names, job_ids)


def _looked(store: WeightStore, names: Mapping[str, str], job_ids: Collection[str]) -> dict[str, Any]:
    users: dict[int, set[str]] = defaultdict(set)
    folders = {path.name: path for path in (store.root / "models").iterdir()}
    jobs = {path.name: path for path in (store.root / "staging").iterdir()}
    for folder in (*folders.values(), *jobs.values()):
        for file in (*_files(folder), *_made(folder)):
            users[file.stat().st_ino].add(folder.name)
    blobs = {blob.stat().st_ino: blob for blob in (store.root / "blobs").glob("*/*")}
    artifacts = {path.stat().st_ino: path for path in (store.root / "artifacts").glob("*/*")}
    models = [_model(folders[key], names[key], users) for key in sorted(folders) if key in names]
    unused = [path for inode, path in {**blobs, **artifacts}.items() if not users.get(inode)]
    leavings = [path for key, path in folders.items() if key not in names]
    leavings += [path for key, path in jobs.items() if key not in job_ids]
    usage = shutil.disk_usage(store.root)
    return {
        "path": str(store.root),
        "disk": {"total_bytes": usage.total, "free_bytes": store.free_bytes()},
        "models": models,
        "shared": _shared(folders, names),
        "blobs": {"count": len(blobs), "bytes": sum(blob.stat().st_size for blob in blobs.values())},
        "jobs": [{"job_id": key, "bytes": _size(path)} for key, path in jobs.items() if key in job_ids],
        "collectable": {
            "bytes": _freed([*unused, *(file for path in leavings for file in path.rglob("*"))], {*blobs, *artifacts}),
            "blobs": sum(1 for inode in blobs if not users.get(inode)),
            "folders": len(leavings),
        },
    }


def _model(folder: Path, name: str, users: Mapping[int, set[str]]) -> dict[str, Any]:
    own = shared = linked = 0
    for file in _files(folder):
        state = file.stat()
        here = len(users[state.st_ino]) + 1  # the names in folders, and the blob
        if len(users[state.st_ino]) > 1:
            shared += state.st_size
        elif state.st_nlink > here:
            linked += state.st_size
        else:
            own += state.st_size
    made = {path.stat().st_ino: path.stat().st_size for path in _made(folder)}
    made_for_all = sum(size for inode, size in made.items() if len(users[inode]) > 1)
    return {
        "model_id": folder.name,
        "model_name": name,
        "checkpoint_bytes": own + shared + linked,
        "artifact_bytes": sum(made.values()),
        "own_bytes": own + sum(made.values()) - made_for_all,
        "shared_bytes": shared + made_for_all,
        "linked_bytes": linked,
    }


def _shared(folders: Mapping[str, Path], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Contents that several models use, the largest first; ``sha256`` is null for what was converted from files."""
    owners: dict[str | int, set[str]] = defaultdict(set)  # by digest, of artefacts by inode
    facts: dict[str | int, tuple[str, int]] = {}
    for folder, name in ((folders[key], names[key]) for key in folders if key in names):
        record = folder / "fetched"
        if record.exists() and not (folder / ENVELOPE).exists():  # encrypted files are nobody else's
            for file, entry in json.loads(record.read_bytes())["files"].items():
                owners[entry["sha256"]].add(name)
                facts[entry["sha256"]] = file, entry["size_bytes"]
        for path in folder.glob(ARTIFACT):
            state = path.stat()
            owners[state.st_ino].add(name)
            facts[state.st_ino] = path.name, state.st_size
    found = [
        {
            "sha256": key if isinstance(key, str) else None,
            "file": facts[key][0],
            "bytes": facts[key][1],
            "models": sorted(by),
        }
        for key, by in owners.items()
        if len(by) > 1
    ]
    return sorted(found, key=lambda entry: -int(str(entry["bytes"])))


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoint").glob("*") if path.is_file()]


def _made(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_file()]


def _freed(paths: Iterable[Path], kept: Collection[int]) -> int:
    """Bytes that removing all *paths* frees, when what the store has *kept* (inodes) goes with its last user."""
    names: dict[int, int] = defaultdict(int)
    states = {}
    for path in paths:
        if path.is_file():
            state = path.stat()
            names[state.st_ino] += path.parent.parent.name not in ("blobs", "artifacts")
            states[state.st_ino] = state
    return sum(state.st_size for inode, state in states.items() if state.st_nlink == names[inode] + (inode in kept))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
