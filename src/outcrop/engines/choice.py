"""Which engine a checkpoint is imported for, and why that one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from outcrop.checkpoints.engines import EngineVerdict


class Choice(Struct, frozen=True):
    """*engine*: None when nothing here serves the checkpoint. *reasons*: one line an engine, the chosen one first."""

    engine: str | None
    reasons: tuple[str, ...]


def choose(
    verdicts: Sequence[EngineVerdict], *, named: str | None, does_not_fit: Callable[[str], str | None]
) -> Choice:
    """The first engine of *verdicts*, which are in order of preference, that is here, serves it and has room for it.

    *named*: where an operator put the model, if anyone did; then it is that or none. *does_not_fit*: why an engine has
    no room for the checkpoint on this machine; None when it has.
    """
    chosen, reasons = None, []
    for verdict in verdicts:
        if not verdict.serves:
            reasons.append(f"{verdict.engine}: {verdict.reason}")
        elif not verdict.available:
            reasons.append(f"{verdict.engine}: {'not asked, the model was put on ' + named if named else 'not here'}")
        elif chosen is not None:
            reasons.append(f"{verdict.engine}: would serve it too, and comes after {chosen}")
        elif (obstacle := does_not_fit(verdict.engine)) is not None:
            reasons.append(f"{verdict.engine}: {obstacle}")
        else:
            chosen = verdict.engine
            why = "the model was put on it" if named else f"the first that serves it here ({verdict.hardware})"
            reasons.insert(0, f"{chosen}: {why}")
    return Choice(chosen, tuple(reasons))
