"""The knobs of a running workflow, moved together or not at all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ag06.errors import ConfigurationError
from ag06.knob import Knob
from ag06.ml.space import Config, Space
from ag06.runtime.workflow import Workflow

_logger = logging.getLogger("ag06.ml")


class Controls:
    """What of a workflow may be moved.

    Attributes:
        knobs: by name, the user's and the runtime's.
    """

    def __init__(self, knobs: Mapping[str, Knob], still: Mapping[str, str] | None = None) -> None:
        """Move these; there may be none. `still` says by name why others are not among them."""
        self.knobs = dict(knobs)
        self._still = dict(still or {})
        self._space = Space(list(self.knobs.values()), {}) if self.knobs else None

    @classmethod
    def of(cls, workflow: Workflow, names: Collection[str] | None = None, fixed: Collection[str] = ()) -> Controls:
        """Return those of a workflow: all that it does not fix itself, or those named, without the `fixed` ones.

        Raises `ConfigurationError` for a name that there is not. What is to be moved cannot be a number in the code;
        what is not to be moved may be one.
        """
        every = {**workflow.knobs, **workflow.runtime_knobs}
        written = {name: _written(name, value) for name, value in workflow.fixed_knobs.items()}
        for name in (*(names or ()), *fixed):
            if name in written and name not in fixed:
                raise ConfigurationError(f"workflow {workflow.name!r}: {name!r} may not be moved, {written[name]}")
            if name not in every and name not in written:
                raise ConfigurationError(f"workflow {workflow.name!r} has no knob {name!r}; {_there_are(every)}")
        wanted = every if names is None else names
        knobs = {name: knob for name, knob in every.items() if name in wanted and name not in fixed}
        still = {name: "because it is pinned" if name in fixed else "because knobs= leaves it out" for name in every}
        return cls(knobs, {**still, **written})

    @property
    def now(self) -> Config:
        """Where each knob stands."""
        return {name: knob.value for name, knob in self.knobs.items()}

    def check(self, changes: Mapping[str, Any]) -> Config:
        """Return the whole configuration that some changes lead to from where the knobs stand; nothing is moved.

        Raises `ConfigurationError` for an unknown knob, and a value that the knob does not take.
        """
        if not isinstance(changes, Mapping):
            raise ConfigurationError(f"configuration {changes!r}: give the values of the knobs by name")
        unknown = [name for name in changes if name not in self.knobs]
        if unknown:
            why = f", {self._still[unknown[0]]}" if unknown[0] in self._still else ""
            raise ConfigurationError(f"no knob {unknown[0]!r} may be moved{why}; {_there_are(self.knobs)}")
        return {} if self._space is None else self._space.check({**self.now, **changes})

    def apply(self, config: Mapping[str, Any]) -> None:
        """Move the knobs to a configuration, or a part of one.

        Raises `ConfigurationError` for what does not fit, and then no setter was called. Where a setter raises, it does
        so too, once those moved before and the one that failed went back.
        """
        wanted = self.check(config)
        moved: list[tuple[Knob, Any]] = []
        try:
            for name in config:
                knob = self.knobs[name]
                if knob.value != wanted[name]:
                    moved.append((knob, knob.value))
                    knob.set(wanted[name])
        except ConfigurationError:
            self._take_back(moved)
            raise

    def _take_back(self, moved: list[tuple[Knob, Any]]) -> None:
        for knob, before in reversed(moved):
            try:
                knob.set(before)
            except ConfigurationError as error:
                _logger.error("%s; it may stand wrong now", error)  # noqa: TRY400 - the first error is raised

    def follow(self, posted: Mapping[str, Any]) -> None:
        """Move what a leader posted, as far as it fits the knobs of this process, which may run other code.

        Raises `ConfigurationError` as `apply` does where a setter raises.
        """
        known: dict[str, Any] = {}
        for name, value in posted.items():
            try:
                known[name] = self.check({name: value})[name]
            except ConfigurationError as error:
                _logger.debug("not followed: %s", error)
        self.apply(known)


def _written(name: str, value: object) -> str:
    return f"because {name.rpartition('.')[2]}={value!r} was written; write a Knob there to give bounds"


def _there_are(knobs: Mapping[str, Knob]) -> str:
    return f"there are {', '.join(knobs)}" if knobs else "it has none"
