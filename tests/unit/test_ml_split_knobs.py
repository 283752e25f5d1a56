"""A knob that is split has several values at once, each where it was said, and one everywhere else."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator

import pytest

from ag06 import ConfigurationError, Event, Knob, Workflow
from ag06.knob import NOTHING, see
from ag06.runtime.variants import SPLITS, Split


def knob(name: str = "size") -> Knob:
    return Knob(name, low=1, high=100, default=10, integer=True)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    see(NOTHING)
    assert SPLITS == {}


def test_its_value_is_that_of_the_context_only_while_it_is_split() -> None:
    size, other = knob(), knob()
    see({size: 50})
    assert (size.value, other.value) == (10, 10)
    size.split()
    other.split()
    assert (size.value, other.value) == (50, 10), "a knob of the same name is another one"
    assert contextvars.Context().run(lambda: size.value) == 10
    size.unite()
    assert size.value == 10


def test_it_moves_for_all_others_meanwhile() -> None:
    size = knob()
    moved: list[int] = []
    size.watch(lambda: moved.append(1))
    size.split()
    see({size: 50})
    assert size.set(20) == 20
    assert size.value == 50
    see(NOTHING)
    assert size.value == 20
    assert moved == [1]


def test_another_thread_sees_nothing_of_it() -> None:
    size = knob()
    size.split()
    see({size: 50})
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(size.value))
    thread.start()
    thread.join()
    assert found == [10]


def test_one_with_a_setter_cannot_be_split() -> None:
    pool = Knob("pool", low=1, high=8, default=2, setter=lambda size: None)
    with pytest.raises(ConfigurationError, match=r"knob pool: its setter .* window by window"):
        pool.split()


def test_a_split_that_cannot_begin_changes_nothing() -> None:
    app = Workflow("shop", store="memory://")

    @app.step("order")
    async def bill(event: Event) -> None: ...

    size, taken = knob(), knob("taken")
    taken.split()
    variants = {"a": {size: 1, taken: 1}, "b": {size: 2, taken: 2}}
    with pytest.raises(ConfigurationError, match="knob taken: it is split already"):
        Split(app.steps.values(), variants, lambda unit: "a", None).open()  # type: ignore[arg-type]
    assert SPLITS == {}
    size.split()  # it was not left split
