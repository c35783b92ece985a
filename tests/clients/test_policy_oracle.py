"""The policy evaluator beside an independent one, as a separate program, over random requests and policies."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from outcrop.access.policy import Kind
from tests.clients.conftest import FOREIGN, PROGRAMS
from tests.support.policies import Case, case

CASES = int(os.environ.get("OUTCROP_TEST_POLICIES", "2000"))


def asked(cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """What the other engine says to each."""
    program = folder / "oracle.mjs"
    shutil.copy(PROGRAMS / "iam_oracle.mjs", program)
    (folder / "node_modules").symlink_to(FOREIGN / "node" / "node_modules")
    lines = "".join(json.dumps(each.simulation()) + "\n" for each in cases)
    ended = subprocess.run(["node", str(program)], input=lines, capture_output=True, text=True, timeout=110, check=True)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_it_decides_as_an_independent_engine_does(tmp_path: Path) -> None:
    rng = random.Random(1)
    cases = [case(rng) for _ in range(CASES)]
    answers = asked(cases, tmp_path)

    wrong, verdicts = [], Counter[str]()
    for each, answer in zip(cases, answers, strict=True):
        verdict = answer.get("verdict", "refused")
        verdicts[verdict] += 1
        decision = each.decide()
        # IAM User Guide, "Session policies": what a resource's policy grants to the session itself, a session policy
        # does not limit. The other engine does not know that rule yet.
        is_ours = each.session is not None and decision.is_allowed and decision.kind is Kind.RESOURCE
        if verdict != "refused" and not is_ours and decision.is_allowed != (verdict == "Allowed"):
            wrong.append((each, answer))
    assert not wrong, f"{len(wrong)} of {CASES} differ, first: {wrong[0]}"
    # Both verdicts are common, and hardly anything is refused: the comparison is about something.
    assert verdicts["refused"] < CASES // 20
    assert verdicts["Allowed"] > CASES // 10
    assert verdicts["ExplicitlyDenied"] > CASES // 10
