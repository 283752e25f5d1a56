"""Other ways to choose the next window's configuration, behind the tuner's own three words: ask, tell, best."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ag06.knob import Knob

Config = dict[str, Any]


class Optimizer(Protocol):
    """What the runner drives."""

    @property
    def best(self) -> Config: ...

    def ask(self) -> Config: ...

    def tell(self, config: Config, score: float) -> None: ...


def decode(knobs: Sequence[Knob], at: Sequence[float]) -> Config:
    found = {}
    for knob, u in zip(knobs, at, strict=True):
        inside = min(max(float(u), 0.0), 1.0)
        value = knob.low * (knob.high / knob.low) ** inside
        found[knob.name] = round(value) if knob.integer else value
    return found


def encode(knobs: Sequence[Knob], config: Config) -> list[float]:
    return [math.log(config[knob.name] / knob.low) / math.log(knob.high / knob.low) for knob in knobs]


class Default:
    """Never moves: what every share is measured from."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        self.best: Config = {knob.name: knob.default for knob in knobs}

    def ask(self) -> Config:
        return self.best

    def tell(self, config: Config, score: float) -> None: ...


class RandomSearch:
    """Uniform draws, the best score seen (Bergstra and Bengio 2012); it begins with the default, as all here do."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        self._knobs = knobs
        self._random = random.Random(seed)
        self._top = -math.inf
        self.best: Config = {knob.name: knob.default for knob in knobs}
        self._first = True

    def ask(self) -> Config:
        if self._first:
            self._first = False
            return self.best
        return decode(self._knobs, [self._random.random() for _ in self._knobs])

    def tell(self, config: Config, score: float) -> None:
        if score > self._top:
            self._top, self.best = score, config


class Tpe:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna, its defaults; the default config is first."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = {
            knob.name: optuna.distributions.IntDistribution(int(knob.low), int(knob.high), log=True) for knob in knobs
        }
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._study.enqueue_trial({knob.name: knob.default for knob in knobs})
        self._trial: Any = None

    @property
    def best(self) -> Config:
        return dict(self._study.best_params)

    def ask(self) -> Config:
        self._trial = self._study.ask(self._space)
        return dict(self._trial.params)

    def tell(self, config: Config, score: float) -> None:
        self._study.tell(self._trial, score)


class CmaEs:
    """Covariance matrix adaptation (Hansen and Ostermeier 2001) of cmaes, from the default; its mean is the best."""

    def __init__(self, knobs: Sequence[Knob], seed: int, sigma: float = 0.2) -> None:
        import cmaes

        self._knobs = knobs
        start = np.array(encode(knobs, {knob.name: knob.default for knob in knobs}))
        self._cma = cmaes.CMA(mean=start, sigma=sigma, bounds=np.array([[0.0, 1.0]] * len(knobs)), seed=seed)
        self._told: list[tuple[Any, float]] = []
        self._asked: Any = None

    @property
    def best(self) -> Config:
        return decode(self._knobs, self._cma.mean)

    def ask(self) -> Config:
        self._asked = self._cma.ask()
        return decode(self._knobs, self._asked)

    def tell(self, config: Config, score: float) -> None:
        self._told.append((self._asked, -score))
        if len(self._told) == self._cma.population_size:
            self._cma.tell(self._told)
            self._told = []


class Spsa:
    """Simultaneous perturbation (Spall 1992) with the gains of Spall 1998 on log scores; its place is the best."""

    def __init__(self, knobs: Sequence[Knob], seed: int, step: float = 0.1, reach: float = 0.12) -> None:
        self._knobs = knobs
        self._random = random.Random(seed)
        self._at = encode(knobs, {knob.name: knob.default for knob in knobs})
        self._step, self._reach = step, reach
        self._pairs = 0
        self._signs: list[float] = []
        self._up: float | None = None

    @property
    def best(self) -> Config:
        return decode(self._knobs, self._at)

    def ask(self) -> Config:
        width = self._reach / (self._pairs + 1) ** 0.101
        if self._up is None:
            self._signs = [self._random.choice((-1.0, 1.0)) for _ in self._at]
        side = 1 if self._up is None else -1
        return decode(self._knobs, [u + side * width * sign for u, sign in zip(self._at, self._signs, strict=True)])

    def tell(self, config: Config, score: float) -> None:
        if self._up is None:
            self._up = math.log(score)
            return
        width = self._reach / (self._pairs + 1) ** 0.101
        slope = (self._up - math.log(score)) / (2 * width)
        gain = self._step / (self._pairs + 3.0) ** 0.602
        self._at = [min(max(u + gain * slope * sign, 0.0), 1.0) for u, sign in zip(self._at, self._signs, strict=True)]
        self._up = None
        self._pairs += 1


class TrustRegion:
    """One trust region of TuRBO (Eriksson et al. 2019) with scikit-learn's Gaussian process and Thompson sampling."""

    def __init__(self, knobs: Sequence[Knob], seed: int) -> None:
        self._knobs = knobs
        self._rng = np.random.default_rng(seed)
        self._points: list[list[float]] = []
        self._scores: list[float] = []
        self._length, self._won, self._lost = 0.4, 0, 0

    @property
    def best(self) -> Config:
        if not self._points:
            return {knob.name: knob.default for knob in self._knobs}
        model = self._model()
        means = model.predict(np.array(self._points))
        return decode(self._knobs, self._points[int(np.argmax(means))])

    def ask(self) -> Config:
        default = encode(self._knobs, {knob.name: knob.default for knob in self._knobs})
        if len(self._points) < 6:
            at = np.array(default)
            return decode(self._knobs, at if not self._points else at + self._rng.uniform(-0.2, 0.2, len(at)))
        model = self._model()
        points = np.array(self._points)
        centre = points[int(np.argmax(model.predict(points)))]
        around = np.clip(centre + self._length / 2 * self._rng.uniform(-1, 1, (200, len(centre))), 0, 1)
        draw = model.sample_y(around, random_state=int(self._rng.integers(2**31)))
        return decode(self._knobs, around[int(np.argmax(draw))])

    def tell(self, config: Config, score: float) -> None:
        value = math.log(score)
        better = bool(self._scores) and value > max(self._scores)
        self._points.append(encode(self._knobs, config))
        self._scores.append(value)
        self._won, self._lost = (self._won + 1, 0) if better else (0, self._lost + 1)
        if self._won == 3:
            self._length, self._won = min(2 * self._length, 1.6), 0
        elif self._lost == 6:
            self._length, self._lost = max(self._length / 2, 0.1), 0

    def _model(self) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        kernel = ConstantKernel(0.1) * Matern([0.4] * len(self._knobs), (0.1, 3.0), nu=2.5) + WhiteKernel(
            0.04, (1e-3, 0.3)
        )
        model = GaussianProcessRegressor(kernel, normalize_y=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(np.array(self._points), np.array(self._scores))


BASELINES: dict[str, Callable[[Sequence[Knob], int], Optimizer]] = {
    "default": Default,
    "random": RandomSearch,
    "tpe": Tpe,
    "cma-es": CmaEs,
    "spsa": Spsa,
    "gp-trust-region": TrustRegion,
}
