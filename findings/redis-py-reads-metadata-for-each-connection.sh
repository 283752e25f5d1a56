#!/usr/bin/env bash
# Guess: an object of redis.asyncio.connection.Connection is cheap to make; only connecting costs something.
# Seen (redis 8.1.0): its constructor looks up the version of the installed package each time, which opens the METADATA file
# of the distribution again, 2 to 4 ms for each object, in the event loop's thread. With `driver_info=DriverInfo()` made once and
# passed to each connection, nothing is read. It matters to a client that makes a connection for each probe of a server that is away.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)

import redis
from redis.asyncio.connection import Connection
from redis.driver_info import DriverInfo

Connection()
shared = DriverInfo()


def made(count, **arguments):
    opened.clear()
    began = time.perf_counter()
    for _ in range(count):
        Connection(**arguments)
    milliseconds = (time.perf_counter() - began) * 1000 / count
    return sum(name.endswith("METADATA") for name in opened) / count, milliseconds


plain, plain_ms = made(50)
given, given_ms = made(50, driver_info=shared)
print(f"redis {redis.__version__}, Python {sys.version.split()[0]}")
print(f"Connection(): METADATA read {plain:g} times for each object, {plain_ms:.2f} ms")
print(f"Connection(driver_info=...): METADATA read {given:g} times for each object, {given_ms:.2f} ms")
sys.exit(0 if plain == 1 and given == 0 else 1)
PYTHON
