from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ag06.errors import ConfigurationError
from ag06.ml import Experiment, Knob
from ag06.ml.campaign import LOST, MOST_REJECTIONS, MOST_RESTARTS, Campaign, Plan
from ag06.ml.decisions import Decision
from ag06.ml.pace import LONGEST_REST, Pace
from ag06.ml.space import Space

KNOBS = [
    Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True),
    Knob("wait", low=0.001, high=1.0, default=0.05, scale="log"),
    Knob("codec", choices=("none", "zstd"), default="none"),
]
ONE = KNOBS[:1]
DEFAULTS = {knob.name: knob.default for knob in KNOBS}
SHORT = Pace(explore=24, experiment=30, watch=3, rest=8)

Config = dict[str, Any]
Worth = Callable[[Config], float]


def uphill(config: Config) -> float:
    """More concurrency is better, to the end."""
    return 0.4 * math.log(config["concurrency"] / 10)


def level(config: Config) -> float:
    """Nothing helps."""
    return 0.0


def downhill(config: Config) -> float:
    """The defaults are best."""
    return -abs(math.log(config["concurrency"] / 10))


class Driver:
    """Runs windows of a campaign under a little noise, and keeps what was planned and decided."""

    def __init__(self, campaign: Campaign, worth: Worth, seed: int = 0, noise: float = 0.03) -> None:
        self.campaign = campaign
        self.worth = worth
        self._draw = random.Random(seed)
        self._noise = noise
        self.plans: list[Plan] = []
        self.told: list[Decision] = []

    def window(self, *, may_try: bool = True, blank: bool = False, breach: str | None = None) -> list[Decision]:
        plan = self.campaign.next(may_try=may_try)
        self.plans.append(plan)
        score = self.worth(plan.config) + self._draw.gauss(0, self._noise)
        told = self.campaign.record(plan, None if blank else score, breach)
        self.told += told
        return told

    def until(self, kind: str, most: int = 1_000) -> Decision:
        """Run windows until something is decided."""
        for _ in range(most):
            for decision in self.window():
                if decision.kind == kind:
                    return decision
        raise AssertionError(f"no {kind} in {most} windows; {[one.kind for one in self.told]}")


def begun(worth: Worth = uphill, knobs: list[Knob] = ONE, seed: int = 0, pace: Pace = SHORT) -> Driver:
    return Driver(Campaign(knobs, seed=seed, pace=pace, surrogate=False), worth, seed)


def flattered(seed: int = 0) -> Driver:
    """Exploring sees a gain that no experiment finds."""
    driver = begun(level, KNOBS, seed)
    driver.worth = lambda config: uphill(config) if driver.campaign.phase == "explore" else 0.0
    return driver


def again(campaign: Campaign) -> Campaign:
    return Campaign.restore(json.loads(json.dumps(campaign.state())))


# What is kept


@pytest.mark.parametrize("surrogate", [True, False])
def test_a_better_configuration_is_found_proved_kept_and_watched(surrogate: bool) -> None:
    driver = Driver(Campaign(KNOBS, pace=SHORT, surrogate=surrogate), uphill)
    proof, won = driver.until("experiment"), driver.until("promoted")
    assert won.config == proof.config == driver.campaign.incumbent
    assert won.before == driver.campaign.previous == DEFAULTS
    assert won.interval is not None
    assert won.interval[0] >= SHORT.minimum_effect
    assert driver.campaign.phase == "watch"
    kept = driver.until("kept")
    assert kept.config == won.config
    assert [plan.purpose for plan in driver.plans[-SHORT.watch :]] == ["watch"] * SHORT.watch
    assert uphill(driver.campaign.incumbent) > uphill(DEFAULTS)


