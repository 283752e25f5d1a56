"""Who may use which journal: one claims it, nobody else can, and it is free again when that one is gone."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from ag06.persistence.journal.claim import Claim, Claims, is_claimed
from ag06.persistence.redis.address import read_address


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(str(tmp_path / "journal"), "redis://somewhere/0")


def left_behind(claims: Claims, count: int) -> set[Path]:
    """Journals whose process is gone."""
    paths = set()
    for _ in range(count):
        claim = claims.new()
        claim.path.touch()
        paths.add(claim.path)
        claim.let_go(delete=False)
    return paths


def test_many_who_look_at_once_share_the_orphans_and_none_gets_one_twice(claims: Claims) -> None:
    paths = left_behind(claims, 40)
    found: list[Claim] = []
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        for claim in claims.orphans():
            found.append(claim)
            assert claim.path.exists()
            claim.let_go(delete=True)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(claim.path for claim in found) == sorted(paths)
    assert [path.name for path in claims.directory.iterdir()] == ["store"]


def test_a_claimed_journal_is_nobodys_orphan(claims: Claims) -> None:
    claim = claims.new()
    claim.path.touch()
    assert is_claimed(claim.path)
    assert claims.orphans() == []
    claim.let_go(delete=False)
    claim.let_go(delete=True)  # a second time does nothing
    assert not is_claimed(claim.path)
    (again,) = claims.orphans()
    assert again.path == claim.path
    again.let_go(delete=True)


def test_each_store_has_a_directory_of_its_own_that_only_its_user_can_read(tmp_path: Path) -> None:
    one, other = Claims(str(tmp_path), "redis://one/0"), Claims(str(tmp_path), "redis://other/0")
    left_behind(one, 1)
    assert other.orphans() == []
    assert one.directory != other.directory
    assert stat.S_IMODE(one.directory.stat().st_mode) == 0o700
    assert (one.directory / "store").read_text() == "redis://one/0\n"


def test_a_directory_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = Claims(str(tmp_path / "file"), "redis://somewhere/0")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        nowhere.new()
    assert nowhere.orphans() == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/",
        "redis://user:secret@localhost:6379/0",
        "redis://localhost?log=ag06",
    ],
)
def test_one_log_has_one_name_however_its_url_is_written(url: str) -> None:
    assert read_address(url).place == "redis://localhost:6379/0"


def test_logs_that_differ_have_names_that_differ() -> None:
    urls = ["redis://a", "redis://b", "redis://a:6380", "redis://a/1", "redis://a?log=other"]
    assert len({read_address(url).place for url in urls}) == len(urls)


def test_a_directory_that_cannot_be_written_is_found_out_before_it_is_needed(tmp_path: Path) -> None:
    assert Claims(str(tmp_path / "new"), "redis://somewhere/0").problem() is None
    (tmp_path / "file").write_text("in the way")
    assert "file" in str(Claims(str(tmp_path / "file"), "redis://somewhere/0").problem())
