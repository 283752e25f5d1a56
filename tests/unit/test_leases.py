from __future__ import annotations

import logging
import threading

import pytest

from ag06.errors import StoreUnavailable
from ag06.runtime.heartbeat import Heartbeat
from ag06.runtime.leases import LeaseKeeper
from ag06.runtime.renewals import Renewals
from flows import SECONDS


class Renewed:
    """What a keeper needs of a subscription: something to renew, which may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.times = 0
        self.often = threading.Event()

    def renew(self) -> None:
        self.times += 1
        if self.times == 3:
            self.often.set()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("not foreseen")])
def test_a_lease_that_cannot_be_renewed_keeps_no_other_from_it_and_is_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failing, fine = Renewed(error), Renewed()
    keeper = LeaseKeeper([failing, fine], 0.03)  # type: ignore[list-item]
    with caplog.at_level(logging.WARNING, "ag06.runtime"):
        keeper.start()
        assert failing.often.wait(SECONDS)
        assert fine.often.wait(SECONDS)
        keeper.stop()
        keeper.join(SECONDS)
    assert not keeper.is_alive()
    assert "leases were not renewed, 2 times in a row now" in caplog.text


def test_health_warns_of_a_renewal_that_failed_and_fails_when_the_leases_have_ended() -> None:
    now = [0.0]
    lease = Renewed(StoreUnavailable("away"))
    renewals = Renewals(30.0, lambda: now[0])
    assert renewals.check().status == "pass"
    renewals.renew(lease)  # type: ignore[arg-type]
    assert renewals.check().status == "warn"
    now[0] = 31.0
    assert renewals.check().status == "fail"
    lease.error = None
    renewals.renew(lease)  # type: ignore[arg-type]
    assert renewals.check().status == "pass"


def test_a_keeper_that_was_stopped_renews_no_more() -> None:
    lease = Renewed()
    keeper = LeaseKeeper([lease], 3600)  # type: ignore[list-item]
    keeper.start()
    keeper.stop()
    keeper.join(SECONDS)
    assert not keeper.is_alive()
    assert lease.times == 0


def test_leases_are_not_renewed_while_the_loop_does_not_turn(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    heartbeat = Heartbeat(10, clock=lambda: now)
    lease = Renewed()
    keeper = LeaseKeeper([lease], 0.03, heartbeat)  # type: ignore[list-item]
    now = 10.0
    with caplog.at_level(logging.WARNING, "ag06.runtime"):
        keeper.start()
        while "leases are not renewed" not in caplog.text:
            keeper.join(0.01)
        assert lease.times == 0
        now = 9.9
        assert lease.often.wait(SECONDS)
        keeper.stop()
        keeper.join(SECONDS)
    assert not keeper.is_alive()
