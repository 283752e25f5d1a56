"""Tells listeners what became of each delivery; costs next to nothing while nobody listens."""

from __future__ import annotations

import logging
import time

import msgspec

from ag06.persistence.log import Acknowledge, Bury, Delivery, Settlement
from ag06.runtime.outcome import Listener, Outcome, OutcomeKind

_logger = logging.getLogger("ag06.runtime")


class Reporter:
    """Holds what is known of a call until the store has accepted its settlement."""

    def __init__(self, step: str, listeners: list[Listener]) -> None:
        """Report for `step` to `listeners`, a list that may grow."""
        self._step = step
        self._listeners = listeners
        self._calls: dict[int, tuple[tuple[str, ...], float, float, str | None]] = {}

    def ended(self, settlement: Settlement, ids: tuple[str, ...], started: float, error: BaseException | None) -> None:
        """Note a call that ended now; `ids` are the events it took, empty where they were not decoded."""
        if self._listeners:
            text = None if error is None else f"{type(error).__name__}: {error}"
            self._calls[id(settlement)] = (ids, started, time.time() - started, text)

    def settled(self, settlement: Settlement, kept: bool) -> None:
        """Tell the listeners, now that the store has answered."""
        call = self._calls.pop(id(settlement), None)
        if call is None:
            return
        ids, started, seconds, error = call
        deliveries = settlement.deliveries if isinstance(settlement, Acknowledge) else (settlement.delivery,)
        kind = _kind(settlement, kept)
        for index, delivery in enumerate(deliveries):
            outcome = Outcome(
                kind=kind,
                step=self._step,
                event_id=ids[index] if ids else _id_of(delivery),
                attempt=delivery.attempts + 1,
                taken_over=delivery.suspect or delivery.deaths > 0,
                recorded_ms=delivery.recorded_ms,
                started=started,
                seconds=seconds,
                error=error,
            )
            for listener in self._listeners:
                try:
                    listener(outcome)
                except Exception:
                    _logger.exception("a listener failed on %s of step %s", outcome.kind, self._step)


class _OnlyId(msgspec.Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_OnlyId).decode


def _id_of(delivery: Delivery) -> str:
    return _decode_id(delivery.body).id


def _kind(settlement: Settlement, kept: bool) -> OutcomeKind:
    if not kept:
        return "fenced"
    if isinstance(settlement, Acknowledge):
        return "processed"
    if isinstance(settlement, Bury):
        return "dead"
    return "retried" if settlement.attempts > settlement.delivery.attempts else "delayed"
