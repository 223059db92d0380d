"""Groups of flags: a dataclass that several commands take as one parameter."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def with_flag_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every flag of its groups as a separate parameter, for typer to read.

    A group is a keyword parameter whose type is a dataclass; its fields are annotated as typer's parameters are. The
    flags stand where the group stood, so that the help lists them in the order of the signature.
    """
    signature = inspect.signature(command)
    groups = {each.name: each.annotation for each in signature.parameters.values() if _is_group(each.annotation)}

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters = [flag for each in signature.parameters.values() for flag in _flags_of(each)]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _flags_of(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    if not _is_group(parameter.annotation):
        yield parameter
        return
    types = get_type_hints(parameter.annotation, include_extras=True)
    for field in fields(parameter.annotation):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, parameter.kind, default=default, annotation=types[field.name])


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)
