"""What an import costs, beside the raw cost of the same bytes in the same run (``make bench-import``).

- *preflight*: ``outcrop check`` of a 16-shard, 30 GB checkpoint (sparse files) over a store with added latency: wall
  time of the whole command, of the check itself, and the command's peak memory.
- *transfer*: files from an object store into the weight store (digest, scan, resume journal, all synchronised)
  against the plain download of the same files by the same client, equally parallel, written and synchronised: over a
  link of 300 MB/s, and as fast as the machine can, where the digest needs the cores that the client and the store need.
- *linked*: the check of a checkpoint on the weight store's own file system, and bringing it (digest, scan, hard links).
- *conversion*: the converter's process from start to end against a synchronised copy of the same bytes.
- *jobs*: the phases of whole jobs on a server, out of an embedded bucket and out of the store, and its peak memory.

Sides that are compared take turns, and a share is the median of the rounds' own shares: what else the machine does
falls on both. The disk is let come to rest before each turn. The store is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import typer

from outcrop.access.credentials_file import read
from outcrop.bench.children import Ran, object_store, run
from outcrop.bench.large_checkpoint import BIG, make_checkpoint, of_size

LATENCIES_MS = (0, 20, 50)
MODULE = "outcrop.bench.imports"
BUCKET, PART_BYTES, PARTS_AT_A_TIME = "bench", 8 << 20, 8
KEYS = {"access_key_id": "any", "secret_access_key": "any"}
LINK_MB_PER_S = 300.0
JOB_GB = 0.5  # of the whole jobs: their proof run takes most of the time, and is no cost of moving bytes
SECTIONS = ("preflight", "transfer", "linked", "conversion", "jobs")


class Bench:
    """One run in the folder *work*, whose disk is measured; each section can be asked for alone."""

    def __init__(self, work: Path, size_gb: float, rounds: int) -> None:
        self._work = work
        self._size_gb = size_gb
        self._rounds = rounds

    def preflight(self) -> dict[str, Any]:
        store = self._work / "sparse"
        size = make_checkpoint(store / BUCKET / "big", BIG, 16, sparse=True)
        uri, rows = f"s3://{BUCKET}/big/", []
        for latency_ms in LATENCIES_MS:
            with object_store(store, latency_ms) as url:
                environment = self._environment(url)
                command = [sys.executable, "-m", "outcrop.cli.main", "check", uri, "--json"]
                ran = [run(command, environment) for _ in range(self._rounds)]
                inner = [self._child("preflight", uri, environment) for _ in range(self._rounds)]
            assert ran[0].said["importable"], ran[0].said["problems"]
            rows.append(
                {
                    "latency_ms": latency_ms,
                    "command_s": _middle(one.wall_s for one in ran),
                    "check_s": _middle(one.said["check_s"] for one in inner),
                    "peak_mb": round(max(one.peak_bytes for one in ran) / 1e6, 1),
                }
            )
        return {"checkpoint_bytes": size, "shards": 16, "rows": rows}

    def transfer(self) -> dict[str, Any]:
        size = self._whole("small", self._size_gb)
        return {
            "bytes": size,
            f"link of {LINK_MB_PER_S} MB/s": self._transfer(size, LINK_MB_PER_S),
            "loopback": self._transfer(size, None),
        }

    def _transfer(self, size: int, mb_per_s: float | None) -> dict[str, Any]:
        uri = f"s3://{BUCKET}/small/"
        with object_store(self._work / "store", mb_per_s=mb_per_s) as url:
            environment = self._environment(url)
            found = self._turns(
                {
                    "raw": lambda: self._child("raw", uri, environment, target=True),
                    "outcrop": lambda: self._child("outcrop", uri, environment, target=True),
                }
            )
        seconds = {kind: [one.said["s"] for one in ran] for kind, ran in found.items()}
        return {
            "mb_per_s": {kind: [_mb_per_s(size, one) for one in values] for kind, values in seconds.items()},
            "share_of_raw": _share(seconds["raw"], seconds["outcrop"]),
            "cpu_s_per_gb": {
                kind: round(statistics.median(one.said["cpu_s"] for one in ran) / size * 1e9, 2)
                for kind, ran in found.items()
            },
            "peak_mb": round(max(one.peak_bytes for one in found["outcrop"]) / 1e6),
        }

    def linked(self) -> dict[str, Any]:
        size = self._whole("small", self._size_gb)
        folder = str(self._work / "store" / BUCKET / "small")
        found = self._turns({"linked": lambda: self._child("linked", folder, {}, target=True)})["linked"]
        return {
            "bytes": size,
            **{key: [round(one.said[key], 3) for one in found] for key in ("check_s", "bring_s", "cpu_s")},
            "check_and_bring_s": _middle(one.said["check_s"] + one.said["bring_s"] for one in found),
        }

    def conversion(self) -> dict[str, Any]:
        self._whole("small", self._size_gb)
        folder, target = self._work / "store" / BUCKET / "small", self._work / "target"
        weights = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
        size = sum(path.stat().st_size for path in weights)
        argv = [sys.executable, "-m", "outcrop.engines.gguf_convert"]
        argv += ["--checkpoint", str(folder), "--out", str(target / "model.gguf")]

        def converted() -> float:
            target.mkdir()
            return run(argv).wall_s

        seconds = self._turns({"copy": lambda: _copy_s(weights, target), "convert": converted})
        return {
            "bytes": size,
            "mb_per_s": {kind: [_mb_per_s(size, one) for one in values] for kind, values in seconds.items()},
            "share_of_copy": _share(seconds["copy"], seconds["convert"]),
        }

    def jobs(self) -> dict[str, Any]:
        size = self._whole("half", JOB_GB)
        home, source = self._work / "home", self._work / "store" / BUCKET / "half"
        bucket = home / "buckets" / "models" / "half"
        bucket.mkdir(parents=True)
        for path in source.iterdir():
            (bucket / path.name).hardlink_to(path)
        # Another file, or the second job would find the first one's artefact and convert nothing.
        (bucket / "generation_config.json").unlink()
        (bucket / "generation_config.json").write_text((source / "generation_config.json").read_text() + "\n")
        with object_store(self._work / "store") as url, _server(home, stores(url)) as process:
            idle = _high_water_bytes(process.pid)
            remote = _job(home, f"s3://{BUCKET}/half/", "remote")
            after_remote = _high_water_bytes(process.pid)
            local = _job(home, "s3://models/half/", "local")
        return {
            "bytes": size,
            "object_store_s": remote,
            "same_file_system_s": local,
            "server_peak_mb": {"idle": round(idle / 1e6), "after an import from the store": round(after_remote / 1e6)},
        }

    # -- turns ------------------------------------------------------------------------------------

    def _turns(self, sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """What each side gave, round by round; who begins alternates, and the disk is at rest before each."""
        found: dict[str, list[Any]] = {kind: [] for kind in sides}
        for number in range(self._rounds):
            order = list(sides)[:: 1 if number % 2 == 0 else -1]
            for kind in order:
                shutil.rmtree(self._work / "target", ignore_errors=True)
                os.sync()
                found[kind].append(sides[kind]())
        shutil.rmtree(self._work / "target", ignore_errors=True)
        return found

    def _child(self, kind: str, uri: str, environment: Mapping[str, str], *, target: bool = False) -> Ran:
        argv = [sys.executable, "-m", MODULE, f"--child={kind}", uri]
        return run(argv + ([f"--target={self._work / 'target'}"] if target else []), environment)

    def _environment(self, url: str) -> dict[str, str]:
        return {"OUTCROP_OBJECT_STORES": stores(url), "OUTCROP_HOME": str(self._work / "none")}

    def _whole(self, name: str, size_gb: float) -> int:
        """A checkpoint with weights, made once; its bytes."""
        folder = self._work / "store" / BUCKET / name
        if not folder.exists():
            make_checkpoint(folder, of_size(size_gb), 4, sparse=False)
        return sum(path.stat().st_size for path in folder.iterdir())


def stores(url: str) -> str:
    """The setting by which a store at *url* is read."""
    return json.dumps([{"buckets": [BUCKET], "endpoint": url, **KEYS}])


def _mb_per_s(size: int, seconds: float) -> int:
    return round(size / seconds / 1e6)


def _middle(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def _share(raw_s: Sequence[float], ours_s: Sequence[float]) -> dict[str, Any]:
    shares = [raw / ours for raw, ours in zip(raw_s, ours_s, strict=True)]
    return {"median": round(statistics.median(shares), 2), "rounds": [round(share, 2) for share in shares]}


@contextmanager
def _server(home: Path, object_stores: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OUTCROP_HOME": str(home), "OUTCROP_PORT": "0", "OUTCROP_OBJECT_STORES": object_stores}
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "outcrop.cli.main", "serve"], env=environment, stderr=log)
    try:
        while not (home / "run" / "server.json").exists():
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _job(home: Path, uri: str, name: str) -> dict[str, float]:
    """Seconds by phase of an import, and of all of it."""
    keys, url = read(home), json.loads((home / "run" / "server.json").read_text())["url"]
    given = {"aws_access_key_id": keys.access_key_id, "aws_secret_access_key": keys.secret_access_key}
    bedrock = boto3.client("bedrock", endpoint_url=url, region_name=keys.region, **given)
    begun = time.perf_counter()
    arn = bedrock.create_model_import_job(
        jobName=name,
        importedModelName=name,
        roleArn=keys.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": uri}},
        jobTags=[{"key": "outcrop:proof", "value": "accept"}],  # random weights may well repeat one token
    )["jobArn"]
    while (job := bedrock.get_model_import_job(jobIdentifier=arn))["status"] == "InProgress":
        time.sleep(0.02)
    spent = time.perf_counter() - begun
    if job["status"] != "Completed":
        raise SystemExit(f"the import of {uri} failed: {job['failureMessage']}")
    request = urllib.request.Request(  # noqa: S310  (our own server's URL)
        f"{url}/outcrop/v1/import-jobs/{name}", headers={"Authorization": f"Bearer {keys.bearer_key}"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        timings: dict[str, float] = json.load(response)["timings"]
    return {**timings, "total": round(spent, 3)}


def _copy_s(paths: list[Path], target: Path) -> float:
    """Seconds that a plain copy takes, synchronised like an artefact is."""
    target.mkdir()
    begun = time.perf_counter()
    for path in paths:
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 4 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    return time.perf_counter() - begun


def _high_water_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def child(kind: str, uri: str, target: Path | None) -> dict[str, Any]:
    """One measured side, in a process of its own: nothing else counts towards its time and memory."""
    from outcrop.importing.disk import DiskLedger
    from outcrop.importing.fetch import Fetch
    from outcrop.importing.preflight import preflight as check
    from outcrop.importing.sources import open_local, open_source
    from outcrop.importing.transfer import Transfer
    from outcrop.importing.weights import WeightStore
    from outcrop.settings import load

    settings = load()
    begun, cpu = time.perf_counter(), time.process_time()
    if kind == "preflight":
        found = await check(open_source(uri, settings))
        return {"check_s": time.perf_counter() - begun, "problems": len(found.problems)}
    assert target is not None
    if kind in ("linked", "outcrop"):
        source = open_local(uri) if kind == "linked" else open_source(uri, settings)
        found = await check(source)
        checked = time.perf_counter()
        bringer = Transfer(settings.transfer_buffer_bytes)
        await Fetch(WeightStore(target), bringer, DiskLedger(target, 0), source, "bench").run(found, lambda _: None)
        bringer.close()
    else:
        checked = begun
        await _raw(uri, target)
    ended = time.perf_counter()
    spent = {"check_s": checked - begun, "bring_s": ended - checked, "s": ended - begun}
    return {**spent, "cpu_s": time.process_time() - cpu}


async def _raw(uri: str, target: Path) -> None:
    """The same files by the same client, as parallel and in parts of the same size."""
    import obstore
    from obstore.store import S3Store

    from outcrop.settings import load

    store = S3Store(
        BUCKET,
        endpoint=load().object_stores[0].endpoint,
        region="us-east-1",
        access_key_id="any",
        secret_access_key="any",  # noqa: S106  (the store checks none)
        client_options={"allow_http": True},
    )
    listed = await obstore.list_with_delimiter_async(store, uri.split("/", 3)[3])
    gate = asyncio.Semaphore(PARTS_AT_A_TIME)
    handles: list[int] = []

    async def part(path: str, handle: int, start: int, end: int) -> None:
        async with gate:
            body = await obstore.get_range_async(store, path, start=start, end=end)
            await asyncio.to_thread(os.pwrite, handle, memoryview(body), start)

    async with asyncio.TaskGroup() as group:
        for entry in listed["objects"]:
            handle = os.open(target / entry["path"].rsplit("/", 1)[1], os.O_WRONLY | os.O_CREAT)
            handles.append(handle)
            for start in range(0, entry["size"], PART_BYTES):
                group.create_task(part(entry["path"], handle, start, min(start + PART_BYTES, entry["size"])))
    for handle in handles:
        await asyncio.to_thread(os.fsync, handle)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    parser.add_argument("--size-gb", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="leave the rest out; may be given again")
    children = ["preflight", "raw", "outcrop", "linked"]
    parser.add_argument("--child", choices=children, help=argparse.SUPPRESS)
    parser.add_argument("uri", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.target:
            arguments.target.mkdir(parents=True)
        typer.echo(json.dumps(asyncio.run(child(arguments.child, arguments.uri, arguments.target))))
        sys.stdout.flush()
        os._exit(0)  # see cli.check
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        bench = Bench(Path(folder), arguments.size_gb, arguments.rounds)
        for section in arguments.only or SECTIONS:
            begun = time.perf_counter()
            results[section] = getattr(bench, section)()
            results[section]["took_s"] = round(time.perf_counter() - begun, 1)
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
