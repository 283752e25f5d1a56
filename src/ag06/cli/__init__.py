"""The command line: `ag06`, or `python -m ag06`."""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name."""
    from ag06.cli.app import run_app

    run_app()
