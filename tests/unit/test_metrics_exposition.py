from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from ag06.monitoring.children import Sample
from ag06.monitoring.exemplar import Exemplar
from ag06.monitoring.exposition import OPENMETRICS, PLAIN, Renderer, end, negotiate, sliced, spread
from ag06.monitoring.metrics import Registry
from ag06.monitoring.names import Declaration

PARSERS = {PLAIN: parse_plain, OPENMETRICS: parse_openmetrics}
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def written(registry: Registry, content_type: str) -> str:
    return "".join(Renderer().pieces(registry.read(), content_type)) + end(content_type).decode()


def parsed(text: str, content_type: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in PARSERS[content_type](text)
        for sample in family.samples
    }


@pytest.mark.parametrize("content_type", PARSERS)
def test_a_parser_reads_what_was_counted(content_type: str) -> None:
    registry = Registry()
    registry.counter("orders", 'Orders "taken"\nby\\us', ("shop",)).labels("a").inc(3)
    registry.gauge("depth", "Depth.").labels().set(-2.5)
    registry.gauge("peak", "Peak.", aggregate="max").labels()
    registry.histogram("wait_seconds", "Wait.", ("step",), (0.1, 1)).labels("s").observe(0.5)
    registry.histogram("wait_seconds", "Wait.", ("step",), (0.1, 1)).labels("s").observe(5)
    registry.summary("size", "Size.").labels().observe(64)
    prefix = "ag06_workflow_"
    text = written(registry, content_type)
    assert parsed(text, content_type) == {
        (prefix + "metric_errors_total", ()): 0.0,
        (prefix + "orders_total", (("shop", "a"),)): 3.0,
        (prefix + "depth", ()): -2.5,
        (prefix + "peak", ()): 0.0,
        (prefix + "wait_seconds_bucket", (("le", "0.1"), ("step", "s"))): 0.0,
        (prefix + "wait_seconds_bucket", (("le", "1.0"), ("step", "s"))): 1.0,
        (prefix + "wait_seconds_bucket", (("le", "+Inf"), ("step", "s"))): 2.0,
        (prefix + "wait_seconds_count", (("step", "s"),)): 2.0,
        (prefix + "wait_seconds_sum", (("step", "s"),)): 5.5,
        (prefix + "size_count", ()): 1.0,
        (prefix + "size_sum", ()): 64.0,
    }
    kinds = {family.name: (family.type, family.documentation) for family in PARSERS[content_type](text)}
    assert kinds[prefix + "orders"] == ("counter", 'Orders "taken"\nby\\us')
    assert kinds[prefix + "wait_seconds"] == ("histogram", "Wait.")


@given(st.lists(st.text(), min_size=1, max_size=8, unique=True), st.sampled_from([PLAIN, OPENMETRICS]))
def test_any_text_as_a_label_stays_one_line_and_comes_back_as_it_was(values: list[str], content_type: str) -> None:
    registry = Registry()
    family = registry.counter("c", labels=("a",))
    for number, value in enumerate(values, 1):
        family.labels(value).inc(number)
    text = written(registry, content_type)
    text.encode()
    expected: dict[str, float] = {}
    for number, value in enumerate(values, 1):
        shown = value[:256].encode("utf-8", "replace").decode()
        expected[shown] = expected.get(shown, 0.0) + number
    assert text.count("\n") == len(expected) + 7 + (content_type == OPENMETRICS)
    found = {labels[0][1]: value for (name, labels), value in parsed(text, content_type).items() if labels}
    assert found == expected


def test_a_lone_surrogate_and_an_endless_label_can_still_be_written() -> None:
    registry = Registry()
    family = registry.counter("c", labels=("a",))
    family.labels("\ud800").inc()
    family.labels("x" * 10_000).inc()
    text = written(registry, PLAIN).encode().decode()
    assert '{a="?"} 1.0' in text
    assert f'{{a="{"x" * 256}"}} 1.0' in text


def test_openmetrics_carries_the_latest_exemplar_of_each_bucket() -> None:
    registry = Registry()
    child = registry.histogram("wait_seconds", "W.", buckets=(1, 2), exemplars=True).labels()
    child.observe_traced(0.5, "ab" * 16, "cd" * 8, clock=lambda: 1_000.0)
    child.observe_traced(0.7, "12" * 16, "34" * 8, clock=lambda: 2_000.5)
    child.observe_traced(9.0, "ef" * 16, "56" * 8, clock=lambda: 3_000.0)
    child.observe(1.5)
    text = written(registry, OPENMETRICS)
    found = {
        sample.labels["le"]: sample.exemplar
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    assert found["1.0"].labels == {"trace_id": "12" * 16, "span_id": "34" * 8}
    assert (found["1.0"].value, float(found["1.0"].timestamp)) == (0.7, 2_000.5)
    assert found["2.0"] is None
    assert found["+Inf"].labels["trace_id"] == "ef" * 16
    assert "trace_id" not in written(registry, PLAIN)


def test_an_exemplar_that_was_written_in_part_is_not_shown() -> None:
    child = Registry().histogram("h", buckets=(1,), exemplars=True).labels()
    child.observe_traced(0.5, "ab" * 16, "cd" * 8, clock=lambda: 1_000.0)
    assert child.sample().exemplars == (Exemplar(0.5, 1_000.0, "ab" * 16, "cd" * 8), None)
    record = child._cells.cast("B")[(child._slot + child._declaration.numbers) * 8 :][:48]
    for index in range(48):
        record[index] ^= 1
        if not 4 <= index < 8:  # these say that something was written at all
            assert child.sample().exemplars == (None, None)
        record[index] ^= 1
    assert child.sample().exemplars[0] is not None
    record[:8] = bytes(8)
    assert child.sample().exemplars == (None, None)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain", PLAIN),
        ("application/json", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.5", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text;q=nonsense", PLAIN),
        ("APPLICATION/OpenMetrics-Text", OPENMETRICS),
        (",;,;q=1", PLAIN),
    ],
)
def test_the_format_is_the_one_that_the_scraper_prefers(accept: str | None, expected: str) -> None:
    assert negotiate(accept) == expected


class Clock:
    """Each look at it is a step later."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


async def test_others_get_their_turn_after_each_slice_of_an_exposition() -> None:
    registry = Registry()
    family = registry.counter("c", labels=("a",))
    for number in range(500):
        family.labels(number).inc()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    pieces = list(Renderer().pieces(registry.read()))
    parts = [part async for part in sliced(pieces, Clock(0.000_26))]
    task.cancel()
    assert b"".join(parts).decode() == "".join(pieces)
    assert len(parts) > 100
    assert turns >= len(parts) - 1


async def test_work_that_is_given_up_is_closed() -> None:
    closed = asyncio.Event()

    def work() -> Iterator[None]:
        try:
            while True:
                yield
        finally:
            closed.set()

    task = asyncio.create_task(spread(work(), Clock(1.0)))  # type: ignore[arg-type, var-annotated]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


def test_a_gauge_nobody_has_set_is_shown_as_0() -> None:
    declaration = Declaration("g", "gauge", "G.", aggregate="min")
    text = "".join(Renderer().pieces([(declaration, [Sample((), [math.inf])])]))
    assert text.endswith("\ng 0.0\n")
