"""The registry of metrics: families by name, and the label sets of each, in bounds."""

from __future__ import annotations

import logging
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar, cast

from ag06.errors import InvalidMetric
from ag06.monitoring.children import Child, Counter, Gauge, Histogram, Sample, Summary
from ag06.monitoring.names import (
    MOST_BUCKETS,
    OTHER,
    PREFIX,
    Aggregate,
    Declaration,
    Kind,
    aliases,
    check_declaration,
    clean_value,
    full_name,
    label_values,
)
from ag06.monitoring.values import Place, Slots

_logger = logging.getLogger("ag06.monitoring")

MOST_CHILDREN = 1_000
"""How many label sets a metric may have; what comes later is counted under `other`."""
MOST_FAMILIES = 1_000
MOST_WARNINGS = 100
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The buckets of a histogram that declares none."""

C = TypeVar("C", bound=Child)
Reading: TypeAlias = Iterable[tuple[Declaration, Iterable[Sample]]]
"""Every metric with its label sets, at one moment."""

_CHILDREN: dict[Kind, type[Child]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram, "summary": Summary}


class Home(Protocol):
    """Where the numbers of a registry live."""

    def place(self, declaration: Declaration, labels: tuple[str, ...]) -> Place:
        """Return slots, all zero, for one label set."""

    def fresh(self) -> Home:
        """Return the home of a process that was just forked off."""


class Memory:
    """Numbers in the memory of this process."""

    def __init__(self) -> None:
        """Start empty."""
        self._slots = Slots()

    def place(self, declaration: Declaration, labels: tuple[str, ...]) -> Place:
        """Return slots, all zero, for one label set."""
        return self._slots.take(declaration.width)

    def fresh(self) -> Home:
        """Return the home of a process that was just forked off."""
        return Memory()


class Family(Generic[C]):
    """One metric with all its label sets."""

    def __init__(self, declaration: Declaration, registry: Registry, home: Home) -> None:
        """Made by `Registry`."""
        self.declaration = declaration
        self._registry = registry
        self._home = home
        self._children: dict[tuple[str, ...], C] = {}
        self._lost: C | None = None
        self._overflowing = False

    def labels_of(self, labels: Mapping[str, object]) -> C:
        """Return the child of these labels."""
        return self._child((), labels)

    def labels(self, /, *values: object, **named: object) -> C:
        """Return the child of these label values, in order or by name; made at the first call. Keep it."""
        if not named:
            try:
                child = self._children.get(cast("tuple[str, ...]", values))
            except TypeError:  # a value that cannot be hashed can still be written
                child = None
            if child is not None:
                return child
        return self._child(values, named)

    def _child(self, values: Sequence[object], named: Mapping[str, object]) -> C:
        try:
            key = self._key(values, named)
        except InvalidMetric as error:
            self._registry.refuse(error.metric, error.problem)
            self._lost = self._lost or self._make((), Memory())
            return self._lost
        return self._children.get(key) or self._add(key)

    def _key(self, values: Sequence[object], named: Mapping[str, object]) -> tuple[str, ...]:
        if named and not values:
            return label_values(self.declaration, named)
        if named or len(values) != len(self.declaration.labels):
            expected = ", ".join(self.declaration.labels) or "none"
            raise InvalidMetric(self.declaration.name, f"labels {values!r} {named or ''}; it has {expected}")
        return tuple(clean_value(value) for value in values)

    def _add(self, key: tuple[str, ...]) -> C:
        other = (OTHER,) * len(key)
        with self._registry.lock:
            overflowing = key not in self._children and key != other and len(self._children) >= MOST_CHILDREN
            if overflowing:
                key = other
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = self._make(key, self._home)
        if overflowing:
            self._overflow()
        return child

    def _make(self, key: tuple[str, ...], home: Home) -> C:
        kind = cast("type[C]", _CHILDREN[self.declaration.kind])
        return kind(self.declaration, key, home.place(self.declaration, key), self._registry.refuse)

    def _overflow(self) -> None:
        if not self._overflowing:
            self._overflowing = True
            _logger.warning(
                "metric %s has %d label sets, as many as it may: further ones are counted as %r; "
                "a label is for what has few values, an id belongs into the log",
                self.declaration.name,
                MOST_CHILDREN,
                OTHER,
            )
        self._registry.overflow.labels(self.declaration.name).inc()

    def samples(self) -> Iterator[Sample]:
        """Return the numbers of each label set as they are now, one after the other."""
        return (child.sample() for child in list(self._children.values()))

    def move(self, home: Home, *, keep: bool) -> None:
        """Let every child count in another home, and those to come."""
        self._home = home
        for key, child in self._children.items():
            child.move(home.place(self.declaration, key), keep=keep)


class Registry:
    """Every metric of a process.

    Attributes:
        strict: whether a mistake raises `InvalidMetric`, or is counted in `metric_errors_total`, with a
            warning a metric.
        overflow: counts, by metric, how often a label set was one too many.
    """

    def __init__(self, home: Home | None = None, *, strict: bool = True, most_buckets: int = MOST_BUCKETS) -> None:
        """Keep the numbers in `home`, or in memory; a histogram has at most so many buckets."""
        self._most_buckets = most_buckets
        self.strict = strict
        self.lock = threading.RLock()
        self._home = home or Memory()
        self._families: dict[str, Family[Child]] = {}
        self._names: dict[str, Family[Child]] = {}
        self._warned: set[str] = set()
        self._errors = self.counter("metric_errors", "Mistakes in the use of metrics that were not raised.").labels()
        self.overflow = self.counter(
            "label_overflow", "Label sets counted as 'other': the metric had too many.", ("metric",)
        )
        _registries.add(self)

    def counter(self, name: str, help: str = "", labels: Sequence[str] = ()) -> Family[Counter]:  # noqa: A002 - its name
        """Return the counter `name`, made if need be; `_total` is added."""
        return cast("Family[Counter]", self.register(_declare(name, "counter", help, labels)))

    def gauge(
        self,
        name: str,
        help: str = "",  # noqa: A002 - its name in Prometheus
        labels: Sequence[str] = (),
        aggregate: Aggregate = "sum",
    ) -> Family[Gauge]:
        """Return the gauge `name`, made if need be; `aggregate` says what those of several processes come to."""
        return cast("Family[Gauge]", self.register(_declare(name, "gauge", help, labels, aggregate=aggregate)))

    def histogram(
        self,
        name: str,
        help: str = "",  # noqa: A002 - its name in Prometheus
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS,
        *,
        exemplars: bool = False,
    ) -> Family[Histogram]:
        """Return the histogram `name`, made if need be; `buckets` are upper bounds in the unit of its name."""
        try:
            bounds = tuple(float(bound) for bound in buckets)
        except (TypeError, ValueError):
            bounds = (math.nan,)  # refused with the others that make no sense
        declaration = _declare(name, "histogram", help, labels, buckets=bounds, exemplars=exemplars)
        return cast("Family[Histogram]", self.register(declaration))

    def summary(self, name: str, help: str = "", labels: Sequence[str] = ()) -> Family[Summary]:  # noqa: A002 - its name
        """Return the summary `name`, made if need be."""
        return cast("Family[Summary]", self.register(_declare(name, "summary", help, labels)))

    def register(self, declaration: Declaration) -> Family[Child]:
        """Return the family of a declaration, made if need be.

        A wrong one, or one that contradicts a metric of that name, is refused: it raises `InvalidMetric`, or, where
        the registry is not strict, what is returned counts for nobody.
        """
        try:
            check_declaration(declaration, self._most_buckets)
            with self.lock:
                return self._known(declaration) or self._add(declaration)
        except InvalidMetric as error:
            self.refuse(error.metric, error.problem)
            return Family(declaration, self, Memory())

    def _known(self, declaration: Declaration) -> Family[Child] | None:
        family = self._families.get(declaration.family)
        if family is None or family.declaration.same_as(declaration):
            return family
        known = family.declaration
        if known.kind != declaration.kind:
            raise InvalidMetric(
                declaration.name, f"is a {known.kind} already and cannot be a {declaration.kind} as well"
            )
        raise InvalidMetric(
            declaration.name,
            f"exists with labels {known.labels}, buckets {known.buckets}, aggregate {known.aggregate!r}; "
            "declare it once, or the same each time",
        )

    def _add(self, declaration: Declaration) -> Family[Child]:
        if len(self._families) >= MOST_FAMILIES:
            raise InvalidMetric(declaration.name, f"there are {MOST_FAMILIES} metrics; use one metric with labels")
        plain = declaration.name.removeprefix(PREFIX)
        names = (declaration.name, plain, plain.removesuffix("_total"))
        for name in names:
            if name in self._names:
                taken = self._names[name].declaration.name
                raise InvalidMetric(declaration.name, f"{name} is how {taken} is called; choose another name")
        family: Family[Child] = Family(declaration, self, self._home)
        self._families[declaration.family] = family
        self._names.update(dict.fromkeys(names, family))
        return family

    def shorten(self, families: Iterable[Family[Child]]) -> None:
        """Let the project's own `families` be found without their units as well."""
        for family in families:
            for name in aliases(family.declaration):
                self._names.setdefault(name, family)

    def find(self, name: str) -> Family[Child] | None:
        """Return the metric that is called `name`, in short or in full."""
        return self._names.get(name)

    def use(self, name: str, kind: Kind, labels: Iterable[str]) -> Family[Child]:
        """Return the metric called `name`, declared by this use if there is none; a use as another kind is refused."""
        if not isinstance(name, str):
            self.refuse(f"{PREFIX}{name}", f"name {name!r} is not a string")
            return Family(_declare(str(name), kind, "", sorted(labels, key=str)), self, Memory())
        family = self.find(name)
        if family is None:
            used_as = f"Declared by its first use, as a {kind}."
            buckets = SECONDS if kind == "histogram" else ()
            return self.register(_declare(name, kind, used_as, sorted(labels, key=str), buckets=buckets))
        known = family.declaration
        if known.kind == kind:
            return family
        self.refuse(known.name, f"is a {known.kind} and was used as a {kind}")
        return Family(_declare(name, kind, "", sorted(labels, key=str)), self, Memory())

    def families(self) -> list[Family[Child]]:
        """Return every metric in the order of registration."""
        return list(self._families.values())

    def read(self) -> Iterator[tuple[Declaration, Iterable[Sample]]]:
        """Return every metric with its numbers; they are read when they are asked for."""
        return ((family.declaration, family.samples()) for family in self.families())

    def refuse(self, metric: str, problem: str) -> None:
        """Raise `InvalidMetric`; or, where the registry is not strict, count it and warn once a metric."""
        if self.strict:
            raise InvalidMetric(metric, problem)
        self._errors.inc()
        if metric not in self._warned and len(self._warned) < MOST_WARNINGS:
            self._warned.add(metric)
            _logger.warning("metric %s: %s; not counted", metric, problem)

    def move(self, home: Home, *, keep: bool) -> None:
        """Keep the numbers in another home from now on; without `keep` they start from zero."""
        with self.lock:
            self._home = home
            for family in self._families.values():
                family.move(home, keep=keep)

    def after_fork(self) -> None:
        """Begin a life of its own in a child process: what the parent counted is the parent's."""
        self.lock = threading.RLock()
        self.move(self._home.fresh(), keep=False)


def _declare(
    name: str,
    kind: Kind,
    help: str,  # noqa: A002 - its name in Prometheus
    labels: Sequence[str],
    *,
    buckets: tuple[float, ...] = (),
    aggregate: Aggregate = "sum",
    exemplars: bool = False,
) -> Declaration:
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    return Declaration(full_name(name, kind), kind, help, names, buckets, aggregate, exemplars)


_registries: weakref.WeakSet[Registry] = weakref.WeakSet()


def _after_fork() -> None:
    for registry in list(_registries):
        registry.after_fork()


os.register_at_fork(after_in_child=_after_fork)
