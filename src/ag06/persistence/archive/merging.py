"""Many ordered sources as one ordered stream without doubles, page by page."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Source(Generic[T]):
    def __init__(self, pages: AsyncIterator[list[T]]) -> None:
        self.pages = pages
        self.page: list[T] = []


class Merger(Generic[T]):
    """Merges sources that each ascend by position; a position that several have is given out once.

    A source is asked for its first page only when the stream has come to where it begins, so that few of them hold
    pages at a time. Sources may be added while others are asked for a page.
    """

    def __init__(self, position: Callable[[T], int]) -> None:
        """`position` says where an item is."""
        self._position = position
        self._coming: list[tuple[int, int, _Source[T]]] = []
        self._open: list[_Source[T]] = []
        self._added = 0
        self.reached = -1
        """Everything up to this position was given out."""

    def add(self, first: int, pages: AsyncIterator[list[T]]) -> None:
        """Add a source whose items are at `first` or behind it."""
        self._added += 1
        heapq.heappush(self._coming, (first, self._added, _Source(pages)))

    async def pages(self) -> AsyncIterator[list[T]]:
        """Yield pages until every source has ended."""
        while (bound := await self._bound()) is not None:
            page = self._take(bound)
            self.reached = max(self.reached, bound)
            if page:
                yield page

    async def close(self) -> None:
        """Close every source that has not ended."""
        for source in [*self._open, *(source for _, _, source in self._coming)]:
            if isinstance(source.pages, AsyncGenerator):
                await source.pages.aclose()

    async def _bound(self) -> int | None:
        """Have a page of every source that may come next; return up to where all of them are known."""
        while True:
            for source in list(self._open):
                while not source.page:
                    page = await anext(source.pages, None)
                    if page is None:
                        self._open.remove(source)
                        break
                    source.page = page
            bound = min((self._position(source.page[-1]) for source in self._open), default=None)
            if not self._coming or (bound is not None and self._coming[0][0] > bound):
                return bound
            self._open.append(heapq.heappop(self._coming)[2])

    def _take(self, bound: int) -> list[T]:
        parts = []
        for source in self._open:
            page = source.page
            cut = len(page) if self._position(page[-1]) <= bound else bisect_right(page, bound, key=self._position)
            if cut:
                parts.append(page[:cut] if cut < len(page) else page)
                source.page = page[cut:]
        if len(parts) == 1 and self._position(parts[0][0]) > self.reached:
            return parts[0]
        merged: list[T] = []
        last = self.reached
        for item in sorted([item for part in parts for item in part], key=self._position):
            position = self._position(item)
            if position > last:
                merged.append(item)
                last = position
        return merged
