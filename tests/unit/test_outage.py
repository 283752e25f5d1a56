from __future__ import annotations

import logging

import pytest

from ag06.persistence.outage import Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_told_at_its_begin_now_and_then_and_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    outage = Outage("step shop.bill", clock)
    with caplog.at_level(logging.WARNING):
        outage.over()
        for _ in range(25):
            outage.failed(ConnectionError("refused"))
            clock.now += 1.0
        outage.over()
        outage.over()
    assert [record.message for record in caplog.records] == [
        "step shop.bill waits for the store: refused",
        "step shop.bill still waits for the store, for 10 s now: refused",
        "step shop.bill still waits for the store, for 20 s now: refused",
        "step shop.bill: the store is back after 25.0 s",
    ]


def test_a_second_outage_is_told_like_the_first(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("step shop.bill", Clock())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            outage.failed(ConnectionError("refused"))
            outage.over()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "step shop.bill waits for the store",
        "step shop.bill",
    ] * 2
