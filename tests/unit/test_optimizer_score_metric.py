"""The optimizer's score as a metric: an alert on a low score must not fire where nothing was measured."""

from __future__ import annotations

import subprocess
import sys

READ = """
from ag06.monitoring import instruments, observability
def shown():
    return observability.metrics.snapshot().get("ag06_workflow_optimizer_score_ratio")
print(shown())
import ag06.ml.tuning_loop
print(shown())
instruments.OPTIMIZER_SCORE.labels().set(1.5)
print(shown())
"""


def test_there_is_no_score_before_the_first_window_has_one() -> None:
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout.split() == ["None", "None", "1.5"]
