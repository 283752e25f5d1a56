"""`ag06 run`: run a workflow's steps, in this process or in several."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ag06.cli.opening import refuse_memory
from ag06.errors import ConfigurationError, StoreError
from ag06.tasks import start_task

if TYPE_CHECKING:
    from ag06.runtime.fleet import Fleet
    from ag06.runtime.supervisor import Supervisor
    from ag06.runtime.workflow import Workflow


_logger = logging.getLogger("ag06.cli")
_STANDARD_ERROR = 2
_STORE_VARIABLE = "AG06_RUN_STORE"
"""How a supervisor passes `--store` on to its workers; see `ag06.runtime.supervisor`."""


def command(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the workflow is, such as shop.flow:app.")],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Worker processes; one that dies is started again.")] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when Python files below here change.")] = False,
    store: Annotated[
        str | None,
        typer.Option(envvar=_STORE_VARIABLE, show_envvar=False, help="Store URL, instead of the workflow's own."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    stall_timeout: Annotated[
        str | None,
        typer.Option(help="Replace a worker whose event loop is blocked for so long, such as 60s or 2m; or off."),
    ] = None,
    max_events: Annotated[
        int | None, typer.Option(min=1, help="Start a worker afresh after so many events, gracefully.")
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Start a worker afresh above this size, such as 512M."),
    ] = None,
) -> None:
    """Run the steps of a workflow until SIGTERM or Ctrl-C.

    Its log is on standard output: one JSON object a line, readable text on a terminal; AG06_LOG_FORMAT decides if set.

    Example: ag06 run shop.flow:app --workers 4
    """
    from ag06.monitoring.logs import configure_logging
    from ag06.runtime.loading import load_workflow
    from ag06.runtime.main_loop import run_until_done
    from ag06.runtime.recycling import Limits, read_size
    from ag06.settings import check_setting, resolve, timeout_of

    os.environ.pop(_STORE_VARIABLE, None)  # it is for this process, not for what the steps start
    level = resolve("log_level", log_level)
    check_setting(level)
    check_setting(resolve("tune"))  # a worker would run on without the optimizer, and only its log would say so
    stall = resolve("stall_timeout", stall_timeout)
    check_setting(stall)
    limits = Limits(max_events or 0, 0 if max_memory is None else read_size(max_memory))
    configure_logging(level.value)
    workflow = load_workflow(target)
    if store is not None:
        workflow.use_store(store)
    _check(workflow)
    if not os.environ.get("AG06_SUPERVISOR"):
        steps = ", ".join(workflow.steps)
        _logger.info("workflow %s on %s, steps: %s; Ctrl-C ends it", workflow.name, workflow.events.url, steps)
        if store is None:
            _warn_of_another_store(workflow)
    start = partial(
        _supervisor, target, workers, store, workflow, stall_timeout=timeout_of(stall), environment=limits.environment
    )
    if stall_timeout is not None and not (reload or workers > 1 or limits):
        _logger.warning("--stall-timeout needs a supervisor, which one worker does not have; give --workers 2 or more")
    if reload:
        asyncio.run(_reloading(workflow, start))
    elif workers > 1 or limits:  # a single worker that is started afresh needs one who starts it
        raise typer.Exit(asyncio.run(_supervised(workflow, start)))
    else:
        raise typer.Exit(run_until_done(_serve(workflow)))


def _check(workflow: Workflow) -> None:
    """Refuse what no worker could run, here and once, before there are workers."""
    if not workflow.steps:
        raise ConfigurationError(f"workflow {workflow.name!r} has no steps; declare one with @app.step(...)")
    workflow.events.check()
    refuse_memory(workflow.events.url or "")


def _warn_of_another_store(workflow: Workflow) -> None:
    """Say so when the other commands, run here, would look at another store than the workflow's own."""
    from ag06.persistence.stores import masked, sqlite_file
    from ag06.settings import resolve

    setting = resolve("store")
    theirs, ours = masked(setting.value), workflow.events.url or ""
    files = [sqlite_file(url) for url in (theirs, ours) if url.lower().startswith("sqlite:///")]
    same = theirs == ours or (len(files) == 2 and os.path.realpath(files[0] or "") == os.path.realpath(files[1] or ""))
    if setting.origin != "default" and not same:
        _logger.warning(
            "the workflow's own store= is used, not %s (from %s); the other commands look there: give them --store, "
            "or leave store= out of the code",
            theirs,
            setting.origin,
        )


