from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

import ag06
from ag06 import errors
from ag06.errors import AG06Error, CircuitOpen, InvalidEvent, OutcomeUnknown, Reject, StoreError, StoreUnavailable
from ag06.persistence.own_error import own_error


def test_every_error_is_in_one_tree_and_public() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(found) > 10
    assert all(issubclass(error, AG06Error) for error in found)
    assert {error.__name__ for error in found} <= set(ag06.__all__)


def test_whoever_catches_the_builtin_kind_catches_ours() -> None:
    assert issubclass(InvalidEvent, ValueError)
    assert issubclass(StoreUnavailable, ConnectionError)
    assert issubclass(OutcomeUnknown, StoreUnavailable)
    assert issubclass(ag06.Backpressure, StoreError)
    assert issubclass(Reject, ag06.StepFailed)


@pytest.mark.parametrize(
    "error",
    [InvalidEvent("data", "is too large"), CircuitOpen("crm", 1.5), OutcomeUnknown("lost", "id-1"), Reject("no")],
)
def test_an_error_survives_the_way_to_another_process(error: AG06Error) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def _classes(root: type[AG06Error]) -> Iterator[type[AG06Error]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__.startswith("ag06."):
            yield from _classes(kind)


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "InvalidEvent": ("data", "is too large"),
    "InvalidMetric": ("m", "no name"),
    "OutcomeUnknown": ("lost", "id-1", (b"a", None)),
    "Disconnected": ("lost", "id-1", (b"a", None)),
    "TooLarge": ("too large", (True, False)),
    "ArchiveDamaged": ("damaged", "file:///x"),
    "RetryAfter": (1.5, "busy"),
    "CircuitOpen": ("crm", 1.5),
}


@pytest.mark.parametrize("kind", sorted(_classes(AG06Error), key=lambda kind: kind.__name__))
def test_each_caller_gets_an_error_of_its_own_with_all_that_the_first_one_says(kind: type[AG06Error]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("text",)))
    error.__cause__ = OSError("disk")
    own = own_error(error)
    assert own is not error
    assert type(own) is kind
    assert str(own) == str(error)
    assert vars(own) == vars(error)
    assert own.__cause__ is error.__cause__
    assert own.__traceback__ is None
