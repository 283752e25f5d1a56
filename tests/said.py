"""What was logged, as a test reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ag06.monitoring import logs


class Said(io.StringIO):
    """A stream for `configure_logging`, read by the line."""

    def rows(self) -> list[str]:
        return self.getvalue().removesuffix("\n").split("\n") if self.getvalue() else []

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.rows()]

    def last(self) -> dict[str, Any]:
        return self.lines()[-1]


@contextmanager
def listening(level: str = "info", form: str = "json", **options: Any) -> Iterator[Said]:
    """Log to memory inside, and leave logging as it was."""
    said = Said()
    logs.configure_logging(level, form, said, **options)
    try:
        yield said
    finally:
        logs.restore_logging()
