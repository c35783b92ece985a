"""Options that several commands share, written once: a parameter whose type is a dataclass stands for its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """*command* as Typer shall see it: each dataclass among its parameters replaced by one option a field.

    A field is declared as Typer declares parameters: ``Annotated[type, typer.Option(...)] = default``.
    """
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    parameters, groups = [], dict[str, type]()
    for name, given in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind) or not isinstance(kind, type):
            parameters.append(given.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        groups[name] = kind
        types = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            default = inspect.Parameter.empty if default is MISSING else default
            parameters.append(
                inspect.Parameter(
                    each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[each.name]
                )
            )

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: kind(**{each.name: values.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**values, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # inspect would look through to the command
    return run
