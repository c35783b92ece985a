"""How long a language model's server takes, without the model: one batch of requests as a state machine. Pure.

Two levels. *Iteration* (``StepCost``): one forward pass reads the weights and the key-value cache of the running
sequences, computes a chunk of waiting prompts beside them, and gives every decoding sequence a token. *Virtual time*
(``LoadCost``): five numbers as a load test of ten minutes gives them; all requests of a copy slow each other down
alike. Admission is first come first served, bounded by sequences and by the tokens that the key-value cache holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct


class StepCost(Struct, frozen=True, forbid_unknown_fields=True, tag="iteration", tag_field="level"):
    """Seconds of one iteration, from what the hardware and the model are.

    ``t = fixed + per_sequence * B + max(memory, compute) + overlap * min(memory, compute)``, where memory is weights
    and cache over bandwidth, compute the prompt tokens of the chunk.
    """

    weight_bytes: float  # read by every iteration
    parameters: float  # multiplied with every prompt token
    kv_bytes_per_token: float
    bandwidth_bytes_per_s: float
    flops_per_s: float
    bandwidth_share: float = 0.80  # of the bandwidth that a good engine reaches
    flops_share: float = 0.50
    fixed_s: float = 0.0017
    per_sequence_s: float = 0.0
    overlap: float = 0.25
    chunk_tokens: int = 2048  # of prompts, per iteration

    def iteration_s(self, *, decoding: int, cached_tokens: int, prompt_tokens: int) -> float:
        """*decoding*: sequences that get a token; *cached_tokens*: their context; *prompt_tokens*: computed beside."""
        read = self.weight_bytes + self.kv_bytes_per_token * cached_tokens
        memory_s = read / (self.bandwidth_share * self.bandwidth_bytes_per_s)
        compute_s = prompt_tokens * 2 * self.parameters / (self.flops_share * self.flops_per_s)
        busy_s = max(memory_s, compute_s) + self.overlap * min(memory_s, compute_s)
        return self.fixed_s + self.per_sequence_s * decoding + busy_s


class LoadCost(Struct, frozen=True, forbid_unknown_fields=True, tag="virtual-time", tag_field="level"):
    """A request alone takes ``request_s + prompt_token_s * in + token_s * out`` seconds.

    Beside b - 1 others it runs ``1 + interference * (b - 1)`` times slower.
    """

    request_s: float
    prompt_token_s: float
    token_s: float
    interference: float


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """A simulated copy: its cost, its limits, its start, and what it answers when nobody limits it."""

    cost: StepCost | LoadCost
    slots: int  # sequences at a time
    kv_tokens: int  # that the cache holds, over all sequences
    start_s: float  # from the start of the process until it is ready
    answer_tokens: float = 220.0  # mean length of an answer that ends by itself
    answer_cv: float = 0.2  # its standard deviation over its mean
    source: str = ""  # where the numbers are from


@dataclass(slots=True)
class Sequence:
    """One request in the batch. *output_tokens*: how many it will have when it ends by itself."""

    key: Hashable
    prompt_tokens: int
    output_tokens: int
    computed: float = 0.0  # prompt tokens done, or seconds of own work in virtual time
    produced: int = 0

    @property
    def reserved_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(slots=True)
class Step:
    """What one iteration did. *tokens*: how many each sequence got; *ended*: those that have all of theirs."""

    seconds: float
    tokens: dict[Hashable, int] = field(default_factory=dict)
    ended: list[Hashable] = field(default_factory=list)


class _Pass(Protocol):
    def __call__(self, running: list[Sequence], step: Step) -> None: ...


class Batch:
    """The sequences of one copy. No clock: ``step`` says how long the iteration takes."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        cost = calibration.cost
        self._pass: _Pass = _Iterations(cost) if isinstance(cost, StepCost) else _VirtualTime(cost)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def cancel(self, key: Hashable) -> None:
        """Take a sequence out; nothing to do when it has ended."""
        self._waiting = deque(each for each in self._waiting if each.key != key)
        self._running = [each for each in self._running if each.key != key]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def reserved_tokens(self) -> int:
        """Tokens of the cache that the running sequences hold or will hold."""
        return sum(each.reserved_tokens for each in self._running)

    def step(self) -> Step | None:
        """One iteration; None when there is nothing to do."""
        self._admit()
        if not self._running:
            return None
        step = Step(0.0)
        self._pass(self._running, step)
        for each in self._running:
            if (got := step.tokens.get(each.key)) is not None:
                each.produced += got
                if each.produced >= each.output_tokens:
                    step.ended.append(each.key)
        ended = set(step.ended)
        self._running = [each for each in self._running if each.key not in ended]
        return step

    def _admit(self) -> None:
        reserved = self.reserved_tokens
        while self._waiting and len(self._running) < self._calibration.slots:
            first = self._waiting[0]
            # One that is larger than the whole cache runs alone rather than never.
            if self._running and reserved + first.reserved_tokens > self._calibration.kv_tokens:
                return
            self._running.append(self._waiting.popleft())
            reserved += first.reserved_tokens


class _Iterations:
    """Chunked prefill: decoding sequences go on while prompts are computed, which makes both slower."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost

    def __call__(self, running: list[Sequence], step: Step) -> None:
        left, cached, decoding, computed = self._cost.chunk_tokens, 0, 0, 0
        for each in running:
            missing = each.prompt_tokens - int(each.computed)
            if missing > 0:
                part = min(missing, left)
                left -= part
                computed += part
                each.computed += part
                if part < missing:
                    continue  # its last chunk is still to come, and with it its first token
            else:
                cached += each.prompt_tokens + each.produced
            decoding += 1
            step.tokens[each.key] = 1
        step.seconds = self._cost.iteration_s(decoding=decoding, cached_tokens=cached, prompt_tokens=computed)


class _VirtualTime:
    """Every sequence gets the same share: in one step the work of one token each."""

    def __init__(self, cost: LoadCost) -> None:
        self._cost = cost

    def __call__(self, running: list[Sequence], step: Step) -> None:
        cost = self._cost
        step.seconds = cost.token_s * (1 + cost.interference * (len(running) - 1))
        for each in running:
            each.computed += cost.token_s
            before = cost.request_s + cost.prompt_token_s * each.prompt_tokens
            # The small allowance keeps a sum of equal floats from missing its last token.
            due = int((each.computed - before) / cost.token_s + 1e-6)
            if due > each.produced:
                step.tokens[each.key] = due - each.produced
