"""The log in one SQLite file: no server, one machine, any number of processes."""

from ag06.persistence.sqlite.log import SqliteLog

__all__ = ["SqliteLog"]
