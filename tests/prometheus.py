"""A real Prometheus for tests: `apt-get install --no-install-recommends prometheus`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import free_port

PATIENCE = 60.0


def binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"no {name}: apt-get install --no-install-recommends prometheus")
    return found


def start(command: list[str], directory: Path, **variables: str) -> subprocess.Popen[bytes]:
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | variables, cwd=directory)


def until(condition: Callable[[], Any], what: str, log: Path) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} within {PATIENCE:.0f} s; the log ends with {log.read_text()[-2_000:]}")


class Prometheus:
    """One server with its own data, asked through its HTTP API."""

    def __init__(self, directory: Path, target: int) -> None:
        self.port = free_port()
        self.log = directory / "log"
        (directory / "prometheus.yml").write_text(
            "scrape_configs: [{job_name: ag06, scrape_interval: 1s, "
            f"static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
        )
        command = [binary("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}", "--enable-feature=exemplar-storage"]
        self.process = start(command, directory)

    def ask(self, path: str, **parameters: str) -> Any:
        """The answer's data; `None` while it does not answer yet."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def values(self, query: str) -> dict[str, float]:
        """The value of each series that a query finds, by name and labels without the target's."""
        found = (self.ask("query", query=query) or {"result": []})["result"]
        return {series(one["metric"]): float(one["value"][1]) for one in found}


def series(metric: dict[str, str]) -> str:
    labels = sorted(item for item in metric.items() if item[0] not in ("__name__", "instance", "job"))
    return metric.get("__name__", "") + (f"{{{','.join(f'{k}={v}' for k, v in labels)}}}" if labels else "")
