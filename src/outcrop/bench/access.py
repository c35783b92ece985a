"""What one decision costs: ``make bench-access``. The whole question as a door asks it, context included.

Prints microseconds of CPU per decision for principals with few and many statements, as the median of several rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import typer

from outcrop.access.authorizer import Authorizer, Origin, ResourcePolicies
from outcrop.access.directory import Directory, document_of
from outcrop.access.identities import IdentityKind, Principal
from outcrop.access.sealing import Sealer
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry

ACCOUNT = "000000000000"
MODEL = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:imported-model/abcdefabcdef"
ORIGIN = Origin(source_ip="10.1.2.3", user_agent="Boto3/1.44.5")
ROUNDS, CALLS = 7, 4000


def statements(count: int) -> str:
    """*count* statements about what is asked, the last of which allows it; each looks at model, address and a tag."""
    made = [
        {
            "Effect": "Allow",
            "Action": ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"],
            "Resource": f"arn:aws:bedrock:*:{ACCOUNT}:imported-model/{'abc' if number == count - 1 else 'x'}*",
            "Condition": {
                "IpAddress": {"aws:SourceIp": "10.0.0.0/8"},
                "StringEquals": {"aws:PrincipalTag/team": ["red", "${aws:username}"]},
            },
        }
        for number in range(count)
    ]
    return document_of(*made)


async def _principals(directory: Directory) -> dict[str, Principal]:
    found = {}
    for count in (1, 5, 30):
        user = await directory.create(
            ACCOUNT,
            IdentityKind.ROLE,  # whose policies may be longest
            f"user-{count}",
            policies={"invoke": statements(count)},
            tags={"team": "red"},
        )
        found[f"{count} statement{'s' if count > 1 else ''}"] = Principal(ACCOUNT, user.arn, user.identity_id)
    return found


def _median_us(work: Callable[[], None]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(CALLS):
            work()
        rounds.append((time.process_time() - begin) / CALLS * 1e6)
    return statistics.median(rounds)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        registry = Registry.open(Path(home) / "bench.db")
        directory = Directory(IdentityRecords(registry), Sealer(b"k" * 32), account=ACCOUNT)
        authorizer = Authorizer(directory, ResourcePolicies(registry.attachments), region="us-east-1")
        for name, principal in asyncio.run(_principals(directory)).items():
            took = _median_us(lambda who=principal: authorizer.check(who, "bedrock:InvokeModel", MODEL, ORIGIN))  # type: ignore[misc]
            typer.echo(f"{name:14} {took:6.1f} µs of CPU a decision")
        registry.close()


if __name__ == "__main__":
    main()
