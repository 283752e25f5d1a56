"""The archive: events that leave the live log for Parquet files, and are replayed from there."""

from __future__ import annotations

from ag06.persistence.archive.retention import Retention
from ag06.persistence.archive.run import Archived, Progress

__all__ = ["Archived", "Progress", "Retention"]
