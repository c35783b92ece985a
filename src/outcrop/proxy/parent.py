"""Ending with the process that started this one, however that ended."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(signum: int) -> None:
    """Have Linux send *signum* to this process when its parent dies. Elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)
