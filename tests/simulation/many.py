"""Many seeds at once: worker processes simulate, their outcomes come back in the order of the seeds."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .bugs import plant

if TYPE_CHECKING:
    from .run import Outcome

_AHEAD = 4


def _prepare(bug: str | None) -> None:
    logging.disable(logging.CRITICAL)
    if bug is not None:
        plant(bug)


def _simulate(seed: int) -> Outcome:
    from .run import simulate  # not before the bug is planted

    return simulate(seed)


def outcomes(seeds: Iterator[int], jobs: int, bug: str | None = None) -> Iterator[Outcome]:
    """Yield the outcome of each seed, simulated in `jobs` processes in which `bug` is planted."""
    with multiprocessing.get_context("spawn").Pool(jobs, _prepare, (bug,)) as pool:
        waiting = [pool.apply_async(_simulate, (seed,)) for seed in itertools.islice(seeds, _AHEAD * jobs)]
        while waiting:
            yield waiting.pop(0).get()
            waiting += [pool.apply_async(_simulate, (seed,)) for seed in itertools.islice(seeds, 1)]
