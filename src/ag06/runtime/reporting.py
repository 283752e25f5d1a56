"""Tells listeners, and the log, what became of each delivery; costs next to nothing while nobody listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from ag06.error_text import describe, log_error
from ag06.event import id_and_subject
from ag06.failure import decide
from ag06.persistence.log import Bury, Postpone, Settlement, deliveries_of
from ag06.runtime.observing import kind_of
from ag06.runtime.outcome import Listener, Outcome
from ag06.runtime.step import Step
from ag06.stopping import asks_to_stop

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
            text = None if error is None else describe(decide(error).error)
            self._calls[id(settlement)] = (ids, started, time.time() - started, text)

    def replaced(self, settlement: Settlement, others: Sequence[Settlement], error: BaseException) -> None:
        """Note that a call is settled by others, each of one delivery, because of an error."""
        call = self._calls.pop(id(settlement), None)
        if call is None:
            return
        ids, started, seconds, _ = call
        text = describe(error)
        for index, other in enumerate(others):
            self._calls[id(other)] = (ids[index : index + 1], started, seconds, text)

    def settled(self, settlement: Settlement, kept: bool) -> None:
        """Tell the listeners, now that the store has answered."""
        call = self._calls.pop(id(settlement), None)
        if call is None:
            return
        ids, started, seconds, error = call
        kind = kind_of(settlement, kept)
        for index, delivery in enumerate(deliveries_of(settlement)):
            outcome = Outcome(
                kind=kind,
                step=self._step,
                event_id=ids[index] if ids else id_and_subject(delivery.body)[0],
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
                except BaseException as failure:
                    if asks_to_stop(failure):
                        raise
                    log_error(_logger, failure, "a listener failed on %s of step %s", outcome.kind, self._step)


def log_postponed(step: Step, verdict: Postpone, event_id: str, error: BaseException) -> None:
    """Say that a call failed and when the next one follows; what an open circuit refuses was not even tried."""
    tried = verdict.attempts > verdict.delivery.attempts
    _logger.log(
        logging.WARNING if tried else logging.DEBUG,
        "step %s: attempt %d of %d %s on event %s, next in %.2f s: %s",
        step.group,
        verdict.delivery.attempts + 1,
        step.retry.attempts,
        "failed" if tried else "was refused",
        event_id,
        verdict.delay_ms / 1000,
        describe(decide(error).error),
    )


def log_dead_letter(step: Step, settlement: Bury) -> None:
    """Say that a step gave up on an event, and how to look at it."""
    failure = settlement.failure
    event_id, subject = id_and_subject(settlement.delivery.body)
    _logger.log(
        # A rejection is the step's own decision; anything else is for somebody to look at.
        logging.WARNING if failure.reason == "rejected" else logging.ERROR,
        "step %s: event %s (subject %s) is a dead letter, %s at attempt %d: %s: %s; ag06 dead-letters show %s",
        step.group,
        event_id,
        subject,
        failure.reason,
        failure.attempts,
        failure.error_type,
        failure.message,
        event_id,
    )
