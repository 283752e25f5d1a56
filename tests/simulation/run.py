"""One simulation: a seed becomes processes, faults and an account."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from . import clocks  # first: it replaces the clocks that ag06 finds

# isort: split
from ag06 import StoreUnavailable, Workflow
from ag06 import retry as ag06_retry
from ag06.ids import IdSource
from ag06.monitoring.traceparent import new_span_id
from ag06.monitoring.tracing import TRACING
from ag06.persistence import admission, event_store
from ag06.persistence.admission import Admission
from ag06.persistence.journal.log import JournaledLog
from ag06.persistence.log import Acknowledge, Appended, EventLog, LogOptions, Postpone, StepSpec
from ag06.runtime import monitor as ag06_monitor
from ag06.runtime import worker as ag06_worker

from .account import Account
from .disk import Disk
from .flow import World, workflow
from .keeper import LeaseTimer, NoWatch
from .ledger import Publisher, Said, orders
from .loop import VirtualLoop
from .plan import Plan, plan_of
from .process import PROCESS, Process
from .store import LATEST, Store
from .watch import PromiseBroken

EPOCH = 1_800_000_000.0
_MOST_CALLBACKS = 2_000_000
_DAY = 86_400.0
_WINDOW = 300.0
_REST = 300.0
"""Seconds of virtual time within which everything must come to rest once faults are over."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of one simulation: the hash of all that happened, what it was like, and which promise was broken."""

    seed: int
    trace: str
    events: int
    seconds: float
    faults: dict[str, int]
    failure: str | None = None


