"""What an operator sees: logs with request and token, metrics for dashboard and alerts, traces."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import pytest
import yaml
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from waiting import until

from flerm_proto import recording_messages
from flerm_proto.v1 import registry_pb2 as pb
from flerm_proto.v1 import registry_pb2_grpc as rpc
from flerm_server.auth.sql_tokens import SqlTokenStore
from flerm_server.rpc.interceptors import LOGGED_CALLS, named_changes
from flerm_server.store.sql.store import open_store
from tests.conftest import StartRegistry
from tests.server.samples import family, row, spec

DEPLOY = Path(__file__).parents[2] / "deploy" / "observability"
NO_RECORDING = "00000000-0000-4000-8000-000000000000"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard and the alerts."""
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(start_registry: StartRegistry):
    registry = start_registry()
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        sent = spec(family())
        stub.StartRecording(
            pb.StartRecordingRequest(spec=recording_messages.spec_to_proto(sent)), timeout=20
        )
        for _ in range(2):
            stub.Append(
                pb.AppendRequest(
                    recording_id=sent.id,
                    measurements=[recording_messages.measurement_to_proto(row(1))],
                ),
                timeout=20,
            )
    httpx.get(f"{registry.http}/api/v1/recordings")
    text = httpx.get(f"{registry.http}/metrics").text
    samples = dict(re.findall(r"^(\w+)(\{[^}]*\})? ", text, re.MULTILINE)).keys()
    described = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    asked = {
        name
        for each in expressions()
        for name in re.findall(r"\b((?:flerm|process)_\w+|up)\b", each)
    }
    assert "flerm_call_seconds_bucket" in asked
    for name in asked - {"up"}:  # which Prometheus makes itself
        assert name in samples | described, name
    labels = {label for each in expressions() for label in re.findall(r"(\w+)=~?\"", each)}
    assert labels <= {"job", "instance", "protocol", "method", "code"}
    assert 'flerm_calls_total{code="OK",method="Append",protocol="grpc"} 2.0' in text
    assert ("flerm_rows_committed_total 1.0" in text, "flerm_rows_repeated_total 1.0" in text) == (
        True,
        True,
    )
    assert (
        'flerm_calls_total{code="200",method="GET /api/v1/recordings",protocol="http"} 1.0' in text
    )


def logged(output: list[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in output if line.startswith("{")]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            pb.RenameFamilyRequest(name="a" * 300, new_name="b"),
            {"family": "a" * 200, "new_name": "b"},
        ),
        (
            pb.StartRecordingRequest(spec=pb.RecordingSpec(id="x", family="team/a")),
            {"family": "team/a", "recording": "x"},
        ),
        (
            pb.ImportRecordingsRequest(
                parts=[pb.RecordingPart(recording_id=each) for each in ("x", "x", "y")]
            ),
            {"recordings": "2", "recording": "x"},
        ),
        (pb.ImportRecordingsRequest(), {"recordings": "0", "recording": ""}),
    ],
)
def test_logs_name_what_a_call_changes(message: Message, named: dict[str, str]):
    assert named_changes(message) == named


@pytest.mark.parametrize("name", sorted(LOGGED_CALLS))
def test_every_call_that_is_logged_names_what_it_changes(name: str):
    asked = pb.DESCRIPTOR.services_by_name["Registry"].methods_by_name[name].input_type
    assert {"family", "recording"} & set(named_changes(getattr(pb, asked.name)()))


def test_logs_name_the_request_and_the_token_but_never_its_secret(
    start_registry: StartRegistry, tmp_path: Path
):
    store = open_store(f"sqlite:///{tmp_path}/registry.db")
    (writer, secret), (reader, other) = (
        SqlTokenStore(store.engine).create("writer", "write"),
        SqlTokenStore(store.engine).create("reader", "read"),
    )
    store.close()
    registry = start_registry(options=("--log-level", "debug"))
    name = pb.RegisterFamilyRequest(name=family())
    with grpc.insecure_channel(registry.grpc) as channel:
        stub = rpc.RegistryStub(channel)
        stub.RegisterFamily(
            name,
            timeout=20,
            metadata=[("authorization", f"Bearer {secret.text}"), ("x-request-id", "mine-1")],
        )
        with pytest.raises(grpc.RpcError) as refused:
            stub.RegisterFamily(
                name, timeout=20, metadata=[("authorization", f"Bearer {other.text}")]
            )
        with pytest.raises(grpc.RpcError):  # of a recording that is not there
            stub.TagRecording(
                pb.TagRecordingRequest(recording_id=NO_RECORDING, set={"a": "b"}),
                timeout=20,
                metadata=[("authorization", f"Bearer {secret.text}"), ("x-request-id", "mine-3")],
            )
    request_id = dict(refused.value.trailing_metadata())["x-request-id"]
    header = {"Authorization": f"Bearer {other.text}", "X-Request-ID": "mine-2"}
    assert (
        httpx.get(f"{registry.http}/api/v1/families", headers=header).headers["x-request-id"]
        == "mine-2"
    )
    assert len(httpx.get(f"{registry.http}/api/v1/families").headers["x-request-id"]) == 32
    until(
        lambda: any(each.get("request_id") == "mine-2" for each in logged(registry.output)),
        "not logged",
    )
    lines = {each["request_id"]: each for each in logged(registry.output) if "request_id" in each}
    assert (lines["mine-1"]["method"], lines["mine-1"]["code"], lines["mine-1"]["token"]) == (
        "RegisterFamily",
        "OK",
        writer.id,
    )
    assert lines["mine-1"]["family"] == name.name
    assert (lines["mine-3"]["code"], lines["mine-3"]["recording"]) == ("NOT_FOUND", NO_RECORDING)
    assert lines["mine-1"]["level"] == "info"  # who changed what is told without --log-level debug
    assert lines[request_id]["code"] == "PERMISSION_DENIED"
    assert (lines["mine-2"]["path"], lines["mine-2"]["token"]) == ("/api/v1/families", reader.id)
    written = "".join(registry.output)
    assert secret.text not in written and other.text not in written
    assert secret.text.split("_", 2)[2] not in written


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Takes traces over OTLP as an OpenTelemetry collector does."""
    taken: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(
                ExportTraceServiceRequest.FromString(
                    self.rfile.read(int(self.headers["content-length"]))
                )
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()


def test_calls_are_spans_of_the_callers_trace(
    start_registry: StartRegistry,
    collector: tuple[str, list[ExportTraceServiceRequest]],
    monkeypatch: pytest.MonkeyPatch,
):
    endpoint, taken = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    registry = start_registry()
    parent = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
    with grpc.insecure_channel(registry.grpc) as channel:
        rpc.RegistryStub(channel).ServerInfo(pb.ServerInfoRequest(), timeout=20, metadata=[parent])
        with pytest.raises(grpc.RpcError):
            rpc.RegistryStub(channel).GetRecording(
                pb.GetRecordingRequest(recording_id="x"), timeout=20
            )
    httpx.get(f"{registry.http}/api/v1/families", headers=dict([parent]))
    assert registry.stop() == 0  # which sends what is left
    resources = [resource for request in taken for resource in request.resource_spans]
    spans = {
        span.name: span
        for resource in resources
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert {"ServerInfo", "GetRecording", "GET"} <= set(spans)
    assert spans["ServerInfo"].trace_id.hex() == spans["GET"].trace_id.hex() == TRACE
    assert spans["GetRecording"].status.code == 2  # an error
    attributes = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert attributes["service.name"] == "flerm"
