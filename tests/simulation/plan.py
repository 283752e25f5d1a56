"""What a seed stands for: how much work, how many processes, which faults and how often."""

from __future__ import annotations

import random

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. Rates are probabilities for each call to the store; times are seconds.

    Attributes:
        workers, publishers: processes of each kind.
        orders: events that publishers persist; several outputs follow from each.
        subjects: how many subjects they are about; 0: none.
        twice: share of orders that two publishers persist at the same time, under one idempotency key.
        bursts: whether a publisher says many things at once and then nothing for a while.
        window: how long equal events are refused.
        gather: how long a batch waits for more events.
        seconds: how long faults happen; then everything must come to rest.
        visibility, attempts, concurrency, backlog: as the workflow's settings.
        shuffle: whether callbacks that are ready together run in any order.
        delay: longest way of a call to the store, and of its reply.
        refused: calls that are lost before they have an effect, and known to be.
        unheard: calls whose reply is lost after the effect.
        late: calls given up by their caller, that have their effect later.
        doubled: calls that reach the store twice.
        dies: calls at which the caller dies, before or after the effect.
        crashes, pauses, restarts, outages, jumps: how often a process dies, is stopped, is asked to end; the store is
            away; a wall clock is set.
        skew: how far apart the clocks of processes and store are at most.
        operator: whether somebody retries dead letters.
        journal: whether publishers and workers have a journal.
        disks: how often the disk of the journals is full.
        sync: longest time that a write to that disk takes.
        moves: how often a knob of a worker moves, of any step, to anywhere.
        ahead: how often a wall clock is a day ahead for some seconds. Not where orders are published twice: their
            identities are forgotten then.
    """

    seed: int
    workers: int
    publishers: int
    orders: int
    subjects: int
    twice: float
    bursts: bool
    window: float
    gather: float
    seconds: float
    visibility: float
    attempts: int
    concurrency: int
    backlog: int
    shuffle: bool
    delay: float
    refused: float
    unheard: float
    late: float
    doubled: float
    dies: float
    crashes: int
    pauses: int
    restarts: int
    outages: int
    jumps: int
    skew: float
    operator: bool
    journal: bool
    disks: int
    sync: float
    moves: int
    ahead: int


def plan_of(seed: int) -> Plan:
    """Return what `seed` stands for. Each kind of fault is there in about half of the seeds, so that they mix."""
    rng = random.Random(f"plan {seed}")

    def some(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.5 else 0.0

    def count(most: int) -> int:
        return rng.randint(1, most) if rng.random() < 0.5 else 0

    window = rng.choice([300.0, 300.0, 1.0, 0.0])
    plan = Plan(
        seed=seed,
        workers=rng.randint(1, 3),
        publishers=rng.randint(1, 3),
        orders=rng.randint(10, 60),
        subjects=rng.choice([0, 1, 2, 5]),
        twice=some(0.05, 0.3) if window > 100 else 0.0,
        bursts=rng.random() < 0.5,
        window=window,
        gather=rng.choice([0.05, 0.05, 1.0]),
        seconds=rng.uniform(5.0, 20.0),
        visibility=rng.uniform(1.5, 6.0),
        attempts=rng.randint(1, 5),
        concurrency=rng.choice([1, 2, 5]),
        backlog=rng.choice([0, 0, 0, 5, 20]),
        shuffle=rng.random() < 0.5,
        delay=rng.choice([0.0, 0.002, 0.05, 0.5]),
        refused=some(0.01, 0.2),
        unheard=some(0.01, 0.2),
        late=some(0.01, 0.1),
        doubled=some(0.01, 0.2),
        dies=some(0.001, 0.02),
        crashes=count(3),
        pauses=count(3),
        restarts=count(3),
        outages=count(2),
        jumps=count(3),
        skew=some(0.0, 2.0),
        operator=rng.random() < 0.5,
        journal=rng.random() < 0.5,
        disks=count(2),
        sync=rng.choice([0.01, 0.01, 0.5]),
        moves=rng.choice([0, 5, 100]),
        ahead=0,
    )
    return plan if plan.twice else msgspec.structs.replace(plan, ahead=count(3))
