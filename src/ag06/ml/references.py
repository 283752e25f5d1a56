"""What guardrails compare with: the last windows of what is known to be good."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ag06.ml.windows import Window

KEPT = 5
"""Of so many last windows the middle one counts."""


class References:
    """The last windows of what is known to be good, of which the middle one, by its p99, is typical."""

    def __init__(self) -> None:
        """There is none yet."""
        self._windows: deque[Window] = deque(maxlen=KEPT)

    def add(self, window: Window) -> None:
        """Take the window that was measured last."""
        self._windows.append(window)

    def replace(self, windows: Iterable[Window]) -> None:
        """Take others for them: what is good is another thing now."""
        self._windows.clear()
        self._windows.extend(windows)

    def clear(self) -> None:
        """Forget all: what is good is another thing now."""
        self._windows.clear()

    @property
    def typical(self) -> Window | None:
        """The middle one; `None` if there is none."""
        by_p99 = sorted(self._windows, key=lambda window: window.latency_p99_ms or 0.0)
        return by_p99[len(by_p99) // 2] if by_p99 else None
