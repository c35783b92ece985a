"""The proxy container: a customer's ``model.py`` in front of an imported model, by SageMaker's container contract.

The front (``serve``, ``front``) speaks HTTP and runs no customer code; workers (``worker``) run it, each in a process
of its own, reached over a socket pair (``link``). This file is what a ``model.py`` may import, so it stays small.
"""

from __future__ import annotations

from outcrop.proxy.context import current
from outcrop.proxy.failures import Refuse, TargetRefused
from outcrop.proxy.values import Request, Response

__all__ = ["Refuse", "Request", "Response", "TargetRefused", "current"]