@given(seed=st.integers(0, 10_000), worth=st.sampled_from([uphill, level, downhill]), noise=st.floats(0, 0.5))
@settings(max_examples=15, deadline=None)
def test_nothing_is_kept_without_a_won_experiment(seed: int, worth: Worth, noise: float) -> None:
    driver = Driver(Campaign(ONE, seed=seed, pace=SHORT, surrogate=False), worth, seed, noise)
    draw = random.Random(seed)
    for _ in range(200):
        before, candidate = driver.campaign.incumbent, driver.campaign.candidate
        decisions = driver.window(blank=draw.random() < 0.05, breach="late" if draw.random() < 0.02 else None)
        after = driver.campaign.incumbent
        told = {decision.kind: decision for decision in decisions}
        if after == before:
            assert "promoted" not in told
        elif after == candidate:
            won = told["promoted"]
            assert won.interval is not None
            assert won.interval[0] >= SHORT.minimum_effect
            assert (won.windows or 0) >= 2
        else:
            assert "rolled_back" in told


@pytest.mark.parametrize("surrogate", [True, False])
def test_where_nothing_helps_the_defaults_stay(surrogate: bool) -> None:
    for seed in range(3):
        driver = Driver(Campaign(ONE, seed=seed, pace=SHORT, surrogate=surrogate), level, seed, noise=0.15)
        for _ in range(120):
            driver.window()
        assert driver.campaign.incumbent == {"concurrency": 10}


def test_what_an_experiment_rejected_is_not_put_to_the_proof_again() -> None:
    driver = flattered()
    for _ in range(1_000):
        driver.window()
    proofs = [one.config for one in driver.told if one.kind == "experiment"]
    assert len(proofs) >= 2
    assert len(proofs) == len({json.dumps(one) for one in proofs})
    assert driver.campaign.incumbent == DEFAULTS


def test_after_two_experiments_in_a_row_that_found_nothing_it_rests() -> None:
    for seed in range(10):
        driver = flattered(seed)
        driver.until("rested")
        rejected = [one.kind for one in driver.told].count("rejected")
        assert rejected <= MOST_REJECTIONS
        if rejected == MOST_REJECTIONS:
            return
    raise AssertionError("it was never rejected twice in a row")


# Trials that go wrong


def test_a_breach_in_arm_b_ends_the_experiment_at_once_and_the_incumbent_is_still_what_runs() -> None:
    driver = begun()
    candidate = driver.until("experiment").config
    while driver.campaign.next().purpose != "b":
        driver.window()
    (decision,) = driver.window(breach="1% of the events were late")
    assert (decision.kind, decision.config) == ("rejected", candidate)
    assert "1% of the events were late" in decision.reason
    assert driver.campaign.experiment is None
    assert driver.campaign.candidate is None
    assert driver.campaign.incumbent == {"concurrency": 10}
    assert driver.campaign.next(may_try=False).config == {"concurrency": 10}
    told = driver.campaign.tuner.state()["windows"][-1]
    assert told[2] <= LOST + 0.1


def test_a_breach_in_arm_a_is_no_fault_of_the_candidate() -> None:
    driver = begun()
    driver.until("experiment")
    while driver.campaign.next().purpose != "a":
        driver.window()
    assert driver.window(breach="late") == []
    assert driver.campaign.experiment is not None


def test_a_trial_that_breaks_a_guardrail_counts_as_lost_beside_what_runs_now_not_beside_the_first_baseline() -> None:
    # The load has fallen since the baseline: 30% below that would be the best score of all.
    driver = begun(lambda config: -3.0)
    for _ in range(30):
        if driver.campaign.next().risky:
            blank = len(driver.plans) % 2 == 0  # nothing was measured, or the score is as good as ever
            (breach,) = [one for one in driver.window(blank=blank, breach="late") if one.kind == "breach"]
            assert breach.reason == "late"
        else:
            driver.window()
        driver.window(may_try=False)
    assert driver.campaign.level == pytest.approx(-3.0, abs=0.1)
    windows, here = driver.campaign.tuner.state()["windows"][4:], list(Space(ONE).default)
    assert max(score for _, position, score, _ in windows if position != here) < -3.2
    assert driver.campaign.promising is None


