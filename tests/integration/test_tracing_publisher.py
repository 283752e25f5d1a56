"""A process that publishes and runs no step records what it publishes, by the setting alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from collector import Collector

PUBLISHER = """
import asyncio
from ag06 import Workflow

app = Workflow("shop", store="sqlite:///shop.db")

async def main():
    await app.publish("order.placed", "web", 1, dedup=False)
    await app.close()

asyncio.run(main())
"""


def published(directory: Path, collector: Collector, traces: str) -> None:
    environment = os.environ | {"AG06_TRACES": traces, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    subprocess.run(
        [sys.executable, "-c", PUBLISHER], check=True, timeout=60, cwd=directory, env=environment, capture_output=True
    )


def test_what_a_mere_publisher_sends_is_recorded_as_the_setting_says(tmp_path: Path) -> None:
    collector = Collector()
    try:
        published(tmp_path, collector, "off")
        assert collector.spans == []
        published(tmp_path, collector, "1")
        [span] = collector.wait_for(bool)
    finally:
        collector.stop()
    assert (span.service, span.name, span.kind, span.parent_id) == ("shop", "send order.placed", "PRODUCER", "")
