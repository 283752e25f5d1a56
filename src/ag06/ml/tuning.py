"""How a workflow is to be tuned: the score, the limits, the pace."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.budget import Budget
from ag06.ml.guardrails import Guardrails
from ag06.ml.pace import Pace
from ag06.ml.score import Score
from ag06.ml.trial import Timing

DEFAULT_SCORE = Score.parse("maximize throughput, minimize 0.5 * p99")


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What `ml_optimizer.configure` takes.

    Attributes:
        score: what to make large, a `Score` or a text such as `"maximize throughput, p99 <= 50ms"`.
        knobs: names of those that may be moved; `None`: all that the workflow does not fix.
        pinned: names of those that must not.
        window, settle: seconds of a window, and before it, after its configuration was set.
        minimum_events: a window with fewer goes on for longer, and then tells nothing.
        guardrails: what ends a trial at once.
        share, worst_loss: of the time and of the score, what trials may take, 0 to 1 (`Budget`).
        pace: how many windows each part takes, and how sure it must be.
        seed: what is drawn follows from it.
        surrogate: whether scikit-learn is used; `None`: where it is installed.
        lease: seconds after which another process leads where the leader is gone without a word.
    """

    score: Score | str = DEFAULT_SCORE
    knobs: tuple[str, ...] | None = None
    pinned: tuple[str, ...] = ()
    window: float = 5.0
    settle: float = 0.5
    minimum_events: int = 30
    guardrails: Guardrails = Guardrails()
    share: float = 0.5
    worst_loss: float = 0.05
    pace: Pace = Pace()
    seed: int = 0
    surrogate: bool | None = None
    lease: float = 15.0

    def __post_init__(self) -> None:
        for name, least in (("window", 0.05), ("settle", 0.0), ("lease", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise ConfigurationError(f"tuning: {name}={value!r}; use seconds, {least:g} or more")
        for name, least in (("minimum_events", 1), ("seed", -math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"tuning: {name}={value!r}; use a whole number{', 1 or more' * (least == 1)}")
        for name in ("knobs", "pinned"):
            value = getattr(self, name)
            if isinstance(value, str) or not (isinstance(value, Collection) or (name == "knobs" and value is None)):
                raise ConfigurationError(f"tuning: {name}={value!r}; give several names, as in ('a', 'b')")
        for name, kind in (("guardrails", Guardrails), ("pace", Pace)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(f"tuning: {name}={getattr(self, name)!r}; use {kind.__name__}(...)")
        if not isinstance(self.score, (Score, str)):
            raise ConfigurationError(f"tuning: score={self.score!r}; use a text such as {str(DEFAULT_SCORE)!r}")
        self.goal  # noqa: B018 - raises if it cannot be read
        Budget(self.share, self.worst_loss)  # raises for what makes no sense

    @property
    def goal(self) -> Score:
        """The score."""
        return Score.parse(self.score) if isinstance(self.score, str) else self.score

    @property
    def timing(self) -> Timing:
        """How a window goes."""
        return Timing(self.window, self.settle)
