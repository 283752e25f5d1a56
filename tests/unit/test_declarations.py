"""A wrong declaration is a `ConfigurationError` that names the step and says what to write, at import time."""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, create_autospec

import msgspec
import pytest

from ag06 import CircuitBreaker, ConfigurationError, Context, Event, Knob, Retry, Workflow

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]


class Payment(msgspec.Struct):
    cents: int


@dataclass
class Order:
    price: float


class Opaque:
    """Nothing that JSON could become."""


@pytest.fixture
def app() -> Workflow:
    return Workflow("shop", store="memory://")


def plain(event: Event) -> None: ...


def typed(event: Event[Payment], ctx: Context) -> None: ...


async def coroutine(event: Event) -> None: ...


def test_a_function_becomes_a_step_under_its_own_name_and_stays_what_it_was(app: Workflow) -> None:
    assert app.step("order.placed")(plain) is plain
    step = app.steps["plain"]
    assert (step.name, step.group, step.type) == ("plain", "shop.plain", "order.placed")
    assert (step.concurrency, step.timeout, step.retry.attempts, step.start) == (10, None, 5, None)
    assert not step.is_async
    assert not step.takes_context


def test_what_a_step_is_follows_from_its_function(app: Workflow) -> None:
    class Callable_:  # noqa: N801 - the class is not what is tested
        async def __call__(self, event: Event, ctx: Context) -> None: ...

        def method(self, event: Event) -> None: ...

    app.step("t")(typed)
    app.step("t")(coroutine)
    app.step("t", name="called")(Callable_())
    app.step("t")(Callable_().method)
    app.step("t", name="partial")(functools.partial(coroutine))
    app.step("t", name="short")(lambda event: None)
    found = {name: (step.is_async, step.takes_context) for name, step in app.steps.items()}
    assert found == {
        "typed": (False, True),
        "coroutine": (True, False),
        "called": (True, True),
        "method": (False, False),
        "partial": (True, False),
        "short": (False, False),
    }


