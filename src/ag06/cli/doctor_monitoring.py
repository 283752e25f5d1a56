"""What `ag06 doctor` finds about metrics, traces and the HTTP server of a workflow."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os

from ag06.cli.finding import Finding
from ag06.errors import ConfigurationError
from ag06.monitoring.http_guard import Guard
from ag06.monitoring.instruments import STRICT_VARIABLE
from ag06.monitoring.server import KEY_VARIABLE, HttpServer, port_of
from ag06.settings import check_setting, ratio_of, resolve, variable

_OPTIONAL = {
    "prometheus_client": (
        "prometheus_client",
        "metrics",
        "metrics are exposed without it; it is for programs that count with it themselves",
    ),
    "psutil": (
        "psutil",
        "metrics",
        "memory and processor time are read from /proc; elsewhere memory is the most so far",
    ),
    "opentelemetry.sdk": (
        "opentelemetry-sdk",
        "otel",
        "no trace is recorded; events and log lines have trace ids all the same",
    ),
    "opentelemetry.exporter.otlp.proto.grpc": (
        "opentelemetry-exporter-otlp-proto-grpc",
        "otel",
        "no trace is sent to a collector, unless the program brings an exporter",
    ),
}
_COLLECTOR = "http://localhost:4317"


async def monitoring() -> list[Finding]:
    """Look at packages, variables and the port; what would keep a workflow from starting is a `fail`."""
    try:
        key = variable(KEY_VARIABLE, secret=True)
    except ConfigurationError as error:
        key, told, usable = None, Finding(f"variable {KEY_VARIABLE}", "fail", str(error)), False
    else:
        told, usable = _key(key)
    return [*_packages(), _strictness(), *_traces(), told, *await _port(key if usable else None)]


def _packages() -> list[Finding]:
    found = []
    for module, (distribution, extra, without) in _OPTIONAL.items():
        if _is_there(module):
            what = importlib.metadata.version(distribution)
        else:
            what = f"not installed: {without}; pip install 'ag06[{extra}]', in a checkout '.[{extra}]'"
        found.append(Finding(distribution, "pass", what))
    return found


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _strictness() -> Finding:
    value = os.environ.get(STRICT_VARIABLE)
    if value is None:
        what = "not set: a mistake in the use of a metric raises until a workflow runs, then it is a counted warning"
    elif value == "0":
        what = "0: a mistake in the use of a metric is a counted warning, never an error"
    else:
        what = f"{value}: a mistake in the use of a metric raises, in a workflow that runs too"
    return Finding(f"variable {STRICT_VARIABLE}", "pass", what)


def _traces() -> list[Finding]:
    from ag06.persistence.stores import masked

    setting = resolve("traces")
    chosen = setting.value.strip().lower()
    try:
        check_setting(setting)
        ratio = None if chosen in {"", "off"} else ratio_of(setting)
    except ConfigurationError:
        return []  # the setting's own line tells it
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return [Finding("traces", "pass", "nothing is recorded: OTEL_SDK_DISABLED is true")]
    if ratio is None:
        what = "nothing is recorded" if chosen == "off" else "only what the program's own provider samples is recorded"
        return [Finding("traces", "pass", what)]
    missing = [_OPTIONAL[name][0] for name in _OPTIONAL if name.startswith("opentelemetry") and not _is_there(name)]
    if missing:
        what = f"a share of {setting.value} needs {missing[0]}: pip install 'ag06[otel]', or set it to off"
        return [Finding("traces", "fail", what)]
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    where = _COLLECTOR if not endpoint else masked(endpoint)
    what = f"a share of {setting.value} goes to {where}, unless the program has a provider of its own"
    return [Finding("traces", "pass", what)]


def _key(key: str | None) -> tuple[Finding, bool]:
    """Return what there is to say of the key, never the key, and whether it can be used."""
    topic = f"variable {KEY_VARIABLE}"
    if key is None:
        return Finding(topic, "pass", "not set: whoever is on this machine may look, and nobody else"), False
    try:
        Guard(key, loopback=True)
    except ConfigurationError as error:
        return Finding(topic, "warn", f"{error}; no workflow that opens its port starts with it"), False
    return Finding(topic, "pass", "set: it is asked for, except by the probes"), True


async def _port(key: str | None) -> list[Finding]:
    """Listen for a moment where a workflow would."""
    setting = resolve("http_port")
    try:
        number = port_of(setting)
    except ConfigurationError:
        return []  # the setting's own line tells it
    if number is None:
        return [Finding("port", "pass", "off: no server is opened")]
    server = HttpServer({}, host=resolve("http_host").value, port=number, key=key)
    try:
        await server.start()
    except ConfigurationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            return [Finding("port", "warn", f"{error}; perhaps a workflow that runs has it")]
        return [Finding("port", "fail", str(error))]
    url = server.url
    await server.close()
    return [Finding("port", "pass", f"{url} is free" if number else "0: any that is free")]
