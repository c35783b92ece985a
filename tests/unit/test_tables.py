"""Tables that must stay whole: errors to wire, schema to migrations, units, phases, policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from outcrop import errors
from outcrop.access.actions import is_known
from outcrop.api.bedrock_runtime import IN_CONVERSE_STREAM, IN_INVOKE_STREAM
from outcrop.api.wire_errors import AWS, OPENAI, wire_error
from outcrop.awswire.service import Service
from outcrop.checkpoints.units import model_units
from outcrop.cli.action_table import SERVED
from outcrop.errors import ServiceError
from outcrop.importing.states import IllegalTransition, Phase, advance
from outcrop.registry.schema import metadata
from outcrop.registry.store import Registry


def every_error(cls: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in every_error(child))]


@pytest.mark.parametrize("cls", every_error())
def test_every_error_has_a_row_nearer_than_the_root(cls: type[ServiceError]) -> None:
    if cls is not ServiceError:
        assert wire_error(cls("x"), AWS) is not None
        nearest = next(base for base in cls.__mro__ if base in OPENAI)
        assert nearest is not ServiceError or issubclass(cls, errors.Faulty)


@pytest.mark.parametrize("row", [row for row in AWS.values() if row[0] != "UnknownOperationException"])
def test_codes_and_statuses_are_those_of_the_service_models(row: tuple[str, int]) -> None:
    shapes = {
        shape.name: shape for name in ("bedrock", "bedrock-runtime") for shape in Service(name).model.error_shapes
    }
    if row[0] in shapes:
        assert shapes[row[0]].metadata["error"]["httpStatusCode"] == row[1]


@pytest.mark.parametrize(
    ("operation", "names"),
    [("InvokeModelWithResponseStream", IN_INVOKE_STREAM), ("ConverseStream", IN_CONVERSE_STREAM)],
)
def test_errors_inside_a_stream_are_events_of_that_stream(operation: str, names: dict[str, str]) -> None:
    output = Service("bedrock-runtime").operations[operation].model.output_shape
    events = set(output.members[output.event_stream_name].members)

    assert set(names.values()) <= events
    assert "internalServerException" in events
    # A code that the stream has an event for becomes that event.
    for code, _ in AWS.values():
        own = code[0].lower() + code[1:]
        assert own not in events or names.get(code, "internalServerException") == own


def test_every_served_operation_has_an_action_of_the_reference() -> None:
    missing = {f"{service}:{name}" for service, names in SERVED.items() for name in names} - {
        f"{service}:{name}" for service, names in SERVED.items() for name in names if is_known(f"{service}:{name}")
    }

    assert missing == {"bedrock:StartAsyncInvoke"}  # refused for imported models, and authorised as InvokeModel on AWS


def test_migrations_make_the_schema(tmp_path: Path) -> None:
    Registry.open(tmp_path / "db").close()
    found = sa.inspect(sa.create_engine(f"sqlite:///{tmp_path / 'db'}"))

    for table in metadata.sorted_tables:
        assert {column["name"] for column in found.get_columns(table.name)} == set(table.columns.keys())
        names = {unique["name"] for unique in found.get_unique_constraints(table.name)}
        assert names == {c.name for c in table.constraints if isinstance(c, sa.UniqueConstraint)}


@pytest.mark.parametrize(
    ("weights", "kv", "context", "units"),
    [(16.1e9, 131072, 131072, 2), (141e9, 327680, 131072, 8), (29.5e9, 196608, 16384, 1)],
)
def test_model_units_reproduce_the_published_points(weights: float, kv: int, context: int, units: int) -> None:
    assert model_units(int(weights), kv, context) == units


def test_a_job_that_ended_never_moves_again() -> None:
    for phase in Phase:
        for ended in (Phase.COMPLETED, Phase.FAILED):
            with pytest.raises(IllegalTransition):
                advance(ended, phase)
