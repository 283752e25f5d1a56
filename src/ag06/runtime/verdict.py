"""What follows from a failed call: another attempt, a wait, or the dead letters."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import msgspec

from ag06.error_text import kind_of, message_of, traceback_of
from ag06.failure import decide
from ag06.persistence.log import Bury, Delivery, Failure, Postpone, Reason
from ag06.retry import Retry

_BUDGET_WAIT_MS = 1_000


def killed_workers(delivery: Delivery, retry: Retry) -> int:
    """Return how many workers this event is taken to have killed.

    Starts are noted in the store only for events that were taken over before, or that may be tried just once. So the
    first death counts when more attempts remain: the event was in the hands of the dead worker, and from now on it
    runs alone.
    """
    return delivery.deaths + (1 if delivery.suspect and retry.attempts > 1 else 0)


def bury_killer(delivery: Delivery, retry: Retry, now_ms: int) -> Bury:
    """Return the settlement of an event that killed as many workers as it had attempts."""
    killed = killed_workers(delivery, retry)
    message = f"{killed} workers died while they ran this event; its step allows {retry.attempts} attempts"
    first = delivery.first_failed_ms or now_ms
    failure = Failure("worker_died", "WorkerDied", message, "", max(killed, delivery.attempts), first, now_ms)
    return Bury(delivery, failure)


def failed_before(delivery: Delivery) -> bool:
    """Return whether a call with this event failed before: its own, or that of a batch it was in."""
    return bool(delivery.attempts or delivery.first_failed_ms)


def wait_for_sign_of_life(delivery: Delivery, visibility: float) -> Postpone:
    """Return the settlement of an event whose last worker lost its lease and may live: it is judged later.

    A worker that comes back within two visibility timeouts (`visibility` in seconds) takes its death back.
    """
    return Postpone(delivery, math.ceil(2000 * visibility), delivery.attempts, delivery.first_failed_ms)


def bury_slow(delivery: Delivery, now_ms: int) -> Bury:
    """Return the settlement of an event whose calls lost their leases as often as its step may try it."""
    message = (
        f"{delivery.attempts} calls ended after their worker had lost its lease; a call that blocks the event loop or "
        "holds the interpreter must end within visibility_timeout, run in a plain def step, or under ag06 run --workers"
    )
    first = delivery.first_failed_ms or now_ms
    return Bury(delivery, Failure("failed", "LeaseLost", message, "", delivery.attempts, first, now_ms))


def wait_for_budget(delivery: Delivery) -> Postpone:
    """Return the settlement of a retry that found no budget: it comes back in about a second, at no cost."""
    wait_ms = int(_BUDGET_WAIT_MS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
    return Postpone(delivery, wait_ms, delivery.attempts, delivery.first_failed_ms)


def wait_apart(
    delivery: Delivery, retry: Retry, asked: float | None, clock: Callable[[], float] = time.time
) -> Postpone:
    """Return the settlement of an event whose batch failed: it comes back to be tried alone, at no cost of attempts.

    The batch `asked` for so many seconds; without, it is as a retry that found no budget.
    """
    first = delivery.first_failed_ms or int(clock() * 1000)
    if asked is None:
        return msgspec.structs.replace(wait_for_budget(delivery), first_failed_ms=first)
    return Postpone(delivery, math.ceil(retry.delay(1, at_least=asked) * 1000), delivery.attempts, first)


def judge(
    delivery: Delivery, error: BaseException, retry: Retry, clock: Callable[[], float] = time.time
) -> Postpone | Bury:
    """Return what to do with a delivery whose call raised `error`."""
    now_ms = int(clock() * 1000)
    decision = decide(error, retry.on, clock)
    if decision.kind == "refused":
        wait_ms = int((decision.wait or 0.0) * 1000) + 1
        return Postpone(delivery, wait_ms, delivery.attempts, delivery.first_failed_ms)
    attempts = delivery.attempts + 1
    if decision.kind == "rejected":
        return bury(delivery, error, "rejected", now_ms, decision.error)
    if decision.kind == "passing" and attempts < retry.attempts:
        # Rounded up: not a moment before what was asked for.
        wait_ms = math.ceil(retry.delay(attempts, at_least=decision.wait or 0.0) * 1000)
        return Postpone(delivery, wait_ms, attempts, delivery.first_failed_ms or now_ms)
    return bury(delivery, error, "failed", now_ms, decision.error)


def bury(
    delivery: Delivery, error: BaseException, reason: Reason, now_ms: int, decisive: BaseException | None = None
) -> Bury:
    """Return the settlement that moves a delivery to the dead letters, with the traceback of `error`.

    Class and message are those of the `decisive` exception, where that is inside a group.
    """
    first = delivery.first_failed_ms or now_ms
    shown = error if decisive is None else decisive  # no truth value: a class may define its own
    return Bury(
        delivery,
        Failure(
            reason=reason,
            error_type=kind_of(shown),
            message=message_of(shown),
            traceback=traceback_of(error),
            attempts=delivery.attempts + 1,
            first_ms=first,
            last_ms=now_ms,
        ),
    )
