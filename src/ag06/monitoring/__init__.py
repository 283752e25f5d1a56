"""What can be seen of a workflow: metrics, health, logs, traces, performance."""

from __future__ import annotations

from ag06.monitoring.realtime_observer import Observability

observability = Observability()
"""The facade of this process."""

__all__ = ["Observability", "observability"]
