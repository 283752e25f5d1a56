"""What follows from a failed call: another attempt, a wait, or the dead letters."""

from __future__ import annotations

import math
import random
import time
import traceback
from collections.abc import Callable

from ag06.errors import CircuitOpen, Reject
from ag06.persistence.log import Bury, Delivery, Failure, Postpone, Reason
from ag06.retry import Retry
from ag06.retry_after import requested_wait

_LONGEST_TRACEBACK = 16_000
_LONGEST_MESSAGE = 2_000
_BUDGET_WAIT_MS = 1_000
_LONGEST_REFUSAL = 86_400.0
"""Seconds after which a breaker is asked again whatever it said: steps may raise `CircuitOpen` themselves."""


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


def judge(
    delivery: Delivery, error: BaseException, retry: Retry, clock: Callable[[], float] = time.time
) -> Postpone | Bury:
    """Return what to do with a delivery whose call raised `error`."""
    now_ms = int(clock() * 1000)
    if isinstance(error, CircuitOpen):
        wait = error.retry_after if error.retry_after > 0 else 0.0  # not a number is no wait
        wait_ms = int(min(wait, _LONGEST_REFUSAL) * 1000) + 1
        return Postpone(delivery, wait_ms, delivery.attempts, delivery.first_failed_ms)
    attempts = delivery.attempts + 1
    if isinstance(error, Reject):
        return bury(delivery, error, "rejected", now_ms)
    if retry.retries(error, attempts):
        asked = requested_wait(error, clock)
        # Rounded up: not a moment before what was asked for.
        wait_ms = math.ceil(retry.delay(attempts, at_least=asked or 0.0) * 1000)
        return Postpone(delivery, wait_ms, attempts, delivery.first_failed_ms or now_ms)
    return bury(delivery, error, "failed", now_ms)


def bury(delivery: Delivery, error: BaseException, reason: Reason, now_ms: int) -> Bury:
    """Return the settlement that moves a delivery to the dead letters, with the error as it was."""
    text = "".join(traceback.format_exception(error))
    if len(text) > _LONGEST_TRACEBACK:
        half = _LONGEST_TRACEBACK // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    first = delivery.first_failed_ms or now_ms
    return Bury(
        delivery,
        Failure(
            reason=reason,
            error_type=type(error).__name__,
            message=_clean(words_of(error))[:_LONGEST_MESSAGE],
            traceback=_clean(text),
            attempts=delivery.attempts + 1,
            first_ms=first,
            last_ms=now_ms,
        ),
    )


def words_of(error: BaseException) -> str:
    """Return what an exception says, whatever its `__str__` does."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the user's code
        return "(its __str__ failed)"


def _clean(text: str) -> str:
    """Return `text` as valid Unicode: an exception's words may hold lone surrogates, the store takes none."""
    return text.encode(errors="backslashreplace").decode()
