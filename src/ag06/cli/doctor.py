"""`ag06 doctor`: what is installed, which settings won, how the store stands, what a crash would lose."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ag06.cli.finding import Finding
from ag06.cli.opening import check_shared, opened
from ag06.cli.output import JsonOption, StoreOption, age, print_json, print_table
from ag06.errors import AG06Error, ConfigurationError, StoreDamaged
from ag06.settings import DEFAULTS, Setting, check_setting, located, resolve

if TYPE_CHECKING:
    from ag06.persistence.log import GroupInfo

_OPTIONAL = {"redis": "no redis:// stores", "hiredis": "Redis replies are parsed several times slower"}
_KNOWN = {
    "AG06_WORKER", "AG06_SUPERVISOR", "AG06_FLEET", "AG06_RUN_STORE", "AG06_CRASH_CYCLES", "AG06_HTTP_KEY",
    "AG06_METRICS_DIR", "AG06_METRICS_STRICT",
}  # fmt: skip
"""Variables that are no settings: a file must not hold a key, and a supervisor sets most of the others."""
_LEAST_FREE = 256 * 1024 * 1024
USER_MISTAKE = 2
_ARCHIVE_SECONDS = 10.0
_STALE_MS = 15 * 60 * 1000


def command(store: StoreOption = None, json: JsonOption = False) -> None:
    """Look at the installation, the settings and the store; exit 1 if the store fails, 2 if a setting is wrong.

    Example: ag06 doctor --store redis://localhost:6379/0
    """
    from ag06.cli.doctor_monitoring import monitoring

    found, code = asyncio.run(_store(store))
    settings = _settings(store)
    archive = _archive()
    seen = asyncio.run(monitoring())
    if any(finding.status == "fail" for finding in (*settings, *archive, *seen)):
        code = max(code, USER_MISTAKE)
    findings = [*_installation(), *settings, *seen, *found, *archive, *_journals()]
    if json:
        print_json(findings)
    else:
        rows = [(finding.topic, finding.status, finding.what) for finding in findings]
        print_table("Doctor", ("topic", "status", "what"), rows, whole=("topic",))
    raise typer.Exit(code)


def _installation() -> list[Finding]:
    version = importlib.metadata.version("ag06")
    found = [Finding("installation", "pass", f"ag06 {version}, Python {platform.python_version()}")]
    for module, cost in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            found.append(
                Finding(module, "warn", f"not installed: {cost}; pip install 'ag06[redis]', in a checkout '.[redis]'")
            )
        else:
            found.append(Finding(module, "pass", importlib.metadata.version(module)))
    return found


def _settings(store: str | None) -> list[Finding]:
    found: list[Finding] = []
    for name in DEFAULTS:
        try:
            found.append(_setting(resolve(name, store if name == "store" else None)))
        except ConfigurationError as error:  # what is wrong with the file is wrong for many
            if str(error) not in {finding.what for finding in found}:
                found.append(Finding(f"setting {name}", "fail", str(error)))
    known = {f"AG06_{name.upper()}" for name in DEFAULTS} | _KNOWN
    strange = sorted(name for name in os.environ if name.startswith("AG06_") and name not in known)
    return found + [Finding(f"variable {name}", "warn", "no such setting; is it misspelt?") for name in strange]


def _journals() -> list[Finding]:
    """Say which events wait in journals under the directory that is set."""
    from ag06.persistence.journal.survey import dead_letters, survey

    try:
        directory = resolve("journal").value
    except ConfigurationError:  # shown with the settings
        return []
    if directory.lower() == "off":
        return []
    directory = located(directory)
    found = []
    for journal in survey(directory):
        if journal.problem is not None:
            what = f"{journal.path}: {journal.problem}; events of {journal.store} may be in it"
        elif journal.events and not journal.alive:
            what = (
                f"{journal.path}: {journal.events} events for {journal.store}, left behind by a process; the next one"
            )
            what += " that opens this store hands them on"
        elif journal.events:
            what = f"{journal.path}: {journal.events} events wait until {journal.store} is back"
        else:
            continue
        found.append(Finding("journal", "warn", what))
    for letters in dead_letters(directory):
        if letters.problem is not None:
            found.append(Finding("journal", "warn", f"{letters.path}: {letters.problem}"))
        elif letters.events:
            what = f"{letters.path}: {letters.store} refused {letters.events} events for good; see: "
            what += f"ag06 journal list --store {letters.store}"
            found.append(Finding("journal", "warn", what))
    found += _unwritable(directory)
    return found or [Finding("journal", "pass", f"no event waits under {os.path.abspath(directory)}")]


def _archive() -> list[Finding]:
    """Say how the archive that is set stands; nothing is written. One that hangs is not waited for."""
    try:
        url = resolve("archive").value
    except ConfigurationError:  # shown with the settings
        return []
    if not url:
        return []
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_opened_archive(url)), name="ag06-archive", daemon=True)
    thread.start()
    thread.join(_ARCHIVE_SECONDS)
    waited = Finding("archive", "warn", f"it does not answer in {_ARCHIVE_SECONDS:.0f} s; events stay in the store")
    return found[:1] or [waited]


def _opened_archive(url: str) -> Finding:
    from ag06.persistence.archive.retention import check_lasting

    try:
        there = check_lasting(url).probe()
    except ConfigurationError as error:
        return Finding("archive", "fail", str(error))
    except AG06Error as error:
        return Finding("archive", "warn", f"{error}; events stay in the store until it is back")
    return Finding("archive", "pass", "it can be reached" if there else "it is not there yet; the first run makes it")


def _unwritable(directory: str) -> list[Finding]:
    """Try to make a journal, and leave nothing behind."""
    from ag06.persistence.journal.claim import Claims

    claims = Claims(directory, "doctor")
    there = [place for place in (claims.directory, *claims.directory.parents) if place.exists()]
    problem = claims.problem()
    if claims.directory not in there:
        (claims.directory / "store").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else uses one of them since, or it was never made
        for place in (claims.directory, *claims.directory.parents):
            if place in there:
                break
            place.rmdir()
    if problem is None:
        return []
    what = f"{problem}: while a remote store is away publishers would wait; set AG06_JOURNAL to another directory"
    return [Finding("journal", "warn", what)]


def _setting(setting: Setting) -> Finding:
    from ag06.persistence.stores import masked

    topic = f"setting {setting.name}"
    try:
        check_setting(setting)
    except ConfigurationError as error:
        return Finding(topic, "fail", str(error))
    return Finding(topic, "pass", f"{masked(setting.value) or 'not set'} (from {setting.origin})")


async def _store(store: str | None) -> tuple[list[Finding], int]:
    """Return what there is to say about the store, and the exit code."""
    try:
        setting = resolve("store", store)
        path = check_shared(setting.value)
        if path is not None and setting.origin == "default" and not os.path.exists(path):  # noqa: ASYNC240 - once
            return [Finding("store", "warn", f"there is no {path} yet; the first publish makes it")], 0
        async with opened(store) as events:
            started = time.perf_counter()
            stats = await events.stats()
            took = (time.perf_counter() - started) * 1000
            log = await events.log()
            found = [Finding("store", "pass", f"answers in {took:.1f} ms; {stats.events} events")]
            found += [Finding("durability", _gravity(line), line) for line in await log.durability_report()]
            if stats.dead_letters:
                found.append(Finding("dead letters", "warn", f"{stats.dead_letters}; see: ag06 dead-letters list"))
            found += [finding for group in stats.groups for finding in _group(group)]
    except (ConfigurationError, StoreDamaged) as error:
        return [Finding("store", "fail", str(error))], 2
    except AG06Error as error:
        return [Finding("store", "fail", str(error))], 1
    return found + ([] if path is None else _disk(Path(path))), 0


def _gravity(line: str) -> Literal["pass", "warn"]:
    """A sentence that says what can be lost, or what is refused, is a warning."""
    from ag06.monitoring.checks import is_alarming

    return "warn" if is_alarming(line) else "pass"


def _group(group: GroupInfo) -> list[Finding]:
    if not group.backlog or group.oldest_ms is None or time.time() * 1000 - group.oldest_ms < _STALE_MS:
        return []
    advice = f"run it, or: ag06 steps remove {group.group}" if not group.in_flight else "is it stuck in retries?"
    what = f"{group.backlog} events behind, the oldest for {age(group.oldest_ms)}; it holds the log back; {advice}"
    return [Finding(f"step {group.group}", "warn", what)]


def _disk(path: Path) -> list[Finding]:
    free = shutil.disk_usage(path.parent).free
    size = path.stat().st_size
    status: Literal["pass", "warn"] = "pass" if free > _LEAST_FREE else "warn"
    return [Finding("disk", status, f"{size / 1e6:.1f} MB used by {path}, {free / 1e9:.1f} GB free")]