class Simulation:
    """Everything there is in one simulation."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        """Prepare what `plan` says; `tell` gets a line for all that happens."""
        self.plan = plan
        self._tell = tell
        self._hash = blake2b(digest_size=16)
        self._entropy = random.Random(f"entropy {plan.seed}")
        self.rng = random.Random(f"faults {plan.seed}")
        self.loop = VirtualLoop(
            random.Random(f"loop {plan.seed}"), shuffle=plan.shuffle, most_callbacks=_MOST_CALLBACKS
        )
        self.loop.set_exception_handler(self._failed)
        self.world = World()
        self.failure: BaseException | None = None
        self.faults: dict[str, int] = {}
        self.said = orders(plan)
        self.store_process = Process(self.loop, "store", lambda _: None)
        self.disk = Disk(plan)
        self.store = Store(plan, self.store_process, lambda: self.clock_of(self.store_process), self.note)
        self.working: dict[int, tuple[Process, asyncio.Task[Any]]] = {}
        self.apps: dict[Process, Workflow] = {}
        self._incarnations = 0
        self._over = False

    # Sources

    def wall(self) -> float:
        """See `clocks.Sources`."""
        return self.clock_of(PROCESS.get())

    def clock_of(self, process: Process | None) -> float:
        """Seconds since the epoch on the clock of a process."""
        return EPOCH + self.loop.time() + (0.0 if process is None else process.skew)

    def monotonic(self) -> float:
        """See `clocks.Sources`."""
        return self.loop.time()

    def entropy(self, size: int) -> bytes:
        """See `clocks.Sources`."""
        return self._entropy.randbytes(size)

    # Trace

    def note(self, *words: object) -> None:
        """Write into the trace."""
        line = repr((self.loop.time(), *words))
        self._hash.update(line.encode())
        if self._tell is not None:
            self._tell(line)

    def fault(self, kind: str, *words: object) -> None:
        """Count a fault."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.note(kind, *words)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.failure is None and not self._over:
            self.failure = error or RuntimeError(str(context.get("message")))

    # Processes

    def process(self, kind: str, number: int) -> Process:
        """Start a process; each has a clock of its own."""
        self._incarnations += 1
        process = Process(self.loop, f"{kind}{number}-{self._incarnations}", self._died)
        process.skew = self.rng.uniform(-self.plan.skew, self.plan.skew)
        return process

    def _died(self, process: Process) -> None:
        self.fault("death", process.name)
        if self.rng.random() < 0.8:
            self.store.hang_up(process)

    def app(self, process: Process) -> Workflow:
        """Return the workflow as it is in a process."""
        app = self.apps[process] = workflow(self.plan, process, self.world)
        return app

    def connect(self, process: Process, options: LogOptions) -> EventLog:
        """Return the log that a process opens: behind a journal, where there is to be one."""
        log: Any = self.store.connect(process)
        return JournaledLog(log, self.disk.journals(process), options) if self.plan.journal else log

    async def _work(self, process: Process) -> None:
        """Be a worker: until asked to end, wait for the store and run the steps."""
        app = self.app(process)
        while not process.stop.is_set():
            try:
                async with app.running():
                    while (worker := app._worker) is None and not process.stop.is_set():
                        await asyncio.sleep(0.05)  # the store is away yet
                    if worker is None:
                        continue
                    stop = asyncio.ensure_future(process.stop.wait())
                    await asyncio.wait([stop, worker.failure], return_when=asyncio.FIRST_COMPLETED)
                    if worker.failure.done():
                        worker.failure.result()
            except StoreUnavailable:
                await asyncio.sleep(0.2)

    async def _tend(self, number: int) -> None:
        """Keep a worker going: when it ends or dies, start the next one."""
        while not self._over:
            process = self.process("worker", number)
            task = process.spawn(self._work(process), "worker")
            self.working[number] = process, task
            while process.alive and not task.done():
                await asyncio.sleep(0.05)
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.failure = self.failure or task.exception()
            process.exit()
            if not task.done() and self.rng.random() < 0.5:
                supervisor = self.process("supervisor", number)
                supervisor.spawn(self._report_death(supervisor, process), "supervisor")
            if not self._over:
                await asyncio.sleep(self.rng.uniform(0.05, 1.0))

    async def _report_death(self, supervisor: Process, process: Process) -> None:
        """Have what a dead worker held handed out at once, as a supervisor does."""
        await asyncio.sleep(self.rng.uniform(0.0, 0.5))
        with contextlib.suppress(StoreUnavailable):
            await self.store.connect(supervisor).release_worker(process.name)

    async def _publish(self, number: int, mine: list[Said]) -> None:
        """Be a publisher; one that dies takes what it has not said yet to its successor."""
        left = mine
        while left:
            process = self.process("publisher", number)
            task = process.spawn(self._be_publisher(process, left, number), "publisher")
            self.working[100 + number] = process, task
            while process.alive and not task.done():
                await asyncio.sleep(0.05)
            if task.done():
                task.result()
                process.exit()
                return
            left = [said for said in left if not said.tried]
            await asyncio.sleep(self.rng.uniform(0.05, 1.0))

    async def _be_publisher(self, process: Process, mine: list[Said], number: int) -> None:
        """Publish; then close what is open, or leave that to the system."""
        app = self.app(process)
        await Publisher(self.plan, process, app, mine, number).run()
        if number % 2:
            await app.close()

    async def _operate(self, operator: Process) -> None:
        """Retry dead letters now and then, mended or not."""
        log = self.store.connect(operator)
        while not self.store.calm:
            await asyncio.sleep(self.rng.uniform(0.5, 3.0))
            with contextlib.suppress(StoreUnavailable):
                letters = await log.dead_letters(None, 3)
                self.fault("retried letters", await log.retry_dead_letters([(d.group, d.event_id) for d in letters]))

    # Faults

    def _faults(self) -> list[tuple[float, Callable[[], None]]]:
        """Return when what goes wrong."""
        plan, rng = self.plan, self.rng
        kinds: list[tuple[int, Callable[[], None]]] = [
            (plan.crashes, self._crash),
            (plan.pauses, self._pause),
            (plan.restarts, self._restart),
            (plan.outages, self._outage),
            (plan.jumps, self._jump),
            (plan.disks if plan.journal else 0, self._fill_disk),
            (plan.moves, self._move),
            (plan.ahead, self._be_ahead),
        ]
        faults = [(rng.uniform(0.0, plan.seconds), fault) for count, fault in kinds for _ in range(count)]
        return sorted(faults, key=lambda fault: fault[0])

    def _somebody(self) -> Process:
        return self.working[self.rng.choice(sorted(self.working))][0]

    def _crash(self) -> None:
        self._somebody().kill()

    def _pause(self) -> None:
        process, seconds = self._somebody(), self.rng.uniform(0.1, 2.5) * self.plan.visibility
        self.fault("pause", process.name, seconds)
        process.pause(seconds)

    def _restart(self) -> None:
        process = self._somebody()
        self.fault("restart", process.name)
        process.stop.set()

    def _outage(self) -> None:
        seconds = self.rng.uniform(0.1, 2.0) * self.plan.visibility
        self.fault("outage", seconds)
        self.store.go_away()
        self.loop.call_later(seconds, self.store.come_back)

    def _jump(self) -> None:
        process = self.store_process if self.rng.random() < 0.5 else self._somebody()
        seconds = self.rng.choice([-30.0, -3.0, -0.5, 0.5, 3.0, 30.0])
        self._set_clock(process, seconds)

    def _be_ahead(self) -> None:
        process = self.store_process if self.rng.random() < 0.5 else self._somebody()
        self._set_clock(process, _DAY)
        back = self.rng.uniform(0.2, 5.0)
        self.loop.call_later(back, self._set_clock, process, -_DAY, context=contextvars.Context())

    def _set_clock(self, process: Process, seconds: float) -> None:
        self.fault("clock", process.name, seconds)
        watch = self.store.watch
        watch.latest_ms = max(watch.latest_ms, self.store.now_ms())
        process.skew += seconds
        if process is self.store_process and seconds < 0:
            watch.set_back(self.store.now_ms(), self.plan.visibility * 1000)

    def _move(self) -> None:
        process = self._somebody()
        app = self.apps.get(process)
        if app is None:
            return
        name, knob = self.rng.choice(sorted((app.knobs | app.runtime_knobs).items()))
        share = self.rng.random()
        far = knob.low * (knob.high / knob.low) ** share if knob.scale == "log" else None
        value = knob.set(knob.low + (knob.high - knob.low) * share if far is None else far)
        self.fault("knob", process.name, name, value)

    def _fill_disk(self) -> None:
        seconds = self.rng.uniform(0.1, 1.0) * self.plan.visibility
        self.fault("disk", seconds)
        self.disk.full = True
        self.loop.call_later(seconds, self._make_room)

    def _make_room(self) -> None:
        self.disk.full = False

    # The whole

    async def run(self) -> None:
        """Publish, let things go wrong, come to rest, draw up the account."""
        await self.store.log.open()
        tending = [asyncio.ensure_future(self._tend(number)) for number in range(self.plan.workers)]
        shares = self._shares()
        publishing = [asyncio.ensure_future(self._publish(number, share)) for number, share in enumerate(shares)]
        if self.plan.operator:
            operator = self.process("operator", 0)
            operator.spawn(self._operate(operator), "operator")
        start = self.loop.time()
        for at, fault in self._faults():
            await asyncio.sleep(max(0.0, start + at - self.loop.time()))
            fault()
        await asyncio.sleep(max(0.0, start + self.plan.seconds - self.loop.time()))
        await self._calm_down()
        await self._finished("publishers", publishing)
        await self._rest()
        await self._end(tending)
        self._account().check()
        await self._check_clock_set_back()
        await self._check_growth()

    def _shares(self) -> list[list[Said]]:
        """Deal the orders to publishers; some are published by two."""
        shares: list[list[Said]] = [[] for _ in range(self.plan.publishers)]
        for said in self.said:
            first = self.rng.randrange(len(shares))
            shares[first].append(said)
            if self.rng.random() < self.plan.twice and len(shares) > 1:
                said.is_twin = True
                shares[first - 1].append(said)
        return shares

    async def _calm_down(self) -> None:
        self.note("calm")
        self.store.calm = True
        self.store.come_back()
        self._make_room()
        await asyncio.sleep(LATEST)  # what is still on its way arrives

    async def _finished(self, who: str, tasks: list[asyncio.Future[None]]) -> None:
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=_REST)
        for task in tasks:
            if task in late:
                raise PromiseBroken(f"{who} do not come to an end in {_REST:.0f} s without faults")
            task.result()

    async def _rest(self) -> None:
        """Wait until nothing is pending; mend what can be mended, and wait again."""
        while True:
            await self._nothing_is_pending()
            self.world.mended = True
            letters = self._account().unfinished()
            if not letters:
                return
            self.note("mended", letters)
            await self.store.log.retry_dead_letters(letters)
            self.store.watch.retried(letters)

    async def _nothing_is_pending(self) -> None:
        groups = [f"sim.{step}" for step in ("split", "audit", "collect", "finish")]
        deadline = self.loop.time() + _REST
        while True:
            journalled = self.disk.events()
            pending = await self.store.log.pending(groups)
            if not pending and not journalled:
                return
            if self.failure is not None:
                raise self.failure
            if self.loop.time() > deadline:
                waiting = list(self.store.watch.open.items())[:3]
                raise PromiseBroken(f"{pending} events are starved: {waiting}; {journalled} are in the journals")
            await asyncio.sleep(0.1)

    async def _end(self, tending: list[asyncio.Future[None]]) -> None:
        self._over = True
        for process, _ in self.working.values():
            process.stop.set()
        failure = self.failure
        await self._finished("workers", tending)
        if failure or self.failure:
            raise failure or self.failure or RuntimeError

    def _account(self) -> Account:
        self.store.watch.look()
        return Account(self.plan, self.store.watch, self.world, self.said, were_paused=bool(self.plan.pauses))

    async def _check_clock_set_back(self) -> None:
        """Set the store's clock back under an identity, a retry and a delayed event: none lasts longer than it may."""
        log, clock = self.store.log, self.store_process
        admit = Admission(_WINDOW, clock=lambda: self.clock_of(clock)).admit
        await log.register("probe", [StepSpec("probe.step", "probe")])
        subscription = log.subscribe("probe.step", "probe", 2 * _WINDOW)
        for ahead in (_DAY, _WINDOW / 3):
            clock.skew += ahead
            equal = [admit("probe", "simulation", ahead) for _ in range(3)]
            fates = await log.append([*equal[:1], admit("probe", "simulation", "later", delay=_WINDOW)])
            (held,) = await subscription.fetch(10, 0.0)
            await subscription.commit([Postpone(held, int(_WINDOW * 1000), 1, 1)])
            clock.skew -= ahead
            await log.maintain()
            early = await subscription.fetch(10, 0.0)
            clock.skew += _WINDOW + 1
            due = await subscription.fetch(10, 0.0)
            fates += await log.append(equal[1:])
            due += await subscription.fetch(10, 0.0)
            await subscription.commit([Acknowledge(tuple(due))])
            wanted = [Appended.STORED] * 3 + [Appended.DUPLICATE]
            if fates != wanted or early or len(due) != 3:
                raise PromiseBroken(
                    f"a clock that was {ahead:.0f} s ahead: {fates}, {len(early)} early, {len(due)} due"
                )
        await log.remove_group("probe.step")

    async def _check_growth(self) -> None:
        """Let the retention go by: nothing may be left of what all steps settled."""
        stats = await self.store.log.stats()
        if any(group.backlog or group.in_flight for group in stats.groups) or stats.scheduled:
            raise PromiseBroken(f"something is left: {stats}")
        if stats.dead_letters != len(self.store.watch.dead):
            raise PromiseBroken(f"{stats.dead_letters} dead letters, not {len(self.store.watch.dead)}")
        last = self.process("last", 0)
        await last.spawn(self._open_and_close(last), "last")
        if self.disk.files:
            raise PromiseBroken(f"journals are left behind: {self.disk.files}")
        self.store_process.skew += 8 * 86_400.0
        await self.store.log.maintain()
        state = self.store.log._log.state
        left = {
            "events": len(state.entries),
            "identities": len(state.identities),
            "journalled": len(state.journalled),
            "pending": sum(
                len(group.pending) + len(group.open) + len(group.blocked) for group in state.groups.values()
            ),
            "retried": sum(len(group.retried) for group in state.groups.values()),
            "waiting": sum(len(group.ready) + len(group.delayed) for group in state.groups.values()),
        }
        if any(left.values()):
            raise PromiseBroken(f"after the retention there is still something: {left}")

    async def _open_and_close(self, process: Process) -> None:
        """Find the files of those who died when they had nothing left to do but to delete them."""
        log = self.connect(process, LogOptions())
        await log.open()
        await log.close()

    def outcome(self) -> Outcome:
        """Run it to its end."""
        failure: str | None = None
        try:
            with _as_world(self):
                self.loop.run_until_complete(self.run())
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            if self._tell is not None:
                import traceback

                self._tell("".join(traceback.format_exception(error)))
        if self.disk.written:
            self.faults["journalled"] = self.disk.written
        self.note("end", failure, sorted(self.faults.items()))
        seconds = self.loop.time()
        self._over = True
        self.loop.forget()
        self.store.log.abandon()
        self.loop.close()
        return Outcome(self.plan.seed, self._hash.hexdigest(), len(self.store.watch.log), seconds, self.faults, failure)