def test_a_trial_that_could_not_even_be_set_is_told_as_lost() -> None:
    driver = begun(level)
    while not driver.campaign.next().risky:
        driver.window()
    windows = driver.campaign.tuner.windows
    (decision,) = driver.window(blank=True, breach="the setter raised")
    assert decision.kind == "breach"
    assert driver.campaign.tuner.windows == windows + 1
    assert driver.campaign.tuner.state()["windows"][-1][2] <= LOST + 0.1


def test_a_promoted_configuration_is_rolled_back_at_its_first_breach_to_what_ran_before() -> None:
    driver = begun()
    won = driver.until("promoted")
    assert driver.campaign.next().risky
    (decision,) = driver.window(breach="errors")
    assert (decision.kind, decision.config, decision.before) == ("rolled_back", {"concurrency": 10}, won.config)
    assert "errors" in decision.reason
    assert driver.campaign.incumbent == {"concurrency": 10}
    assert driver.campaign.phase == "explore"
    _, position, score, _ = driver.campaign.tuner.state()["windows"][-1]
    assert (Space(ONE).decode(position), score <= driver.campaign.level + LOST) == (won.config, True)
    for _ in range(200):
        driver.window()
        assert driver.campaign.incumbent != won.config
    # What the tuner takes for known and runs as its control is what runs again, not what was rolled back.
    (knob,) = driver.campaign.tuner.state()["knobs"]
    assert knob["default"] == driver.campaign.incumbent["concurrency"]


def test_a_watch_counts_only_windows_that_measured_something() -> None:
    driver = begun()
    driver.until("promoted")
    for _ in range(20):
        assert driver.window(blank=True) == []
    assert driver.campaign.phase == "watch"
    driver.until("kept", most=SHORT.watch)


# Budget and traffic


@given(seed=st.integers(0, 10_000), allowed=st.lists(st.booleans(), min_size=40, max_size=120))
@settings(max_examples=20, deadline=None)
def test_what_the_budget_puts_off_never_splits_a_pair(seed: int, allowed: list[bool]) -> None:
    driver = begun(seed=seed % 5)
    driver.until("experiment")
    driver.plans.clear()
    experiment = driver.campaign.experiment
    assert experiment is not None
    free = Experiment.restore(experiment.state())
    for may_try in allowed:
        if driver.campaign.experiment is None:
            break
        driver.window(may_try=may_try)
    arms = "".join(plan.purpose if plan.purpose in ("a", "b") else "." for plan in driver.plans)
    pairs = arms.replace(".", " ").split()
    assert all(len(run) % 2 == 0 for run in pairs[:-1])
    assert all(set(run[at : at + 2]) == {"a", "b"} for run in pairs for at in range(0, len(run) - 1, 2))
    for arm in arms.replace(".", ""):  # the order is the one that the coins drew, whatever was put off
        assert arm == free.next_variant()
        free.record("a" if arm == "a" else "b", 1.0)


def test_where_nothing_may_be_tried_the_incumbent_runs_and_teaches_nothing() -> None:
    driver = begun()
    for _ in range(100):
        driver.window(may_try=False)
    assert {plan.purpose for plan in driver.plans} == {"control"}
    assert all(plan.put_off and plan.config == {"concurrency": 10} for plan in driver.plans)
    assert driver.campaign.tuner.windows == 0
    driver.until("promoted")


def test_while_nothing_is_measured_nothing_is_tried() -> None:
    driver = begun()
    for _ in range(10):
        driver.window()
    asked = driver.campaign.next().config
    windows = driver.campaign.tuner.windows
    driver.window(blank=True)
    for _ in range(50):
        driver.window(blank=True)
        assert driver.plans[-1].config == {"concurrency": 10}
    driver.window()
    assert driver.campaign.next().config == asked
    assert driver.campaign.tuner.windows == windows


