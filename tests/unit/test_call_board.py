from __future__ import annotations

from pathlib import Path

from ag06.runtime.call_board import Board, CallBoard, OpenCall, board_of_this_worker, board_path, read_beat, read_board


def test_a_supervisor_reads_the_beats_and_the_open_calls_of_a_worker(tmp_path: Path) -> None:
    path = board_path(tmp_path, "host/1")
    assert (read_beat(path), read_board(path)) == (0.0, Board())
    board = board_of_this_worker(str(tmp_path), "host/1", ["shop.bill", "shop.größe"])
    assert board is not None
    assert (read_beat(path), read_board(path).calls) == (0.0, [])
    board.beat(12.5)
    first = board.begin("shop.bill", "1:1700000000000-0", "a" * 64)
    board.begin("shop.größe", "7", "b")
    assert read_beat(path) == 12.5
    calls = [OpenCall("shop.bill", "1:1700000000000-0", "a" * 64), OpenCall("shop.größe", "7", "b")]
    assert read_board(path) == Board(["shop.bill", "shop.größe"], calls)
    board.end(first)
    assert read_board(path).calls == [OpenCall("shop.größe", "7", "b")]


def test_a_call_beyond_the_board_is_made_all_the_same(tmp_path: Path) -> None:
    board = CallBoard(tmp_path / "board", ["shop.bill"])
    slots = [board.begin("shop.bill", str(n), "id") for n in range(2050)]
    assert slots[-2:] == [0, 0]
    for slot in slots:
        board.end(slot)
    assert read_board(tmp_path / "board").calls == []


def test_a_worker_runs_without_a_board_where_there_is_none(tmp_path: Path) -> None:
    assert board_of_this_worker(None, "w", ["shop.bill"]) is None
    assert board_of_this_worker(str(tmp_path / "none"), "w", ["shop.bill"]) is None
    (tmp_path / "w.calls").write_bytes(b"x")
    assert (read_beat(tmp_path / "w.calls"), read_board(tmp_path / "w.calls")) == (0.0, Board())
