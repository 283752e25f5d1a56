from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ag06.errors import ConfigurationError
from ag06.ml import Knob, Tuner

KNOBS = [
    Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True),
    Knob("wait_ms", low=0.1, high=77.0, default=12.345, scale="log"),
    Knob("gain", low=-1.0, high=3.0, default=1 / 3),
    Knob("retries", low=0, high=3, default=1, integer=True),
    Knob("codec", choices=("none", "zstd", "lz4"), default="zstd"),
]
DEFAULTS = {knob.name: knob.default for knob in KNOBS}
BOTH = pytest.mark.parametrize("surrogate", [True, False])

Config = dict[str, Any]


def throughput(config: Config) -> float:
    """What a configuration is truly worth: 100/s for the defaults, 210/s for the best there is."""
    distance = (math.log(config["concurrency"] / 60) / 4) ** 2 + (config["gain"] - 1) ** 2 / 8
    codec = {"none": 0.8, "zstd": 1.0, "lz4": 1.2}[config["codec"]]
    return 135 * codec * math.exp(-distance) * (1 + 0.1 * config["retries"])


def drive(tuner: Tuner, windows: int, worth: Callable[[Config], float] = throughput, seed: int = 0) -> list[Config]:
    """Run so many windows under noise and a swinging load; return what was asked."""
    draw = random.Random(seed)
    asked = []
    for _ in range(windows):
        config = tuner.ask()
        load = 1 + 0.3 * math.sin(tuner.windows / 5)
        tuner.tell(config, worth(config) * load * math.exp(0.1 * draw.gauss()))
        asked.append(config)
    return asked


@BOTH
def test_it_begins_with_the_defaults_to_the_last_digit(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, seed=3, surrogate=surrogate)
    assert tuner.best == DEFAULTS
    assert (tuner.windows, tuner.skipped, tuner.regimes) == (0, 0, 1)
    if surrogate:
        assert tuner.ask() == DEFAULTS


@BOTH
def test_what_it_asks_is_within_bounds_and_of_the_right_type(surrogate: bool) -> None:
    knobs = {knob.name: knob for knob in KNOBS}
    for config in drive(Tuner(KNOBS, surrogate=surrogate), 40):
        assert list(config) == list(knobs)
        assert [type(value) for value in config.values()] == [int, float, float, int, str]
        assert config["codec"] in knobs["codec"].choices
        assert all(knobs[name].low <= config[name] <= knobs[name].high for name in list(knobs)[:4])


