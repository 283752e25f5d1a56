"""What a metric and its labels may be called: the data model of Prometheus, and this project's prefix and suffixes.

Rules: https://prometheus.io/docs/concepts/data_model/ and https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from ag06.errors import InvalidMetric

Kind = Literal["counter", "gauge", "histogram", "summary"]
Aggregate = Literal["sum", "max", "min"]

PREFIX = "ag06_workflow_"
DROPPED = ("_total", "_seconds", "_milliseconds")
"""The suffixes that a short name of a metric of the project leaves out."""
OTHER = "other"
"""The value that every label takes once a metric has as many label sets as it may have."""
MOST_BUCKETS = 100
MOST_LABELS = 10
LONGEST_NAME = 200
LONGEST_VALUE = 256

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TAKEN = ("_total", "_bucket", "_count", "_sum", "_created", "_info")
"""What the sample names of counters, histograms and summaries end in; another metric must not look like one of them."""
_EXEMPLAR_SLOTS = 6


class Declaration(msgspec.Struct, frozen=True):
    """What a metric is: its full name (with `_total` for a counter), its kind, what it means, how it is merged.

    `aggregate` says what the gauges of several processes come to. `buckets` are upper bounds, without infinity.
    With `exemplars`, each bucket remembers the trace of a value that fell into it.
    """

    name: str
    kind: Kind
    help: str = ""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    aggregate: Aggregate = "sum"
    exemplars: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers one label set has: a histogram its sum and one count a bucket, a summary count and sum."""
        return {"counter": 1, "gauge": 1, "summary": 2, "histogram": len(self.buckets) + 2}[self.kind]

    @property
    def width(self) -> int:
        """How many slots one label set takes: its numbers, and the exemplars of a histogram behind them."""
        return self.numbers + (_EXEMPLAR_SLOTS * (len(self.buckets) + 1) if self.exemplars else 0)

    @property
    def family(self) -> str:
        """The name without what a counter's samples add to it."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name

    def same_as(self, other: Declaration) -> bool:
        """Whether numbers of both may be added up: everything is equal but the wording of the help."""
        return msgspec.structs.replace(self, help="") == msgspec.structs.replace(other, help="")


def full_name(short: str, kind: Kind) -> str:
    """Return the name that a metric called `short` is exposed by; a full name stays as it is."""
    name = short if short.startswith(PREFIX) else PREFIX + short
    return name + "_total" if kind == "counter" and not name.endswith("_total") else name


def aliases(declaration: Declaration) -> tuple[str, ...]:
    """Return what a metric of the project may be called for short, besides its full name."""
    plain = declaration.name.removeprefix(PREFIX)
    return tuple({plain, *(plain.removesuffix(suffix) for suffix in DROPPED)})


def check_declaration(declaration: Declaration, most_buckets: int = MOST_BUCKETS) -> None:
    """Raise `InvalidMetric` unless Prometheus can take the metric as it is declared."""
    name, kind = declaration.name, declaration.kind
    nameless = not name.removeprefix(PREFIX).removesuffix("_total").strip("_")
    if nameless or not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise InvalidMetric(
            name, f"a name has letters, digits and _, does not start with a digit, at most {LONGEST_NAME}"
        )
    if kind != "counter":
        for suffix in _TAKEN:
            if name.endswith(suffix):
                raise InvalidMetric(name, f"the name of a {kind} must not end in {suffix}; choose another name")
    if declaration.aggregate not in ("sum", "max", "min"):
        raise InvalidMetric(name, f"aggregate={declaration.aggregate!r}: 'sum', 'max' or 'min'")
    _check_labels(declaration)
    if kind == "histogram":
        _check_buckets(name, declaration.buckets, most_buckets)


def _check_labels(declaration: Declaration) -> None:
    name, labels = declaration.name, declaration.labels
    reserved = {"histogram": "le", "summary": "quantile"}.get(declaration.kind)
    for label in labels:
        if not isinstance(label, str) or not _NAME.fullmatch(label) or len(label) > LONGEST_NAME:
            raise InvalidMetric(name, f"label {label!r}: letters, digits and _, not starting with a digit")
        if label.startswith("__") or label == reserved:
            raise InvalidMetric(name, f"label {label!r} is reserved by Prometheus; choose another name")
    if len(set(labels)) != len(labels):
        raise InvalidMetric(name, f"labels {labels!r}: one is there twice")
    if len(labels) > MOST_LABELS:
        raise InvalidMetric(name, f"{len(labels)} labels; at most {MOST_LABELS}")


def _check_buckets(name: str, buckets: Sequence[float], most: int) -> None:
    if not 1 <= len(buckets) <= most:
        raise InvalidMetric(name, f"{len(buckets)} buckets; 1 to {most}")
    if not all(math.isfinite(bound) for bound in buckets) or any(low >= high for low, high in pairwise(buckets)):
        raise InvalidMetric(name, f"buckets {tuple(buckets)!r}: finite upper bounds, each above the one before")


def label_values(declaration: Declaration, labels: Mapping[str, object]) -> tuple[str, ...]:
    """Return the values of exactly the declared labels, in order; raise `InvalidMetric` for more or fewer."""
    if labels.keys() != set(declaration.labels):
        raise InvalidMetric(
            declaration.name,
            f"labels {sorted(map(str, labels))} were given; it has {sorted(declaration.labels) or 'none'}",
        )
    return tuple(clean_value(labels[label]) for label in declaration.labels)


def clean_value(value: object) -> str:
    """Return a label's value as text that can be written as UTF-8, cut to `LONGEST_VALUE` characters."""
    return str(value)[:LONGEST_VALUE].encode("utf-8", "replace").decode()
