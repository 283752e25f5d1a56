"""Declarations that replace an earlier one: cells of a notebook and lines at a prompt run again."""

from __future__ import annotations

from types import FrameType

import msgspec

_PROMPTS = ("<stdin>", "<ipython-input", "<python-input")
_CELLS = "ipykernel_"


class Origin(msgspec.Struct, frozen=True):
    """Where a step or a knob was declared.

    Attributes:
        file: the code's file name; IPython makes one from the text of each cell.
        line: the line in it.
        typed: whether the code was typed at a prompt or in a cell, so that there is no file to run anew.
        function: the qualified name of a step's function; empty for a knob.
    """

    file: str
    line: int
    typed: bool
    function: str = ""

    def replaces(self, earlier: Origin) -> bool:
        """Return whether this is the earlier declaration run again, as it was or edited.

        Two declarations of one cell stand in one file on two lines: the second is a mistake.
        """
        if not (self.typed and earlier.typed) or self.function != earlier.function:
            return False
        return self.file != earlier.file or self.line == earlier.line


def origin_of(frame: FrameType, function: object = None) -> Origin:
    """Return the origin of a declaration in `frame`, of a step if a `function` is given."""
    file = frame.f_code.co_filename
    at_prompt = file.startswith(_PROMPTS) or _CELLS in file
    typed = frame.f_globals.get("__name__") == "__main__" and (at_prompt or "__file__" not in frame.f_globals)
    name = "" if function is None else str(getattr(function, "__qualname__", type(function).__qualname__))
    return Origin(file, frame.f_lineno, typed, name)
