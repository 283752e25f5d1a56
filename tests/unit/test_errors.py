from __future__ import annotations

import pickle

import pytest

import ag06
from ag06 import errors
from ag06.errors import AG06Error, CircuitOpen, InvalidEvent, OutcomeUnknown, Reject, StoreError, StoreUnavailable


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