def test_a_configuration_that_measures_nothing_where_the_incumbent_does_is_told_as_lost_and_left() -> None:
    driver = begun(level)
    while not driver.campaign.next().risky:
        driver.window()
    stalled = driver.campaign.next().config
    kinds = []
    for _ in range(4):
        kinds += [one.kind for one in driver.window(blank=driver.campaign.next().config == stalled)]
    assert [plan.config for plan in driver.plans[-4:]] == [stalled, {"concurrency": 10}] * 2
    assert kinds == ["breach"]
    assert driver.campaign.tuner.state()["windows"][-1][2] <= LOST + 0.1
    assert driver.campaign.next().config != stalled


def test_no_configuration_is_to_blame_where_the_incumbent_measures_nothing_either() -> None:
    driver = begun(level)
    while not driver.campaign.next().risky:
        driver.window()
    asked = driver.campaign.next().config
    for blank in [True, True, False] * 4:
        assert driver.window(blank=blank) == []
    assert driver.campaign.next().config == asked


def test_a_pause_of_the_traffic_ends_no_experiment() -> None:
    driver = begun()
    candidate = driver.until("experiment").config
    for _ in range(3):
        driver.window()
    driver.plans.clear()
    for _ in range(200):
        driver.window(blank=True)
    assert all(plan.put_off for plan in driver.plans[1:])
    assert driver.campaign.candidate == candidate
    assert driver.until("promoted").config == candidate


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_no_finite_number_teaches_nothing_in_any_phase(score: float | None) -> None:
    driver = begun()
    for kind in ("experiment", "promoted", "kept", "rested"):
        driver.until(kind)
        campaign = again(driver.campaign)
        windows = campaign.tuner.windows
        for _ in range(3):
            campaign.record(campaign.next(), score)
        assert campaign.tuner.windows == windows
        assert campaign.incumbent == driver.campaign.incumbent


@pytest.mark.parametrize("score", [1e300, -1e300])
def test_a_score_beyond_all_measure_is_taken_as_a_very_large_one(score: float) -> None:
    driver = begun(lambda config: score)
    for _ in range(100):
        driver.window()
    assert driver.campaign.incumbent == {"concurrency": 10}
    json.dumps(driver.campaign.state(), allow_nan=False)


# Rest


def test_rests_double_until_something_better_is_found() -> None:
    driver = begun(downhill)
    lengths = []
    for _ in range(4):
        driver.until("rested")
        driver.plans.clear()
        while driver.campaign.phase == "rest":
            driver.window()
        lengths.append(len(driver.plans))
        assert {plan.purpose for plan in driver.plans} == {"rest"}
        assert not any(plan.risky for plan in driver.plans)
    assert lengths == [8, 16, 32, 64]
    driver.worth = uphill
    driver.until("promoted", most=LONGEST_REST)
    driver.until("rested")
    assert driver.told[-1].reason.endswith("in 8 windows")


def test_no_rest_is_longer_than_the_longest() -> None:
    campaign = begun(downhill).campaign
    state = campaign.state()
    state["standing"]["rests"] = 1_000
    driver = Driver(Campaign.restore(state), downhill)
    assert driver.until("rested").reason.endswith(f"in {LONGEST_REST} windows")


def test_a_lasting_shift_of_what_runs_ends_the_rest_and_what_was_rejected_may_be_proved_again() -> None:
    driver = begun(downhill, pace=Pace(explore=24, experiment=30, watch=3, rest=200))
    driver.until("rested")
    for _ in range(40):
        driver.window()
    assert driver.campaign.phase == "rest"
    state = driver.campaign.state()
    state["standing"]["rejected"] = [{"concurrency": 20}]
    driver.campaign = Campaign.restore(state)
    driver.worth = lambda config: uphill(config) - 1.0
    assert driver.until("regime", most=24).reason == "the score of what runs has moved; exploring begins again"
    assert driver.campaign.phase == "explore"
    assert driver.campaign.state()["standing"]["rejected"] == []
    driver.until("promoted")


def test_a_load_that_swings_is_no_shift() -> None:
    driver = begun(level, pace=Pace(explore=24, rest=500))
    driver.until("rested")
    driver.worth = lambda config: math.log(1 + 0.3 * math.sin(len(driver.plans) / 8))
    while driver.campaign.phase == "rest":
        driver.window()
    assert "regime" not in [one.kind for one in driver.told]


