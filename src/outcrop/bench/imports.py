"""What an import costs, beside the raw cost of the same bytes in the same run (``make bench-import``).

- *preflight*: ``outcrop check`` of a 16-shard, 30 GB checkpoint (sparse files) over a store with added latency: wall
  time of the whole command, of the check itself, and the command's peak memory.
- *transfer*: files from an object store into the weight store (digest, scan, resume journal, all synchronised)
  against the plain download of the same files by the same client, equally parallel, written and synchronised.
- *same file system*: the job of a 2 GB checkpoint in an embedded bucket, by phase.
- *conversion*: bytes per second into the engine's artefact against a synchronised copy of the same bytes.

Rounds alternate, so that other load on the machine falls on both sides. Peak memory is a process's own high-water mark.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import typer

from outcrop.access.bootstrap import read
from outcrop.bench.children import Ran, object_store, run
from outcrop.checkpoints.families import FAMILIES

SAMPLE = Path(__file__).parents[3] / "examples" / "apexguru" / "checkpoint"
LATENCIES_MS = (0, 5, 20, 50)
MODULE = "outcrop.bench.imports"
BUCKET, PART_BYTES, PARTS_AT_A_TIME = "bench", 8 << 20, 8
KEYS = {"access_key_id": "any", "secret_access_key": "any"}
BIG = {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 44, "vocab_size": 128_256}
SMALL = {"hidden_size": 2048, "intermediate_size": 8192}


def stores(url: str) -> str:
    return json.dumps([{"buckets": [BUCKET], "endpoint": url, **KEYS}])


def make_checkpoint(folder: Path, shape: Mapping[str, int], shards: int, *, sparse: bool) -> int:
    """A Qwen2 checkpoint in bf16 with the sample's tokenizer; its bytes. *sparse*: no weights, only their place."""
    folder.mkdir(parents=True)
    config = json.loads((SAMPLE / "config.json").read_text()) | dict(shape)
    heads = config["hidden_size"] // 128
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads // 8, "tie_word_embeddings": True}
    config |= {"torch_dtype": "bfloat16", "max_position_embeddings": 8192}
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(SAMPLE / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(_tokenizer(config["vocab_size"]))
    layout = FAMILIES["qwen2"].tensors
    assert layout is not None
    tensors = list(layout(config).items())
    block = _block()
    weight_map: dict[str, str] = {}
    total = 0
    per_shard = -(-len(tensors) // shards)
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = tensors[number * per_shard : (number + 1) * per_shard]
        weight_map |= {tensor: name for tensor, _ in part}
        total += _write_shard(folder / name, dict(part), None if sparse else block)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.iterdir())


def _tokenizer(vocab_size: int) -> str:
    """The sample's tokenizer, filled up with tokens and merges to the size of a large vocabulary."""
    document = json.loads((SAMPLE / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    taken = max([*vocab.values(), *(token["id"] for token in document["added_tokens"])]) + 1
    texts = [text for text in vocab if len(text) > 1]
    for index in range(taken, vocab_size):
        text = f"{'Ġ' if index % 2 else ''}qz{index:x}"  # as long as words of large vocabularies are, half with a space
        vocab[text] = index
        document["model"]["merges"].append([texts[index % len(texts)], text] if index % 2 else ["Ġ", text])
    return json.dumps(document, ensure_ascii=False)


def _block() -> bytes:
    values = np.random.default_rng(0).normal(0, 0.02, 4 << 20).astype("<f4")
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


def _write_shard(path: Path, tensors: Mapping[str, tuple[int, ...]], block: bytes | None) -> int:
    header: dict[str, Any] = {}
    at = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        if block is None:
            file.truncate(8 + len(raw) + at)
        else:
            for begin in range(0, at, len(block)):
                file.write(block[: min(len(block), at - begin)])
    return at


def preflight(work: Path) -> dict[str, Any]:
    size = make_checkpoint(work / "store" / BUCKET / "big", BIG, 16, sparse=True)
    uri, rows = f"s3://{BUCKET}/big/", []
    for latency_ms in LATENCIES_MS:
        with object_store(work / "store", latency_ms) as url:
            environment = {"OUTCROP_OBJECT_STORES": stores(url), "OUTCROP_HOME": str(work / "none")}
            command = [sys.executable, "-m", "outcrop.cli.main", "check", uri, "--json"]
            ran = [run(command, environment) for _ in range(3)]
            inner = [run([sys.executable, "-m", MODULE, "--child=preflight", uri], environment) for _ in range(3)]
        assert ran[0].said["importable"], ran[0].said["problems"]
        rows.append(
            {
                "latency_ms": latency_ms,
                "command_s": round(statistics.median(one.wall_s for one in ran), 3),
                "check_s": round(statistics.median(one.said["check_s"] for one in inner), 3),
                "peak_mb": round(max(one.peak_bytes for one in ran) / 1e6, 1),
            }
        )
    shutil.rmtree(work / "store")
    return {"checkpoint_bytes": size, "shards": 16, "rows": rows}


def transfer(work: Path, size_gb: float, rounds: int) -> dict[str, Any]:
    size = _small(work, size_gb)
    uri = f"s3://{BUCKET}/small/"
    found: dict[str, list[Ran]] = {"raw": [], "raw_memory": [], "outcrop": []}
    with object_store(work / "store") as url:
        environment = {"OUTCROP_OBJECT_STORES": stores(url), "OUTCROP_HOME": str(work / "home")}
        for _ in range(rounds):
            for kind in found:
                target = work / "target"
                argv = [sys.executable, "-m", MODULE, f"--child={kind}", uri, f"--target={target}"]
                found[kind].append(run(argv, environment))
                shutil.rmtree(target, ignore_errors=True)
                os.sync()
    rates = {kind: [size / one.said["s"] / 1e6 for one in ran] for kind, ran in found.items()}
    ratios = [ours / raw for ours, raw in zip(rates["outcrop"], rates["raw"], strict=True)]
    return {
        "bytes": size,
        "mb_per_s": {kind: [round(rate) for rate in values] for kind, values in rates.items()},
        "share_of_raw": round(statistics.median(ratios), 3),
        "cpu_s_per_gb": {
            kind: round(statistics.median(one.said["cpu_s"] for one in ran) / size * 1e9, 2)
            for kind, ran in found.items()
        },
        "peak_mb": round(max(one.peak_bytes for one in found["outcrop"]) / 1e6),
    }


def jobs(work: Path, size_gb: float) -> dict[str, Any]:
    """The job of the checkpoint in an embedded bucket, the copy of its bytes, and the same job out of a store."""
    _small(work, size_gb)
    home, source = work / "home", work / "store" / BUCKET / "small"
    bucket = home / "buckets" / "models" / "small"
    bucket.mkdir(parents=True)
    for path in source.iterdir():
        (bucket / path.name).hardlink_to(path)
    weights = [path for path in source.iterdir() if path.suffix == ".safetensors"]
    size = sum(path.stat().st_size for path in weights)
    with object_store(work / "store") as url, server(home, stores(url)) as process:
        idle = _high_water_bytes(process.pid)
        remote = _job(home, f"s3://{BUCKET}/small/", "remote")
        after_remote = _high_water_bytes(process.pid)
        local = _job(home, "s3://models/small/", "local")
    copied_s = _copy_s(weights, work / "copy")
    converted = {name: size / job["converting"] for name, job in (("remote", remote), ("local", local))}
    return {
        "weight_bytes": size,
        "same_file_system_s": local,
        "check_and_bring_s": round(local["checking"] + local["transferring"], 3),
        "object_store_s": remote,
        "copy_mb_per_s": round(size / copied_s / 1e6),
        "convert_mb_per_s": {name: round(rate / 1e6) for name, rate in converted.items()},
        "convert_share_of_copy": round(max(converted.values()) * copied_s / size, 2),
        "server_peak_mb": {"idle": round(idle / 1e6), "after an import from the store": round(after_remote / 1e6)},
    }


def _small(work: Path, size_gb: float) -> int:
    """The checkpoint with weights, made once; its bytes."""
    folder = work / "store" / BUCKET / "small"
    if not folder.exists():
        make_checkpoint(folder, _layers(size_gb), 4, sparse=False)
        os.sync()
    return sum(path.stat().st_size for path in folder.iterdir())


def _layers(size_gb: float) -> dict[str, int]:
    per_layer = 2 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 8192)
    return {**SMALL, "num_hidden_layers": max(1, round(size_gb * 1e9 / per_layer))}


@contextlib.contextmanager
def server(home: Path, object_stores: str) -> Iterator[subprocess.Popen[bytes]]:
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
    import urllib.request

    request = urllib.request.Request(  # noqa: S310  (our own server's URL)
        f"{url}/outcrop/v1/import-jobs/{name}", headers={"Authorization": f"Bearer {keys.bearer_key}"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        timings: dict[str, float] = json.load(response)["timings"]
    return {**timings, "total": round(spent, 3)}


def _copy_s(paths: list[Path], target: Path) -> float:
    """Seconds that a plain copy takes, synchronised like an artefact is."""
    target.mkdir()
    os.sync()
    begun = time.perf_counter()
    for path in paths:
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 4 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    spent = time.perf_counter() - begun
    shutil.rmtree(target)
    return spent


def _high_water_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def child(kind: str, uri: str, target: Path | None) -> dict[str, Any]:
    """One measured side, in a process of its own: nothing else counts towards its time and memory."""
    from outcrop.importing.preflight import preflight as check
    from outcrop.importing.sources import open_source
    from outcrop.settings import load

    settings = load()
    if kind == "preflight":
        begun = time.perf_counter()
        found = await check(open_source(uri, settings))
        return {"check_s": time.perf_counter() - begun, "problems": len(found.problems)}
    assert target is not None

    begun, cpu = time.perf_counter(), time.process_time()
    if kind == "outcrop":
        await _ours(uri, target)
    else:
        await _raw(uri, target if kind == "raw" else None)
    return {"s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}


async def _ours(uri: str, target: Path) -> None:
    from outcrop.importing.disk import DiskLedger
    from outcrop.importing.fetch import Fetch
    from outcrop.importing.preflight import preflight as check
    from outcrop.importing.sources import open_source
    from outcrop.importing.transfer import Transfer
    from outcrop.importing.weights import WeightStore
    from outcrop.settings import load

    settings = load()
    source = open_source(uri, settings)
    found = await check(source)
    bringer = Transfer(settings.transfer_buffer_bytes)
    fetch = Fetch(WeightStore(target), bringer, DiskLedger(target, 0), source, "bench")
    await fetch.run(found, lambda _: None)
    bringer.close()


async def _raw(uri: str, target: Path | None) -> None:
    """The same files by the same client, as parallel and in parts of the same size; *target* None: thrown away."""
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

    async def part(path: str, handle: int | None, start: int, end: int) -> None:
        async with gate:
            body = await obstore.get_range_async(store, path, start=start, end=end)
            if handle is not None:
                await asyncio.to_thread(os.pwrite, handle, memoryview(body), start)

    async with asyncio.TaskGroup() as group:
        for entry in listed["objects"]:
            handle = None
            if target is not None:
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
    parser.add_argument("--only", choices=["preflight", "transfer", "jobs"], help="leave the rest out")
    parser.add_argument("--child", choices=["preflight", "raw", "raw_memory", "outcrop"], help=argparse.SUPPRESS)
    parser.add_argument("uri", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.target:
            arguments.target.mkdir(parents=True)
        typer.echo(json.dumps(asyncio.run(child(arguments.child, arguments.uri, arguments.target))))
        sys.stdout.flush()
        os._exit(0)  # see cli.check
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        if arguments.only in (None, "preflight"):
            results["preflight"] = preflight(work)
        if arguments.only in (None, "transfer"):
            results["transfer"] = transfer(work, arguments.size_gb, arguments.rounds)
        if arguments.only in (None, "jobs"):
            results["jobs"] = jobs(work, arguments.size_gb)
    typer.echo(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
