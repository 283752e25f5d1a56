from __future__ import annotations

import math
import random
import re
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml.split import assign, sample_ratio_mismatch

EVEN = {"a": 0.5, "b": 0.5}
SUBJECTS = [f"customer {number}" for number in range(10_000)]


def off_by(share: float, meant: float) -> float:
    """How many standard deviations the share of SUBJECTS is off."""
    return abs(share - meant) / math.sqrt(meant * (1 - meant) / len(SUBJECTS))


def share_of_b(salt: str, share: float = 0.5) -> float:
    return statistics.fmean(assign(subject, salt, share) == "b" for subject in SUBJECTS)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_b_gets_its_share_of_the_subjects(share: float) -> None:
    assert off_by(share_of_b("checkout", share), share) < 4


@given(st.text(), st.text())
def test_nobody_gets_b_of_a_share_of_0_and_everybody_of_a_share_of_1(subject: str, salt: str) -> None:
    assert assign(subject, salt, 0) == "a"
    assert assign(subject, salt, 1) == "b"


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_share_that_grows_takes_b_from_nobody(subject: str, salt: str, one: float, other: float) -> None:
    small, big = sorted((one, other))
    if assign(subject, salt, small) == "b":
        assert assign(subject, salt, big) == "b"


def test_who_gets_what_is_the_same_in_every_release() -> None:
    # A release that assigned otherwise would mix the variants of every experiment that is under way.
    assert "".join(assign(f"customer {number}", "checkout") for number in range(16)) == "aabaabaabbabaaaa"


def test_experiments_with_salts_of_their_own_split_independently() -> None:
    both = statistics.fmean(assign(subject, "one") == assign(subject, "another") == "b" for subject in SUBJECTS)
    assert off_by(both, 0.25) < 4


def test_salt_and_subject_are_kept_apart() -> None:
    # Glued together, both would be the same text.
    assert any(assign(f"b{number}", "a") != assign(f"{number}", "ab") for number in range(64))


def test_subjects_of_any_text_are_assigned() -> None:
    assert assign("\ud800 lone surrogate", "salt") in "ab"
    assert assign("", "") in "ab"


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, True, "half", None])
def test_a_share_outside_0_to_1_is_an_error_that_says_it(share: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"share={share!r}:")):
        assign("customer", "salt", share)


def split(count: int, share: float, seed: int) -> dict[str, int]:
    draw = random.Random(seed)
    got_b = sum(draw.random() < share for _ in range(count))
    return {"a": count - got_b, "b": got_b}


def test_a_split_that_loses_some_events_of_one_variant_is_found_and_told() -> None:
    found = sample_ratio_mismatch({"a": 10_000, "b": 9_300}, EVEN)
    assert found.mismatch
    assert found.evidence >= 1000
    assert found.shares == {"a": pytest.approx(0.518, abs=0.001), "b": pytest.approx(0.482, abs=0.001)}
    assert "b has 9300 of 19300 events (48.19%) and should have 50.00%" in found.reason
    assert "do not trust the result" in found.reason


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_what_assign_splits_has_no_mismatch(share: float) -> None:
    count = sum(assign(subject, "salt", share) == "b" for subject in SUBJECTS)
    found = sample_ratio_mismatch({"a": len(SUBJECTS) - count, "b": count}, {"a": 1 - share, "b": share})
    assert not found.mismatch
    assert "the shares are as meant" in found.reason


def test_before_the_first_event_nothing_is_wrong() -> None:
    found = sample_ratio_mismatch({"a": 0, "b": 0}, EVEN)
    assert (found.mismatch, found.evidence, found.shares, found.reason) == (False, 1.0, {}, "there are no events yet")


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=4),
    st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
)
def test_the_evidence_is_1_on_average_over_what_the_next_event_may_be(counts: list[int], weights: list[float]) -> None:
    # A martingale under the shares meant: so it may be looked at after every event (Ville 1939).
    names = "abcd"[: len(counts)]
    total = sum(weights[: len(counts)])
    shares = {name: weight / total for name, weight in zip(names, weights, strict=False)}
    before = dict(zip(names, counts, strict=True))
    now = sample_ratio_mismatch(before, shares).evidence
    if not 1e-200 < now < 1e200:
        return
    following = sum(
        share * sample_ratio_mismatch({**before, name: before[name] + 1}, shares).evidence
        for name, share in shares.items()
    )
    assert following == pytest.approx(now, rel=1e-6)


def test_looked_at_after_every_event_a_right_split_is_seldom_blamed() -> None:
    wrong = 0
    for seed in range(200):
        draw = random.Random(seed)
        counts = {"a": 0, "b": 0}
        for _ in range(500):
            counts["b" if draw.random() < 0.5 else "a"] += 1
            if sample_ratio_mismatch(counts, EVEN, alpha=0.05).mismatch:
                wrong += 1
                break
    assert wrong <= 20  # 10 on average at most


def test_any_number_of_events_is_judged() -> None:
    assert not sample_ratio_mismatch({"a": 10**12, "b": 10**12}, EVEN).mismatch
    assert sample_ratio_mismatch({"a": 10**12, "b": 0}, EVEN).mismatch


@pytest.mark.parametrize(
    ("counts", "shares", "alpha", "told"),
    [
        ({"a": -1, "b": 2}, EVEN, 0.001, "'a' has -1 events"),
        ({"a": 1.5, "b": 2}, EVEN, 0.001, "'a' has 1.5 events"),
        ({"a": True, "b": 2}, EVEN, 0.001, "'a' has True events"),
        ({"a": 1, "c": 2}, EVEN, 0.001, "for the same two or more variants"),
        ({"a": 1}, {"a": 1.0}, 0.001, "for the same two or more variants"),
        ({}, {}, 0.001, "for the same two or more variants"),
        ({"a": 1, "b": 2}, {"a": 0.5, "b": 0.6}, 0.001, "together they must be 1"),
        ({"a": 1, "b": 2}, {"a": 1.0, "b": 0.0}, 0.001, "each must be above 0"),
        ({"a": 1, "b": 2}, {"a": math.nan, "b": 0.5}, 0.001, "each must be above 0"),
        ({"a": 1, "b": 2}, EVEN, 0, "alpha=0"),
        ({"a": 1, "b": 2}, EVEN, math.nan, "alpha=nan"),
    ],
)
def test_counts_and_shares_that_make_no_sense_are_errors_that_say_it(
    counts: dict[str, int], shares: dict[str, float], alpha: float, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        sample_ratio_mismatch(counts, shares, alpha)