# Rollback


def test_a_rollback_returns_to_what_ran_before_each_promotion_and_then_to_the_defaults() -> None:
    driver = begun()
    first = driver.until("promoted").config
    driver.until("kept")
    driver.worth = lambda config: -uphill(config)
    second = driver.until("promoted").config
    assert (driver.campaign.incumbent, driver.campaign.previous) == (second, first)
    (decision,) = driver.campaign.roll_back("somebody asked for it")
    assert (decision.kind, decision.config, decision.before) == ("rolled_back", first, second)
    assert decision.reason == "somebody asked for it"
    driver.campaign.roll_back("again")
    assert driver.campaign.incumbent == {"concurrency": 10}
    assert driver.campaign.previous is None


def test_where_nothing_was_promoted_a_rollback_runs_the_defaults_and_forbids_them_nothing() -> None:
    driver = begun()
    driver.until("experiment")
    (decision,) = driver.campaign.roll_back("somebody asked for it")
    assert decision.config == decision.before == {"concurrency": 10}
    assert "nothing was promoted" in decision.reason
    assert driver.campaign.experiment is None
    assert driver.campaign.state()["standing"]["rejected"] == []
    driver.until("promoted")


def test_a_plan_that_a_rollback_has_overtaken_counts_for_nothing() -> None:
    driver = begun()
    for kind in ("experiment", "promoted", "rested"):
        driver.until(kind)
        campaign = again(driver.campaign)
        plan = campaign.next()
        campaign.roll_back("somebody asked for it")
        before = campaign.state()
        assert campaign.record(plan, 1.0, "a guardrail") == []
        assert campaign.state() == before


# Bounds


KNOB_SETS = [
    ONE,
    KNOBS,
    [Knob("codec", choices=("none", "zstd", "lz4"), default="lz4")],
    [Knob("depth", low=0, high=1, default=0, integer=True), Knob("on", choices=(True, False), default=False)],
    [Knob("gain", low=-3.0, high=-1.0, default=-1.0), Knob("size", low=3, high=7, default=5)],
]


@pytest.mark.parametrize("surrogate", [True, False])
@pytest.mark.parametrize("knobs", KNOB_SETS, ids=lambda knobs: "-".join(knob.name for knob in knobs))
def test_no_window_runs_outside_of_the_bounds(knobs: list[Knob], surrogate: bool) -> None:
    pace = Pace(explore=20, experiment=20, watch=2, rest=4)
    draw = random.Random(1)
    campaign = Campaign(knobs, pace=pace, surrogate=surrogate)
    for number in range(80):
        plan = campaign.next(may_try=draw.random() < 0.9)
        assert list(plan.config) == [knob.name for knob in knobs]
        for knob in knobs:
            value = plan.config[knob.name]
            if knob.choices is not None:
                assert value in knob.choices
            else:
                assert knob.low <= value <= knob.high
                assert type(value) is (int if knob.integer else float)
        # Enough that a wrong winner would be named too: bounds hold for whatever is promoted.
        score = (1.0 if plan.purpose == "b" else 0.0) + 0.01 * draw.random()
        campaign.record(plan, score, "late" if draw.random() < 0.03 else None)
        if number % 10 == 0:
            campaign = again(campaign)


def test_a_lone_choice_is_found_and_kept() -> None:
    knobs = [Knob("codec", choices=("none", "zstd", "lz4"), default="none")]
    driver = Driver(
        Campaign(knobs, pace=SHORT, surrogate=True), lambda config: 0.5 if config["codec"] == "lz4" else 0.0
    )
    assert driver.until("promoted").config == {"codec": "lz4"}


