"""Which exception decides, alone and in groups: for the next attempt of an event, and for a circuit breaker."""

from __future__ import annotations

import asyncio

import pytest

from ag06 import CircuitOpen, Reject, RetryAfter
from ag06.failure import counts, decide, is_refusal, members


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("group", errors)


class Panic(BaseException):
    pass


class Undecided(type):
    def __subclasscheck__(cls, other: type) -> bool:
        raise Panic


class Odd(Exception, metaclass=Undecided):  # noqa: N818
    pass


CRM, LEDGER = CircuitOpen("crm", 2.0), CircuitOpen("ledger", 5.0)


@pytest.mark.parametrize(
    ("error", "on", "kind", "wait"),
    [
        (ValueError(), Exception, "passing", None),
        (ValueError(), (ConnectionError,), "final", None),
        (ConnectionResetError(), (LookupError, ConnectionError), "passing", None),
        (RetryAfter(3), ConnectionError, "passing", 3.0),
        (Reject("no"), Exception, "rejected", None),
        (CRM, ConnectionError, "refused", 2.0),
        (Panic(), Exception, "passing", None),
        (SystemExit(1), (Exception,), "passing", None),
        (Panic(), ConnectionError, "final", None),
        (Panic(), Panic, "passing", None),
        # one in a group is as it is alone
        (group(Reject("no")), Exception, "rejected", None),
        (group(RetryAfter(3)), ConnectionError, "passing", 3.0),
        (group(group(CRM)), Exception, "refused", 2.0),
        (group(group(ConnectionError())), ConnectionError, "passing", None),
        (group(ValueError()), ConnectionError, "final", None),
        # a rejection is final, whatever else failed
        (group(ConnectionError(), group(CRM, Reject("no"))), Exception, "rejected", None),
        (group(RetryAfter(3), Reject("no")), Exception, "rejected", None),
        # nothing was tried only where all were refused
        (group(CRM, LEDGER), Exception, "refused", 5.0),
        (group(CRM, ConnectionError()), ConnectionError, "passing", 2.0),
        # another attempt needs all of them to be worth one, and waits for the longest
        (group(ConnectionError(), ValueError()), ConnectionError, "final", None),
        (group(RetryAfter(3), ValueError()), ConnectionError, "final", None),
        (group(RetryAfter(3), RetryAfter(7), ConnectionError()), ConnectionError, "passing", 7.0),
        # a group that is named itself
        (group(ValueError(), KeyError()), (BaseExceptionGroup,), "passing", None),
        # a class that cannot be compared is not the one
        (ValueError(), (Odd,), "final", None),
    ],
)
def test_the_precedence_of_exceptions(error: BaseException, on: object, kind: str, wait: float | None) -> None:
    decision = decide(error, on)
    assert (decision.kind, decision.wait) == (kind, wait)
    assert is_refusal(error) is (kind == "refused")


def test_the_exception_that_is_named_is_the_one_that_decides() -> None:
    no, away = Reject("no"), ConnectionError("away")
    assert decide(group(away, group(no))).error is no
    assert decide(group(group(away))).error is away
    both = group(away, ValueError())
    assert decide(both).error is both


@pytest.mark.parametrize(
    ("error", "record", "ignore", "failed"),
    [
        (ValueError(), Exception, (), True),
        (ValueError(), ConnectionError, (), False),
        (KeyError(), Exception, (LookupError,), None),
        (asyncio.CancelledError(), BaseException, (), None),
        (GeneratorExit(), BaseException, (), None),
        (Reject("no"), Exception, (), None),
        (Reject("no"), Reject, (), None),
        (Panic(), Exception, (), None),
        (Panic(), (Exception, Panic), (), True),
        (group(Reject("no")), Exception, (), None),
        (group(Reject("no"), ConnectionError()), Exception, (), True),
        (group(ConnectionError()), ConnectionError, (), True),
        (group(ValueError()), ConnectionError, (), False),
        (group(ValueError(), ConnectionError()), ConnectionError, (), True),
        (group(KeyError(), KeyError()), Exception, KeyError, None),
        (group(KeyError(), ValueError()), Exception, KeyError, True),
        (group(KeyError(), ValueError()), ConnectionError, KeyError, False),
        (group(KeyError()), Exception, ExceptionGroup, None),
        (group(KeyError()), ExceptionGroup, (), True),
        (group(asyncio.CancelledError(), ValueError()), ConnectionError, (), False),
    ],
)
def test_what_a_call_counts_as(error: BaseException, record: object, ignore: object, failed: bool | None) -> None:
    assert counts(error, record, ignore) is failed


def test_a_group_of_groups_is_looked_at_once_however_often_it_occurs() -> None:
    error: Exception = ValueError()
    for _ in range(1_000):
        error = ExceptionGroup("group", [error, error])
    assert len(list(members(error))) == 2  # twice in the innermost group
    assert decide(error).kind == "passing"
