"""AG06, FastStream and taskiq-redis under the same kills, side by side: `python -m tests.crash.peers [FAULT]`.

Nothing is asserted: it measures. Every tool has the same server (`appendonly yes`, `appendfsync always`), two workers
that are started again when they end, and publishers that try a refused number again. Lost is a number that the tool
took and whose effect never came; doubled is one whose effect came more than once.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis

from crash.results import cycles, toll
from servers import ValkeyServer

TOOLS = ("ag06", "faststream", "taskiq")
OUT = {"ag06": "{ag06}:s:out:1", "faststream": "out", "taskiq": "out"}
QUIET_SECONDS = 12.0
"""How long nothing may move before it is taken for the end: several times what any of them waits for a takeover."""
_NUMBER = re.compile(rb"n(\d+-\d+-\d+)n")


class Site:
    """One tool at work."""

    def __init__(self, tool: str, directory: Path) -> None:
        self.tool = tool
        self.server = ValkeyServer(directory, appendonly="yes", appendfsync="always").start()
        self.client = redis.Redis(port=self.server.port)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.publishers: list[subprocess.Popen[bytes]] = []
        self._directory = directory
        self._told: list[Path] = []
        if tool == "faststream":  # its own groups begin at the end of the stream
            self.client.xgroup_create("in", "peer", id="0", mkstream=True)

    def start(self, role: str) -> subprocess.Popen[bytes]:
        told = self._directory / f"told-{len(self._told)}"
        self._told.append(told)
        command = [sys.executable, str(Path(__file__).with_name("peer_app.py")), self.tool, role, self.server.url]
        with told.open("wb") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.DEVNULL, cwd=self._directory)
        (self.workers if role == "worker" else self.publishers).append(process)
        return process

    def keep_workers(self) -> None:
        """Start again what ended, as a supervisor would."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            self.start("worker")

    def wait_for_effects(self, more: int) -> None:
        """Wait until so many more effects came, or until it seems that none will."""
        goal = self._effects() + more
        deadline = time.monotonic() + 20
        while self._effects() < goal and time.monotonic() < deadline:
            self.keep_workers()
            time.sleep(0.02)

    def end_of(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        processes.clear()

    def told(self) -> set[bytes]:
        return {number for path in self._told for number in _NUMBER.findall(path.read_bytes())}

    def effects(self) -> Counter[bytes]:
        """Wait until nothing moves any more; return how often each number came out."""
        seen, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            self.keep_workers()
            now = self._effects()
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(0.2)
        found: Counter[bytes] = Counter()
        last = "-"
        while page := self.client.xrange(OUT[self.tool], last, count=5000):
            for entry_id, fields in page:
                found.update(_NUMBER.findall(b" ".join(fields.values()))[:1])
                last = f"({entry_id.decode()}"
        return found

    def _effects(self) -> int:
        try:
            return int(self.client.xlen(OUT[self.tool]))
        except redis.RedisError:
            return 0

    def close(self) -> None:
        self.end_of(self.publishers)
        self.end_of(self.workers)
        self.client.close()
        self.server.stop()


def kill_worker(site: Site, cycle: int) -> None:
    time.sleep(random.uniform(0.0, 0.2))
    site.end_of([site.workers.pop(0)])
    site.keep_workers()
    site.wait_for_effects(10)


def kill_publisher(site: Site, cycle: int) -> None:
    time.sleep(random.uniform(0.0, 0.1))
    site.end_of([site.publishers.pop(0)])
    site.start("publisher")
    site.wait_for_effects(10)


def kill_server(site: Site, cycle: int) -> None:
    site.server.kill()
    time.sleep(random.uniform(0.0, 0.3))
    site.server.start()
    site.wait_for_effects(10)


FAULTS: dict[str, Callable[[Site, int], None]] = {
    "SIGKILL of a worker": kill_worker,
    "SIGKILL of the publisher": kill_publisher,
    "SIGKILL of the server": kill_server,
}


def measure(tool: str, fault: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ag06-peers-") as directory:
        site = Site(tool, Path(directory))
        try:
            with toll(fault, f"{tool}, same job") as counted:
                for _ in range(2):
                    site.start("worker")
                    site.start("publisher")
                site.wait_for_effects(50)
                for cycle in range(cycles(fault, 10)):
                    FAULTS[fault](site, cycle)
                    counted.cycles += 1
                site.end_of(site.publishers)
                found = site.effects()
                told = site.told()
                counted.events = len(told)
                counted.lost = len(told - found.keys())
                counted.doubled = sum(count - 1 for count in found.values())
        finally:
            site.close()
    sys.stdout.write(f"{tool}, {fault}: {counted}\n")
    sys.stdout.flush()


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for fault in FAULTS:
        if wanted in fault:
            for tool in TOOLS:
                measure(tool, fault)


if __name__ == "__main__":
    main()