def test_a_step_may_be_any_callable_and_its_annotation_counts(app: Workflow) -> None:
    async def with_client(client: str, event: Event[Payment]) -> None: ...

    async def with_keyword(event: Event[Payment], *, client: str) -> None: ...

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    def provided(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(event: Any) -> None:
            await function(event, "client")

        return wrapper

    @provided
    async def needs_client(event: Event[Payment], client: str) -> None: ...

    @dataclass
    class Handler:
        event: str  # no annotation of the call

        async def __call__(self, event: Event[Payment]) -> None: ...

        @logged
        async def method(self, event: Event[Payment], ctx: Context) -> None: ...

        async def _bound(self, client: str, event: Event[Payment]) -> None: ...

        bound = functools.partialmethod(_bound, "client")

        @classmethod
        async def of_class(cls, event: Event[Payment]) -> None: ...

        @staticmethod
        def static(event: Event[Payment], context: Context) -> None: ...

    async def typed_async(event: Event[Payment], ctx: Context) -> None: ...

    expected = {
        "partial": (functools.partial(with_client, "client"), True, False),
        "keyword": (functools.partial(with_keyword, client="client"), True, False),
        "nested": (functools.partial(functools.partial(with_client), "client"), True, False),
        "object": (Handler(""), True, False),
        "wrapped method": (Handler("").method, False, True),
        "partialmethod": (Handler("").bound, True, False),
        "classmethod": (Handler.of_class, True, False),
        "static": (Handler.static, False, True),
        "staticmethod": (staticmethod(typed_async), True, True),
        "wrapped": (logged(typed_async), False, True),
        "wrapped object": (logged(Handler("")), False, False),
        "injected": (needs_client, True, False),
        "wrapped twice": (logged(needs_client), False, False),
        "specified": (create_autospec(typed_async), True, True),
    }
    body = {"id": "1", "type": "t", "source": "s", "time": "2026-01-02T12:00:00Z", "data": {"cents": 5}}
    for name, (function, is_async, takes_context) in expected.items():
        app.step("t", name=name)(function)
        step = app.steps[name]
        assert (step.is_async, step.takes_context) == (is_async, takes_context), name
        assert step.decode(msgspec.json.encode(body)).data == Payment(5), name


def test_the_annotation_says_what_the_data_becomes(app: Workflow) -> None:
    @dataclass
    class Local:
        price: float

    @app.step("t")
    def local(event: Event[Local]) -> None: ...

    @app.step("t")
    def quoted(event: "Event[Payment]") -> None: ...  # noqa: UP037 - the quotes are what is tested

    @app.step("t")
    def several(event: Event[list[Order] | None]) -> None: ...

    @app.step("t")
    def anything(event): ...  # type: ignore[no-untyped-def]

    body = {"id": "1", "type": "t", "source": "s", "time": "2026-01-02T12:00:00Z"}

    def decoded(step: str, data: Any) -> Any:
        return app.steps[step].decode(msgspec.json.encode({**body, "data": data})).data

    assert decoded("local", {"price": 1.5}) == Local(1.5)
    assert decoded("quoted", {"cents": 5}) == Payment(5)
    assert decoded("several", [{"price": 1}]) == [Order(1)]
    assert decoded("several", None) is None
    assert decoded("anything", {"a": 1}) == {"a": 1}
    with pytest.raises(msgspec.ValidationError):
        decoded("quoted", {"cents": "five"})


def test_a_batch_step_takes_a_list(app: Workflow) -> None:
    @app.batch_step("t", max_size=7, max_wait=0.5)
    def many(events: list[Event[Payment]], ctx: Context) -> None: ...

    step = app.steps["many"]
    assert (step.is_batch, step.max_size, step.max_wait, step.concurrency) == (True, 7, 0.5, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "a.b"}, r"step 'a\.b' of workflow 'shop'.*without dots"),
        ({"name": "x" * 256}, "256 bytes.*limit is 255"),
        ({"name": "a\nb"}, "control character"),
        ({"concurrency": 0}, "concurrency=0; at least 1"),
        ({"concurrency": 2.5}, r"concurrency=2\.5; at least 1, whole numbers"),
        ({"concurrency": True}, "concurrency=True; at least 1"),
        ({"concurrency": Knob("n", low=0, high=8, default=1, integer=True)}, "concurrency=knob 'n'; at least 1"),
        ({"concurrency": Knob("n", low=1, high=8, default=1)}, "concurrency=knob 'n'; declare .* integer=True"),
        ({"concurrency": Knob("n", choices=(1, "2"), default=1)}, "concurrency=knob 'n'; at least 1"),
        ({"concurrency": Knob("n", low=1, high=8, default=1, integer=True)}, "'n' is none of workflow 'shop'"),
        ({"timeout": 0}, "timeout=0; seconds above 0"),
        ({"timeout": -1.0}, r"timeout=-1\.0"),
        ({"start": "middle"}, "'beginning', 'end' or an aware datetime"),
        ({"start": dt.datetime(2026, 1, 2)}, "aware datetime"),  # noqa: DTZ001 - that it is naive is the point
        ({"retry": 3}, r"retry=3; .*Retry\(attempts=3\)"),
        ({"breaker": True}, "breaker=True; .*CircuitBreaker"),
    ],
)
def test_a_setting_out_of_range_is_named(app: Workflow, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        app.step("t", **settings)(plain)
    assert app.steps == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_size": 0}, "max_size=0; 1 to 10000"),
        ({"max_size": 10_001}, "max_size=10001; 1 to 10000"),
        ({"max_size": Knob("n", low=1, high=20_000, default=1, integer=True)}, "max_size=knob 'n'; 1 to 10000"),
        ({"max_wait": -1}, "max_wait=-1; 0 s or more"),
        ({"max_wait": math.nan}, "max_wait=nan"),
        ({"max_wait": Knob("w", choices=("short", "long"), default="long")}, "max_wait=knob 'w'; 0 s or more"),
    ],
)
def test_a_batch_has_bounds(app: Workflow, settings: dict[str, Any], words: str) -> None:
    def batch(events: list[Event]) -> None: ...

    with pytest.raises(ConfigurationError, match=f"step 'batch' of workflow 'shop': {words}"):
        app.batch_step("t", **settings)(batch)
    assert app.steps == {}


def test_what_is_not_said_may_be_moved_a_number_stays_and_a_knob_keeps_its_name(app: Workflow) -> None:
    width = app.knob("width", low=1, high=8, default=2, integer=True)
    size = app.knob("size", choices=(1, 10, 100), default=10)

    def batch(events: list[Event]) -> None: ...

    app.step("t", name="free")(plain)
    app.step("t", name="set", concurrency=3)(plain)
    app.step("t", name="own", concurrency=width)(plain)
    app.batch_step("t", name="free_batch")(batch)
    app.batch_step("t", name="set_batch", max_size=1, max_wait=0)(batch)
    app.batch_step("t", name="own_batch", max_size=size, concurrency=width)(batch)
    assert app.knobs == {"width": width, "size": size}
    moved = {name for name in app.runtime_knobs if not name.endswith((".fetch_size", ".prefetch"))}
    assert moved == {
        "free.concurrency",
        "free_batch.concurrency",
        "free_batch.max_size",
        "free_batch.max_wait",
        "set_batch.concurrency",
        "own_batch.max_wait",
        "commit_wait",
    }
    assert {name for step in app.steps for name in (f"{step}.fetch_size", f"{step}.prefetch")} < {*app.runtime_knobs}
    assert app.fixed_knobs == {"set.concurrency": 3, "set_batch.max_size": 1, "set_batch.max_wait": 0}
    assert (app.steps["free"].concurrency, app.steps["free_batch"].max_size) == (10, 100)
    width.set(5)
    app.runtime_knobs["free.concurrency"].set(20)
    assert [app.steps[name].concurrency for name in ("free", "set", "own", "own_batch")] == [20, 3, 5, 5]


