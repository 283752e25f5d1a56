"""The log on Redis Streams: Redis 6.2 or newer, and Valkey."""

from __future__ import annotations

from ag06.persistence.redis.log import RedisLog

__all__ = ["RedisLog"]
