"""What a migration is asked to do: two sides, steps, guards, who goes first. Pure; every value is checked once here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from outcrop.errors import InvalidRequest, MalformedBody
from outcrop.serving.urls import http_url

Kind = Literal["bedrock", "sagemaker", "openai"]
KINDS: tuple[Kind, ...] = ("bedrock", "sagemaker", "openai")
NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.:/-]{0,254})")
DEFAULT_STEPS = "shadow:10,1,10,50,100"
_OPTIONS = {"region", "profile", "key_file"}


class Side(Struct, frozen=True, kw_only=True):
    """One end. *url* is empty for this server's own; else the base URL of another service, signed for *region*.

    *profile*: section of AWS's configuration files to sign with. *key_file*: holds the bearer key of an OpenAI URL.
    """

    kind: Kind
    name: str
    url: str = ""
    region: str = ""
    profile: str = ""
    key_file: str = ""

    @property
    def place(self) -> str:
        """Where it is, without what it is signed with."""
        return f"{self.kind}:{self.name}{'@' if self.url else ''}{self.url}"

    @property
    def is_local(self) -> bool:
        return not self.url


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """*shadow*: so many percent of the requests are also asked of the target, whose answers nobody gets.

    *listed*: the target answers so many percent of the listed callers' requests; *live*: of everybody's. A step lasts
    *hold_s* seconds at least, and until the target has had *min_requests*.
    """

    kind: Literal["shadow", "listed", "live"]
    percent: float
    hold_s: float = 600.0
    min_requests: int = 20


class Guards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What takes the traffic back. Measured over the last *window_s* seconds of the step, from *min_requests* on.

    *error_rate*: share of failures above the source's own. *p95_ratio*: of the source's P95, and *p95_slack_s* more;
    *p95_s*: in any case. *agreement_drop*: below what the source agrees with itself; *agreement_min*: in any case.
    *not_ready_rate*: share of requests that met no ready copy. *usd_per_hour*: what the target may cost.
    *no_data_s*: seconds after a step's end without enough requests.
    """

    error_rate: float = 0.02
    p95_ratio: float = 2.0
    p95_slack_s: float = 0.25
    p95_s: float | None = None
    agreement_drop: float = 0.1
    agreement_min: float | None = None
    not_ready_rate: float = 0.1
    usd_per_hour: float | None = None
    min_requests: int = 20
    window_s: float = 300.0
    no_data_s: float = 600.0


class Price(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars that a side costs: per hour, per 1,000 tokens, per five-minute window in which it answered."""

    usd_per_hour: float = 0.0
    usd_per_1000_tokens_in: float = 0.0
    usd_per_1000_tokens_out: float = 0.0
    usd_per_window: float = 0.0


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A migration of *name*, which applications call. *sticky*: ``principal``, ``session``, ``header:NAME`` or none.

    *fallback*: what the target fails before its first byte is asked of the source; more than *fallback_budget* of the
    target's requests, or *fallback_floor* where these are few, take the traffic back. *fallback_after_s*: how long a
    request may wait for a copy of the target first. *cold*: ``source`` asks the source at once while the target is
    cold, and that is not counted. *compare_percent*: share of the requests of live steps that the other side is asked
    too; *noise_percent*: share of compared ones that the source is asked twice. *ignored_fields*: names of JSON fields
    that a comparison leaves out.
    """

    name: str
    source: str
    target: str
    steps: list[Step] = msgspec.field(default_factory=lambda: read_steps(DEFAULT_STEPS))
    guards: Guards = Guards()
    sticky: str = ""
    listed_principals: list[str] = []
    listed_headers: dict[str, str] = {}
    fallback: bool = True
    fallback_budget: float = 0.1
    fallback_floor: int = 10
    fallback_after_s: float = 10.0
    cold: Literal["hold", "source"] = "hold"
    compare_percent: float = 5.0
    noise_percent: float = 20.0
    shadows_at_a_time: int = 8
    shadow_timeout_s: float = 120.0
    warm_limit_s: float = 900.0
    keep_pairs: bool = True
    ignored_fields: list[str] = []
    source_price: Price = Price()
    target_price: Price = Price()


def read_plan(raw: bytes) -> Plan:
    """The plan in a JSON body. Raises InvalidRequest naming the field and MalformedBody."""
    try:
        plan = msgspec.json.decode(raw, type=Plan)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"The migration cannot be used: {exc}.") from exc
    except msgspec.DecodeError as exc:
        raise MalformedBody(f"The body is not valid JSON: {exc}") from exc
    check(plan)
    return plan


