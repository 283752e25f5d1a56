"""What the user counts with prometheus_client, in its default registry, is exposed as well. Its only import.

Where the user never imported it there is nothing of theirs in it, and it is not imported here either. Collectors may be
slow and may block: they run in threads that nobody waits for longer than `TIMEOUT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import sys
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

from ag06.monitoring.exposition import OPENMETRICS

TIMEOUT = 5.0
MOST_THREADS = 4
SAMPLES = 50
"""How many samples are written in one go, before the event loop can have its turn for `PAUSE`."""
PAUSE = 0.000_5
_END = b"# EOF\n"
_APART = ("_created", "_gsum", "_gcount")
_ALL_HEADS = 10

_logger = logging.getLogger("ag06.monitoring")


class Foreign:
    """Metrics of the default registry of prometheus_client."""

    def __init__(self) -> None:
        """Nothing is collected before it is asked for."""
        self._collecting = 0
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def text(self, content_type: str, taken: Collection[str], pause: float = 0.0) -> bytes:
        """Return the exposition of all metrics whose name is not `taken`; without what a failing collector hides.

        In a thread, rest for `pause` seconds after each piece of it.
        """
        if "prometheus_client" not in sys.modules:
            return b""
        parts: list[bytes] = []
        try:
            for part in self._parts(content_type, taken):
                parts.append(part)
                if pause:
                    time.sleep(pause)
        except Exception as error:  # noqa: BLE001 - a collector is the user's code, and must not cost the other metrics
            self._warn(f"a collector of prometheus_client failed, its metrics and further ones are missing: {error!r}")
        return b"".join(parts)

    def _parts(self, content_type: str, taken: Collection[str]) -> Iterator[bytes]:
        import prometheus_client
        from prometheus_client.openmetrics import exposition as openmetrics

        render: Any = openmetrics if content_type == OPENMETRICS else prometheus_client
        for metric in prometheus_client.REGISTRY.collect():
            if metric.name in taken:
                self._warn(f"metric {metric.name} of prometheus_client is not exposed: the name is taken")
                continue
            for heads, part in _pieces(metric, content_type):
                yield _without_heads(render.generate_latest(_One(part)).removesuffix(_END), heads)

    async def collect(self, content_type: str, taken: Collection[str]) -> bytes:
        """Return `text`, made in a thread; nothing if that takes longer than `TIMEOUT`."""
        if "prometheus_client" not in sys.modules:
            return b""
        if self._collecting >= MOST_THREADS:
            self._warn("collectors of prometheus_client hang; their metrics are missing")
            return b""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()

        def tell(text: bytes) -> None:
            if not answer.done():
                answer.set_result(text)

        def run() -> None:
            try:
                text = self.text(content_type, taken, PAUSE)
            finally:
                with self._lock:
                    self._collecting -= 1
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(tell, text)

        with self._lock:
            self._collecting += 1
        threading.Thread(target=run, name="ag06 foreign metrics", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, TIMEOUT)
        except TimeoutError:
            self._warn(f"collectors of prometheus_client took longer than {TIMEOUT:.0f} s; their metrics are missing")
            return b""

    def _warn(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 100:
            self._warned.add(text)
            _logger.warning("%s", text)


def _pieces(metric: Any, content_type: str) -> Iterator[tuple[int, Any]]:
    """Return a metric as several of a few samples each, and how many lines at the head of each were there before.

    In plain text some samples are a metric of their own, behind the one they come from.
    """
    apart = () if content_type == OPENMETRICS else _APART
    groups: dict[str, list[Any]] = {"": []}
    for sample in metric.samples:
        suffix = next((one for one in apart if sample.name == metric.name + one), "")
        groups.setdefault(suffix, []).append(sample)
    for suffix, samples in groups.items():
        for start in range(0, len(samples) or 1, SAMPLES):
            part = copy.copy(metric)
            part.samples = samples[start : start + SAMPLES]
            yield (_ALL_HEADS if start else 2 * bool(suffix)), part


def _without_heads(text: bytes, count: int) -> bytes:
    while count and text.startswith(b"# "):
        text = text[text.index(b"\n") + 1 :]
        count -= 1
    return text


class _One:
    """A registry with a single metric."""

    def __init__(self, metric: object) -> None:
        self._metric = metric

    def collect(self) -> list[object]:
        return [self._metric]
