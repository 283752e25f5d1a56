"""`ag06 doctor` on metrics, traces and the HTTP server: what is there, what is missing, what would not start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from commands import Ended, ag06
from servers import free_port

KEY = "an-unguessable-key-of-some-length"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def doctor(home: Path, **env: str) -> Ended:
    return ag06("doctor", "--json", cwd=home, env=env)


def found(ended: Ended, topic: str) -> tuple[str, str]:
    (finding,) = [finding for finding in ended.json if finding["topic"] == topic]
    return finding["status"], finding["what"]


def without(home: Path, *modules: str) -> dict[str, str]:
    """The environment of a machine where these packages are not installed."""
    (home / "hidden").mkdir()
    (home / "hidden" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if any(name == one or name.startswith(one + '.') for one in {modules!r}):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return {"PYTHONPATH": str(home / "hidden")}


def test_a_key_is_never_shown_and_is_told_to_be_there(home: Path) -> None:
    ended = doctor(home, AG06_HTTP_KEY=KEY)
    assert ended.code == 0, ended
    assert KEY not in ended.out + ended.err
    assert found(ended, "variable AG06_HTTP_KEY") == ("pass", "set: it is asked for, except by the probes")
    assert found(doctor(home), "variable AG06_HTTP_KEY")[1].startswith("not set")


def test_a_key_that_is_too_short_is_warned_of(home: Path) -> None:
    ended = doctor(home, AG06_HTTP_KEY="sh0rt")
    status, what = found(ended, "variable AG06_HTTP_KEY")
    assert (ended.code, status) == (0, "warn")
    assert "a key of 5 characters" in what
    assert "sh0rt" not in ended.out + ended.err


def test_a_port_that_is_taken_is_told_and_a_free_one_too(home: Path) -> None:
    port = free_port()
    assert found(doctor(home, AG06_HTTP_PORT=str(port)), "port") == ("pass", f"http://127.0.0.1:{port} is free")
    with socket.create_server(("127.0.0.1", port)):
        ended = doctor(home, AG06_HTTP_PORT=str(port))
    status, what = found(ended, "port")
    assert (ended.code, status) == (0, "warn")
    assert f"AG06_HTTP_PORT: port {port} of 127.0.0.1 is taken" in what
    assert found(doctor(home, AG06_HTTP_PORT="off"), "port") == ("pass", "off: no server is opened")
    assert found(doctor(home, AG06_HTTP_PORT="0"), "port") == ("pass", "0: any that is free")


def test_an_address_that_others_reach_fails_without_a_key(home: Path) -> None:
    ended = doctor(home, AG06_HTTP_HOST="0.0.0.0")
    status, what = found(ended, "port")
    assert (ended.code, status) == (2, "fail")
    assert "set AG06_HTTP_KEY" in what
    with_key = doctor(home, AG06_HTTP_HOST="0.0.0.0", AG06_HTTP_KEY=KEY)
    assert (with_key.code, found(with_key, "port")[0]) == (0, "pass")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, "only what the program's own provider samples"),
        ({"AG06_TRACES": "off"}, "nothing is recorded"),
        ({"AG06_TRACES": "0.01"}, "a share of 0.01 goes to http://localhost:4317"),
        ({"AG06_TRACES": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:s3cret@collector:4317"}, "@collector:4317"),
        ({"AG06_TRACES": "1", "OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED"),
    ],
)
def test_it_says_what_is_traced_and_where_to(home: Path, env: dict[str, str], told: str) -> None:
    ended = doctor(home, **env)
    status, what = found(ended, "traces")
    assert (ended.code, status) == (0, "pass")
    assert told in what
    assert "s3cret" not in ended.out


def test_a_wrong_share_of_traces_is_told_once(home: Path) -> None:
    ended = doctor(home, AG06_TRACES="most")
    assert ended.code == 2
    assert [finding["topic"] for finding in ended.json if finding["status"] == "fail"] == ["setting traces"]


def test_it_says_what_is_missing_without_the_optional_packages(home: Path) -> None:
    ended = doctor(home, **without(home, "prometheus_client", "psutil", "opentelemetry"))
    assert ended.code == 0, ended
    for package, told in {
        "prometheus_client": "metrics are exposed without it",
        "psutil": "read from /proc",
        "opentelemetry-sdk": "no trace is recorded",
        "opentelemetry-exporter-otlp-proto-grpc": "no trace is sent",
    }.items():
        status, what = found(ended, package)
        assert (status, what.split(":")[0]) == ("pass", "not installed")
        assert told in what
        assert "pip install 'ag06[" in what


def test_traces_that_are_asked_for_and_cannot_be_recorded_are_a_failure(home: Path) -> None:
    env = without(home, "opentelemetry.exporter")
    ended = doctor(home, AG06_TRACES="0.5", **env)
    status, what = found(ended, "traces")
    assert (ended.code, status) == (2, "fail")
    assert "needs opentelemetry-exporter-otlp-proto-grpc" in what


@pytest.mark.parametrize(
    ("value", "told"), [(None, "until a workflow runs"), ("0", "never an error"), ("1", "in a workflow that runs too")]
)
def test_it_says_what_becomes_of_mistakes_in_metrics(home: Path, value: str | None, told: str) -> None:
    ended = doctor(home, **({} if value is None else {"AG06_METRICS_STRICT": value}))
    assert told in found(ended, "variable AG06_METRICS_STRICT")[1]


def test_the_variables_of_monitoring_are_not_taken_for_misspelt(home: Path) -> None:
    ended = doctor(home, AG06_HTTP_KEY=KEY, AG06_METRICS_STRICT="1", AG06_METRICS_DIR=str(home / "metrics"))
    assert [finding["topic"] for finding in ended.json if "misspelt" in finding["what"]] == []
