from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from ag06.monitoring.resources import ResourceMeter, resident_bytes


def test_the_share_of_a_core_is_that_since_the_last_sample() -> None:
    wall, cpu = [100.0], [7.0]
    meter = ResourceMeter(wall=lambda: wall[0], cpu=lambda: cpu[0], memory=lambda: 250_000_000)
    assert meter.sample().cpu_percent == 0.0
    wall[0], cpu[0] = 110.0, 12.0
    found = meter.sample()
    assert (found.cpu_percent, found.memory_mb) == (50.0, 250.0)
    wall[0], cpu[0] = 110.01, 12.01
    assert meter.sample().cpu_percent == 50.0  # too soon to tell
    wall[0], cpu[0] = 111.0, 15.0
    assert meter.sample().cpu_percent == 300.0


def test_work_of_this_process_is_seen() -> None:
    meter = ResourceMeter()
    begun = time.process_time()
    while time.process_time() - begun < 0.2:
        pass
    assert meter.sample().cpu_percent > 0


@pytest.mark.parametrize("without_psutil", [False, True])
def test_memory_that_is_used_is_seen_with_and_without_psutil(
    monkeypatch: pytest.MonkeyPatch, without_psutil: bool
) -> None:
    if without_psutil:
        monkeypatch.setitem(sys.modules, "psutil", None)
    before = resident_bytes()
    block = bytearray(b"x" * 64_000_000)
    grown = resident_bytes() - before
    assert 50_000_000 < grown < 200_000_000
    assert len(block) == 64_000_000


def test_both_ways_to_see_the_memory_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    true = psutil.Process().memory_info().rss
    assert resident_bytes() == pytest.approx(true, rel=0.1)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert resident_bytes() == pytest.approx(true, rel=0.1)


def test_psutil_is_not_imported_before_it_is_used() -> None:
    code = "import sys, ag06.monitoring.resources; print('psutil' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
