"""Proposes configurations window by window, learns from their scores, and says which one it would run now."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from random import Random
from typing import Any

import msgspec

from ag06.errors import ConfigurationError, InvalidMetric
from ag06.knob import Knob
from ag06.ml.scores import SCALES, Scale, levelled
from ag06.ml.search import Search, Window
from ag06.ml.space import Config, Position, Space, described
from ag06.ml.spsa import SpsaSearch

REMEMBERED = 150
"""The windows that count; older ones are forgotten, which bounds the time and the memory of a step."""
LARGEST = 1e150
"""Scores beyond it are not usable: their differences would not be finite."""
_VERSION = 1


class _Told(msgspec.Struct, frozen=True):
    number: int
    position: Position
    score: float
    asked: bool


class Prediction(msgspec.Struct, frozen=True):
    """What a configuration is expected to do beside another.

    Attributes:
        effect: the difference of their scores on the tuner's scale: 0.1 is about 10% better, whatever the unit.
        deviation: the standard deviation of that, which noise and too few windows leave.
        confidence: the probability that it is better at all, 0 to 1.
    """

    effect: float
    deviation: float
    confidence: float


class Tuner:
    """Moves knobs towards better scores with care: most windows run what is about as good as the default or better.

    A Gaussian process over configuration and time (`ag06.ml.gaussian_search`) where scikit-learn is installed, else
    simultaneous perturbation (`ag06.ml.spsa`, Spall 1992). Scores may be noisy and may drift with the load: the default
    and the best run again now and then as controls. A change of regime is noticed, and it begins to explore again.

    Not for several threads at once. `ask` and `tell` take some milliseconds each.

    Args:
        knobs: what may be moved.
        seed: what is drawn follows from it and from what was told.
        pinned: the values of knobs that must not move, by name; or the names of those that stay at their default.
        scale: what a difference of scores means, see `ag06.ml.scores.levelled`.
        surrogate: whether to use scikit-learn; `None`: where it can be imported.
    """

    def __init__(
        self,
        knobs: Sequence[Knob],
        seed: int | str = 0,
        *,
        pinned: Mapping[str, Any] | Collection[str] = (),
        scale: Scale = "auto",
        surrogate: bool | None = None,
    ) -> None:
        """Begin with the defaults; raises `ConfigurationError` for what makes no sense."""
        if scale not in SCALES:
            raise ConfigurationError(f"tuner: scale={scale!r}; use one of {', '.join(SCALES)}")
        if isinstance(seed, bool) or not isinstance(seed, (int, str)):
            raise ConfigurationError(f"tuner: seed={seed!r}; use a whole number or a text")
        self._space = Space(knobs, pinned)
        self._seed = seed
        self._scale: Scale = scale
        self._told: list[_Told] = []
        self._count = 0
        self._asked: Config | None = None
        self._resting = False
        self._surrogate = surrogate
        self._search = _search(self._space, surrogate)
        self.skipped = 0
        """How many windows measured nothing."""
        self.regimes = 1
        """How many regimes there were; each begins to explore again."""

    @property
    def windows(self) -> int:
        """How many windows were told."""
        return self._count

    @property
    def best(self) -> Config:
        """The configuration it would run now; the defaults until something beat them by more than chance."""
        return self._space.decode(self._search.best)

    def ask(self) -> Config:
        """Return what to run in the next window; asked again before `tell`, the same."""
        if self._asked is None:
            random = Random(f"{self._seed}:{self._count}:{self.skipped}")  # noqa: S311 - nothing secret is drawn
            self._asked = self._space.decode(self._search.ask(self._windows(), random))
        return dict(self._asked)

    def tell(self, config: Mapping[str, Any], score: float) -> None:
        """Take what a window of `config` scored, higher is better; it need not be what was asked.

        Raises `ConfigurationError` for a knob that is unknown, missing or out of bounds, and its `InvalidMetric` for a
        score that is no finite number; everything is then as it was before. See `skip` for a window without traffic.
        """
        checked = self._space.check(config)
        usable = self._usable(score)
        asked = checked == self._asked and not self._resting
        self._told.append(_Told(self._count, self._space.encode(checked), usable, asked))
        self._told = self._told[-REMEMBERED:]
        self._count += 1
        self._asked, self._resting = None, False
        contradicting = self._search.learn(self._windows())
        if contradicting:
            self._told = self._told[-contradicting:]
            self.regimes += 1
            self._search.reset(self._windows())

    def _usable(self, score: float) -> float:
        number = math.nan
        if isinstance(score, Real) and not isinstance(score, bool):
            with contextlib.suppress(OverflowError):  # a whole number that no float can hold
                number = float(score)
        if not abs(number) <= LARGEST:
            raise InvalidMetric(
                "score", f"{score!r} is no finite number; tell() only what was measured, and skip() other windows"
            )
        if self._scale == "ratio" and number < 0:
            raise InvalidMetric("score", f"{score!r} is below 0; use scale='difference' for such scores")
        return number

    def skip(self) -> None:
        """Say that the window measured nothing: nothing is learned, and the next one runs the best, not the same.

        Where the configuration is to blame, `tell` a bad score instead: it is asked for again otherwise.
        """
        self.skipped += 1
        self._search.skip()
        self._asked, self._resting = self.best, True

    def predict(self, config: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> Prediction | None:
        """Return what `config` is expected to do beside another configuration, else beside the defaults.

        `None` where nothing is known: before the first window, and without scikit-learn of all but the best beside the
        defaults. Raises `ConfigurationError` for a configuration that does not fit.
        """
        others = self._space.default if beside is None else self._space.encode(self._space.check(beside))
        found = self._search.predict(self._space.encode(self._space.check(config)), others)
        if found is None:
            return None
        effect, deviation = found
        if not deviation:  # the same configuration
            return Prediction(effect, deviation, 0.5)
        return Prediction(effect, deviation, 0.5 * math.erfc(-effect / deviation / math.sqrt(2)))

    def pin(self, name: str, value: Any) -> None:
        """Hold a knob at `value` from the next window on; raises `ConfigurationError` for what does not fit."""
        self._pins(self._space.pinned | {name: value})

    def unpin(self, name: str) -> None:
        """Let a knob move again; one that was not pinned is left as it is."""
        self._pins({pinned: value for pinned, value in self._space.pinned.items() if pinned != name})

    def _pins(self, pinned: Mapping[str, Any]) -> None:
        self._space = Space(list(self._space.knobs.values()), pinned)
        self._search.move_to(self._space)
        self._asked, self._resting = None, False

    def state(self) -> dict[str, Any]:
        """Return all that was learned as plain JSON, for `Tuner.restore`."""
        return {
            "version": _VERSION,
            "knobs": [described(knob) for knob in self._space.knobs.values()],
            "seed": self._seed,
            "pinned": dict(self._space.pinned),
            "scale": self._scale,
            "surrogate": self._surrogate,
            "windows": [[one.number, list(one.position), one.score, one.asked] for one in self._told],
            "count": self._count,
            "asked": self._asked,
            "resting": self._resting,
            "skipped": self.skipped,
            "regimes": self.regimes,
            "search": {"kind": type(self._search).__name__, **self._search.state()},
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Tuner:
        """Return a tuner that goes on where the one that gave `state` was: it asks the same.

        Where scikit-learn is there only before or only after, the windows are kept and the search begins again. Raises
        `ConfigurationError` for what no tuner of this release gave.
        """
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != _VERSION:
            raise ConfigurationError(f"state of version {version!r}; this release reads {_VERSION}")
        try:
            tuner = cls(
                [Knob(**knob) for knob in state["knobs"]],
                state["seed"],
                pinned=state["pinned"],
                scale=state["scale"],
                surrogate=state["surrogate"],
            )
            tuner._take(state)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(f"the state of a tuner is damaged ({error!r}); begin with a new one") from error
        return tuner

    def _take(self, state: Mapping[str, Any]) -> None:
        self._told = [
            _Told(number, tuple(position), score, asked) for number, position, score, asked in state["windows"]
        ]
        self._count, self.skipped, self.regimes = (int(state[name]) for name in ("count", "skipped", "regimes"))
        self._asked = None if state["asked"] is None else self._space.check(state["asked"])
        self._resting = bool(state["resting"])
        if type(self._search).__name__ == state["search"]["kind"]:
            self._search.restore(state["search"], self._windows())
        else:
            self._search.reset(self._windows())

    def _windows(self) -> list[Window]:
        if not self._told:
            return []
        scores = levelled([one.score for one in self._told], self._scale)
        return [
            Window(one.number, one.position, score, one.asked) for one, score in zip(self._told, scores, strict=True)
        ]


def _search(space: Space, surrogate: bool | None) -> Search:
    if surrogate is False:
        return SpsaSearch(space)
    try:
        from ag06.ml.gaussian_search import GaussianSearch
    except ImportError as error:
        if surrogate is None:
            return SpsaSearch(space)
        raise ConfigurationError(
            f"tuner: scikit-learn cannot be imported ({error}); pip install 'ag06[ml]', or leave surrogate= out"
        ) from error
    return GaussianSearch(space)