@pytest.mark.parametrize("name", ["bill.concurrency", "bill.max_size", "commit_wait", "archive_compression"])
def test_a_knob_is_not_named_like_one_of_the_runtime(app: Workflow, name: str) -> None:
    app.step("t", name="bill")(plain)
    with pytest.raises(ConfigurationError, match=f"knob '{name}' is one of the runtime's"):
        app.knob(name, low=0, high=1, default=0)
    assert app.knobs == {}


def test_a_step_whose_knobs_would_be_named_like_the_users_is_refused(app: Workflow) -> None:
    app.knob("bill.concurrency", low=0, high=1, default=0)
    with pytest.raises(ConfigurationError, match=r"knob 'bill\.concurrency' is one of the runtime's"):
        app.step("t", name="bill")(plain)
    assert app.steps == {}


@pytest.mark.parametrize("event_type", ["", "x" * 256, "a\x00b", 7, None])
def test_a_type_is_a_name(app: Workflow, event_type: Any) -> None:
    with pytest.raises(ConfigurationError, match="type: "):
        app.step(event_type)(plain)


def test_a_forgotten_pair_of_brackets_is_noticed(app: Workflow) -> None:
    with pytest.raises(ConfigurationError, match=r'@app\.step\("TYPE"\)'):
        app.step(plain)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r'@app\.batch_step\("TYPE"\)'):
        app.batch_step(plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function",
    [
        lambda event, ctx: None,
        lambda event, _ctx: None,
        lambda event, context: None,
        lambda event, _: None,
        lambda event, *, region="eu": None,
    ],
)
def test_a_second_parameter_without_annotation_is_the_context_by_its_name(app: Workflow, function: Any) -> None:
    app.step("t", name="short")(function)


def test_a_context_may_be_optional_or_annotated_as_something_wider(app: Workflow) -> None:
    def optional(event: Event, ctx: Context | None = None) -> None: ...
    def quoted(event: Event, ctx: "Context") -> None: ...  # noqa: UP037
    def anything(event: Event, context: Any) -> None: ...
    def wider(event: Event, where: object) -> None: ...

    for function in (optional, quoted, anything, wider):
        app.step("t")(function)
    assert all(step.takes_context for step in app.steps.values())


class OwnContext(Context):
    pass


def nothing() -> None: ...
def default(event: Event, region: str = "eu") -> None: ...
def untyped_default(event, ctx=None): ...  # type: ignore[no-untyped-def]
def another(event: Event, client: str) -> None: ...
def untyped(event, client): ...  # type: ignore[no-untyped-def]
def narrower(event: Event, ctx: OwnContext) -> None: ...
def any_more(event: Event, *more: Any) -> None: ...
def any_keywords(event: Event, **more: Any) -> None: ...
def anything_at_all(*args: Any, **kwargs: Any) -> None: ...
def unbound(self, event: Event) -> None: ...  # type: ignore[no-untyped-def]
def second_unresolved(event: Event, ctx: Missing) -> None: ...
def too_many(event: Event, ctx: Context, more: int) -> None: ...
def keyword(event: Event, *, key: str) -> None: ...
def generator(event: Event) -> Iterator[int]:
    yield 1


async def async_generator(event: Event) -> AsyncIterator[int]:
    yield 1