@contextlib.contextmanager
def _as_world(simulation: Simulation) -> Iterator[None]:
    """Have the package take its clocks, ids, names, stores and lease keepers from a simulation."""

    def connect(url: str, options: LogOptions) -> EventLog:
        process = PROCESS.get()
        assert process is not None
        return simulation.connect(process, options)

    def name() -> str:
        process = PROCESS.get()
        assert process is not None
        return process.name

    before = event_store.open_log, ag06_worker.worker_name, ag06_worker.LeaseKeeper, admission.new_id
    watch = ag06_monitor.LoopWatch
    ag06_monitor.LoopWatch = NoWatch  # type: ignore[assignment,misc]
    event_store.open_log, ag06_worker.worker_name = connect, name
    ag06_worker.LeaseKeeper, admission.new_id = LeaseTimer, IdSource()
    random.seed(simulation.plan.seed)
    ag06_retry._RANDOM.seed(simulation.plan.seed)
    TRACING.forget()
    new_span_id.forget()
    clocks.use(simulation)
    try:
        with simulation.disk.in_use():
            yield
    finally:
        clocks.use(None)
        event_store.open_log, ag06_worker.worker_name, ag06_worker.LeaseKeeper, admission.new_id = before
        ag06_monitor.LoopWatch = watch  # type: ignore[misc]


def simulate(seed: int, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run the simulation of a seed."""
    gc.freeze()  # what was there before is not looked through after each seed
    gc.disable()  # when objects die must not depend on what ran before
    sys.unraisablehook = lambda _: None  # coroutines of dead processes end somewhere in the middle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of them never began
        try:
            return Simulation(plan_of(seed), tell).outcome()
        finally:
            gc.collect()
            gc.unfreeze()
            gc.enable()
            sys.unraisablehook = sys.__unraisablehook__
