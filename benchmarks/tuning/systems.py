"""Simulated runtimes: how the score of a worker depends on four knobs, and what a window of it measures.

Each family is a shape that real runtimes have; a seed draws its constants, the shipped default and the possible gain.
A window measures `value(config) * load(t) * noise(t)`: noise with a coefficient of variation of 15% and AR(1) 0.5, and
a load that swings by 30%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ag06.knob import Knob

Array = np.ndarray
Surface = Callable[[Array], Array]
"""The noise-free score of each row of knob values on the unit cube (log or linear, as the knob says)."""

NOISE = 0.15
CORRELATION = 0.5
SWING = 0.3
LEAST_GAIN, MOST_GAIN = 0.25, 1.5
BOUNDS = (("concurrency", 1, 256), ("batch_size", 1, 512), ("prefetch", 1, 1024), ("wait_ms", 1, 200))


def _range(u: Array, index: int) -> Array:
    """Values of one knob, a real number between its bounds."""
    _, low, high = BOUNDS[index]
    return low * (high / low) ** u[:, index]


def _bump(u: Array, centre: Array, widths: Array) -> Array:
    return np.exp(-0.5 * (((u - centre) / widths) ** 2).sum(axis=1))


def saturation(random: np.random.Generator) -> Surface:
    """Concurrency by the universal scalability law (Gunther 1993): contention, then thrash. The others matter less."""
    contention, crosstalk = random.uniform(0.01, 0.08), 10 ** random.uniform(-4.2, -2.5)
    centre, width = random.uniform(0.3, 0.9, 4), random.uniform(0.5, 0.9, 4)
    width[0] = 1e3

    def value(u: Array) -> Array:
        n = _range(u, 0)
        return n / (1 + contention * (n - 1) + crosstalk * n * (n - 1)) * _bump(u, centre, width)

    return value


def batching(random: np.random.Generator) -> Surface:
    """A cost for each batch is shared by its events, while a batch that waits or grows too long hurts latency."""
    overhead, each = 10 ** random.uniform(0.5, 1.5), 10 ** random.uniform(-1.0, 0.0)
    patience, appetite = random.uniform(30, 120), random.uniform(0.3, 0.8)
    centre, width = random.uniform(0.3, 0.8), random.uniform(0.35, 0.7)

    def value(u: Array) -> Array:
        size = np.minimum(_range(u, 1), 1 + _range(u, 3) * 4)
        took = overhead + each * size
        latency = took + 0.5 * _range(u, 3)
        fetched = 1 - np.exp(-_range(u, 2) / (appetite * size + 4))
        return size / took * np.exp(-latency / patience) * fetched * np.exp(-0.5 * ((u[:, 0] - centre) / width) ** 2)

    return value


def queueing(random: np.random.Generator) -> Surface:
    """M/M/c: too few workers and the response time explodes at the knee, more than enough and each costs."""
    load, cost = random.uniform(6, 30), random.uniform(0.002, 0.01)
    best_batch, best_wait = random.uniform(0.2, 0.7, 2)

    def value(u: Array) -> Array:
        servers = _range(u, 0)
        demand = load * (1 + 1.2 * (u[:, 1] - best_batch) ** 2)
        busy = demand / servers
        # Sakasegawa 1977: the queue of M/M/c without its sums; beyond full, what is refused is lost.
        queue = np.where(busy < 0.97, busy ** np.sqrt(2 * (servers + 1)) / (1 - np.minimum(busy, 0.97)) / servers, 9.0)
        response = 1 + queue + 0.8 * (u[:, 3] - best_wait) ** 2 + 0.4 * np.exp(-3 * u[:, 2])
        return np.minimum(1, 1 / np.maximum(busy, 1e-9)) / response**0.7 / (1 + cost * servers)

    return value


def plateau(random: np.random.Generator) -> Surface:
    """Prefetch helps until the pipe is full, then nothing changes until memory is short."""
    half, short = random.uniform(0.25, 0.5), random.uniform(0.75, 0.95)
    floor = random.uniform(0.25, 0.45)
    centre, width = random.uniform(0.3, 0.8, 4), random.uniform(0.45, 0.9, 4)
    width[2] = 1e3

    def value(u: Array) -> Array:
        full = floor + (1 - floor) / (1 + np.exp(-(u[:, 2] - half) * 14))
        return full / (1 + np.exp((u[:, 2] - short) * 25)) * _bump(u, centre, width)

    return value


def interaction(random: np.random.Generator) -> Surface:
    """What is in flight is concurrency times batch: only their product has an optimum, and the wait must fit it."""
    total, width = random.uniform(0.8, 1.3), random.uniform(0.25, 0.4)
    wait, other = random.uniform(0.4, 0.8, 2)

    def value(u: Array) -> Array:
        product = u[:, 0] + u[:, 1]
        fits = u[:, 3] - wait * product / total
        return np.exp(
            -0.5 * ((product - total) / width) ** 2
            - 0.5 * (fits / 0.45) ** 2
            - 0.5 * ((u[:, 2] - other) / 0.6) ** 2
            - 0.3 * (u[:, 0] - 0.55) ** 2
        )

    return value


def ridge(random: np.random.Generator) -> Surface:
    """A narrow ridge across the knobs: each knob alone only makes it worse."""
    direction = random.normal(size=4)
    direction /= np.linalg.norm(direction)
    centre, along, across = random.uniform(0.35, 0.65, 4), random.uniform(0.45, 0.6), random.uniform(0.16, 0.24)

    def value(u: Array) -> Array:
        off = u - centre
        on = off @ direction
        rest = (off**2).sum(axis=1) - on**2
        return 0.15 + np.exp(-0.5 * (on / along) ** 2 - 0.5 * rest / across**2 / 2)

    return value


def at_a_bound(random: np.random.Generator) -> Surface:
    """More is better up to the end of two knobs (the work is I/O-bound), the rest has a broad optimum."""
    slopes = random.uniform(0.6, 1.6, 2) * random.choice([-1, 1], 2)
    centre, width = random.uniform(0.3, 0.7, 4), random.uniform(0.5, 0.8, 4)
    width[:2] = 1e3

    def value(u: Array) -> Array:
        return np.exp(u[:, 0] * slopes[0] + u[:, 1] * slopes[1]) * _bump(u, centre, width)

    return value


def misleading(random: np.random.Generator) -> Surface:
    """A near hill and a higher one behind a valley."""
    near, width = random.uniform(0.2, 0.4, 4), random.uniform(0.25, 0.35)
    far = near + random.uniform(0.25, 0.45, 4)
    height = random.uniform(0.6, 0.75)

    def value(u: Array) -> Array:
        first = height * np.exp(-0.5 * ((u - near) ** 2).sum(axis=1) / width**2)
        second = np.exp(-0.5 * ((u - far) ** 2).sum(axis=1) / (1.1 * width) ** 2)
        return 0.1 + np.maximum(first, second)

    return value


def threads(random: np.random.Generator) -> Surface:
    """CPU-bound: a step in concurrency at the number of cores, context switches after it; small effects elsewhere."""
    cores = random.integers(4, 33)
    switch, gather = random.uniform(0.1, 0.35), random.uniform(0.2, 0.7)
    best_wait, best_fetch = random.uniform(0.2, 0.8, 2)

    def value(u: Array) -> Array:
        n = _range(u, 0)
        speed = np.minimum(n, cores) ** 0.8 / (1 + switch * np.maximum(0, np.log(n / cores)) ** 2)
        shared = 1 - gather * np.exp(-4 * u[:, 1])
        return speed * shared * np.exp(-0.8 * (u[:, 3] - best_wait) ** 2 - 0.5 * (u[:, 2] - best_fetch) ** 2)

    return value


def cliff(random: np.random.Generator) -> Surface:
    """It gets better towards the edge of what memory holds, and breaks down beyond it."""
    edge, slope = random.uniform(1.5, 2.1), random.uniform(0.8, 1.5)
    weight = random.uniform(0.4, 1.0, 3)
    weight *= 3 / weight.sum()
    best_wait = random.uniform(0.2, 0.8)

    def value(u: Array) -> Array:
        used = u[:, :3] @ weight
        fall = 1 / (1 + np.exp((used - edge) * 14))
        return np.exp(slope * (used - edge)) * (0.1 + 0.9 * fall) * np.exp(-0.8 * (u[:, 3] - best_wait) ** 2)

    return value


def flat(random: np.random.Generator) -> Surface:
    """The bottleneck is elsewhere: nothing helps, nothing hurts much."""
    tilt = random.uniform(-0.01, 0.01, 4)

    def value(u: Array) -> Array:
        return 1 + (u - 0.5) @ tilt

    return value


def at_its_best(random: np.random.Generator) -> Surface:
    """The default is the optimum already, and every move costs."""
    centre, width = random.uniform(0.25, 0.75, 4), random.uniform(0.25, 0.6, 4)

    def value(u: Array) -> Array:
        return 0.1 + _bump(u, centre, width)

    return value


WITH_GAIN: dict[str, Callable[[np.random.Generator], Surface]] = {
    "saturation": saturation,
    "batching": batching,
    "queueing": queueing,
    "plateau": plateau,
    "interaction": interaction,
    "ridge": ridge,
    "at_a_bound": at_a_bound,
    "misleading": misleading,
    "threads": threads,
    "cliff": cliff,
}
WITHOUT_GAIN: dict[str, Callable[[np.random.Generator], Surface]] = {"flat": flat, "at_its_best": at_its_best}
FAMILIES = WITH_GAIN | WITHOUT_GAIN


@dataclass
class System:
    """One runtime: its knobs, what a configuration is truly worth, and what a window of it measures."""

    family: str
    knobs: list[Knob]
    surface: Surface
    best: float
    _random: np.random.Generator
    _load: Callable[[int], float]
    _noise: float = 0.0
    windows: int = 0
    values: list[float] = field(default_factory=list)

    def value(self, config: Mapping[str, float]) -> float:
        """Return the noise-free score of a configuration."""
        at = [math.log(config[name] / low) / math.log(high / low) for name, low, high in BOUNDS]
        return float(self.surface(np.array([at]))[0])

    @property
    def default(self) -> float:
        return self.value({knob.name: knob.default for knob in self.knobs})

    def share(self, config: Mapping[str, float]) -> float:
        """Return the part of the possible gain that a configuration has: 0 at the default, 1 at the optimum."""
        return (self.value(config) - self.default) / (self.best - self.default)

    def measure(self, config: Mapping[str, float]) -> float:
        """Run one window."""
        value = self.value(config)
        self.values.append(value)
        self._noise = CORRELATION * self._noise + math.sqrt(1 - CORRELATION**2) * self._random.normal()
        self.windows += 1
        return value * self._load(self.windows) * math.exp(NOISE * self._noise - NOISE**2 / 2)


def build(family: str, seed: int) -> System:
    """Draw a system of a family; the same seed gives the same system and the same noise."""
    random = np.random.default_rng([seed, sorted(FAMILIES).index(family)])
    while True:
        surface = FAMILIES[family](random)
        best_at, best = _optimum(surface, random)
        start = best_at if family == "at_its_best" else _default(surface, best, random, flat=family == "flat")
        if start is not None:
            break
    knobs = []
    for (name, low, high), at in zip(BOUNDS, start, strict=True):
        default = min(max(round(low * (high / low) ** at), low), high)
        knobs.append(Knob(name, low=low, high=high, default=default, scale="log", integer=True))
    return System(family, knobs, surface, best, random, _swing(random))


def _optimum(surface: Surface, random: np.random.Generator) -> tuple[Array, float]:
    points = random.uniform(size=(4000, len(BOUNDS)))
    at = points[int(np.argmax(surface(points)))]
    width = 0.2
    while width > 1e-3:
        around = np.clip(at + random.normal(scale=width, size=(300, len(BOUNDS))), 0, 1)
        around[0] = at
        at = around[int(np.argmax(surface(around)))]
        width *= 0.75
    return at, float(surface(at[None])[0])


def _default(surface: Surface, best: float, random: np.random.Generator, *, flat: bool) -> Array | None:
    """Draw what a careful author might have shipped: middling knobs that leave a gain, but not the worst place."""
    points = random.uniform(0.15, 0.75, size=(200, len(BOUNDS)))
    gains = best / surface(points) - 1
    fit = points if flat else points[(gains >= LEAST_GAIN) & (gains <= MOST_GAIN)]
    return fit[0] if len(fit) else None


def _swing(random: np.random.Generator) -> Callable[[int], float]:
    """Return the load of each window: a wave, a saw or steps, between 70% and 130%."""
    period, phase, shape = random.uniform(12, 60), random.uniform(0, 1), random.choice(["wave", "wave", "saw", "steps"])

    def load(window: int) -> float:
        turn = (window / period + phase) % 1
        if shape == "wave":
            return 1 + SWING * math.sin(2 * math.pi * turn)
        if shape == "saw":
            return 1 + SWING * (4 * abs(turn - 0.5) - 1)
        return 1 + SWING * (1 if turn < 0.5 else -1)

    return load
