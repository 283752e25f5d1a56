"""The log in memory: the reference implementation of the port, shipped for users' tests."""

from ag06.persistence.memory.log import MemoryLog

__all__ = ["MemoryLog"]
