"""The simulation runs in processes of its own: it replaces the clocks of whoever imports it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from simulation.bugs import BUGS

_ROOT = Path(__file__).parents[2]
_LONGEST = 580.0  # a hang, not slowness: other work may have the machine
pytestmark = pytest.mark.timeout(600)


async def simulation(*arguments: str, hash_seed: str = "random") -> tuple[int, str]:
    """Run the command line; return its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.simulation",
        *arguments,
        cwd=_ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), _LONGEST)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode()


async def test_every_promise_is_kept_whatever_fails_in_200_simulations() -> None:
    code, said = await simulation("--seeds", "0:200")
    assert code == 0, said
    assert "200 seeds in" in said
    for fault in ("death", "pause", "restart", "outage", "clock", "knob"):
        assert re.search(rf"'{fault}': \d{{2,}}", said), f"there was hardly any {fault}: {said}"


async def test_a_seed_is_the_same_simulation_again_bit_by_bit_in_every_process() -> None:
    codes, lines = zip(
        await simulation("--seeds", "40:52", "--hashes", "--jobs", "1", hash_seed="1"),
        await simulation("--seeds", "40:52", "--hashes", "--jobs", "3", hash_seed="2"),
        strict=True,
    )
    assert codes == (0, 0), lines
    first, second = (re.findall(r"^(\d+ [0-9a-f]{32})$", said, re.MULTILINE) for said in lines)
    assert first == second
    assert len(set(first)) == 12
    code, alone = await simulation("--seed", "51", hash_seed="3")
    assert code == 0
    assert first[-1].split()[1] in alone


_RARE = {"rest-of-a-refused-batch-kept"}  # takes some hundred seeds; tests/conformance/test_partly_lost.py holds it


@pytest.mark.parametrize("bug", [name for name in BUGS if name not in _RARE])
async def test_a_bug_is_found_and_its_seed_shows_it_again(bug: str) -> None:
    code, said = await simulation("--seeds", "0:200", "--jobs", "1", "--bug", bug)
    assert code == 1, f"nobody noticed: {said}"
    found = re.search(r"^seed (\d+): (\S+: .{30})", said, re.MULTILINE)
    command = re.search(r"^  again: \S+ -m tests.simulation (.*)$", said, re.MULTILINE)
    assert found is not None, said
    assert command is not None, said
    assert found[2].startswith("PromiseBroken"), said
    code, again = await simulation(*command[1].split())
    assert code == 1
    assert found[2] in again
