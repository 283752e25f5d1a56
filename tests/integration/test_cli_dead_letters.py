"""`ag06 dead-letters` and `ag06 steps`: what a step gave up on, and what becomes of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from ag06 import Event, Reject, Workflow
from commands import ag06

ON_SQLITE = pytest.mark.parametrize("adapter", ["sqlite"])  # whatever the store


@pytest.fixture(params=["sqlite", "redis"])
def adapter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Shop:
    """A workflow that refuses what costs less than nothing, until it is mended."""

    def __init__(self, url: str) -> None:
        self.app = Workflow("shop", store=url)
        self.mended = False
        self.billed: list[int] = []

        @self.app.step("order.placed")
        async def bill(event: Event) -> None:
            if event.data["price"] < 0 and not self.mended:
                raise Reject(f"[bold]negative[/]\n\x1b[31mprice {event.data['price']}")
            self.billed.append(event.data["price"])

        @self.app.step("order.placed")
        async def count(event: Event) -> None: ...

    async def process(self, *prices: int) -> list[str]:
        async with self.app.running():
            ids = [await self.app.publish("order.placed", "web", {"price": price}) for price in prices]
            await self.app.drain(timeout=30)
        return [event_id for event_id in ids if event_id is not None]


@pytest.fixture
def shop(store_url: str) -> Shop:
    return Shop(store_url)


async def test_a_dead_letter_is_listed_and_shown_whole(shop: Shop, store_url: str, tmp_path: Path) -> None:
    _, refused = await shop.process(1, -1)
    listed = ag06("dead-letters", "list", "--store", store_url, cwd=tmp_path)
    assert refused in listed.out
    assert r"Reject: [bold]negative[/]\n\x1b[31mprice -1" in listed.out  # as text: it must not command the terminal
    (letter,) = ag06("dead-letters", "list", "--json", "--store", store_url, cwd=tmp_path).json
    assert (letter["step"], letter["reason"], letter["attempts"]) == ("shop.bill", "rejected", 1)
    assert letter["event"]["id"] == refused
    shown = ag06("dead-letters", "show", refused, "--store", store_url, cwd=tmp_path)
    assert shown.code == 0
    assert "raise Reject" in shown.out
    assert '"price":-1' in shown.out


async def test_a_retried_dead_letter_makes_its_step_run_again_and_no_other(
    shop: Shop, store_url: str, tmp_path: Path
) -> None:
    _, first, second = await shop.process(1, -1, -2)
    ended = ag06("dead-letters", "retry", first, "--store", store_url, cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "1 delivered again\n"), ended
    waiting = {
        step["step"]: step["backlog"]
        for step in ag06("steps", "list", "--json", "--store", store_url, cwd=tmp_path).json
    }
    assert waiting == {"shop.bill": 1, "shop.count": 0}
    shop.mended = True
    await shop.process()
    assert shop.billed == [1, -1]
    (letter,) = ag06("dead-letters", "list", "--json", "--store", store_url, cwd=tmp_path).json
    assert letter["event"]["id"] == second


async def test_all_dead_letters_of_a_step_are_retried_or_discarded(shop: Shop, store_url: str, tmp_path: Path) -> None:
    store = ["--store", store_url]
    await shop.process(*range(-5, 0))
    ended = ag06("dead-letters", "retry", "--all", "--step", "shop.bill", *store, cwd=tmp_path)
    assert ended.out == "5 delivered again\n"
    await shop.process()  # not mended: they come back
    refused = ag06("dead-letters", "discard", "--all", *store, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert "Delete 5 dead letters for good?" in refused.err
    assert ag06("dead-letters", "discard", "--all", "--yes", *store, cwd=tmp_path).out == "5 discarded\n"
    assert ag06("dead-letters", "list", "--json", *store, cwd=tmp_path).json == []


async def test_filters_choose_what_is_listed_retried_and_discarded(shop: Shop, store_url: str, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        ended = ag06("dead-letters", *words, "--json", "--store", store_url, cwd=tmp_path)
        assert ended.code == 0, ended
        return ended.json

    def listed(*filters: str) -> set[int]:
        return {letter["event"]["data"]["price"] for letter in run("list", *filters)}

    ids = await shop.process(-1, -2, -3)
    everything = {-1, -2, -3}
    for filters in (["--type", "order.placed"], ["--reason", "rejected"], ["--error", "Reject"], ["--since", "1h"]):
        assert listed(*filters) == everything, filters
    for filters in (["--type", "x"], ["--reason", "failed"], ["--error", "ValueError"], ["--until", "1h"]):
        assert listed(*filters) == set(), filters
    assert listed(ids[0], ids[2]) == {-1, -3}
    assert run("retry", "--error", "ValueError") == {"found": 0, "retried": 0}
    assert run("discard", "--reason", "failed") == {"found": 0, "discarded": 0}
    assert run("retry", ids[0], "--reason", "rejected") == {"found": 1, "retried": 1}
    assert listed() == {-2, -3}
    assert run("discard", "--step", "shop.bill", "--since", "1h", "--yes") == {"found": 2, "discarded": 2}
    assert listed() == set()


@ON_SQLITE
@pytest.mark.parametrize("command", ["show", "retry", "discard"])
async def test_an_id_that_a_filter_leaves_out_is_told_from_one_that_is_no_dead_letter(
    shop: Shop, store_url: str, tmp_path: Path, command: str
) -> None:
    (refused,) = await shop.process(-1)
    filters = ["--step", "shop.count"] if command == "show" else ["--step", "shop.bill", "--reason", "failed"]
    ended = ag06("dead-letters", command, refused, *filters, "--store", store_url, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert f"the event '{refused}' is a dead letter, but {' with '.join(filters[::2])} leaves it out" in ended.err
    assert "it is of step shop.bill, type order.placed, reason rejected, error Reject, last failed 20" in ended.err


@ON_SQLITE
async def test_more_than_a_thousand_dead_letters_are_listed_retried_and_discarded(
    shop: Shop, store_url: str, tmp_path: Path
) -> None:
    store = ["--store", store_url]
    await shop.process(*range(-1100, 0))
    listed = ag06("dead-letters", "list", "--limit", 5000, "--json", *store, cwd=tmp_path).json
    assert {letter["event"]["data"]["price"] for letter in listed} == set(range(-1100, 0))
    last = listed[-1]["event"]["id"]
    assert last in ag06("dead-letters", "show", last, *store, cwd=tmp_path).out
    assert ag06("dead-letters", "retry", "--reason", "rejected", *store, cwd=tmp_path).out == "1100 delivered again\n"
    await shop.process()
    assert ag06("dead-letters", "discard", "--all", "--yes", *store, cwd=tmp_path).out == "1100 discarded\n"


@ON_SQLITE
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("dead-letters show unknown", "no dead letter of the event 'unknown'"),
        ("dead-letters retry unknown", "no dead letter of the event 'unknown'"),
        ("dead-letters discard unknown --yes", "no dead letter of the event 'unknown'"),
        ("dead-letters list --step shop.bil", "knows no step 'shop.bil'"),
        ("dead-letters list --reason bored", "use one of failed, rejected"),
        ("dead-letters list --since yesterday", "--since 'yesterday' is not a time"),
        ("dead-letters list --since 1h --until 2h", "is later than until="),
        ("dead-letters list --type ''", "type=''; give text, not empty"),
        ("dead-letters discard --error '' --yes", "error=''; give text"),
        ("dead-letters discard --yes", "or --all"),
        ("dead-letters retry --all --step shop.bil", "knows no step 'shop.bil'"),
        ("steps remove shop.bil --yes", "knows no step 'shop.bil'"),
    ],
)
async def test_what_is_not_there_is_a_mistake(
    shop: Shop, store_url: str, tmp_path: Path, command: str, told: str
) -> None:
    await shop.process(-1)
    ended = ag06(*shlex.split(command), "--store", store_url, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err


async def test_a_removed_step_is_forgotten_and_its_dead_letters_stay(
    shop: Shop, store_url: str, tmp_path: Path
) -> None:
    store = ["--store", store_url]
    (refused,) = await shop.process(-1)
    asked = ag06("steps", "remove", "shop.bill", *store, cwd=tmp_path)
    assert asked.code == 2
    assert "--yes" in asked.err
    assert ag06("steps", "remove", "shop.bill", "--yes", *store, cwd=tmp_path) == (0, "shop.bill is forgotten\n", "")
    assert [step["step"] for step in ag06("steps", "list", "--json", *store, cwd=tmp_path).json] == ["shop.count"]
    assert len(ag06("dead-letters", "list", "--json", *store, cwd=tmp_path).json) == 1
    ended = ag06("dead-letters", "retry", refused, *store, cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "0 delivered again\n")
    assert "their step was removed" in ended.err


async def test_a_step_that_listens_to_another_type_now_gets_none_of_the_old_dead_letters(
    shop: Shop, store_url: str, tmp_path: Path
) -> None:
    (refused,) = await shop.process(-1)
    for step in ("shop.bill", "shop.count"):
        assert ag06("steps", "remove", step, "--yes", "--store", store_url, cwd=tmp_path).code == 0
    app, seen = Workflow("shop", store=store_url), []

    @app.step("order.paid")
    async def bill(event: Event) -> None:
        seen.append(event.type)

    async with app.running():
        assert await app.dead_letters.retry(step="bill") == 0
        ended = ag06("dead-letters", "retry", "--all", "--store", store_url, cwd=tmp_path)
        assert (ended.code, ended.out) == (1, "0 delivered again\n")
        assert "listens to another type now" in ended.err
        await app.publish("order.paid", "web", {})
        await app.drain(timeout=30)
        (letter,) = [letter async for letter in app.dead_letters.read()]
    assert seen == ["order.paid"]
    assert letter.event.id == refused
