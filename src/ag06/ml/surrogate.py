"""A Gaussian process over configuration and time: what the knobs do, apart from what the load and the noise do.

Rasmussen and Williams 2006, chapters 2 and 5. The score of window t at position x is a surface g(x) plus a load l(t)
plus correlated noise e(t); windows of one configuration at several times tell them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

P = ParamSpec("P")
R = TypeVar("R")
Array = NDArray[np.float64]

_BLAS = ThreadpoolController()
_limiting = threading.Lock()
"""Each limit puts back what it found: two that overlap would leave the process with what the first had set."""
_LEVEL = 1.0
"""Variance of the unknown mean level of the scores."""
_JITTER = 1e-6

# Priors of the hyperparameters in the order of `RuntimeKernel.logs`: the middle, and the deviation of the logarithm.
# They are wide; what they keep out is a surface without slope or a load that explains everything, before data can.
_PRIOR = (0.4, 0.2, 8.0, 0.15, 1.2)
_PRIOR_WIDTH = (0.5, 0.5, 0.5, 0.35, 0.5)
_LENGTH, _LENGTH_WIDTH = 0.6, 0.5
_STEP = 0.3


def _in_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Keep the linear algebra in one thread: its matrices are small, and threads that wait for each other spin.

    On a machine that has something else to do too that takes many times as long as the work.
    """

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _limiting, _BLAS.limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return alone


class RuntimeKernel(Kernel):  # type: ignore[misc]
    """Surface (Matern 5/2, a length for each feature) + load (Matern 3/2 in time) + AR(1) noise + a constant.

    Columns of the input: the features, then the number of the window. `logs` are the natural logarithms of: the
    surface's deviation, the load's deviation, the load's length in windows, the noise's deviation, the noise's length
    in windows, then the length of each feature.
    """

    def __init__(self, logs: tuple[float, ...]) -> None:
        """Take the hyperparameters."""
        self.logs = logs

    @property
    def theta(self) -> Array:
        """The hyperparameters as scikit-learn asks for them."""
        return np.array(self.logs)

    @theta.setter
    def theta(self, value: Sequence[float]) -> None:
        self.logs = tuple(float(one) for one in value)

    def __call__(self, X: Array, Y: Array | None = None, eval_gradient: bool = False) -> Array:  # noqa: N803
        """Return the covariances of the rows; there are no gradients, since the fit needs none."""
        other = X if Y is None else Y
        surface, load, load_length, noise, noise_length = np.exp(np.array(self.logs[:5]))
        lengths = np.exp(np.array(self.logs[5:]))
        left, right = X[:, :-1] / lengths, other[:, :-1] / lengths
        squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
        distance = np.sqrt(5 * np.maximum(squared, 0.0))
        apart = np.abs(X[:, -1:] - other[:, -1:].T)
        away = np.sqrt(3) * apart / load_length
        covariance: Array = (
            surface**2 * (1 + distance + distance**2 / 3) * np.exp(-distance)
            + load**2 * (1 + away) * np.exp(-away)
            + noise**2 * np.exp(-apart / noise_length)
            + _LEVEL
        )
        return covariance

    def diag(self, X: Array) -> Array:  # noqa: N803
        """Return the variance of each row."""
        surface, load, _, noise, _ = np.exp(np.array(self.logs[:5]))
        return np.full(len(X), surface**2 + load**2 + noise**2 + _LEVEL)

    def is_stationary(self) -> bool:
        """Say that only distances matter."""
        return True


class Surrogate:
    """The process fitted to some windows. Positions are compared at one moment, so that load and noise cancel.

    `logs` are its hyperparameters: with the same ones and the same windows it is the same.
    """

    def __init__(self, features: int, logs: Sequence[float] | None = None) -> None:
        """Begin with the hyperparameters of a surrogate before, or with the middle of the priors."""
        self._centre = np.log(np.array([*_PRIOR, *[_LENGTH] * features]))
        self._width = np.array([*_PRIOR_WIDTH, *[_LENGTH_WIDTH] * features])
        self.logs: tuple[float, ...] = tuple(float(one) for one in (self._centre if logs is None else logs))
        self.fitted = False

    @_in_one_thread
    def fit(self, features: Array, times: Array, scores: Array, *, climb: bool) -> None:
        """Take the windows; `climb`: move each hyperparameter once, if that makes them more likely (MAP)."""
        inputs, centred = np.column_stack([features, times]), scores - np.median(scores)
        process = self._process(inputs, centred)
        if climb:
            self.logs = self._climbed(process)
            process = self._process(inputs, centred)
        self._kernel, self._inputs = process.kernel_, inputs
        self._weights = process.alpha_.ravel()
        self._inverse = np.linalg.inv(process.L_)
        self._now = float(times[-1]) + 1
        self.fitted = True

    @_in_one_thread
    def contrast(self, features: Array, against: Array) -> tuple[Array, Array]:
        """Return mean and deviation of g(row) - g(against) for each row of features."""
        rows = np.vstack([against[None], features])
        at = np.column_stack([rows, np.full(len(rows), self._now)])
        cross = self._kernel(self._inputs, at)
        mean = cross.T @ self._weights
        known = self._inverse @ (cross - cross[:, :1])
        prior = 2 * (self._kernel.diag(at[:1])[0] - self._kernel(at, at[:1]).ravel())
        variance = prior - (known**2).sum(axis=0)
        return mean[1:] - mean[0], np.sqrt(np.maximum(variance[1:], 0.0))

    @_in_one_thread
    def break_before(self, features: Array, times: Array, scores: Array, last: int) -> float:
        """Return the log Bayes factor for a surface that is a new one in the `last` windows against one for all.

        Adams and MacKay 2007 with the process as the model of a segment (Saatci et al. 2010).
        """
        inputs, centred = np.column_stack([features, times]), scores - np.median(scores)
        whole, before, after = (
            self._process(inputs[part], centred[part]).log_marginal_likelihood_value_
            for part in (slice(None), slice(None, -last), slice(-last, None))
        )
        return float(before + after - whole)

    def _process(self, inputs: Array, scores: Array) -> Any:
        process = GaussianProcessRegressor(RuntimeKernel(self.logs), alpha=_JITTER, optimizer=None)
        return process.fit(inputs, scores)

    def _climbed(self, process: Any) -> tuple[float, ...]:
        theta = np.array(self.logs)
        top = self._posterior(process, theta)
        for index in range(len(theta)):
            for step in (_STEP, -_STEP):
                moved = theta.copy()
                moved[index] += step
                found = self._posterior(process, moved)
                if found > top:
                    theta, top = moved, found
                    break
        return tuple(float(one) for one in theta)

    def _posterior(self, process: Any, theta: Array) -> float:
        prior = -0.5 * float((((theta - self._centre) / self._width) ** 2).sum())
        return float(process.log_marginal_likelihood(theta, clone_kernel=False)) + prior
