"""Declarations of steps for type checkers: each line marked `# E` must be an error, and no other line."""

import dataclasses
import functools
from collections.abc import AsyncIterator, Callable

from ag06 import Context, Event, Workflow


@dataclasses.dataclass
class Order:
    id: str


app = Workflow("shop", store="memory://")


# What fits


@app.step("a")
async def coroutine(event: Event[Order]) -> None: ...


@app.step("a")
async def with_context(event: Event, ctx: Context) -> None: ...


@app.step("a")
def plain(event: Event[int]) -> None: ...


@app.step("a")
def plain_with_context(event: Event[int], ctx: Context) -> None: ...


@app.step("a")
async def optional_context(event: Event, ctx: Context | None = None) -> None: ...


@app.batch_step("a")
async def batch(events: list[Event[Order]]) -> None: ...


@app.batch_step("a")
def batch_with_context(events: list[Event], ctx: Context) -> None: ...


class Handler:
    async def __call__(self, event: Event[Order], ctx: Context) -> None: ...

    async def method(self, event: Event[Order]) -> None: ...


async def with_client(client: str, event: Event[Order]) -> None: ...


handler = app.step("a", name="handler")(Handler())
same: Handler = handler  # the decorator returns what it got
app.step("a")(Handler().method)
app.step("a", name="partial")(functools.partial(with_client, "client"))
app.step("a", name="lambda")(lambda event: None)
kept: Callable[[Event[Order]], object] = coroutine


# What does not


@app.step("a")  # E
async def no_event() -> None: ...


@app.step("a")  # E
async def bare_data(event: Order) -> None: ...


@app.step("a")  # E
async def too_many(event: Event, ctx: Context, client: object) -> None: ...


@app.step("a")  # E
async def context_first(ctx: Context, event: Event) -> None: ...


@app.step("a")  # E
async def another_second(event: Event, client: str) -> None: ...


@app.step("a")  # E
async def keyword(event: Event, *, client: str) -> None: ...


@app.step("a")  # E
async def list_in_a_step(events: list[Event[Order]]) -> None: ...


@app.step("a")  # E
async def generator(event: Event) -> AsyncIterator[int]:
    yield 1


@app.step("a")  # E
async def result(event: Event) -> Order:
    return Order("1")


@app.batch_step("a")  # E
async def event_in_a_batch(event: Event[Order]) -> None: ...


@app.batch_step("a")  # E
async def data_in_a_batch(events: list[Order]) -> None: ...


@app.batch_step("a")  # E
async def context_alone(ctx: Context) -> None: ...


class Unbound:
    @app.step("a")  # E
    async def method(self, event: Event) -> None: ...


app.step("a", name="unbound")(with_client)  # E


@app.on_outcome  # E
async def listener(outcome: object) -> None: ...
