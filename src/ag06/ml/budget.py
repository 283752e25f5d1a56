"""How much may be tried out: a share of the time, and a loss over all of the time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ag06.errors import ConfigurationError


class Budget:
    """Says whether a trial may begin.

    Time and loss are those of about the last `horizon` seconds: what is older fades (exponentially). At the start
    nothing may be tried until what is has run for long enough. `state` and `restore` carry it over a restart.
    """

    def __init__(self, share: float = 0.5, worst_loss: float = 0.02, horizon: float = 3_600.0) -> None:
        """Allow a `share` of the time (0 to 1), and a mean loss of the score of `worst_loss` (0 to 1).

        Raises `ConfigurationError` for what makes no sense.
        """
        numbers = all(isinstance(one, (int, float)) for one in (share, worst_loss, horizon))
        if not numbers or not (0 <= share <= 1 and 0 <= worst_loss <= 1 and 0 < horizon < math.inf):
            raise ConfigurationError(
                f"budget: share={share!r} (0 to 1), worst_loss={worst_loss!r} (0 to 1), horizon={horizon!r} "
                "(seconds above 0)"
            )
        self._share = share
        self._worst_loss = worst_loss
        self._horizon = horizon
        self._total = self._explored = self._lost = 0.0

    @property
    def explored(self) -> float:
        """The share of the time that was spent on trials, 0 to 1."""
        return self._explored / self._total if self._total else 0.0

    @property
    def loss(self) -> float:
        """The share of the score that trials cost, over all of the time, 0 to 1."""
        return self._lost / self._total if self._total else 0.0

    def spend(self, seconds: float, *, exploring: bool, score: float | None = None) -> None:
        """Note a window: whether it tried something, and how its score was above the baseline's, if that is known.

        A trial that is better costs nothing, and it does not pay for others. Seconds that are no number above 0 are
        nothing.
        """
        if not 0 < seconds < math.inf:
            return
        fading = math.exp(-seconds / self._horizon)
        self._total = self._total * fading + seconds
        self._explored = self._explored * fading + (seconds if exploring else 0.0)
        lost = -math.expm1(score) if exploring and score is not None and score < 0 else 0.0
        self._lost = self._lost * fading + seconds * lost

    def refusal(self, seconds: float) -> str | None:
        """Return why a trial of so many seconds must wait, in words; `None` if it may begin."""
        share = (self._explored + seconds) / (self._total + seconds) if seconds > 0 else self.explored
        if share > self._share:
            return f"trials would have {share:.0%} of the time, and may have {self._share:.0%}"
        if self.loss > self._worst_loss:
            return f"trials have cost {self.loss:.1%} of the score, and may cost {self._worst_loss:.1%}"
        return None

    def state(self) -> dict[str, float]:
        """Return what was spent, JSON-able."""
        return {"total": self._total, "explored": self._explored, "lost": self._lost}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; raises `ConfigurationError` for anything else and changes nothing."""
        try:
            total, explored, lost = (float(state[name]) for name in ("total", "explored", "lost"))
        except (KeyError, TypeError, ValueError):
            total = explored = lost = math.nan
        if not 0 <= lost <= explored <= total < math.inf:
            raise ConfigurationError(f"budget: {state!r} is no state of a budget; use what `state` returned")
        self._total, self._explored, self._lost = total, explored, lost
