"""A collector of traces for tests: a real gRPC server of OTLP's trace service, which keeps what it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import msgspec
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Received(msgspec.Struct, frozen=True):
    """One span, as it came over the wire; ids in hexadecimal, no parent: empty; times in nanoseconds."""

    service: str
    scope: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    failed: bool
    start: int
    end: int


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a free port of the loopback. `hold()` lets callers wait, `refuse` answers all with that status."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.calls = 0
        self.refuse: grpc.StatusCode | None = None
        self._open = threading.Event()
        self._open.set()
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def stop(self) -> None:
        self._open.set()
        self._server.stop(0).wait(10)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - its name in the protocol
        self.calls += 1
        self._open.wait(60)
        if self.refuse is not None:
            context.abort(self.refuse, "refused by the test")
        for of_resource in request.resource_spans:
            service = _values(of_resource.resource.attributes).get("service.name", "")
            for of_scope in of_resource.scope_spans:
                self.spans += [_received(span, service, of_scope.scope.name) for span in of_scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, check: Callable[[list[Received]], object], seconds: float = 20.0) -> list[Received]:
        """Wait until what came holds; return it."""
        deadline = time.monotonic() + seconds
        while not check(list(self.spans)):
            if time.monotonic() > deadline:
                raise AssertionError(f"still not so after {seconds} s; there are {self.spans}")
            time.sleep(0.01)
        return list(self.spans)


def _received(span: Any, service: str, scope: str) -> Received:
    return Received(
        service=service,
        scope=scope,
        name=span.name,
        kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_values(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