@BOTH
def test_asked_again_before_tell_it_says_the_same_and_hands_out_no_part_of_itself(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    drive(tuner, 5)
    first = tuner.ask()
    kept = dict(first)
    first["concurrency"] = 1_000_000
    tuner.best["concurrency"] = 1_000_000
    assert tuner.ask() == kept
    assert tuner.best["concurrency"] <= 256


@BOTH
def test_the_same_seed_asks_the_same_and_another_seed_does_not(surrogate: bool) -> None:
    first, second, other = (drive(Tuner(KNOBS, seed, surrogate=surrogate), 25) for seed in (7, 7, 8))
    assert first == second
    assert first != other


@BOTH
@pytest.mark.parametrize("windows", [0, 1, 2, 3, 7, 22, 45])
def test_a_restored_tuner_asks_what_the_uninterrupted_one_asks(surrogate: bool, windows: int) -> None:
    tuner = Tuner(KNOBS, seed=11, surrogate=surrogate, pinned={"retries": 2})
    drive(tuner, windows)
    tuner.ask()  # a window is under way
    restored = Tuner.restore(json.loads(json.dumps(tuner.state())))
    assert restored.state() == tuner.state()
    assert restored.best == tuner.best
    assert drive(restored, 20, seed=5) == drive(tuner, 20, seed=5)
    assert restored.best == tuner.best


@BOTH
def test_restored_after_any_window_it_asks_the_same_next(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, seed=2, surrogate=surrogate)
    for _ in range(25):
        restored = Tuner.restore(json.loads(json.dumps(tuner.state())))
        assert restored.ask() == tuner.ask()
        drive(tuner, 1, seed=tuner.windows)


def test_no_more_is_remembered_than_counts_however_long_it_runs() -> None:
    tuner = Tuner(KNOBS, surrogate=False)
    drive(tuner, 400)
    assert tuner.windows == 400
    assert len(tuner.state()["windows"]) == 150
    restored = Tuner.restore(json.loads(json.dumps(tuner.state())))
    assert drive(restored, 10) == drive(tuner, 10)


@BOTH
@pytest.mark.parametrize(
    ("config", "score"),
    [
        (DEFAULTS, math.nan),
        (DEFAULTS, math.inf),
        (DEFAULTS, -math.inf),
        (DEFAULTS, 10**400),
        (DEFAULTS, 1e200),
        (DEFAULTS, None),
        (DEFAULTS, True),
        (DEFAULTS, "100"),
        (DEFAULTS, np.nan),
        (DEFAULTS | {"depth": 1}, 100.0),
        ({"concurrency": 10}, 100.0),
        (DEFAULTS | {"concurrency": 0}, 100.0),
        (DEFAULTS | {"concurrency": 10.5}, 100.0),
        (DEFAULTS | {"gain": math.nan}, 100.0),
        (DEFAULTS | {"codec": "gzip"}, 100.0),
        (None, 100.0),
    ],
)
def test_what_cannot_be_learned_from_is_refused_and_changes_nothing(config: Any, score: Any, surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    drive(tuner, 5)
    asked = tuner.ask()
    before = tuner.state()
    with pytest.raises(ConfigurationError):
        tuner.tell(config, score)
    assert tuner.state() == before
    assert tuner.ask() == asked


@BOTH
def test_a_window_that_measured_nothing_is_followed_by_the_best_and_teaches_nothing(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    drive(tuner, 21)
    stalled = tuner.ask()
    tuner.skip()
    assert tuner.ask() == tuner.best
    assert (tuner.windows, tuner.skipped) == (21, 1)
    drive(tuner, 1)
    assert tuner.windows == 22
    assert tuner.ask() != stalled


def test_numbers_of_numpy_may_be_told() -> None:
    plain, other = Tuner(KNOBS), Tuner(KNOBS)
    for number in range(12):
        config = plain.ask()
        assert other.ask() == config
        plain.tell(config, 100.0 + number)
        other.tell(config | {"concurrency": np.int64(config["concurrency"])}, np.float32(100 + number))
    assert json.loads(json.dumps(other.state())) == plain.state()


@BOTH
def test_it_learns_from_windows_that_it_did_not_ask_for(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    for _ in range(10):
        tuner.tell(DEFAULTS, 100.0)
        tuner.tell(DEFAULTS | {"codec": "lz4"}, 150.0)
    if surrogate:
        assert tuner.best["codec"] == "lz4"
    assert tuner.windows == 20
    drive(tuner, 5)


@BOTH
def test_pinned_knobs_stay_where_they_are(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate, pinned={"codec": "none", "concurrency": 20})
    assert {(config["codec"], config["concurrency"]) for config in drive(tuner, 30)} == {("none", 20)}
    assert (tuner.best["codec"], tuner.best["concurrency"]) == ("none", 20)


@BOTH
def test_a_knob_is_pinned_and_let_go_while_it_runs(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    drive(tuner, 20)
    tuner.pin("concurrency", 64)
    assert tuner.best["concurrency"] == 64
    assert {config["concurrency"] for config in drive(tuner, 15)} == {64}
    restored = Tuner.restore(json.loads(json.dumps(tuner.state())))
    assert {config["concurrency"] for config in drive(restored, 5)} == {64}
    tuner.unpin("concurrency")
    assert len({config["concurrency"] for config in drive(tuner, 25)}) > 1
    for name, value in (("concurrency", 0), ("depth", 1)):
        with pytest.raises(ConfigurationError):
            tuner.pin(name, value)


def test_with_every_knob_pinned_it_asks_for_the_one_configuration_there_is() -> None:
    tuner = Tuner(KNOBS, pinned=DEFAULTS)
    assert all(config == DEFAULTS for config in drive(tuner, 20))
    assert tuner.best == DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"knobs": []}, "give one or more"),
        ({"knobs": [KNOBS[0], KNOBS[0]]}, "each name once"),
        ({"knobs": KNOBS, "seed": None}, "seed=None"),
        ({"knobs": KNOBS, "seed": 1.5}, "seed=1.5"),
        ({"knobs": KNOBS, "scale": "log"}, "scale='log'; use one of auto, ratio, difference"),
        ({"knobs": KNOBS, "pinned": {"depth": 1}}, "unknown knob 'depth'"),
    ],
)
def test_a_tuner_that_makes_no_sense_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Tuner(**arguments)


@BOTH
def test_a_damaged_state_is_refused_with_one_clear_error(surrogate: bool) -> None:
    tuner = Tuner(KNOBS, surrogate=surrogate)
    drive(tuner, 6)
    good = json.dumps(tuner.state())
    for name in json.loads(good):
        damaged = json.loads(good)
        if name != "surrogate":
            damaged[name] = None
            if name not in ("asked", "resting"):
                with pytest.raises(ConfigurationError):
                    Tuner.restore(damaged)
        del damaged[name]
        with pytest.raises(ConfigurationError):
            Tuner.restore(damaged)
    for nothing in (None, [], {"version": 2}, "state"):
        with pytest.raises(ConfigurationError, match="this release reads 1"):
            Tuner.restore(nothing)  # type: ignore[arg-type]


def test_a_prediction_says_how_much_better_and_how_sure() -> None:
    tuner = Tuner(KNOBS)
    assert tuner.predict(DEFAULTS) is None
    drive(tuner, 80)
    best, defaults = tuner.best, tuner.predict(DEFAULTS)
    found, back = tuner.predict(best), tuner.predict(DEFAULTS, beside=best)
    assert defaults is not None
    assert (defaults.effect, defaults.confidence) == (0.0, 0.5)
    assert found is not None
    assert back is not None
    assert found.effect == pytest.approx(math.log(throughput(best) / throughput(DEFAULTS)), abs=0.2)
    assert found.confidence > 0.9
    assert back.effect == pytest.approx(-found.effect)
    assert back.confidence == pytest.approx(1 - found.confidence)
    worse = tuner.predict(DEFAULTS | {"codec": "none", "concurrency": 1})
    assert worse is not None
    assert worse.effect < 0
    assert worse.confidence < 0.5
    with pytest.raises(ConfigurationError, match="unknown knob"):
        tuner.predict(DEFAULTS | {"depth": 1})


def test_without_a_surrogate_it_predicts_what_its_controls_measured_and_nothing_else() -> None:
    tuner = Tuner(KNOBS[:1], surrogate=False)
    drive(tuner, 80, lambda config: float(config["concurrency"]) ** 0.5)
    assert tuner.best["concurrency"] > 20
    found = tuner.predict(tuner.best)
    assert found is not None
    assert found.effect > 0
    assert found.confidence > 0.9
    assert tuner.predict({"concurrency": 11}) is None


WITHOUT = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sklearn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if "HOW" == "none":
    for name in ("sklearn", "numpy", "scipy"):
        sys.modules[name] = None
else:
    sys.meta_path.insert(0, Blocked())
from ag06.ml import Knob, Tuner
from ag06.errors import ConfigurationError
knobs = [Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True)]
tuner = Tuner(knobs)
for _ in range(100):
    config = tuner.ask()
    tuner.tell(config, config["concurrency"] ** 0.5)
