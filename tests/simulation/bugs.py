"""Bugs to plant: each takes away one thing that a promise rests on, in memory only. The simulation must find each."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

import msgspec


class Bug(msgspec.Struct, frozen=True):
    """In `module`, the one place that says `right` says `wrong` instead."""

    module: str
    right: str
    wrong: str


BUGS = {
    "no-fencing": Bug(
        "ag06.persistence.memory.state",
        "return pending if pending is not None and (pending.worker, pending.serial) == (worker, token[1]) else None",
        "return pending",
    ),
    "old-lease-of-the-same-worker-commits": Bug(
        "ag06.persistence.memory.state",
        "(pending.worker, pending.serial) == (worker, token[1])",
        "pending.worker == worker",
    ),
    "outputs-without-identity": Bug(
        "ag06.runtime.context",
        'derived_id(parent.id, f"{self.workflow}.{self.step}", ordinal, millis)',
        '__import__("ag06.ids").ids.new_id()',
    ),
    "outputs-share-a-number": Bug(
        "ag06.runtime.context",
        "self._counts[parent.id] = ordinal + 1",
        "self._counts[parent.id] = min(ordinal + 1, 1)",
    ),
    "acknowledged-before-outputs": Bug(
        "ag06.persistence.memory.state",
        """            for record in settlement.outputs:
                self.append(record, now_ms, 0)
""",
        """            for record in settlement.outputs[:1]:
                self.append(record, now_ms, 0)
""",
    ),
    "outputs-of-a-fenced-worker": Bug(
        "ag06.persistence.memory.state",
        """            if any(group.held(token, worker) is None for token in tokens):
                return False
""",
        """            if any(group.held(token, worker) is None for token in tokens):
                [self.append(record, now_ms, 0) for record in settlement.outputs]
                return False
""",
    ),
    "second-event-of-a-subject-early": Bug(
        "ag06.persistence.memory.state",
        "return prev if prev in self.open and not moved else None",
        "return prev if prev in self.pending and self.pending[prev].worker and not moved else None",
    ),
    "dead-letter-jumps-the-queue": Bug(
        "ag06.persistence.memory.state",
        "        before = self.open_before(tail)\n        position = entry.stored.position\n",
        "        before = None\n        position = entry.stored.position\n",
    ),
    "postponed-attempt-forgotten": Bug(
        "ag06.persistence.memory.state",
        "pending.attempts, pending.first_failed_ms = settlement.attempts, settlement.first_failed_ms",
        "pending.first_failed_ms = settlement.first_failed_ms",
    ),
    "death-not-counted": Bug(
        "ag06.persistence.memory.state",
        "pending.deaths += pending.started",
        "pending.deaths += 0",
    ),
    "repeated-id-stored-again": Bug(
        "ag06.persistence.memory.state",
        "if record.id in self.contents:",
        "if False:",
    ),
    "no-deduplication": Bug(
        "ag06.persistence.memory.state",
        "if expires > self.identities.get(identity, _NOBODY)[0]:",
        "if False:",
    ),
    "identities-kept-for-ever": Bug(
        "ag06.persistence.memory.state",
        "[i for i, (expires, _, _) in self.identities.items() if expires <= now_ms]",
        "[]",
    ),
    "identities-of-a-clock-that-was-ahead-last": Bug(
        "ag06.persistence.memory.state",
        "for identity, (expires, event_id, window_ms) in list(self.identities.items()):",
        "for identity, (expires, event_id, window_ms) in []:",
    ),
    "retries-of-a-clock-that-was-ahead-wait": Bug(
        "ag06.persistence.memory.state",
        "(min(due_ms, now_ms + self.pending[position].lasts_ms), position)",
        "(due_ms, position)",
    ),
    "delays-of-a-clock-that-was-ahead-wait": Bug(
        "ag06.persistence.memory.state",
        "(min(due_ms, record.due_by(now_ms)), n, record)",
        "(due_ms, n, record)",
    ),
    "leases-of-a-clock-that-was-ahead-last": Bug(
        "ag06.persistence.memory.state",
        "pending.until_ms = min(pending.until_ms, now_ms + pending.lasts_ms)",
        "pass",
    ),
    "delays-by-the-clock-of-a-publisher-that-is-ahead": Bug(
        "ag06.persistence.log",
        "return min(self.due_ms, now_ms + self.delay_ms) if self.delay_ms else self.due_ms",
        "return self.due_ms",
    ),
    "commit-not-repeated": Bug(
        "ag06.runtime.committer",
        """                self._outage.failed(error)
                is_first = False
            else:""",
        """                self._outage.failed(error)
                return [False] * len(what), False
            else:""",
    ),
    "rest-of-a-refused-batch-kept": Bug(
        "ag06.runtime.committer",
        "left += settlement.deliveries",
        "left += ()",
    ),
    "a-caller-too-many-takes-its-delivery-along": Bug(
        "ag06.runtime.step_runner",
        """        while not (self._intake.closed or self._callers.dismiss()):
            delivery = self._intake.take()
            if delivery is not None:
                return delivery
""",
        """        while not self._intake.closed:
            delivery = self._intake.take()
            if delivery is not None:
                return None if self._callers.dismiss() else delivery
""",
    ),
    "drained-before-the-store-has-it": Bug(
        "ag06.persistence.journal.draining",
        """        outcomes = await self.send(kept, synced=any(entry.synced for entry in entries))
        await file.mark([entry.number for entry in entries])
""",
        """        await file.mark([entry.number for entry in entries])
        outcomes = await self.send(kept, synced=any(entry.synced for entry in entries))
""",
    ),
    "straight-before-the-journal-is-empty": Bug(
        "ag06.persistence.journal.log",
        "        gate = self._gate = asyncio.Event()\n",
        "        self._direct = True\n        gate = self._gate = asyncio.Event()\n",
    ),
    "orphans-are-left": Bug(
        "ag06.persistence.journal.orphans",
        "        for claim in found:\n            file =",
        "        for claim in found[:0]:\n            file =",
    ),
}


class _Planter(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Loads one module with a bug in it."""

    def __init__(self, bug: Bug, path: str) -> None:
        super().__init__(bug.module, path)
        self._bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._bug.module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin=self.path)

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        if source.count(self._bug.right) != 1:
            raise ImportError(f"{self.path} does not say once: {self._bug.right!r}; bring tests/simulation/bugs.py up")
        return compile(source.replace(self._bug.right, self._bug.wrong), self.path, "exec")


def plant(name: str) -> None:
    """Have the module of a bug imported with it; before anybody imports it."""
    bug = BUGS[name]
    if "ag06" in sys.modules:
        raise ImportError("plant a bug before ag06 is imported")
    package = importlib.util.find_spec("ag06")
    if package is None or package.origin is None:
        raise ImportError("ag06 is not installed")
    path = Path(package.origin).parent.joinpath(*bug.module.split(".")[1:]).with_suffix(".py")
    sys.meta_path.insert(0, _Planter(bug, str(path)))