def read_side(text: str) -> Side:
    """A side in words: ``KIND:NAME`` here, ``KIND:NAME@URL?region=…&profile=…&key_file=…`` elsewhere."""
    kind, _, rest = text.partition(":")
    name, at, address = rest.partition("@")
    if kind not in KINDS or not name:
        raise InvalidRequest(
            f"{text!r} is no side of a migration: write bedrock:MODEL, sagemaker:ENDPOINT or openai:MODEL, and "
            "@https://host?region=REGION behind it for one that is not on this server."
        )
    if not at:
        if kind == "openai":
            raise InvalidRequest(f"{text!r} needs a URL: openai:{name}@https://host/v1?key_file=PATH")
        return Side(kind=kind, name=name)
    parts = http_url(address)
    if parts is None:
        raise InvalidRequest(f"{text!r}: {address!r} is no http or https URL of a host (and port) alone.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        raise InvalidRequest(f"{text!r}: unknown options {', '.join(unknown)}; known: {', '.join(sorted(_OPTIONS))}.")
    if kind == "openai" and not options.get("key_file"):
        raise InvalidRequest(f"{text!r} needs key_file=PATH: the file that holds the bearer key.")
    if kind != "openai" and not options.get("region"):
        raise InvalidRequest(f"{text!r} needs region=REGION, which calls are signed for.")
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Side(kind=kind, name=name, url=url, **options)


def read_steps(text: str, *, hold_s: float = 600.0, min_requests: int = 20) -> list[Step]:
    """Steps in words, ``shadow:10,listed:50,1,10,50,100``; ``@SECONDS`` behind one gives it its own time."""
    found = []
    for part in text.split(","):
        head, at, seconds = part.strip().partition("@")
        kind, colon, percent = head.rpartition(":")
        kind = kind if colon else "live"
        try:
            if kind not in ("shadow", "listed", "live"):
                raise ValueError
            step = Step(
                kind=kind,  # type: ignore[arg-type]  # checked above
                percent=float(percent.rstrip("%")),
                hold_s=float(seconds) if at else hold_s,
                min_requests=min_requests,
            )
        except ValueError:
            raise InvalidRequest(
                f"{part.strip()!r} is no step: write a percentage, shadow:PERCENT or listed:PERCENT, and @SECONDS "
                "behind it for its own time."
            ) from None
        found.append(step)
    return found


def check(plan: Plan) -> None:
    """Raises InvalidRequest for the first value that cannot be used, naming it and its range."""
    if not NAME.fullmatch(plan.name):
        raise InvalidRequest(
            f"name {plan.name!r}: 1 to 255 letters, digits and -_.:/, beginning with a letter or digit."
        )
    if read_side(plan.source) == read_side(plan.target):
        raise InvalidRequest(f"source and target are both {plan.source!r}: there is nothing to move.")
    _check_steps(plan)
    for field, low, high in _RANGES:
        owner = plan.guards if field in Guards.__struct_fields__ else plan
        value = getattr(owner, field)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{field} = {value:g} must be from {low:g} to {high:g}.")
    is_header = plan.sticky.startswith("header:") and len(plan.sticky) > len("header:")
    if plan.sticky not in ("", "principal", "session") and not is_header:
        raise InvalidRequest(f"sticky = {plan.sticky!r} must be principal, session or header:NAME.")
    if min(msgspec.structs.astuple(plan.source_price) + msgspec.structs.astuple(plan.target_price)) < 0:
        raise InvalidRequest("a price must not be negative.")


def _check_steps(plan: Plan) -> None:
    steps: Sequence[Step] = plan.steps
    if not steps or (steps[-1].kind, steps[-1].percent) != ("live", 100):
        raise InvalidRequest("the last step must be 100: what is to stay with both sides is no migration.")
    for step in steps:
        if not 0 < step.percent <= 100 or not 0 <= step.hold_s <= 2_592_000 or not 1 <= step.min_requests <= 1_000_000:
            raise InvalidRequest(
                f"step {step.kind}:{step.percent:g}: percent must be over 0 and up to 100, hold_s from 0 to 2592000, "
                "min_requests from 1 to 1000000."
            )
    live = [step.percent for step in steps if step.kind == "live"]
    if live != sorted(live):
        raise InvalidRequest(f"the shares {', '.join(f'{share:g}' for share in live)} must not fall from step to step.")
    if any(step.kind == "listed" for step in steps) and not (plan.listed_principals or plan.listed_headers):
        raise InvalidRequest("a listed step needs listed_principals or listed_headers: who goes first.")


_RANGES = (
    ("error_rate", 0, 1),
    ("p95_ratio", 1, 1000),
    ("p95_slack_s", 0, 3600),
    ("p95_s", 0.001, 3600),
    ("agreement_drop", 0, 1),
    ("agreement_min", 0, 1),
    ("not_ready_rate", 0, 1),
    ("usd_per_hour", 0, 1e9),
    ("min_requests", 1, 1_000_000),
    ("window_s", 1, 86_400),
    ("no_data_s", 1, 2_592_000),
    ("fallback_budget", 0, 1),
    ("fallback_floor", 0, 1_000_000),
    ("fallback_after_s", 0, 3600),
    ("compare_percent", 0, 100),
    ("noise_percent", 0, 100),
    ("shadows_at_a_time", 1, 1024),
    ("shadow_timeout_s", 1, 3600),
    ("warm_limit_s", 1, 86_400),
)