assert tuner.best["concurrency"] > 20, tuner.best
try:
    Tuner(knobs, surrogate=True)
except ConfigurationError as error:
    assert "pip install 'ag06[ml]'" in str(error), error
else:
    raise AssertionError("it said that there is a surrogate")
kept = Tuner.restore(json.loads(sys.stdin.read()))
assert kept.windows == 20
kept.tell(kept.ask(), 1.0)
print(json.dumps(tuner.state()))
"""


@pytest.mark.parametrize("how", ["none", "blocked"])
def test_where_scikit_learn_is_missing_it_searches_without_and_goes_on_with_it_once_it_is_there(how: str) -> None:
    tuner = Tuner([Knob("concurrency", low=1, high=256, default=10, scale="log", integer=True)])
    drive(tuner, 20, lambda config: float(config["concurrency"]) ** 0.5)
    program = [sys.executable, "-W", "error", "-c", WITHOUT.replace("HOW", how)]
    done = subprocess.run(
        program, input=json.dumps(tuner.state()), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    there = Tuner.restore(json.loads(done.stdout))
    assert there.predict({"concurrency": 200}) is not None
    assert there.windows == 100
    drive(there, 3, lambda config: float(config["concurrency"]) ** 0.5)
    assert there.best["concurrency"] > 20
