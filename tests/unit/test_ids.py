from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.ids import IdSource, derived_id, new_id


class Clock:
    """Tells the given times one after the other, the last one for ever."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def __call__(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def millis(text: str) -> int:
    return uuid.UUID(text).int >> 80


def test_a_fresh_id_is_a_uuid_of_version_7_with_its_time() -> None:
    for text in (new_id(), IdSource(Clock(1_700_000_000.123))()):
        found = uuid.UUID(text)
        assert str(found) == text
        assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert millis(IdSource(Clock(1_700_000_000.123))()) == 1_700_000_000_123


def test_ids_increase_within_a_millisecond_and_beyond() -> None:
    ids = IdSource(Clock(1.0))
    made = [ids() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert millis(made[0]) == 1000
    assert millis(made[-1]) == 1002, "a full millisecond of 4096 borrows the next one"


def test_a_clock_that_is_set_back_makes_no_smaller_ids() -> None:
    ids = IdSource(Clock(5.0, 4.0, 3.0, 5.0, 5.001))
    made = [ids() for _ in range(6)]
    assert made == sorted(set(made))


def test_ids_of_one_instant_are_told_apart_by_their_random_bits() -> None:
    made = {IdSource(Clock(1.0))() for _ in range(1000)}
    assert len(made) == 1000


def test_randomness_is_drawn_anew_once_it_is_used_up() -> None:
    drawn: list[int] = []

    def entropy(size: int) -> bytes:
        drawn.append(size)
        return os.urandom(size)

    ids = IdSource(Clock(1.0), entropy)
    assert len({ids() for _ in range(257)}) == 257
    assert len(drawn) == 2


def test_two_processes_after_a_fork_share_no_randomness() -> None:
    new_id()  # there is prefetched randomness now
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(here, 36).decode()
    os.close(here)
    os.close(there)
    assert uuid.UUID(theirs).int & (1 << 62) - 1 != uuid.UUID(new_id()).int & (1 << 62) - 1


def test_a_derived_id_stays_the_same_over_releases() -> None:
    parent = "018bcfe5-6800-7000-8000-000000000001"
    assert derived_id(parent, "shop.bill", 0, 1_700_000_000_000) == "018bcfe5-6800-7206-8745-86bffa453c5b"


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 10**6), st.integers(0, 2**48 - 1))
def test_a_derived_id_is_a_uuid_of_version_7_and_always_the_same(parent: str, step: str, ordinal: int, at: int) -> None:
    found = uuid.UUID(derived_id(parent, step, ordinal, at))
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert millis(str(found)) == at
    assert str(found) == derived_id(parent, step, ordinal, at)


@pytest.mark.parametrize("other", [("q", "s", 0), ("p", "t", 0), ("p", "s", 1)])
def test_a_derived_id_tells_parents_steps_and_ordinals_apart(other: tuple[str, str, int]) -> None:
    assert derived_id(*other, 7) != derived_id("p", "s", 0, 7)
