"""Inspection of the callables that users hand in: steps, health checks, setters, listeners, functions behind a breaker.

A callable may be a function, a lambda, a method, a partial, an object with `__call__`, or a wrapper around any of them.
How it must be called follows from the outermost object; what it means follows from the innermost function.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

_LONGEST_CHAIN = 100
_DEFINED_BY = ("__partialmethod__", "_partialmethod")  # how a function refers to its partialmethod: 3.13, and before


def is_async(function: object) -> bool:
    """Return whether a call of `function` returns a coroutine, as far as its definition shows."""
    return any(_is_coroutine_function(layer) for layer in _layers(function))


def is_generator(function: object) -> bool:
    """Return whether a call of `function` returns a generator, plain or async, so that nothing of it runs."""
    return any(inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer) for layer in _layers(function))


def positional(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return the parameters that a positional argument can fill, without `*args`."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind in kinds]


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return the parameters that a call of `function` may fill; `None` where it does not tell, as some built-ins.

    A wrapper that passes on whatever it gets (`*args`) has the parameters of what it wraps.
    """
    parameters = _own_parameters(function)
    if parameters is None or positional(parameters) or not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return parameters
    if isinstance(function, types.MethodType):
        behind = parameters_of(function.__func__)
        # The first one is the object itself, unless `*args` takes that too.
        return behind[1:] if behind and positional(behind[:1]) else behind
    if isinstance(function, functools.partial):
        return _own_parameters(function, follow_wrapped=True)
    wrapped = getattr(function, "__wrapped__", None)
    if callable(wrapped):
        return parameters_of(wrapped)
    call = getattr(function, "__call__", None)  # noqa: B004 - the bound method is wanted
    return parameters_of(call) if isinstance(call, types.MethodType) else parameters


def takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether `function` can be called with `count` positional arguments, or does not tell."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def annotation_of(function: Callable[..., Any], parameter: inspect.Parameter, frame: FrameType | None = None) -> Any:
    """Return the resolved annotation of a parameter; `inspect.Parameter.empty` where there is none.

    The local names of `frame` are looked at before those of the module where the function was written. Raises what the
    evaluation of an annotation in quotes raises, such as `NameError`.
    """
    names = dict(frame.f_locals) if frame is not None else {}
    # The innermost first: `functools.wraps` copies the annotations of an object's class, not those of its `__call__`.
    for layer in reversed(list(_wrapped_chain(function))):
        definition = definition_of(layer)
        annotations = getattr(definition, "__annotations__", None)
        if not isinstance(definition, type) and isinstance(annotations, Mapping) and parameter.name in annotations:
            scope = getattr(inspect.unwrap(definition), "__globals__", {})
            return _resolved(annotations[parameter.name], scope, names)
    if parameter.annotation is parameter.empty:
        return parameter.empty
    # A signature without annotations behind it, as a mock has: nothing tells where it was written.
    return _resolved(parameter.annotation, frame.f_globals if frame is not None else {}, names)


def _resolved(annotation: Any, scope: Mapping[str, Any], names: Mapping[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(holder, globalns=dict(scope), localns=dict(names))["it"]


def name_of(function: object) -> str:
    """Return the name that `function` was written under; empty where it has none, as a partial or an object."""
    name = getattr(function, "__name__", "")
    return name if isinstance(name, str) else ""


def _wrapped_chain(function: Any) -> Iterator[Any]:
    """Yield `function`, then what it wraps by `functools.wraps`, and so on."""
    for _ in range(_LONGEST_CHAIN):
        yield function
        following = getattr(definition_of(function), "__wrapped__", None)
        if not callable(following):
            return
        function = following


def definition_of(function: Any) -> Any:
    """Return the function that a call of `function` runs in the end, not what that wraps."""
    *_, last = _layers(function)
    return last


def _layers(function: Any) -> Iterator[Any]:
    """Yield `function`, then what it is made of: the function of a partial or method, the `__call__` of an object."""
    for _ in range(_LONGEST_CHAIN):
        yield function
        following = _inner(function)
        if following is None:
            return
        function = following


def _inner(function: Any) -> Any:
    if isinstance(function, functools.partial):
        return function.func
    if isinstance(function, (types.MethodType, staticmethod, classmethod)):
        return function.__func__
    if isinstance(function, functools.partialmethod):
        return function.func
    if isinstance(function, types.FunctionType):
        return next((vars(function)[name].func for name in _DEFINED_BY if name in vars(function)), None)
    if isinstance(function, type):
        return None
    # A call looks at the class alone; what C code provides there has no more to tell than the object itself.
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the function is wanted
    return call if isinstance(call, (types.FunctionType, functools.partialmethod, staticmethod, classmethod)) else None


def _is_coroutine_function(layer: Any) -> bool:
    # The second knows mocks and functions that are marked as in older libraries.
    return inspect.iscoroutinefunction(layer) or asyncio.iscoroutinefunction(layer)


def _own_parameters(function: Any, *, follow_wrapped: bool = False) -> list[inspect.Parameter] | None:
    """Return the parameters of `function` itself, or those of what it wraps."""
    if isinstance(function, staticmethod):
        function = function.__func__
    try:
        return list(inspect.signature(function, follow_wrapped=follow_wrapped).parameters.values())
    except (TypeError, ValueError):
        return None