def context_first(ctx: Context, event: Event) -> None: ...
def bare_data(event: Payment) -> None: ...
def opaque(event: Event[Opaque]) -> None: ...
def unresolved(event: Event[Missing]) -> None: ...
def wrong_module(event: "msgspec.Nothing") -> None: ...  # noqa: UP037
def no_python(event: "Event[") -> None: ...  # type: ignore[syntax]  # noqa: F722


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (nothing, r"step 'nothing' of workflow 'shop': takes 0 arguments; write \(event\) or \(event, ctx\)"),
        (too_many, "takes 3 arguments"),
        (keyword, r"needs the keyword argument 'key'; write \(event\) or \(event, ctx\)"),
        (default, r"its second parameter `region: .*` is not the context; write .* with ctx: Context; .*functools"),
        (untyped_default, "its second parameter `ctx=None` is not the context"),
        (another, "its second parameter `client: 'str'` is not the context"),
        (untyped, "its second parameter `client` is not the context"),
        (narrower, "its second parameter `ctx: 'OwnContext'` is not the context"),
        (any_more, r"takes \*more.*; write \(event\) or \(event, ctx\).*functools.wraps"),
        (any_keywords, r"takes \*\*more"),
        (anything_at_all, r"takes \*args"),
        (AsyncMock(), r"takes \*args"),
        (unbound, r"inside a class, so its first parameter is 'self'.*OBJECT\.METHOD"),
        (second_unresolved, r"annotation cannot be resolved \(.*Missing"),
        (max, "its parameters cannot be read"),
        (Opaque, "is a class"),
        (classmethod(plain), "classmethod without its class"),
        (functools.partial(generator), "generator.*ctx.publish"),
        (generator, "generator.*ctx.publish"),
        (async_generator, "generator.*ctx.publish"),
        (context_first, r"annotate its first argument as Event or Event\[\.\.\.\]"),
        (bare_data, r"annotate its first argument as Event or Event\[\.\.\.\], not .*Payment"),
        (opaque, "Opaque.*cannot be decoded from JSON"),
        (unresolved, r"annotation cannot be resolved \(.*Missing"),
        (wrong_module, "annotation cannot be resolved"),
        (no_python, "annotation cannot be resolved"),
        (42, "is a int.*function"),
    ],
)
def test_a_function_that_cannot_be_a_step_is_refused(app: Workflow, function: Any, words: str) -> None:
    name = None if isinstance(getattr(function, "__name__", None), str) else "step"
    with pytest.raises(ConfigurationError, match=words):
        app.step("t", name=name)(function)
    assert app.steps == {}


def test_a_batch_step_that_takes_one_event_is_refused(app: Workflow) -> None:
    with pytest.raises(ConfigurationError, match=r"takes list\[Event\[\.\.\.\]\]"):
        app.batch_step("t")(plain)
    with pytest.raises(ConfigurationError, match="first argument"):

        @app.batch_step("t")
        def wrong(events: list[Payment]) -> None: ...


def test_a_lambda_needs_a_name_and_so_does_an_object(app: Workflow) -> None:
    with pytest.raises(ConfigurationError, match="give it a name="):
        app.step("t")(lambda event: None)
    with pytest.raises(ConfigurationError, match="partial has no name; give the step a name="):
        app.step("t")(functools.partial(plain))


async def coroutine_listener(outcome: Any) -> None: ...


@pytest.mark.parametrize("listener", [coroutine_listener, functools.partial(coroutine_listener), nothing, 42])
def test_a_listener_is_a_plain_function_of_one_outcome(app: Workflow, listener: Any) -> None:
    with pytest.raises(ConfigurationError, match="on_outcome: "):
        app.on_outcome(listener)


def test_two_steps_of_one_name_are_refused_and_the_first_stays(app: Workflow) -> None:
    app.step("t")(plain)
    with pytest.raises(ConfigurationError, match="has a step 'plain' already; give one a name="):
        app.step("u")(plain)
    assert app.steps["plain"].type == "t"
    app.step("u", name="second")(plain)
    assert set(app.steps) == {"plain", "second"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Workflow("a.b", store="memory://"), "no dots"),
        (lambda: Workflow("", store="memory://"), "workflow ''"),
        (lambda: Workflow("a", store="memory://", visibility_timeout=0), "visibility_timeout=0"),
        (lambda: Workflow("a", store="memory://", durability="paper"), "durability='paper'"),  # type: ignore[arg-type]
        (lambda: Workflow("a", store="memory://", retention=-1), "retention=-1"),
        (lambda: Workflow("a", store="memory://", max_backlog=-1), "max_backlog=-1"),
        (lambda: Workflow("a", store="memory://", dedup_window=-1), "dedup_window=-1"),
        (lambda: Workflow("a", store="memory://", max_event_bytes=0), "max_event_bytes=0"),
        (lambda: Workflow("a", store="memory://", grace=-1), "grace=-1"),
        (lambda: Workflow("a", store="memory://", timeout=0), "timeout=0"),
    ],
)
def test_a_workflow_that_makes_no_sense_is_refused(make: Callable[[], Workflow], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_settings_of_a_step_are_kept(app: Workflow) -> None:
    retry, breaker = Retry(attempts=2), CircuitBreaker("crm")
    start = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    app.step("t", name="kept", retry=retry, breaker=breaker, timeout=1.5, concurrency=3, start=start)(plain)
    step = app.steps["kept"]
    assert (step.retry, step.breaker, step.timeout, step.concurrency) == (retry, breaker, 1.5, 3)
    assert step.spec.start == 1_767_312_000_000
