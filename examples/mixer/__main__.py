"""`python -m examples.mixer`: a recording through the mixer, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ag06.errors import AG06Error, ConfigurationError

if TYPE_CHECKING:
    from examples.mixer.recording import Recording
    from examples.mixer.session import Account


def main() -> int:
    """Run one session; return 0 if its account is right, 1 if not, 2 for a mistake in what was asked."""
    try:
        from examples.mixer import recording, session
        from examples.mixer.app import app
    except ModuleNotFoundError as error:
        sys.stderr.write(f"mixer: no package {error.name}; in this checkout: pip install '.[examples]'\n")
        return 2
    asked = _arguments()
    logging.basicConfig(level=logging.WARNING)
    try:
        for setting in asked.set:
            turn(*setting.split("=", 1))
        source = recording.survey(asked.audio or recording.BUNDLED)
        with tempfile.TemporaryDirectory(prefix="ag06-mixer-") as scratch:
            output: Path = asked.output or Path(scratch)
            output.mkdir(parents=True, exist_ok=True)
            app.use_store(f"sqlite:///{scratch}/events.db")
            account = asyncio.run(session.play(source, asked.seconds, asked.piece, output.resolve()))
    except (AG06Error, recording.UnusableAudio, OSError) as error:
        sys.stderr.write(f"mixer: {error}\n")
        return 2
    knobs = {knob.name: knob.value for knob in app.knobs.values()}
    if asked.json:
        sys.stdout.write(msgspec.json.encode({"knobs": knobs, **msgspec.structs.asdict(account)}).decode() + "\n")
    else:
        _print(source, knobs, account)
    for fault in account.faults:
        sys.stderr.write(f"mixer: WRONG: {fault}\n")
    return 1 if account.faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.mixer", description=__doc__)
    parser.add_argument("--audio", type=Path, help="a WAV, FLAC, OGG or MP3 file; the bundled recording unless given")
    parser.add_argument("--seconds", type=_seconds, default=20.0, help="of audio; the file is taken again when over")
    parser.add_argument("--piece", type=_piece, default=1.0, help="seconds of a piece, 0.4 or more")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="KNOB=VALUE", help="may be repeated"
    )
    parser.add_argument("--output", type=Path, help="directory that keeps the sound; thrown away unless given")
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    return parser.parse_args()


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < 1e6:
        raise argparse.ArgumentTypeError(f"{text}; seconds above 0")
    return number


def _piece(text: str) -> float:
    if not 0.4 <= (number := float(text)) <= 600:
        raise argparse.ArgumentTypeError(f"{text}; 0.4 seconds, which loudness needs, to 600")
    return number


def _setting(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r}; write KNOB=VALUE, such as block_size=2048")
    return text


def turn(name: str, value: str) -> None:
    """Set a knob by hand; what it refuses or would clip is a mistake here."""
    from examples.mixer.app import app

    knob = app.knobs.get(name)
    if knob is None:
        raise ConfigurationError(f"no knob {name!r}; there are {', '.join(app.knobs)}")
    try:
        number = int(value)
    except ValueError:
        raise ConfigurationError(f"knob {name}: {value!r} is no whole number") from None
    if knob.set(number) != number:
        raise ConfigurationError(f"knob {name}: {number} is outside [{knob.low:g}, {knob.high:g}]")


def _print(source: Recording, knobs: dict[str, int], account: Account) -> None:
    lines = [
        f"{source.path}: {source.frames / source.rate:.2f} s at {source.rate} Hz",
        "knobs: " + ", ".join(f"{name}={value}" for name, value in knobs.items()),
        f"{account.audio_seconds:g} s of audio in {account.pieces} pieces took {account.seconds:g} s: "
        f"{account.times_real_time:g} times real time, {account.pieces_per_second:g} pieces/s",
        f"a piece, stored to levelled: p99 {account.p99_ms:g} ms",
        f"loudness of the pieces: {account.quietest_lufs} to {account.loudest_lufs} LUFS, {account.silent} silent; "
        f"peak {account.peak:.3f} of full scale",
        f"largest difference of a sample to blocks of the default size: {account.largest_difference:g}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