async def _register(workflow: Workflow) -> None:
    """Make the steps known before there are workers: a step that the store refuses is told once.

    A store that is away is left to the workers, which try again.
    """
    try:
        log = await workflow.events.log()
        await log.register(workflow.name, [step.spec for step in workflow.steps.values()])
    except StoreError as error:
        _logger.warning("the store is away, workers will try again: %s", error)


async def _serve(workflow: Workflow) -> int:
    """Run the steps here; end when the supervisor that started this process is gone. Return the exit code."""
    from ag06.monitoring.instruments import shared_directory
    from ag06.monitoring.logs import context
    from ag06.runtime.recycling import Recycling, limits_of, mark_recycled
    from ag06.runtime.supervisor import RECYCLED
    from ag06.runtime.worker import worker_name

    supervisor, name = os.environ.get("AG06_SUPERVISOR"), worker_name()
    beside: list[Coroutine[Any, Any, None]] = []
    directory = shared_directory()
    mark = (lambda: None) if directory is None else partial(mark_recycled, directory, name)
    recycling = Recycling(limits := limits_of(os.environ), lambda: workflow.settled_count, mark)
    if supervisor:
        faulthandler.enable(_STANDARD_ERROR)  # so that SIGABRT, which ends a worker that stalls, writes its stack
        beside = [_watch_parent(int(supervisor)), _report_to_parent(workflow, name)]
        if limits:
            beside.append(recycling.watch())
    tasks = [start_task(work) for work in beside]
    named = context(worker=name) if supervisor else contextlib.nullcontext()
    try:
        with named:  # the lines of several workers are in one stream
            await workflow.serve()
        _let_end()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return 0 if recycling.reason is None else RECYCLED


def _let_end() -> None:
    """Let one more SIGTERM not turn a shutdown that went well into a death: what follows is the interpreter's end."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)  # closing the loop would put the default back
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def _watch_parent(pid: int) -> None:
    while os.getppid() == pid:  # noqa: ASYNC110 - the kernel offers no event for this that Python can await
        await asyncio.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


async def _report_to_parent(workflow: Workflow, name: str) -> None:
    from ag06.monitoring.instruments import shared_directory
    from ag06.runtime.worker_reports import write_reports

    directory = shared_directory()
    if directory is not None:
        await write_reports(directory, name, partial(_report, workflow))


async def _report(workflow: Workflow) -> dict[str, Any]:
    """Return how the workflow is; while it opens that waits a little, so that its start is told soon."""
    for _ in range(20):
        found = await workflow.status(metrics=False)
        if found.get("worker") is not None:
            break
        await asyncio.sleep(0.1)
    return found


def _on_signal(call: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)


def _supervisor(
    target: str,
    workers: int,
    store: str | None,
    workflow: Workflow,
    fleet: Fleet,
    *,
    stall_timeout: float | None,
    environment: Mapping[str, str],
) -> Supervisor:
    from ag06.runtime.supervisor import Supervisor

    return Supervisor(
        target,
        workers,
        workflow.events,
        store=store,
        grace=workflow.grace,
        visibility=workflow.visibility_timeout,
        stall_timeout=stall_timeout,
        environment={**fleet.environment, **environment},
    )


async def _supervised(workflow: Workflow, start: Callable[[Fleet], Supervisor]) -> int:
    from ag06.runtime.fleet import Fleet

    stopped = asyncio.Event()
    _on_signal(stopped.set)  # what comes before there are workers to stop is not forgotten
    async with Fleet(workflow) as fleet:
        await _register(workflow)
        supervisor = start(fleet)
        _on_signal(supervisor.stop)
        if stopped.is_set():
            return 0
        fleet.watch(supervisor)
        code = await supervisor.run()
    _let_end()
    return code


async def _reloading(workflow: Workflow, start: Callable[[Fleet], Supervisor]) -> None:
    """Run workers; when a file changes, stop them gracefully and start them with the new code."""
    from watchfiles import PythonFilter, awatch

    from ag06.runtime.fleet import Fleet

    stopped = asyncio.Event()
    _on_signal(stopped.set)
    async with Fleet(workflow) as fleet:
        changes = awatch(Path.cwd(), watch_filter=PythonFilter(), stop_event=stopped, raise_interrupt=False)
        while not stopped.is_set():
            supervisor = start(fleet)
            fleet.watch(supervisor)
            running = start_task(supervisor.run())
            try:
                files = await anext(changes)
                _logger.info("%s changed, restarting", ", ".join(sorted({path for _, path in files})))
            except StopAsyncIteration:
                stopped.set()
            supervisor.stop()
            await running
    _let_end()
