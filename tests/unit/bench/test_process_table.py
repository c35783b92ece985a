"""The sampler that the ledger is held to: what it says of processes whose lives are known."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from outcrop.bench.process_table import Sampler


def test_lives_of_marked_children_are_added_up_and_others_are_not() -> None:
    def child(marker: str, seconds: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})", marker])

    with Sampler(b"counted-here", parent=os.getpid()) as sampler:
        begun = time.monotonic()
        children = [child("counted-here", 0.4), child("counted-here", 0.8), child("another", 5)]
        taken = []
        for each in children[:2]:
            each.wait(10)
            taken.append(time.monotonic() - begun)
        children[2].kill()
        children[2].wait(10)
        time.sleep(0.1)

    assert len(sampler.lives) == 2
    assert sampler.most == 2
    assert sampler.seconds() == pytest.approx(sum(taken), abs=0.25)
    assert sampler.alive() == set()
