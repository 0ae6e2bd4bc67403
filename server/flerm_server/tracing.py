"""Traces by OpenTelemetry.

They need the extra `traces`, and OTEL_EXPORTER_OTLP_ENDPOINT with the address that receives them.
OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...) configure the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from flerm_core.errors import Refused

_tracer: Any = None


def configure() -> None:
    """Begins to export traces where an address is set.

    Raises `Refused` where an address is set and the extra is not installed.
    """
    global _tracer
    if not (
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    ):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise Refused(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {error.name} is not installed: "
            "pip install 'flerm[traces]'"
        ) from error
    os.environ.setdefault("OTEL_SERVICE_NAME", "flerm")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("flerm")


def flush() -> None:
    """Sends the spans that were not sent yet, and stops exporting."""
    if _tracer is not None:
        from opentelemetry import trace

        provider: Any = trace.get_tracer_provider()
        provider.shutdown()


def span(
    name: str, headers: Mapping[str, str], **attributes: str
) -> AbstractContextManager[object]:
    """A span for a call; `traceparent` among its `headers` makes it part of the caller's trace."""
    return nullcontext() if _tracer is None else _span(name, headers, attributes)


@contextmanager
def _span(name: str, headers: Mapping[str, str], attributes: Mapping[str, str]) -> Iterator[object]:
    from opentelemetry import propagate, trace

    began = _tracer.start_span(
        name,
        context=propagate.extract(dict(headers)),
        kind=trace.SpanKind.SERVER,
        attributes=dict(attributes),
    )
    # The span does not become the current one: a call may be answered by a generator, whose next
    # part runs in another context.
    try:
        yield began
    except GeneratorExit:
        raise
    except BaseException as error:
        began.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
        raise
    finally:
        began.end()
