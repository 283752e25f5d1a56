"""Settling: what became of deliveries, as the commit script expects it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from ag06.event import id_and_subject
from ag06.persistence.log import Acknowledge, Bury, Delivery, Failure, Postpone, Record, Settlement, StoredDeadLetter
from ag06.persistence.redis.records import row

_MOST_TOKENS = 500
_MOST_BYTES = 1 << 20
_PIECE_BYTES = 512 << 10
"""Of the outputs in one argument, unless one alone is larger."""
_ORDERED, _NOTED = 1, 2
_ACKNOWLEDGE, _POSTPONE, _BURY = 0, 1, 2

_pack = msgspec.msgpack.Encoder().encode
_letters = msgspec.json.Encoder()
_unpack_letter = msgspec.json.Decoder(tuple[int, int, str, str, tuple[Any, ...]]).decode


class Work(msgspec.Struct):
    """The settlements of one script call: acknowledgements of one plain delivery each, and all others."""

    lone: list[str]
    others: list[tuple[Any, ...]]
    pieces: list[bytes | str]
    """Arguments of their own for what may be large: outputs and dead letters, in the order of the others."""
    places: list[tuple[bool, int]]
    """For each settlement: whether it is a lone one, and its index there."""

    @property
    def deliveries(self) -> int:
        """How many deliveries they settle."""
        return len(self.lone) + sum([len(other[1]) for other in self.others])

    def packed(self) -> tuple[bytes | str, ...]:
        """Return the arguments for the script."""
        return _pack(self.lone), _pack(self.others), *self.pieces

    def accepted(self, refused: list[bytes], digits: bytes) -> list[bool]:
        """Return the fate of each settlement from the script's reply."""
        if not refused and not self.others:
            return [True] * len(self.places)
        out = {token.decode() for token in refused}
        return [
            self.lone[index] not in out if is_lone else digits[index] == 49  # "1"
            for is_lone, index in self.places
        ]


def split_work(settlements: Sequence[Settlement], started: Collection[str]) -> Iterable[Work]:
    """Cut settlements into pieces that one script call may carry; `started`: tokens that have a note for it."""
    work = Work([], [], [], [])
    seen: set[str] = set()
    size = 0
    for settlement in settlements:
        if len(seen) >= _MOST_TOKENS:
            yield work
            work, seen, size = Work([], [], [], []), set(), 0
        if type(settlement) is Acknowledge and len(settlement.deliveries) == 1 and not settlement.outputs:
            delivery = settlement.deliveries[0]
            token = delivery.token
            if not (delivery.ordered or token in seen or _has_note(delivery, started)):
                seen.add(token)
                work.places.append((True, len(work.lone)))
                work.lone.append(token)
                continue
        other, pieces = _other(settlement, started)
        grown = sum([len(piece) for piece in pieces])
        if work.places and size + grown > _MOST_BYTES:
            yield work
            work, seen, size = Work([], [], [], []), set(), 0
        size += grown
        seen.update(other[1])
        work.places.append((False, len(work.others)))
        work.others.append(other)
        work.pieces += pieces
    if work.places:
        yield work


def _other(settlement: Settlement, started: Collection[str]) -> tuple[tuple[Any, ...], Sequence[bytes | str]]:
    """Return a settlement for the script, and the arguments that it has for itself."""
    if isinstance(settlement, Acknowledge):
        once = {delivery.token: delivery for delivery in settlement.deliveries}
        flags = "".join([_flag(delivery, started) for delivery in once.values()])
        pieces = _pieces(settlement.outputs)
        return (_ACKNOWLEDGE, list(once), flags, len(pieces)), pieces
    delivery = settlement.delivery
    head = ([delivery.token], _flag(delivery, started))
    if isinstance(settlement, Postpone):
        delay = max(0, settlement.delay_ms)
        return (_POSTPONE, *head, delay, settlement.attempts, settlement.first_failed_ms), ()
    event_id, letter = _letter(settlement)
    return (_BURY, *head, event_id), (letter,)


def _pieces(outputs: Sequence[Record]) -> list[bytes | str]:
    """Return outputs as arguments for the script, several in each."""
    if not outputs:
        return []
    pieces: list[bytes | str] = []
    rows: list[tuple[Any, ...]] = []
    size = 0
    for record in outputs:
        if rows and size + len(record.body) > _PIECE_BYTES:
            pieces.append(_pack(rows))
            rows, size = [], 0
        rows.append(row(record))
        size += len(record.body)
    pieces.append(_pack(rows))
    return pieces


def _has_note(delivery: Delivery, started: Collection[str]) -> bool:
    return bool(
        delivery.attempts
        or delivery.deaths
        or delivery.suspect
        or delivery.token in started
        or delivery.first_failed_ms
        or delivery.token[0] == "x"
    )


def _flag(delivery: Delivery, started: Collection[str]) -> str:
    return str(_ORDERED * delivery.ordered + _NOTED * _has_note(delivery, started))


def _letter(settlement: Bury) -> tuple[str, str]:
    delivery = settlement.delivery
    event_id, subject = id_and_subject(delivery.body)
    failure = msgspec.structs.astuple(settlement.failure)
    letter = (delivery.recorded_ms, delivery.level, delivery.body.decode(), subject or "", failure)
    return event_id or delivery.token, _letters.encode(letter).decode()


def read_letter(group: str, event_id: str, packed: bytes, place: str) -> StoredDeadLetter:
    """Return a dead letter as it was stored, standing at `place`."""
    recorded_ms, _, body, _, failure = _unpack_letter(packed)
    return StoredDeadLetter(group, event_id, recorded_ms, body.encode(), Failure(*failure), place)