@pytest.mark.parametrize("restarts", [0, MOST_RESTARTS])
def test_a_contradiction_makes_exploring_longer_but_not_for_ever(restarts: int) -> None:
    # A slight slope: a large gain would be put to the proof before.
    driver = Driver(Campaign(ONE, pace=Pace(explore=60), surrogate=True), lambda config: uphill(config) / 8, noise=0.01)
    for _ in range(34):
        driver.window()
    state = driver.campaign.state()
    state["standing"] |= {"restarts": restarts, "rejected": [{"concurrency": 20}]}
    driver.campaign = Campaign.restore(state)
    driver.worth = lambda config: -4 * uphill(config)
    driver.until("regime", most=26)
    after = driver.campaign.state()["standing"]
    assert after["rejected"] == []
    assert after["explored"] == 30 if restarts == 0 else after["explored"] > 34


# State


def scripted(seed: int) -> Iterator[dict[str, Any]]:
    """What befalls window after window: budget, traffic, breaches."""
    draw = random.Random(seed)
    while True:
        yield {
            "may_try": draw.random() < 0.85,
            "blank": draw.random() < 0.08,
            "breach": "late" if draw.random() < 0.01 else None,
        }


def lockstep(plain: Driver, restored: Driver, seed: int, windows: int) -> set[str]:
    """Drive both, one of them restored before each window; return what was seen on the way."""
    seen = set()
    for number, befalls in zip(range(windows), scripted(seed), strict=False):
        standing = plain.campaign.state()["standing"]
        experiment = plain.campaign.experiment
        seen.add(standing["phase"])
        seen.update(name for name in ("idle", "suspect", "before", "rejected", "strikes") if standing[name])
        if experiment is not None and experiment.result.windows % 2:
            seen.add("mid-pair")
        if number % 3:
            plain.campaign.next(may_try=befalls["may_try"])  # asked before it stopped, or not
        restored.campaign = again(restored.campaign)
        assert restored.campaign.incumbent == plain.campaign.incumbent
        assert restored.window(**befalls) == plain.window(**befalls)
        assert restored.plans[-1] == plain.plans[-1]
        assert json.dumps(restored.campaign.state()) == json.dumps(plain.campaign.state())
    return seen


def test_a_campaign_that_is_restored_before_every_window_goes_on_as_if_it_never_stopped() -> None:
    seen = set()
    for seed in range(2):
        for make in (begun, flattered):
            plain, restored = (make(seed=seed) for _ in range(2))
            seen |= lockstep(plain, restored, seed, 160)
    assert seen == {
        *("explore", "experiment", "watch", "rest"),
        *("mid-pair", "idle", "suspect", "before", "rejected", "strikes"),
    }


def test_the_same_holds_with_a_surrogate() -> None:
    drivers = [Driver(Campaign(KNOBS, pace=SHORT, surrogate=True), uphill) for _ in range(2)]
    assert {"explore", "experiment", "mid-pair", "watch"} <= lockstep(drivers[0], drivers[1], 3, 60)


@given(seed=st.integers(0, 1_000_000), stops=st.sets(st.integers(0, 149), max_size=8))
@settings(max_examples=15, deadline=None)
def test_wherever_it_stops_it_goes_on_with_the_same_plans(seed: int, stops: set[int]) -> None:
    plain, restored = (begun(uphill if seed % 2 else level, KNOBS, seed) for _ in range(2))
    for number, befalls in zip(range(150), scripted(seed), strict=False):
        if number in stops:
            restored.campaign = again(restored.campaign)
        assert restored.window(**befalls) == plain.window(**befalls)
    assert restored.plans == plain.plans


def test_a_float_that_json_made_whole_is_the_same_configuration() -> None:
    driver = Driver(Campaign([Knob("size", low=1, high=9, default=3)], pace=SHORT, surrogate=False), level)
    driver.until("rested")
    state = json.loads(json.dumps(driver.campaign.state()))
    state["standing"]["incumbent"] = {"size": 3}
    restored = Campaign.restore(state)
    assert repr(restored.incumbent) == repr(driver.campaign.incumbent) == "{'size': 3.0}"


