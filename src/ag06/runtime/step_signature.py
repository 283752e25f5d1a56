"""The signature of a step: `(event)` or `(event, ctx: Context)`, and the decoder that its annotation asks for."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec
import msgspec.inspect

from ag06 import callables
from ag06.errors import ConfigurationError
from ag06.event import Event
from ag06.runtime.context import Context

_CONTEXT_NAMES = ("ctx", "context", "")
_EMPTY = inspect.Parameter.empty


class StepSignature(msgspec.Struct, frozen=True):
    """How the function of a step is called, and what it is called with."""

    is_async: bool
    takes_context: bool
    decode: Callable[[bytes], Event[Any]]


def signature_of(where: str, function: Callable[..., Any], frame: FrameType | None, *, batch: bool) -> StepSignature:
    """Read the signature of a step's function; raise `ConfigurationError`, with `where`, for one that cannot be called.

    The local names of `frame` help to resolve annotations in quotes.
    """
    if isinstance(function, classmethod):
        raise ConfigurationError(f"{where}: is a classmethod without its class; pass CLASS.METHOD to app.step(...)")
    if not callable(function) or isinstance(function, type):
        kind = "class" if isinstance(function, type) else type(function).__name__
        raise ConfigurationError(f"{where}: is a {kind}; a step is a function, or an object with __call__")
    if callables.is_generator(function):
        raise ConfigurationError(f"{where}: is a generator, which a call does not run; use ctx.publish(...) for yield")
    expected = "write (events) or (events, ctx)" if batch else "write (event) or (event, ctx)"
    first, context = _event_and_context(where, callables.parameters_of(function), expected)
    decode = _decoder(where, _annotation(where, function, first, frame), batch=batch)
    if context is not None:
        _check_context(where, context, _annotation(where, function, context, frame), expected)
    return StepSignature(is_async=callables.is_async(function), takes_context=context is not None, decode=decode)


def _event_and_context(
    where: str, parameters: list[inspect.Parameter] | None, expected: str
) -> tuple[inspect.Parameter, inspect.Parameter | None]:
    """Return the parameter for the event, and the one for the context if there is one."""
    if parameters is None:
        raise ConfigurationError(f"{where}: its parameters cannot be read; wrap it in a function of your own")
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{where}: takes {parameter}; {expected}, and use functools.wraps in a decorator")
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is _EMPTY:
            raise ConfigurationError(
                f"{where}: needs the keyword argument {parameter.name!r}; {expected}, or bind it with functools.partial"
            )
    given = callables.positional(parameters)
    if given and given[0].name in ("self", "cls") and given[0].annotation is _EMPTY:
        raise ConfigurationError(
            f"{where}: is declared inside a class, so its first parameter is {given[0].name!r}; "
            "declare the method of an object: app.step(TYPE)(OBJECT.METHOD)"
        )
    if not 1 <= len(given) <= 2:
        listed = f" ({', '.join(parameter.name for parameter in given)})" if given else ""
        raise ConfigurationError(f"{where}: takes {len(given)} arguments{listed}; {expected}")
    return given[0], given[1] if len(given) == 2 else None


def _check_context(where: str, parameter: inspect.Parameter, annotation: Any, expected: str) -> None:
    """Refuse a second parameter that means something else than the context."""
    if annotation is _EMPTY:
        fits = parameter.default is _EMPTY and parameter.name.strip("_") in _CONTEXT_NAMES
    else:
        fits = _accepts_context(annotation)
    if not fits:
        raise ConfigurationError(
            f"{where}: its second parameter `{parameter}` is not the context; {expected} with ctx: Context; "
            "bind what else it needs with functools.partial, or make it keyword-only with a default"
        )


def _accepts_context(annotation: Any) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_accepts_context(member) for member in typing.get_args(annotation))
    return annotation is Any or (isinstance(annotation, type) and issubclass(Context, annotation))


def _annotation(where: str, function: Callable[..., Any], parameter: inspect.Parameter, frame: FrameType | None) -> Any:
    try:
        return callables.annotation_of(function, parameter, frame)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(f"{where}: its annotation cannot be resolved ({error}); import the name") from None


def _decoder(where: str, annotation: Any, *, batch: bool) -> Callable[[bytes], Event[Any]]:
    if batch and typing.get_origin(annotation) is list:
        annotation = typing.get_args(annotation)[0]
    elif batch and annotation is not _EMPTY:
        raise ConfigurationError(f"{where}: a batch step takes list[Event[...]], not {annotation!r}")
    if annotation in (Event, Any, _EMPTY):
        annotation = Event[Any]
    if typing.get_origin(annotation) is not Event:
        raise ConfigurationError(f"{where}: annotate its first argument as Event or Event[...], not {annotation!r}")
    try:
        decoder = msgspec.json.Decoder(annotation)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {annotation!r} cannot be decoded from JSON: {error}") from None
    (data,) = typing.get_args(annotation)
    if isinstance(msgspec.inspect.type_info(data), msgspec.inspect.CustomType):
        # The decoder takes any class, and then finds that no data fits it.
        raise ConfigurationError(f"{where}: {data!r} cannot be decoded from JSON; use a msgspec.Struct or a dataclass")
    return decoder.decode
