"""What is tuned: `Tuner` proposes, `Experiment` says what is better, `ml_optimizer` does both in a running workflow."""

from __future__ import annotations

from ag06.knob import Knob
from ag06.ml.active_optimizer import ActiveOptimizer, ml_optimizer
from ag06.ml.experiment import Experiment
from ag06.ml.guardrails import Guardrails
from ag06.ml.pace import Pace
from ag06.ml.score import Score
from ag06.ml.tuner import Tuner

__all__ = ["ActiveOptimizer", "Experiment", "Guardrails", "Knob", "Pace", "Score", "Tuner", "ml_optimizer"]
