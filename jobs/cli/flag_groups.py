"""Groups of flags: a dataclass that several commands take as one parameter; arguments that are flags as well."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo


@dataclass(frozen=True)
class AlsoFlag:
    """In an argument's annotation: the flag that may be given instead of it.

    former: the parameter that the flag set in earlier releases, with a warning still when the argument is there too;
    now: the name of that parameter's flag today.
    """

    name: str
    former: str = ""
    now: str = ""


def with_flag_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with every flag of its groups as a separate parameter, for typer to read.

    A group is a keyword parameter whose type is a dataclass; its fields are annotated as typer's parameters are. The
    flags stand where the group stood, so that the help lists them in the order of the signature. An argument with an
    `AlsoFlag` gets that flag as well.
    """
    signature = inspect.signature(command)
    groups = {each.name: each.annotation for each in signature.parameters.values() if _is_group(each.annotation)}
    arguments = [each for each in signature.parameters.values() if _argument_of(each) is not None]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        _settle_arguments(arguments, values)
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    has_flags = any(_flag_of(each) for each in arguments)
    parameters = [flag for each in signature.parameters.values() for flag in _flags_of(each, has_flags=has_flags)]
    first = [each for each in parameters if _argument_of(each) is not None]
    rest = [each for each in parameters if _argument_of(each) is None]
    parameters = [*first, *(_as_flag(each) for each in arguments if _flag_of(each)), *rest]
    # typer passes all of them by name, and takes arguments in this order.
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _flags_of(parameter: inspect.Parameter, *, has_flags: bool) -> Iterator[inspect.Parameter]:
    if not _is_group(parameter.annotation):
        # With a flag in place of an argument, the others move up: `_settle_arguments` sees what is missing.
        is_freed = has_flags and _argument_of(parameter) is not None and parameter.default is inspect.Parameter.empty
        yield _freed(parameter) if is_freed else parameter
        return
    types = get_type_hints(parameter.annotation, include_extras=True)
    for field in fields(parameter.annotation):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(field.name, parameter.kind, default=default, annotation=types[field.name])


def _freed(parameter: inspect.Parameter) -> inspect.Parameter:
    kind, *rest = get_args(parameter.annotation)
    return parameter.replace(default=None, annotation=Annotated[kind | None, *rest])


def _argument_of(parameter: inspect.Parameter) -> ArgumentInfo | None:
    extras = get_args(parameter.annotation)[1:]
    return next((each for each in extras if isinstance(each, ArgumentInfo)), None)


def _flag_of(parameter: inspect.Parameter) -> AlsoFlag | None:
    extras = get_args(parameter.annotation)[1:]
    return next((each for each in extras if isinstance(each, AlsoFlag)), None)


def _as_flag(parameter: inspect.Parameter) -> inspect.Parameter:
    flag, argument = _flag_of(parameter), _argument_of(parameter)
    assert flag is not None and argument is not None  # noqa: PT018
    option = typer.Option(flag.name, metavar=argument.metavar, help=argument.help, show_default=False)
    return inspect.Parameter(
        f"{parameter.name}_flag",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _settle_arguments(arguments: list[inspect.Parameter], values: dict[str, Any]) -> None:
    """Put the values of flags where their arguments would be.

    Raises:
        SpecError: an argument is missing, or given twice with two values.
    """
    from pipeline.errors import SpecError

    for parameter in arguments:
        flag = _flag_of(parameter)
        given = values.pop(f"{parameter.name}_flag", None)
        if flag is None or given is None:
            continue
        _make_room(arguments[arguments.index(parameter) :], values, given)
        here = values[parameter.name]
        if here is None or here == given:
            values[parameter.name] = given
        elif flag.former and values.get(flag.former) is None:
            _warn(f"{flag.name} FILE is called {flag.now} now; the old name works until release 0.4.")
            values[flag.former] = _path_of(given)
        else:
            metavar = (_argument_of(parameter) or ArgumentInfo()).metavar
            raise SpecError(f"{metavar} is given twice, as {here} and with {flag.name} {given}; leave one of them out.")
    for parameter in arguments:
        if values[parameter.name] is None and parameter.default is inspect.Parameter.empty:
            raise SpecError(_missing(parameter))


def _missing(parameter: inspect.Parameter) -> str:
    flag, argument = _flag_of(parameter), _argument_of(parameter) or ArgumentInfo()
    way = f"give it, or {flag.name}" if flag else "give it"
    return f"The argument {argument.metavar} is missing; {way}, or see the command's --help."


def _make_room(arguments: list[inspect.Parameter], values: dict[str, Any], given: object) -> None:
    """Move the words up that click put into earlier arguments, where a later one of the command's has none."""
    names = [each.name for each in arguments]
    if values[names[0]] in (None, given) or values[names[-1]] is not None or len(names) == 1:
        return
    for later, earlier in reversed(list(zip(names[1:], names[:-1], strict=True))):
        values[later] = values[earlier]
    values[names[0]] = None


def _warn(sentence: str) -> None:
    from jobs.terminal.console import say

    say(sentence)


def _path_of(given: str) -> Any:
    from pathlib import Path

    return Path(given)


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)
