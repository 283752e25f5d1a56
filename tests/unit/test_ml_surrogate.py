from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

from ag06.ml.surrogate import Array, RuntimeKernel, Surrogate, _in_one_thread


def windows(
    count: int, worth: Callable[[Array], float], seed: int, noise: float = 0.15, load: float = 0.25
) -> tuple[Array, Array, Array]:
    """Windows at random places of the unit square, every fourth one at its middle."""
    draw = random.Random(seed)
    features = np.array([[0.5, 0.5] if i % 4 == 0 else [draw.random(), draw.random()] for i in range(count)])
    times = np.arange(float(count))
    error, scores = 0.0, []
    for number, at in enumerate(features):
        error = 0.5 * error + math.sqrt(0.75) * draw.gauss()
        scores.append(worth(at) + load * math.sin(number / 6) + noise * error)
    return features, times, np.array(scores)


def learned(features: Array, times: Array, scores: Array) -> Surrogate:
    surrogate = Surrogate(2)
    for count in range(2, len(scores) + 1):
        surrogate.fit(features[:count], times[:count], scores[:count], climb=True)
    return surrogate


@pytest.mark.parametrize("seed", range(3))
def test_it_tells_the_surface_from_the_load(seed: int) -> None:
    surrogate = learned(*windows(100, lambda at: at[0] - 0.5, seed))
    places = np.array([[0.1, 0.5], [0.9, 0.5], [0.5, 0.1], [0.5, 0.9]])
    mean, deviation = surrogate.contrast(places, np.array([0.5, 0.5]))
    assert mean == pytest.approx([-0.4, 0.4, 0.0, 0.0], abs=0.2)
    assert (deviation < 0.25).all()


def test_beside_itself_a_place_is_no_better_and_that_is_sure() -> None:
    surrogate = learned(*windows(30, lambda at: at[0], 1))
    mean, deviation = surrogate.contrast(np.array([[0.3, 0.8]]), np.array([0.3, 0.8]))
    assert mean[0] == pytest.approx(0, abs=1e-9)
    assert deviation[0] == pytest.approx(0, abs=1e-6)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over several surfaces, nine in ten of what is true lie within two deviations (95% if the model were exact)."""
    within, total = 0, 0
    for seed in range(6):
        slopes = np.array([math.cos(seed), math.sin(seed)])
        surrogate = learned(*windows(50, lambda at, slopes=slopes: float(np.sin(2 * at @ slopes)), seed))  # type: ignore[misc]
        places = np.array([[x, y] for x in (0.1, 0.5, 0.9) for y in (0.1, 0.9)])
        mean, deviation = surrogate.contrast(places, np.array([0.5, 0.5]))
        truth = np.sin(2 * places @ slopes) - math.sin(slopes.sum())
        within += int((np.abs(mean - truth) < 2 * deviation).sum())
        total += len(places)
    assert within >= 0.85 * total


def test_far_from_every_window_it_is_unsure() -> None:
    features, times, scores = windows(40, lambda at: 0.0, 2)
    surrogate = learned(features * [0.2, 1.0], times, scores)
    _, deviation = surrogate.contrast(np.array([[0.1, 0.5], [1.0, 0.5]]), np.array([0.1, 0.4]))
    assert deviation[1] > 2 * deviation[0]


def test_a_climb_never_makes_the_windows_less_likely() -> None:
    features, times, scores = windows(40, lambda at: 2 * at[0], 3)
    surrogate = Surrogate(2)
    found = []
    for _ in range(6):
        surrogate.fit(features, times, scores, climb=True)
        process = surrogate._process(np.column_stack([features, times]), scores - np.median(scores))
        found.append(surrogate._posterior(process, np.array(surrogate.logs)))
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_a_surface_that_turned_over_is_evidence_of_a_break_and_noise_is_none() -> None:
    features, times, scores = windows(48, lambda at: at[0], 4)
    turned = scores.copy()
    turned[-16:] -= 2 * features[-16:, 0]
    evidence = []
    for told in (scores, turned):
        surrogate = learned(features, times, told)
        evidence.append(surrogate.break_before(features, times, told, 16))
    assert evidence[0] < 0
    assert evidence[1] > 8


def test_the_kernel_is_a_covariance() -> None:
    kernel = RuntimeKernel(tuple(np.log([0.4, 0.2, 8.0, 0.15, 1.2, 0.5, 0.7])))
    features, times, _ = windows(60, lambda at: 0.0, 5)
    inputs = np.column_stack([features, times])
    covariance = kernel(inputs)
    assert covariance == pytest.approx(covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert np.diag(covariance) == pytest.approx(kernel.diag(inputs))


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_two_at_once_leave_the_linear_algebra_of_the_process_with_the_threads_it_had() -> None:
    began, is_first_over = threading.Event(), threading.Event()
    told: list[list[int]] = []
    overlapped: list[bool] = []

    @_in_one_thread
    def first() -> None:
        told.append(blas_threads())
        other.start()
        overlapped.append(began.wait(0.3))  # however long that is, the other one does not begin

    @_in_one_thread
    def second() -> None:
        began.set()
        told.append(blas_threads())
        is_first_over.wait(5)

    other = threading.Thread(target=second)
    before = blas_threads()
    first()
    is_first_over.set()
    other.join()
    assert overlapped == [False]
    assert told == [[1] * len(before)] * 2
    assert blas_threads() == before
