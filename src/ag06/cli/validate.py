"""`ag06 validate`: proves on this machine, on a store of your choice, what the README promises."""

from __future__ import annotations

import asyncio
import tempfile
import time
from typing import Annotated, Any

import msgspec
import typer

from ag06.cli.output import JsonOption, errors, print_json, print_table


class Row(msgspec.Struct, frozen=True):
    """One promise, whether it held, and what was measured."""

    promise: str
    held: bool
    measured: str


def command(
    store: Annotated[str | None, typer.Option(help="Store URL; a fresh SQLite file unless given.")] = None,
    json: JsonOption = False,
) -> None:
    """Prove durability, deduplication, replay, order, retries, takeover and the breaker here; exit 1 if a row fails.

    Example: ag06 validate --store redis://localhost:6379/0
    """
    with tempfile.TemporaryDirectory(prefix="ag06-validate-") as directory:
        rows = asyncio.run(_validate(store or f"sqlite:///{directory}/events.db", quiet=json))
    if json:
        print_json(rows)
    else:
        table = [(row.promise, "yes" if row.held else "NO", row.measured) for row in rows]
        print_table("Validation", ("promise", "held", "measured"), table)
    if not all(row.held for row in rows):
        raise typer.Exit(1)


async def _validate(url: str, *, quiet: bool) -> list[Row]:
    from ag06.cli.proofs import PROOFS, Bench
    from ag06.errors import AG06Error

    console = errors()
    console.quiet = quiet
    rows = []
    async with Bench(url) as bench:
        for promise, proof in PROOFS:
            console.print(f"{promise} ...", end="\r", soft_wrap=True)
            started = time.perf_counter()
            held, measured = await _proved(proof, bench, AG06Error)
            rows.append(Row(promise, held, f"{measured} ({time.perf_counter() - started:.2f} s)"))
    return rows


async def _proved(proof: Any, bench: Any, expected: type[Exception]) -> tuple[bool, str]:
    """Run one proof; a proof that cannot be finished has not held."""
    try:
        async with asyncio.timeout(60):
            measured: str = await proof(bench)
    except AssertionError as error:
        return False, str(error)
    except (TimeoutError, expected) as error:
        return False, f"{type(error).__name__}: {error}"
    return True, measured
