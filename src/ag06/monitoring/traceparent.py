"""W3C Trace Context (https://www.w3.org/TR/trace-context-2/): `traceparent` read and made, and the one that holds here.

Nothing else is needed for this: every event belongs to a trace, whether anybody records traces or not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextvars import ContextVar

import msgspec

MOST_LINKS = 128
"""As many links as a span of OpenTelemetry's SDK has unless told otherwise."""
_PATTERN = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\r\n]*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = 0x01
_ODD = frozenset("13579bdf")
_DRAWN = 256
_BYTES = 24


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """Where in which trace something happens: ids in lower-case hexadecimal (32 and 16 digits), and the flags."""

    trace_id: str
    span_id: str
    flags: int = 0

    @property
    def sampled(self) -> bool:
        """Whether somebody records this trace."""
        return bool(self.flags & _SAMPLED)


def parse(text: str | None) -> TraceContext | None:
    """Return what a `traceparent` says, `None` if it is not a valid one (sections 3.2 and 4.3).

    Of a later version that is read which this one knows.
    """
    found = None if text is None else _PATTERN.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, int(flags, 16))


def format_traceparent(trace_id: str, span_id: str, flags: int = 0) -> str:
    """Return the `traceparent` (version 00) of a span."""
    return f"00-{trace_id}-{span_id}-{flags & 0xFF:02x}"


def is_sampled(text: str | None) -> bool:
    """Whether the flag of a `traceparent` says that its trace is recorded; of one that is none, it may say so too."""
    return text is not None and text[54:55] in _ODD


_current: ContextVar[str | None] = ContextVar("ag06_traceparent", default=None)

current = _current.get
"""Return the `traceparent` of what runs here, as it was bound; `None` outside of any trace."""
bind = _current.set
"""Say which `traceparent` holds from here on, over `await`, tasks and `to_thread`; returns what `unbind` takes."""
unbind = _current.reset
"""End what `bind` began, in the same task."""


def current_ids() -> tuple[str, str] | None:
    """Return the ids of the trace and of the span that this code runs in; for log lines."""
    context = parse(_current.get())
    return None if context is None else (context.trace_id, context.span_id)


def bound_of(ratio: float) -> int:
    """Return the number that the last 64 bits of a trace's id stay below if it is sampled (OpenTelemetry's ratio)."""
    return round(ratio * (1 << 64))


class TraceIds:
    """Makes the ids of new traces, and decides with each whether its trace is recorded: a share of `ratio` is.

    The decision is a function of the id (`bound_of`), so that others who sample by it decide the same. Randomness is
    drawn from the system for many ids at a time, and thrown away after a fork. May be used by several threads.
    """

    def __init__(self, ratio: float = 0.0, entropy: Callable[[int], bytes] = os.urandom) -> None:
        """Take the share of traces to record, 0 to 1, and the source of random bytes."""
        self._bound = bound_of(ratio)
        self._entropy = entropy
        self._traces: list[str] = []

    def forget(self) -> None:
        """Drop prefetched randomness: two processes after a fork must not share it."""
        self._traces = []

    def new_trace(self) -> str:
        """Return the `traceparent` of a new trace; its flag says whether to record it."""
        try:
            return self._traces.pop()
        except IndexError:
            drawn = self._draw()
            last = drawn.pop()
            self._traces = drawn
            return last

    def sampled_trace(self) -> str | None:
        """Return the `traceparent` of a new trace that is recorded whatever chance says; `None` if none ever is."""
        if not self._bound:
            return None
        trace = self.new_trace()
        low = int(trace[19:35], 16) * self._bound >> 64  # as evenly spread below the bound as it was before
        return f"{trace[:19]}{low:016x}{trace[35:53]}01"

    def _draw(self) -> list[str]:
        bound, traces = self._bound, list[str]()
        while not traces:
            digits = self._entropy(_DRAWN * _BYTES).hex()
            for at in range(0, len(digits), 2 * _BYTES):
                trace_id, span_id = digits[at : at + 32], digits[at + 32 : at + 48]
                if trace_id != _NO_TRACE and span_id != _NO_SPAN:
                    flag = "01" if bound and int(trace_id[16:], 16) < bound else "00"
                    traces.append(f"00-{trace_id}-{span_id}-{flag}")
        return traces


class SpanIds:
    """Makes ids of spans: 16 hexadecimal digits, never all zero; drawn as `TraceIds` draws."""

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        """Take the source of random bytes."""
        self._entropy = entropy
        self._spans: list[str] = []

    def forget(self) -> None:
        """Drop prefetched randomness."""
        self._spans = []

    def __call__(self) -> str:
        """Return a new id."""
        try:
            return self._spans.pop()
        except IndexError:
            drawn: list[str] = []
            while not drawn:
                digits = self._entropy(_DRAWN * 8).hex()
                drawn = [digits[at : at + 16] for at in range(0, len(digits), 16) if digits[at : at + 16] != _NO_SPAN]
            last = drawn.pop()
            self._spans = drawn
            return last


new_span_id = SpanIds()
os.register_at_fork(after_in_child=new_span_id.forget)


def child(text: str, span_id: Callable[[], str] = new_span_id) -> str | None:
    """Return the `traceparent` of a new span within the trace of `text`, flags kept; `None` if that is no valid one."""
    context = parse(text)
    return None if context is None else format_traceparent(context.trace_id, span_id(), context.flags)
