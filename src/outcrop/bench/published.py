"""The published table that the standard run is set beside. Source: AWS and Salesforce, "ApexGuru on Amazon Bedrock
Custom Model Import", 14 October 2025; the model there is named QWEN-2.5 13B. Latency in s, requests per minute.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    users: int
    p95_s: float
    rpm: float

    @property
    def mean_s(self) -> float:
        """By Little's law: a closed loop without think time."""
        return 60 * self.users / self.rpm


TABLE = (Row(1, 7.2, 11), Row(4, 7.96, 41), Row(16, 9.35, 133), Row(32, 10.44, 232))
