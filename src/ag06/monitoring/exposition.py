"""Metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0 with exemplars, whole or in slices.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar, cast

from ag06.monitoring.children import Sample
from ag06.monitoring.exemplar import Exemplar
from ag06.monitoring.metrics import Reading
from ag06.monitoring.names import Declaration

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
SLICE_SECONDS = 0.001
"""How long the event loop is held at most before others get their turn."""


def negotiate(accept: str | None) -> str:
    """Return `OPENMETRICS` where an HTTP `Accept` header prefers it to plain text, else `PLAIN` (RFC 9110, 12.5.1)."""
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in (accept or "").split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        if media in weights:
            weights[media] = max(weights[media], _weight(parameters))
    openmetrics, plain = weights.values()
    return OPENMETRICS if openmetrics > 0 and openmetrics >= plain else PLAIN


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


class Renderer:
    """Writes metrics as text. It keeps what does not change between scrapes: the names and labels of each line."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._heads: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def pieces(self, reading: Reading, content_type: str = PLAIN) -> Iterator[str]:
        """Return the text in pieces: the head of each metric, then each of its label sets."""
        openmetrics = content_type == OPENMETRICS
        for declaration, samples in reading:
            name = declaration.family if openmetrics else declaration.name
            yield f"# HELP {name} {_escape(declaration.help, quotes=openmetrics)}\n# TYPE {name} {declaration.kind}\n"
            for sample in samples:
                yield self._lines(declaration, sample, openmetrics=openmetrics)

    def _lines(self, declaration: Declaration, sample: Sample, *, openmetrics: bool) -> str:
        key = (declaration.name, sample.labels)
        heads = self._heads.get(key)
        if heads is None:
            heads = self._heads[key] = _heads(declaration, sample.labels)
        values = _values(declaration, sample.numbers)
        if openmetrics and any(sample.exemplars):
            tails = [*map(_exemplar, sample.exemplars), "", ""]
            return "".join([f"{head}{value!r}{tail}\n" for head, value, tail in zip(heads, values, tails, strict=True)])
        return "".join([f"{head}{value!r}\n" for head, value in zip(heads, values, strict=True)])


def _heads(declaration: Declaration, labels: Sequence[str]) -> tuple[str, ...]:
    """Return what stands before the value in each line of a label set."""
    name = declaration.name
    pairs = [f'{label}="{_escape(value)}"' for label, value in zip(declaration.labels, labels, strict=True)]
    plain = "{" + ",".join(pairs) + "} " if pairs else " "
    if declaration.kind == "histogram":
        bounds = [*map(repr, declaration.buckets), "+Inf"]
        buckets = [name + "_bucket{" + ",".join([*pairs, f'le="{bound}"']) + "} " for bound in bounds]
        return (*buckets, f"{name}_count{plain}", f"{name}_sum{plain}")
    if declaration.kind == "summary":
        return (f"{name}_count{plain}", f"{name}_sum{plain}")
    return (name + plain,)


def _values(declaration: Declaration, numbers: Sequence[float]) -> Sequence[float]:
    """Return the value of each line of a label set."""
    if declaration.kind == "histogram":
        buckets = list(accumulate(numbers[1:]))
        return [*buckets, buckets[-1], numbers[0]]
    if declaration.kind == "gauge" and not math.isfinite(numbers[0]):
        return (0.0,)  # nobody has set it
    return numbers


def _exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    ids = f'trace_id="{exemplar.trace_id}",span_id="{exemplar.span_id}"'
    return f" # {{{ids}}} {exemplar.value!r} {exemplar.time:.3f}"


def _escape(text: str, *, quotes: bool = True) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def end(content_type: str) -> bytes:
    """Return what stands at the end of an exposition."""
    return b"# EOF\n" if content_type == OPENMETRICS else b""


async def sliced(pieces: Iterable[str], clock: Callable[[], float] = time.perf_counter) -> AsyncIterator[bytes]:
    """Return the text in parts, and give the event loop to others after each `SLICE_SECONDS` of work."""
    part: list[str] = []
    until = clock() + SLICE_SECONDS
    for piece in pieces:
        part.append(piece)
        if clock() >= until:
            yield "".join(part).encode()
            part = []
            await asyncio.sleep(0)
            until = clock() + SLICE_SECONDS
    yield "".join(part).encode()


T = TypeVar("T")


def finished(work: Generator[None, None, T]) -> T:
    """Return what `work` comes to, in one go."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return cast("T", end.value)


async def spread(work: Generator[None, None, T], clock: Callable[[], float] = time.perf_counter) -> T:
    """Return what `work` comes to, and give the event loop to others after each `SLICE_SECONDS` of it."""
    until = clock() + SLICE_SECONDS
    with contextlib.closing(work):
        while True:
            try:
                next(work)
            except StopIteration as end:
                return cast("T", end.value)
            if clock() >= until:
                await asyncio.sleep(0)
                until = clock() + SLICE_SECONDS


def snapshot(reading: Reading) -> dict[str, Any]:
    """Return `{name: value}` of a reading in one go."""
    return finished(by_name(reading))


def by_name(reading: Reading) -> Generator[None, None, dict[str, Any]]:
    """Come to `{name: value}`, with the labels in the name as Prometheus writes them where there are any.

    A histogram's value is `{count, sum, mean, buckets: {upper bound: count so far}}`, a summary's `{count, sum, mean}`.
    """
    result: dict[str, Any] = {}
    for declaration, samples in reading:
        for sample in samples:
            pairs = zip(declaration.labels, sample.labels, strict=True)
            labels = ",".join(f'{label}="{_escape(value)}"' for label, value in pairs)
            result[declaration.name + (f"{{{labels}}}" if labels else "")] = _summed_up(declaration, sample)
            yield
    return result


def _summed_up(declaration: Declaration, sample: Sample) -> Any:
    values = _values(declaration, sample.numbers)
    if declaration.kind in {"counter", "gauge"}:
        return values[0]
    count, total = values[-2:]
    result: dict[str, Any] = {"count": int(count), "sum": total, "mean": total / count if count else 0.0}
    if declaration.kind == "histogram":
        bounds = [*map(repr, declaration.buckets), "+Inf"]
        result["buckets"] = {bound: int(value) for bound, value in zip(bounds, values, strict=False)}
    return result
