"""What is tuned: `Tuner` proposes configurations, `Experiment` says whether one is better."""

from __future__ import annotations

from ag06.knob import Knob
from ag06.ml.experiment import Experiment
from ag06.ml.tuner import Tuner

__all__ = ["Experiment", "Knob", "Tuner"]
