"""`Workflow`: steps, and the ways to publish to them and to run them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ag06 import callables
from ag06.breaker import CircuitBreaker
from ag06.content import MAX_DATA_BYTES, check_name
from ag06.errors import ConfigurationError, InvalidEvent, StoreUnavailable
from ag06.event import Priority
from ag06.knob import Choice, Knob, Setter
from ag06.monitoring.tracing import TRACING
from ag06.persistence.archive import Retention
from ag06.persistence.event_store import EventStore
from ag06.persistence.log import Durability, EventLog
from ag06.retry import Retry
from ag06.runtime.context import MAX_OUTPUT_BYTES
from ag06.runtime.dead_letters import DeadLetters
from ag06.runtime.decorators import BatchDecorator, StepDecorator
from ag06.runtime.knobs import Fixed, check_names, commit_wait
from ag06.runtime.main_loop import run_until_done
from ag06.runtime.outcome import Listener
from ag06.runtime.redeclaring import Origin, origin_of
from ag06.runtime.shutdown import shutdown_signals
from ag06.runtime.step import Batch, Start, Step, caller_frame, check_brackets, declare_step
from ag06.runtime.supervisor import SUPERVISOR_VARIABLE
from ag06.runtime.worker import Worker
from ag06.settings import check_count
from ag06.tasks import end, start_task

if TYPE_CHECKING:
    from ag06.runtime.lifetime import Lifetime
    from ag06.runtime.monitor import Monitor

_logger = logging.getLogger("ag06.runtime")
Listen = tuple[str | None, int | str | None]
"""Host and port of the server; what is `None` is as the settings say."""
F = TypeVar("F", bound=Callable[..., Any])


class Workflow:
    """A set of steps over one event store.

    Attributes:
        name: 1 to 255 bytes without a dot; the steps' consumer groups are named `name.step`.
        events: the `EventStore` behind it, for replay and stats.
        dead_letters: the `DeadLetters` of its steps: `.list()`, `.read()`, `.retry()`, `.discard()`.
        steps: the declared steps by name.
        knobs: the knobs that its user declared, by name.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | None = None,
        durability: Durability | None = None,
        retention: float | Retention | None = None,
        dedup_window: float = 300.0,
        max_backlog: int = 0,
        max_event_bytes: int = MAX_DATA_BYTES,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        visibility_timeout: float = 30.0,
        grace: float = 20.0,
        timeout: float = 10.0,
        journal: str | None = None,
    ) -> None:
        """Declare a workflow; nothing is opened yet.

        Args:
            name: the workflow's name.
            store: a URL; `None`: `$AG06_STORE`, then `ag06.toml`, then `sqlite:///.ag06/events.db`.
            durability: `"server"`, `"fsync"` or `"replicated"`; `None`: the store's default.
            retention: seconds that acknowledged events stay, 0 for ever, or a `Retention` that archives them; `None`:
                the store's default.
            dedup_window: seconds in which an equal event is a duplicate; 0 switches deduplication off.
            max_backlog: events a step may be behind before publishing raises `Backpressure`; 0: no bound.
            max_event_bytes: largest data of an event, in bytes of JSON.
            max_output_bytes: most bytes of JSON that the outputs of one call have together; a batch step's call too.
            visibility_timeout: seconds without a sign of life after which a worker's deliveries are taken over.
            grace: seconds that a shutdown waits for running steps.
            timeout: seconds to wait for the store's answer.
            journal: the directory where events wait while a remote store is away, or `"off"`; `None`: `$AG06_JOURNAL`,
                then `ag06.toml`, then `.ag06/journal`.
        """
        try:
            check_name("name", name)
        except InvalidEvent as error:
            raise ConfigurationError(f"workflow {name!r}: {error}") from None
        if "." in name:
            raise ConfigurationError(f"workflow {name!r}: a name has no dots")
        if not visibility_timeout > 0:
            raise ConfigurationError(f"workflow {name!r}: visibility_timeout={visibility_timeout}; seconds above 0")
        if not grace >= 0:
            raise ConfigurationError(f"workflow {name!r}: grace={grace}; seconds, 0 or more")
        check_count("max_output_bytes", max_output_bytes, 1, "bytes of JSON")
        self.name = name
        self.max_output_bytes = max_output_bytes
        self.visibility_timeout = visibility_timeout
        self.grace = grace
        self.steps: dict[str, Step] = {}
        self.knobs: dict[str, Knob] = {}
        self._origins: dict[str, Origin] = {}
        self._declarations = 0
        self._commit_wait = commit_wait()
        self._listeners: list[Listener] = []
        self._settings: dict[str, Any] = {
            "durability": durability,
            "retention": retention,
            "dedup_window": dedup_window,
            "max_backlog": max_backlog,
            "max_event_bytes": max_event_bytes,
            "timeout": timeout,
            "journal": journal,
        }
        self.events = EventStore()
        self.dead_letters = DeadLetters(self._log, name)
        self.use_store(store)
        self._registered: weakref.WeakKeyDictionary[EventLog, int] = weakref.WeakKeyDictionary()
        self._lifetime: Lifetime | None = None
        _all.add(self)

    def use_store(self, store: str | None) -> None:
        """Set the store's URL, before the workflow is opened."""
        self.events.configure(store, **self._settings)

    # Declare

    def step(
        self,
        event_type: str,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        breaker: CircuitBreaker | None = None,
        timeout: float | None = None,
        concurrency: int | Knob | None = None,
        start: Start | None = None,
    ) -> StepDecorator:
        """Make a function `(event)` or `(event, ctx)` a step that receives every event of `event_type`.

        Args:
            event_type: what it listens to.
            name: its name in the workflow; the function's name unless given. It must not change: the store keeps the
                step's place under it.
            retry: what happens after a failure; 5 attempts unless given.
            breaker: refuses calls while its failure rate is high; refused events wait, at no cost of attempts.
            timeout: seconds a call may take.
            concurrency: calls that run at once in one worker: a number that stays as it is, or a knob of this workflow.
                `None`: 10 at first, and the optimizer may move it.
            start: `"beginning"`, `"end"` or an aware datetime (in the future: the end), for a step the store does not
                know; `None`: the beginning in a workflow that is new to the store, else the end.
        """
        check_brackets("step", event_type)
        frame = caller_frame()

        def declare(function: F) -> F:
            self._add(
                declare_step(
                    self.name,
                    event_type,
                    function,
                    name=name,
                    retry=retry,
                    breaker=breaker,
                    timeout=timeout,
                    concurrency=concurrency,
                    start=start,
                    frame=frame,
                ),
                origin_of(frame, function),
            )
            return function

        return declare

    def batch_step(
        self,
        event_type: str,
        *,
        max_size: int | Knob | None = None,
        max_wait: float | Knob | None = None,
        name: str | None = None,
        retry: Retry | None = None,
        breaker: CircuitBreaker | None = None,
        timeout: float | None = None,
        concurrency: int | Knob | None = None,
        start: Start | None = None,
    ) -> BatchDecorator:
        """Make a function `(events)` or `(events, ctx)` a step that receives lists of 1 to `max_size` events.

        A call waits up to `max_wait` seconds for more events. A batch is acknowledged as a whole, with its outputs;
        after a failure each of its events is tried alone. The other arguments are those of `step`. A number that is
        given for `max_size`, `max_wait` or `concurrency` stays as it is; a knob of this workflow may move; `None`: 100
        events, 0.05 s and 1 call at first, and the optimizer may move them.
        """
        check_brackets("batch_step", event_type)
        frame = caller_frame()

        def declare(function: F) -> F:
            self._add(
                declare_step(
                    self.name,
                    event_type,
                    function,
                    name=name,
                    retry=retry,
                    breaker=breaker,
                    timeout=timeout,
                    concurrency=concurrency,
                    start=start,
                    batch=Batch(max_size, max_wait),
                    frame=frame,
                ),
                origin_of(frame, function),
            )
            return function

        return declare

    def _add(self, step: Step, origin: Origin) -> None:
        what = f"step {step.name!r}"
        replaced = self._check_declaration(what, origin, exists=step.name in self.steps, advice="give one a name=")
        if self._lifetime is not None:
            raise ConfigurationError(f"{what}: declare steps before the workflow {self.name!r} runs")
        steps = {**self.steps, step.name: step}
        check_names(self.name, self.knobs, steps.values())
        self.steps = steps
        self._declare(what, origin, replaced=replaced)

    def _check_declaration(self, what: str, origin: Origin, *, exists: bool, advice: str = "") -> bool:
        """Return whether a declaration replaces one of the same name; refuse it if it is another one."""
        earlier = self._origins.get(what)
        if exists and (earlier is None or not origin.replaces(earlier)):
            raise ConfigurationError(f"workflow {self.name!r} has a {what} already{'; ' if advice else ''}{advice}")
        if exists and self._lifetime is not None:
            raise ConfigurationError(
                f"{what}: the workflow {self.name!r} runs; leave running() first, then declare it again"
            )
        return exists

    def _declare(self, what: str, origin: Origin, *, replaced: bool) -> None:
        self._origins[what] = origin
        self._declarations += 1
        if replaced:
            _logger.info("workflow %s: %s was declared again and replaces the earlier one", self.name, what)

    def knob(
        self,
        name: str,
        *,
        default: Any,
        low: float | None = None,
        high: float | None = None,
        scale: Literal["linear", "log"] = "linear",
        integer: bool = False,
        choices: Sequence[Choice] | None = None,
        setter: Setter | None = None,
    ) -> Knob:
        """Declare a number, or one of a few `choices`, that the optimizer may move; read its `.value` in a step.

        Declared again in a notebook it replaces the earlier one, unless it is the same: then that one is returned. It
        may also be the `concurrency` of steps, or the `max_size` or `max_wait` of batch steps. `setter` is called
        with what it is about to become, in the thread of whoever sets it. The arguments are those of `Knob`.
        """
        what, origin = f"knob {name!r}", origin_of(caller_frame())
        replaced = self._check_declaration(what, origin, exists=name in self.knobs)
        knob = Knob(
            name,
            default=default,
            low=low,
            high=high,
            scale=scale,
            integer=integer,
            choices=choices,
            setter=setter,
        )
        if replaced and knob.is_like(self.knobs[name]):
            return self.knobs[name]  # steps that use it need not be declared again
        check_names(self.name, {**self.knobs, name: knob}, () if replaced else self.steps.values())
        self.knobs[name] = knob
        self._declare(what, origin, replaced=replaced)
        return knob

    @property
    def runtime_knobs(self) -> dict[str, Knob]:
        """The runtime's own knobs that may move, by name.

        `STEP.concurrency`, `STEP.fetch_size` and `STEP.prefetch` of each step, `STEP.max_size` and `STEP.max_wait` of
        batch steps, `commit_wait`, and `archive_compression` where the retention archives.
        """
        of_steps = [knob for step in self.steps.values() for knob in step.knobs.own]
        of_store = self.events.archive_compression
        return {knob.name: knob for knob in (*of_steps, self._commit_wait, of_store) if knob is not None}

    @property
    def fixed_knobs(self) -> dict[str, Any]:
        """What would be knobs of the runtime had the user not given numbers, by name, with these numbers."""
        settings = [setting for step in self.steps.values() for setting in step.knobs]
        return {setting.name: setting.value for setting in settings if isinstance(setting, Fixed)}

    def on_outcome(self, listener: Listener) -> Listener:
        """Call `listener(outcome)` for every delivery that this process settles; fit to be a decorator.

        It is a plain function, called in the event loop. Raises `ConfigurationError` for an async one.
        """
        if not callable(listener) or callables.is_async(listener) or callables.is_generator(listener):
            raise ConfigurationError(f"on_outcome: {listener!r} is no plain function; write def listener(outcome)")
        if not callables.takes(listener, 1):
            raise ConfigurationError(f"on_outcome: {listener!r} cannot be called with one outcome; write (outcome)")
        self._listeners.append(listener)
        return listener

    # Publish

    async def publish(
        self,
        event_type: str,
        source: str | None = None,
        data: Any = None,
        priority: Priority | int | str = Priority.NORMAL,
        *,
        id: str | None = None,  # noqa: A002 - a name of the contract
        subject: str | None = None,
        idempotency_key: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        traceparent: str | None = None,
        time: dt.datetime | None = None,
        durability: Durability | None = None,
        dedup: bool = True,
        delay: float | None = None,
        at: dt.datetime | None = None,
    ) -> str | None:
        """Store an event for the steps; return its id once it is durable, or `None` if it is a duplicate.

        `source` is the workflow's name unless given. Arguments and errors are those of `EventStore.persist_event`.
        """
        try:
            await self._log()
        except StoreUnavailable:
            if not self.events.has_journal:
                raise
        return await self.events.persist_event(
            event_type,
            self.name if source is None else source,
            data,
            priority,
            id=id,
            subject=subject,
            idempotency_key=idempotency_key,
            correlation_id=correlation_id,
            causation_id=causation_id,
            traceparent=traceparent,
            time=time,
            durability=durability,
            dedup=dedup,
            delay=delay,
            at=at,
        )

    async def _log(self) -> EventLog:
        """Return the open log, with the steps known to it: what is published before a worker runs is kept for them."""
        log = await self.events.log()
        if self._registered.get(log) != self._declarations:
            TRACING.start(self.name)  # here too: whoever publishes first decides whether a trace is recorded
            declarations = self._declarations
            await log.register(self.name, [step.spec for step in self.steps.values()])
            self._registered[log] = declarations
        return log

    # Run

    @contextlib.asynccontextmanager
    async def running(
        self, *, http_port: int | str | None = None, http_host: str | None = None
    ) -> AsyncIterator[Workflow]:
        """Run the steps inside the current event loop; leaving shuts down gracefully and closes the store.

        It is entered while the store is away, too: events go to the journal, if there is one, and the steps start as
        soon as the store is there. A mistake of the configuration is raised. Where the caller is cancelled, running
        calls have one second left, after another cancellation none; what they held is given back.

        With an `http_port`, 0 for any that is free, health, metrics and status are served there; `http_url` tells
        where. `http_host` is `$AG06_HTTP_HOST` unless given, else `127.0.0.1`.
        """
        async with self._life(None if http_port is None else (http_host, http_port)):
            yield self

    @property
    def http_url(self) -> str | None:
        """Where health, metrics and status are served while the workflow runs here; `None` where they are not."""
        return None if self._monitor is None else self._monitor.url

    @property
    def settled_count(self) -> int:
        """Deliveries that its steps have settled since it runs in this process."""
        return 0 if self._worker is None else self._worker.settled_count

    async def status(self, *, metrics: bool = True) -> dict[str, Any]:
        """Return what `/status` tells of this workflow while it runs here, JSON-able; nothing while it does not."""
        from ag06.runtime.status import status_of

        return {} if self._monitor is None else await status_of(self, self._monitor, metrics=metrics)

    def _life(self, listen: Listen | None) -> Lifetime:
        """Return a new life of this workflow, which has no other in this process now."""
        from ag06.runtime.lifetime import Lifetime  # publishers need none of it

        if self._lifetime is not None:
            raise ConfigurationError(f"workflow {self.name!r} runs already in this process")
        self._lifetime = Lifetime(
            self, listen, registered_log=self._log, make_worker=self._make_worker, ended=self._has_ended
        )
        return self._lifetime

    def _has_ended(self, lifetime: Lifetime) -> None:
        if self._lifetime is lifetime:
            self._lifetime = None

    def _make_worker(self, log: EventLog, name: str) -> Worker:
        return Worker(
            self.name,
            list(self.steps.values()),
            log,
            name=name,
            admission=self.events.admission,
            visibility=self.visibility_timeout,
            listeners=self._listeners,
            commit_wait=self._commit_wait,
            keeper=self.events.keeper,
            max_output_bytes=self.max_output_bytes,
        )

    @property
    def _worker(self) -> Worker | None:
        return None if self._lifetime is None else self._lifetime.worker

    @property
    def _monitor(self) -> Monitor | None:
        return None if self._lifetime is None else self._lifetime.monitor

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until no event is pending in a step of this workflow and none is due later.

        While the workflow runs here, a store that is away is waited for; otherwise `StoreUnavailable` is raised. Raises
        `TimeoutError` after `timeout` seconds; its message has the number of pending events, or why it is not known.
        """
        groups = [step.group for step in self.steps.values()]
        wait = 0.002
        state = "the store has not answered"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if self._lifetime is not None and self._lifetime.failure.done():
                        self._lifetime.failure.result()
                    try:
                        pending = await (await self._log()).pending(groups)
                    except StoreUnavailable as error:
                        if self._lifetime is None:
                            raise
                        state = f"the store is away ({error})"
                    else:
                        if not pending:
                            return
                        state = f"{pending} events are pending or due later"
                    await asyncio.sleep(wait)
                    wait = min(wait * 1.5, 0.1)
        except TimeoutError:
            if self._lifetime is None:
                here = "; its steps do not run in this process"
            else:
                here = "" if self._lifetime.problem is None else "; its steps start when the store is there"
            raise TimeoutError(f"workflow {self.name!r}: {state} after {timeout} s{here}") from None

    async def close(self) -> None:
        """Close what the calling event loop has open of the store; needed only where it publishes and runs no steps."""
        await self.events.close()

    async def serve(self) -> None:
        """Run the steps until SIGTERM or SIGINT, then shut down gracefully; a second SIGINT ends at once."""
        if not self.steps:
            raise ConfigurationError(f"workflow {self.name!r} has no steps; declare one with @app.step(...)")
        # Under a supervisor that one listens, for all its workers.
        listen = None if os.environ.get(SUPERVISOR_VARIABLE) else (None, None)
        with shutdown_signals() as asked:
            async with self._life(listen) as lifetime:
                waiting = start_task(asked.wait())
                try:
                    ends: list[asyncio.Future[Any]] = [waiting, lifetime.failure]
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await end(waiting)
                _logger.info("workflow %s shuts down: what runs has %g s to finish", self.name, self.grace)
                if lifetime.failure.done():
                    lifetime.failure.result()

    def run(self) -> None:
        """Run the steps in this process until SIGTERM or SIGINT; log lines go to standard output, as JSON.

        Handlers that the program has given to the root logger stay as they are. Outside the main thread no signal
        arrives: there it runs until the process ends. To end it earlier, cancel a task of your own that awaits
        `serve()`, or leave `running()`.

        Raises:
            ConfigurationError: an event loop runs in this thread, as in a notebook, or there are no steps.
        """
        from ag06.monitoring.logs import configure_logging

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass  # as it should be
        else:
            raise ConfigurationError(
                f"workflow {self.name!r}: run() starts an event loop, and one runs here already; "
                "use `await app.serve()`, or `async with app.running():`"
            )
        if not logging.getLogger().handlers:
            configure_logging()
        try:
            run_until_done(self.serve())
        except asyncio.CancelledError:  # a second SIGINT cancels what the first one asked to end
            raise KeyboardInterrupt from None


_all: weakref.WeakSet[Workflow] = weakref.WeakSet()


def _forget_parent() -> None:
    """What runs in a process does not run in its child."""
    for workflow in list(_all):
        workflow._lifetime = None


os.register_at_fork(after_in_child=_forget_parent)
