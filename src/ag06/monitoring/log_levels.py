"""Which lines are written: a level for each logger, a share of what is said too often. Both may change at any time."""

from __future__ import annotations

import logging
import random
import weakref
from collections.abc import Callable

from ag06.errors import ConfigurationError

DEBUG, INFO, WARNING, ERROR, CRITICAL = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL
NUMBERS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}
_NAMES = {number: name for name, number in NUMBERS.items()}


def level_number(level: str | int) -> int:
    """Return the number of a level as `logging` counts them; raise `ConfigurationError` for what is none."""
    found = NUMBERS.get(level.lower()) if isinstance(level, str) else level
    if found is None or isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= CRITICAL:
        raise ConfigurationError(f"log level {level!r}; use {', '.join(NUMBERS)}")
    return found


def level_name(number: int) -> str:
    """Return the name of the level that lines of this number are filed under: 25 is `info`."""
    return _NAMES.get(number) or _NAMES[max((known for known in _NAMES if known <= number), default=DEBUG)]


class Gate:
    """Where the lines of one logger pass: `level` is the least that does."""

    __slots__ = ("__weakref__", "level", "name")

    def __init__(self, name: str, level: int) -> None:
        """Made by `Levels.gate`."""
        self.name = name
        self.level = level


class Levels:
    """The levels and samplings of a process."""

    def __init__(self, default: int = INFO, random: Callable[[], float] = random.random) -> None:
        """Let everything from `default` on pass; `random` returns numbers from 0 to 1."""
        self.default = default
        self._random = random
        self._own: dict[str, int] = {}
        self._gates: weakref.WeakValueDictionary[str, Gate] = weakref.WeakValueDictionary()
        self._rates: dict[str, float] = {}

    def gate(self, name: str) -> Gate:
        """Return the gate of a logger, the same one to all who ask."""
        found = self._gates.get(name)
        if found is None:
            found = self._gates[name] = Gate(name, self.level_of(name))
        return found

    def level_of(self, name: str) -> int:
        """Return the least level that passes for a logger: its own, or its nearest parent's, or the default."""
        while name:
            if name in self._own:
                return self._own[name]
            name = name.rpartition(".")[0]
        return self.default

    def set_level(self, level: int | None, logger: str | None = None) -> None:
        """Let `level` and what is above pass, for `logger` and those below it, or for all without a level of their own.

        `None` takes a logger's own level away.
        """
        if logger is None:
            self.default = INFO if level is None else level
        elif level is None:
            self._own.pop(logger, None)
        else:
            self._own[logger] = level
        for gate in list(self._gates.values()):
            gate.level = self.level_of(gate.name)

    def forget(self) -> None:
        """Start anew; the gates that loggers hold stay theirs."""
        self._own.clear()
        self._rates = {}
        self.set_level(None)

    def set_sampling(self, what: str, rate: float) -> None:
        """Keep a share, from 0 to 1, of the lines below warning of a logger and those below it, or of one event."""
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise ConfigurationError(f"sampling rate {rate!r} of {what!r}; use a number from 0 (none) to 1 (all)")
        # Replaced, not changed: other threads may be reading it.
        self._rates = (
            {**self._rates, what: float(rate)} if rate < 1 else {k: v for k, v in self._rates.items() if k != what}
        )

    def passes(self, level: int, logger: str, event: object) -> bool:
        """Return whether the sampling keeps this line, as it does from warning on. An event's own rate comes first."""
        rates = self._rates
        if not rates or level >= WARNING:
            return True
        rate = rates.get(event) if isinstance(event, str) else None
        while rate is None and logger:
            rate = rates.get(logger)
            logger = logger.rpartition(".")[0]
        return rate is None or self._random() < rate
