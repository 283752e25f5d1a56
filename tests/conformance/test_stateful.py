"""Every adapter against a plain list: random histories must leave the same events, in the same states."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ag06.event import decode_event
from ag06.persistence.log import Appended, Bury, Delivery, EventLog, LogOptions, Postpone, Query, StepSpec, Subscription
from ag06.persistence.stores import open_log
from records import ADMISSION, GROUP, TYPE, done, failure, number, output
from servers import ValkeyServer

_serial = itertools.count()
SUBJECTS = st.sampled_from([None, None, "s", "t"])


class LogMachine(RuleBasedStateMachine):
    """The model: `stored` is the list of what was appended, and sets say what became of each event in the one step.

    `order` is `stored` as subjects see it: a dead letter that is retried goes to its end.
    """

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stored: list[int] = []
        self.order: list[int] = []
        self.dropped: set[int] = set()
        self.retried: set[int] = set()
        self.subjects: dict[int, str | None] = {}
        self.settled: set[int] = set()
        self.dead: set[int] = set()
        self.held: dict[str, dict[int, Delivery]] = {"w0": {}, "w1": {}}
        self.postponed: dict[int, int] = {}
        self.contents: set[int] = set()
        self.duplicates = 0

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        separator = "&" if "?" in self.url else "?"
        name = f"{os.getpid()}-{next(_serial)}"
        if self.url.startswith("redis"):
            url = f"{self.url}{separator}log=model-{name}"
        else:
            url = self.url.replace("NAME", name)
        self.log: EventLog = open_log(url, LogOptions())
        self.do(self.log.open())
        self.do(self.log.register("shop", [StepSpec(GROUP, TYPE)]))
        self.workers: dict[str, Subscription] = {name: self.log.subscribe(GROUP, name, 3600) for name in self.held}

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.do(self.log.close())
        self.runner.close()

    @rule(contents=st.lists(st.tuples(st.integers(0, 60), SUBJECTS, st.integers(0, 3)), min_size=1, max_size=6))
    def append(self, contents: list[tuple[int, str | None, int]]) -> None:
        records = []
        expected = []
        for content, subject, level in contents:
            # The key, not the subject or the priority, says what is the same.
            records.append(
                ADMISSION.admit(TYPE, "test", {"number": content}, level, subject=subject, idempotency_key=str(content))
            )
            if content in self.contents:
                expected.append(Appended.DUPLICATE)
                self.duplicates += 1
            else:
                expected.append(Appended.STORED)
                self.contents.add(content)
                self._store(content, subject)
        assert self.do(self.log.append(records)) == expected

    def _store(self, content: int, subject: str | None) -> None:
        self.stored.append(content)
        self.order.append(content)
        self.subjects[content] = subject

    @rule(worker=st.sampled_from(["w0", "w1"]), limit=st.integers(1, 8))
    def fetch(self, worker: str, limit: int) -> None:
        found = self.do(self.workers[worker].fetch(limit, 0))
        assert len(found) <= limit
        for delivery in found:
            content = number(delivery)
            assert content in self.stored
            assert content not in self.settled
            assert all(content not in held for held in self.held.values())
            assert delivery.attempts == self.postponed.get(content, 0)
            subject = self.subjects[content]
            if subject is not None:
                earlier = self.order[: self.order.index(content)]
                assert all(e in self.settled for e in earlier if self.subjects[e] == subject)
            self.held[worker][content] = delivery

    def _some(self, worker: str, data: st.DataObject, least: int = 1) -> list[int]:
        held = sorted(self.held[worker])
        return data.draw(st.lists(st.sampled_from(held), min_size=least, max_size=4, unique=True))

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=st.sampled_from(["w0", "w1"]), data=st.data(), fresh=st.integers(1000, 10_000))
    def acknowledge(self, worker: str, data: st.DataObject, fresh: int) -> None:
        if not self.held[worker]:
            return
        settlements = []
        for content in self._some(worker, data):
            delivery = self.held[worker].pop(content)
            outputs = []
            new = fresh * 10_000 + content * 100 + len(settlements)
            if data.draw(st.booleans()) and new not in self.subjects:
                subject = data.draw(SUBJECTS)
                outputs = [output(new, TYPE, delivery, subject=subject, priority=1)]
                self._store(new, subject)
            settlements.append(done(delivery, outputs=outputs))
            self.settled.add(content)
        assert self.do(self.workers[worker].commit(settlements)) == [True] * len(settlements)
        # Nobody commits a second time, neither this worker nor the other.
        assert not any(self.do(self.workers["w0"].commit(settlements)))
        assert not any(self.do(self.workers["w1"].commit(settlements)))

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=st.sampled_from(["w0", "w1"]), data=st.data())
    def postpone(self, worker: str, data: st.DataObject) -> None:
        if not self.held[worker]:
            return
        for content in self._some(worker, data):
            delivery = self.held[worker].pop(content)
            self.postponed[content] = delivery.attempts + 1
            settlement = Postpone(delivery, 0, delivery.attempts + 1, 5)
            assert self.do(self.workers[worker].commit([settlement])) == [True]

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=st.sampled_from(["w0", "w1"]), data=st.data())
    def bury(self, worker: str, data: st.DataObject) -> None:
        if not self.held[worker]:
            return
        for content in self._some(worker, data):
            delivery = self.held[worker].pop(content)
            assert self.do(self.workers[worker].commit([Bury(delivery, failure())])) == [True]
            self.settled.add(content)
            self.dead.add(content)

    @precondition(lambda self: any(self.held.values()))
    @rule(worker=st.sampled_from(["w0", "w1"]), data=st.data())
    def release(self, worker: str, data: st.DataObject) -> None:
        if not self.held[worker]:
            return
        given_back = [self.held[worker].pop(content) for content in self._some(worker, data)]
        self.do(self.workers[worker].release(given_back))

    @rule(worker=st.sampled_from(["w0", "w1"]))
    def die(self, worker: str) -> None:
        assert self.do(self.log.release_worker(worker)) == len(self.held[worker])
        lost = list(self.held[worker].values())
        self.held[worker].clear()
        if lost:
            assert not any(self.do(self.workers[worker].commit([done(delivery) for delivery in lost])))

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(sorted(self.dead)))
        letters = self.do(self.log.dead_letters())
        (letter,) = [x for x in letters if decode_event(x.body, x.recorded_ms).data["number"] == content]
        assert self.do(self.log.discard_dead_letters([(letter.group, letter.event_id)])) == 1
        self.dead.discard(content)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(sorted(self.dead)))
        letters = self.do(self.log.dead_letters())
        (letter,) = [x for x in letters if decode_event(x.body, x.recorded_ms).data["number"] == content]
        assert self.do(self.log.retry_dead_letters([(letter.group, letter.event_id)])) == 1
        self.dead.discard(content)
        self.settled.discard(content)
        self.postponed.pop(content, None)
        self.retried.add(content)
        self.order.remove(content)
        self.order.append(content)

    @rule()
    def drop(self) -> None:
        for cut in self.do(self.log.settled(1 << 42, [TYPE])):
            inside = self.do(self._contents(types=(TYPE,), level=cut.level, below=cut.below))
            assert inside, "a cut has events"
            # A store that keeps the body of a retried dead letter elsewhere may let its event go.
            assert set(inside) <= self.settled | self.retried
            count = self.do(self.log.drop(cut))
            left = self.do(self._contents(types=(TYPE,), level=cut.level, below=cut.below))
            assert count == len(inside) - len(left)
            kept = self.stored[-1:]  # the newest event may stay
            assert left in ([], kept)
            self.dropped |= set(inside) - set(left)

    @invariant()
    def the_log_holds_the_list(self) -> None:
        if not hasattr(self, "log"):
            return
        left = [content for content in self.stored if content not in self.dropped]
        assert self.do(self._contents()) == left
        assert self.do(self.log.pending([GROUP])) == len(self.stored) - len(self.settled)
        stats = self.do(self.log.stats())
        assert (stats.events, stats.duplicates, stats.dead_letters) == (
            len(left),
            self.duplicates,
            len(self.dead),
        )

    async def _contents(self, **query: Any) -> list[int]:
        return [
            decode_event(entry.body, entry.recorded_ms).data["number"]
            async for page in self.log.read(Query(**query))
            for entry in page
        ]


def test_a_random_history_matches_a_plain_list(adapter: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if adapter == "redis":
        server: ValkeyServer = request.getfixturevalue("valkey")
        url = server.url
    else:
        url = "memory://NAME" if adapter == "memory" else f"sqlite:///{tmp_path}/NAME.db"

    class Machine(LogMachine):
        pass

    Machine.url = url
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
