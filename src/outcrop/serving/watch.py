"""What endpoints answered lately, and the alarms that are kept over it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from outcrop.serving.alarms import KEPT_S, MOST_SAMPLES, Alarm, Finding, Sample, evaluate


class Watch:
    """Samples and alarms of one server; owned by its event loop. *clock*: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: dict[tuple[str, str], deque[Sample]] = {}
        self._alarms: dict[tuple[str, str], Alarm] = {}

    def note(
        self, account: str, endpoint: str, variant: str, status: int, *, model_s: float, overhead_s: float
    ) -> None:
        """An invocation ended now, answered with *status* by its container (500 where that gave none)."""
        samples = self._samples.setdefault((account, endpoint), deque(maxlen=MOST_SAMPLES))
        now = self._clock()
        samples.append(Sample(now, variant, status, model_s * 1e6, overhead_s * 1e6))
        while samples[0].at < now - KEPT_S:
            samples.popleft()

    def forget(self, account: str, endpoint: str) -> None:
        self._samples.pop((account, endpoint), None)

    def put(self, account: str, name: str, alarm: Alarm) -> None:
        self._alarms[account, name] = alarm

    def remove(self, account: str, name: str) -> None:
        self._alarms.pop((account, name), None)

    def missing(self, account: str, names: Iterable[str]) -> list[str]:
        """Those of *names* that no alarm has."""
        return [name for name in names if (account, name) not in self._alarms]

    def finding(self, account: str, name: str) -> Finding | None:
        """What is true of an alarm now; None for one that there is not."""
        alarm = self._alarms.get((account, name))
        if alarm is None:
            return None
        return evaluate(alarm, self._samples.get((account, alarm.endpoint_name), ()), self._clock())

    def fired(self, account: str, names: Iterable[str]) -> str:
        """Why the first of the alarms *names* that is in ALARM is; empty while none is."""
        for name in names:
            found = self.finding(account, name)
            if found is not None and found.state == "ALARM":
                return f"alarm {name}: {found.reason}"
        return ""