def test_asked_again_before_record_it_plans_the_same_and_hands_out_no_part_of_itself() -> None:
    driver = begun()
    for kind in ("experiment", "promoted", "rested"):
        driver.until(kind)
        first = driver.campaign.next()
        assert driver.campaign.next() == first
        first.config["concurrency"] = driver.campaign.incumbent["concurrency"] = 10_000
        assert driver.campaign.next().config["concurrency"] <= 256
        assert driver.campaign.incumbent["concurrency"] <= 256


def test_a_damaged_state_is_refused_with_one_clear_error() -> None:
    driver = begun(knobs=KNOBS)
    driver.until("experiment")
    good = json.dumps(driver.campaign.state())
    for name in json.loads(good):
        damaged = json.loads(good)
        del damaged[name]
        with pytest.raises(ConfigurationError):
            Campaign.restore(damaged)
    for changes in (
        {"phase": "rest"},
        {"phase": "holiday"},
        {"candidate": None},
        {"incumbent": {"concurrency": 10}},
        {"incumbent": {**DEFAULTS, "concurrency": 1_000}},
        {"before": [{"depth": 1}]},
        {"rejected": "none"},
        {"explored": None},
        {"recent": [None]},
    ):
        damaged = json.loads(good)
        damaged["standing"] |= changes
        with pytest.raises(ConfigurationError):
            Campaign.restore(damaged)
    for nothing in (None, [], {"version": 2}, "state"):
        with pytest.raises(ConfigurationError, match="this reads 1"):
            Campaign.restore(nothing)  # type: ignore[arg-type]


def test_after_a_promotion_the_tuner_compares_with_what_was_promoted_and_keeps_its_windows() -> None:
    driver = begun()
    windows = 0
    while driver.campaign.phase != "watch":
        windows = driver.campaign.tuner.windows
        driver.window()
    tuner = driver.campaign.tuner
    assert tuner.best == driver.campaign.incumbent
    assert tuner.state()["knobs"][0]["default"] == driver.campaign.incumbent["concurrency"]
    assert tuner.windows >= windows
    assert driver.campaign.promising is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"explore": 0}, "explore=0"),
        ({"watch": -1}, "watch=-1"),
        ({"rest": 1.5}, "rest=1.5"),
        ({"rest": True}, "rest=True"),
        ({"experiment": 1}, "max_windows=1"),
        ({"alpha": 0.9}, "alpha=0.9"),
        ({"minimum_effect": -0.1}, "minimum_effect=-0.1"),
        ({"minimum_effect": math.nan}, "minimum_effect=nan"),
    ],
)
def test_a_pace_that_makes_no_sense_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"pace: .*{words}"):
        Pace(**wrong)


def test_what_runs_already_is_where_it_begins_and_a_rollback_leads_to_the_defaults() -> None:
    campaign = Campaign(KNOBS, incumbent={**Campaign(KNOBS).incumbent, KNOBS[0].name: KNOBS[0].high})
    assert campaign.incumbent[KNOBS[0].name] == KNOBS[0].high
    assert campaign.next().config == campaign.incumbent
    assert Campaign.restore(json.loads(json.dumps(campaign.state()))).incumbent == campaign.incumbent
    campaign.roll_back("asked for")
    assert campaign.incumbent == Campaign(KNOBS).incumbent


def test_a_large_gain_is_put_to_the_proof_after_half_of_the_exploring_and_a_small_one_is_not() -> None:
    large = Driver(Campaign(ONE, pace=Pace(explore=40), surrogate=True), uphill)
    large.until("experiment", most=24)
    small = Driver(Campaign(ONE, pace=Pace(explore=40), surrogate=True), lambda config: uphill(config) / 8)
    for _ in range(36):
        small.window()
    assert small.campaign.experiment is None


def test_what_is_put_to_the_proof_leaves_alone_what_does_nothing() -> None:
    driver = Driver(Campaign(KNOBS, pace=SHORT, surrogate=True), uphill)
    tried = driver.until("experiment").config
    assert tried["concurrency"] != DEFAULTS["concurrency"]
    assert (tried["wait"], tried["codec"]) == (DEFAULTS["wait"], DEFAULTS["codec"])
