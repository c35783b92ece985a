"""A fleet on virtual time: an event loop whose clock jumps, and a launcher and an engine without processes."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec import structs

from outcrop.engines.base import Asleep, CopySpec, Endpoint
from outcrop.errors import EngineFault, EngineTimeout
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, Usage
from outcrop.serving.fleet import Fleet
from outcrop.serving.making_room import Allowance
from outcrop.settings import Settings


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # the platform's own class
    """Waits for no timer: reports the time that would have passed."""

    jumped: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        self.jumped(timeout)
        return super().select(0)


class _Inline(ThreadPoolExecutor):
    """Runs at once what is meant for a thread, so that nothing depends on a scheduler."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeping takes no time; ``time`` says how long it would have."""

    def __init__(self) -> None:
        selector = _Jumping()
        super().__init__(selector)
        self._passed = 1000.0
        selector.jumped = self._jump
        self.set_default_executor(_Inline())

    def time(self) -> float:
        return self._passed

    def _jump(self, seconds: float) -> None:
        self._passed += seconds


class FakeProcess:
    """What a launcher gives back. ``die`` is the crash, ``stop`` the fleet's wish."""

    def __init__(self, pid: int, owner: FakeLauncher) -> None:
        self.pid = pid
        self.announced: dict[str, object] = {}
        self.url = f"http://127.0.0.1:{pid}"
        self.returncode: int | None = None
        self.is_hung = False
        self.is_stuck = False  # its health page answers, its requests do not
        self.busy = 0.0  # processor time per second while it is stuck and silent
        self.work = 0.0
        self._owner = owner
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def stop(self, grace_s: float) -> None:
        await asyncio.sleep(0.01)
        self.die(0)

    def die(self, status: int = -9) -> None:
        if self.returncode is None:
            self.returncode = status
            self._owner.alive.pop(self.pid, None)
            self._ended.set()

    def cpu_s(self) -> float:
        return self.busy * asyncio.get_running_loop().time()

    def peak_memory_bytes(self) -> int:
        return 1

    def trim_log(self, limit_bytes: int) -> None:
        pass

    def last_log_lines(self, limit_bytes: int = 2000) -> str:
        return "the engine's last words"


class FakeLauncher:
    """Starts take *start_s* and fail while *is_broken*."""

    def __init__(self, start_s: float = 2.0) -> None:
        self.start_s = start_s
        self.is_broken = False
        self.alive: dict[int, FakeProcess] = {}
        self.started = 0
        self.starting = 0
        self.most_starting = 0

    def close(self) -> None:
        pass

    async def start(
        self, argv: Sequence[str], line: bytes, log: Path, deadline_s: float, *, pass_fds: tuple[int, ...] = ()
    ) -> FakeProcess:
        self.started += 1
        pid = self.started
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            await asyncio.sleep(self.start_s)
        finally:
            self.starting -= 1
        if self.is_broken:
            raise EngineFault("the copy could not start: no such luck")
        process = FakeProcess(pid, self)
        self.alive[process.pid] = process
        return process

    def reap(self) -> list[int]:
        return []


class FakeEngine:
    """Answers for the launcher's processes; a token takes *token_s*."""

    name = "llama.cpp"
    can_tokenize = True
    takes_arguments = True

    def __init__(self, launcher: FakeLauncher, token_s: float = 0.1) -> None:
        self._launcher = launcher
        self.token_s = token_s
        self.can_sleep = False
        self.cache_slots: int | None = None
        self.levels: list[int] = []  # at which copies slept
        self.says = "fine"
        self.slept = self.woken = 0

    def asleep(self, spec: CopySpec) -> Sequence[Asleep]:
        """At level 1 it keeps 10 GB, at level 2 nothing."""
        if not self.can_sleep:
            return ()
        kept = structs.replace(spec, gpus=0, devices=(), kv_bytes=spec.kv_bytes + 10 * GB)
        return [Asleep(1, kept, "kept"), Asleep(2, structs.replace(spec, gpus=0, devices=()), "dropped")]

    def slots(self, spec: CopySpec, log: str) -> int | None:
        return self.cache_slots

    async def sleep(self, endpoint: Endpoint, level: int) -> None:
        await asyncio.sleep(0.2)
        self.levels.append(level)
        self.slept += 1

    async def wake(self, endpoint: Endpoint, level: int) -> None:
        await asyncio.sleep(0.3 if level == 1 else 1.3)
        self.woken += 1

    def fitted(self, spec: CopySpec) -> CopySpec:
        return spec

    def command(self, spec: CopySpec) -> list[str]:
        return ["engine"]

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        return b"{}\n"

    def stage(self, log: str) -> str | None:
        return None

    def stage_seconds(self, log: str) -> dict[str, float]:
        return {}

    async def detokenize(self, endpoint: Endpoint, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    async def is_ready(self, endpoint: Endpoint) -> bool:
        process = self._process(endpoint)
        if process is not None and process.is_hung:
            await asyncio.sleep(5)
            return False
        return process is not None

    async def progress(self, endpoint: Endpoint) -> float | None:
        process = self._process(endpoint)
        if process is None or process.is_hung or (process.is_stuck and process.busy):
            await asyncio.sleep(5)
            raise EngineTimeout("the engine said nothing")
        return process.work

    async def complete(self, endpoint: Endpoint, request: GenerateRequest) -> Completion:
        for _ in range(int(request.body.get("max_tokens", 1))):
            await self._token(endpoint)
        return Completion(choices=[Choice(0, self.says, "stop")], usage=Usage(1, 1))

    async def stream(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
        for number in range(int(request.body["max_tokens"])):
            await self._token(endpoint)
            yield [Chunk(text=str(number))]

    async def _token(self, endpoint: Endpoint) -> None:
        await asyncio.sleep(self.token_s)
        process = self._process(endpoint)
        while process is not None and (process.is_hung or process.is_stuck):
            await asyncio.sleep(1)
            process = self._process(endpoint)
        if process is None:
            raise EngineFault("the connection to the engine broke")
        process.work += 1

    async def tokenize(self, endpoint: Endpoint, text: str) -> list[int]:
        return []

    async def aclose(self) -> None:
        pass

    def _process(self, endpoint: Endpoint) -> FakeProcess | None:
        return self._launcher.alive.get(int(endpoint.base_url.rsplit(":", 1)[1]))


GB = 1_000_000_000


def spec(name: str = "model", *, slots: int = 2, weight_bytes: int = 0, kv_bytes: int = 0) -> CopySpec:
    return CopySpec(
        model_id=name,
        artifact=Path("/nowhere") / name,
        context_tokens=512,
        slots=slots,
        threads=1,
        kv_f32=False,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
    )


def make_fleet(
    loop: asyncio.AbstractEventLoop,
    launcher: FakeLauncher,
    *,
    memory_bytes: int = 100 * GB,
    cores: int = 16,
    model_count: int = 1,
    gpus: int = 0,
    engine: FakeEngine | None = None,
    allowance: Callable[[str], Allowance | None] = lambda _: None,
    on_removed: Callable[[], None] = lambda: None,
    **given: Any,
) -> Fleet:
    settings = Settings(**{"home": Path("/nowhere"), "cpu_threads": 1, "keep_alive_s": 60, **given})
    return Fleet(
        [engine or FakeEngine(launcher)],
        launcher,  # type: ignore[arg-type]  # the same shape without processes
        settings=settings,
        memory_bytes=memory_bytes,
        cores=cores,
        model_count=lambda: model_count,
        gpus=gpus,
        allowance=allowance,
        on_removed=on_removed,
        clock=loop.time,
        wall=loop.time,
    )
