"""How long each part of a campaign takes, and how sure it must be."""

from __future__ import annotations

import msgspec

from ag06.errors import ConfigurationError
from ag06.ml.experiment import Experiment

LONGEST_REST = 4_096
"""Windows that a rest is doubled up to."""


class Pace(msgspec.Struct, frozen=True):
    """How long each part of a campaign takes, in windows, and how sure it must be.

    Attributes:
        explore: windows of exploring before the best is put to the proof, 1 or more.
        experiment: windows that an experiment counts at most, 2 to 100,000.
        watch: windows in which a promoted configuration is still rolled back at the first breach, 1 or more.
        rest: windows of rest where nothing better was found, 1 or more; doubled each time, up to `LONGEST_REST`.
        alpha: the probability that an experiment names a wrong winner, 0.001 to 0.5.
        minimum_effect: a configuration is kept only if it is better by more than this: 0.02 is 2%.

    Raises `ConfigurationError` for what makes no sense.
    """

    explore: int = 40
    experiment: int = 100
    watch: int = 10
    rest: int = 60
    alpha: float = 0.05
    minimum_effect: float = 0.02

    def __post_init__(self) -> None:
        for name in ("explore", "watch", "rest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"pace: {name}={value!r}; use a whole number of windows, 1 or more")
        try:
            Experiment(self.alpha, self.experiment, minimum_effect=self.minimum_effect)
        except ConfigurationError as error:
            raise ConfigurationError(f"pace: {error} (experiment is its max_windows)") from error
