"""The account at the end of a simulation, when everything has come to rest: each promise is looked at once more."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from ag06.event import Event, Priority
from ag06.ids import derived_id

from .flow import DEADLY, Order, Output, Part, World, outputs_of
from .ledger import Said
from .plan import Plan
from .watch import Entry, Key, PromiseBroken, Watch

_STEPS = {"order": ("split", "audit"), "part": ("collect",), "total": ("finish",)}
_decode = msgspec.json.Decoder(Event[Any]).decode


class Account:
    """Draws up the account; raises `PromiseBroken` where it does not balance."""

    def __init__(self, plan: Plan, watch: Watch, world: World, said: Sequence[Said], *, were_paused: bool) -> None:
        """Compare what `watch` saw with what publishers `said` and steps did; `were_paused`: some process was."""
        self._were_paused = were_paused
        self._plan = plan
        self._watch = watch
        self._world = world
        self._said = said
        self._events: dict[str, Event[Any]] = {entry.id: _decode(entry.body) for entry in watch.log.values()}

    def check(self) -> None:
        """Check everything."""
        self._every_returned_id_is_there_once()
        self._publishers_order_is_kept()
        self._everything_is_settled()
        self._outputs_are_there_once()
        for key in self._watch.dead:
            self._check_dead_letter(key)

    def _every_returned_id_is_there_once(self) -> None:
        found: dict[int, list[str]] = defaultdict(list)
        for event in self._events.values():
            if event.type == "order":
                found[event.data["number"]].append(event.id)
        for said in self._said:
            ids = found.pop(said.order.number, [])
            if len(ids) > 1:
                raise PromiseBroken(f"order {said.order.number} is in the log {len(ids)} times: {ids}")
            if not ids and (said.ids or said.duplicates):
                raise PromiseBroken(f"order {said.order.number} is lost: {said}")
            if ids and not said.tried:
                raise PromiseBroken(f"order {said.order.number} was never published")
            if said.ids and not said.is_twin and said.ids != ids:
                raise PromiseBroken(f"order {said.order.number} has the id {ids}, its publisher was told {said.ids}")
        if found:
            raise PromiseBroken(f"nobody published the orders {sorted(found)}")

    def _publishers_order_is_kept(self) -> None:
        lines: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for said in self._said:
            if said.line is not None and said.subject is not None:
                who, place = said.line
                lines[who, said.subject].append((place, self._watch.log[said.ids[0]].position))
        for line, places in lines.items():
            positions = [position for _, position in sorted(places)]
            if positions != sorted(positions):
                raise PromiseBroken(f"{line}: the log has another order than its publisher: {sorted(places)}")

    def _everything_is_settled(self) -> None:
        for entry in self._watch.log.values():
            for step in _STEPS[entry.type]:
                if (f"sim.{step}", entry.id) not in self._watch.settled:
                    raise PromiseBroken(f"step {step} never settled {entry.id}")

    def _outputs_are_there_once(self) -> None:
        outputs: dict[tuple[str, str], list[Event[Any]]] = defaultdict(list)
        for event in self._events.values():
            if event.type != "order":
                outputs[event.causation_id or "", event.source].append(event)
        for entry in self._watch.log.values():
            for step in _STEPS[entry.type]:
                group = f"sim.{step}"
                is_done = self._watch.settled[group, entry.id] == "acknowledged"
                expected = self._outputs(step, entry) if is_done and step in ("split", "collect") else []
                found = [_output(event) for event in outputs.pop((entry.id, group), [])]
                expected = [
                    (derived_id(entry.id, group, number, entry.recorded_ms), *output)
                    for number, output in enumerate(expected)
                ]
                if Counter(map(str, expected)) != Counter(map(str, found)):
                    raise PromiseBroken(f"step {step} of {entry.id}: its outputs are {found}, not {expected}")
        if outputs:
            raise PromiseBroken(f"outputs without a parent: {dict(outputs)}")

    def _outputs(self, step: str, entry: Entry) -> list[Any]:
        data = self._events[entry.id].data
        typed: Order | Part = msgspec.convert(data, Order if entry.type == "order" else Part)
        own = self._events[entry.id].priority
        return [_expected(output, own) for output in outputs_of(step, typed, entry.subject)]

    def _check_dead_letter(self, key: Key) -> None:
        failure = self._watch.dead[key].failure
        step = key[0].removeprefix("sim.")
        event = self._events[key[1]]
        fate = event.data["fate"] if step in ("split", "collect") else "done"
        lost, raised = self._watch.lost[key], self._world.raised[step, event.id]
        if failure.reason == "worker_died" and lost >= self._plan.attempts:
            return  # whether it killed them or not: it was there each time
        if failure.error_type == "LeaseLost" and lost >= self._plan.attempts:
            return  # each time its worker came back, too late
        if failure.error_type == "StepTimeout" and self._were_paused:
            return  # its worker was stopped in the middle of the call
        if failure.reason != DEADLY.get(fate):
            raise PromiseBroken(f"{key} of fate {fate!r} is a dead letter, {failure.reason}, after {lost} lost workers")
        if failure.reason == "failed" and (failure.attempts != self._plan.attempts or raised < self._plan.attempts):
            raise PromiseBroken(f"{key} is a dead letter after {failure.attempts} attempts, {raised} of them failed")

    def unfinished(self) -> list[Key]:
        """Return the dead letters that somebody can mend, and check that no deadly event got through."""
        for key, fate in self._watch.settled.items():
            if key[0] in ("sim.split", "sim.collect") and fate == "acknowledged":
                wanted = self._events[key[1]].data["fate"]
                if wanted in DEADLY and not (wanted == "mended" and self._world.mended):
                    raise PromiseBroken(f"{key} of fate {wanted!r} was acknowledged")
        return [key for key in self._watch.dead if self._events[key[1]].data["fate"] == "mended"]


def _expected(output: Output, own: Priority) -> tuple[Any, ...]:
    data = msgspec.to_builtins(output.data)
    priority = own if output.priority is None else output.priority
    return output.type, sorted(data.items()), output.subject, int(priority)


def _output(event: Event[Any]) -> tuple[Any, ...]:
    return event.id, event.type, sorted(event.data.items()), event.subject, int(event.priority)
