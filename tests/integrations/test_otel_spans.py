"""Spans of OpenTelemetry's httpx instrumentation: those of awaited calls are children of the caller's span."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from mixpanel_async import AsyncMixpanel, BatchPolicy, MixpanelException, RetryPolicy
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio


class Traces:
    """Finished spans of an application whose httpx is instrumented."""

    def __init__(self, tracer: Tracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    def requests(self) -> list[ReadableSpan]:
        """Return the spans of HTTP requests, and forget all spans."""
        spans = [span for span in self._exporter.get_finished_spans() if span.name == "POST"]
        self._exporter.clear()
        return spans


@pytest.fixture
def traces() -> Iterator[Traces]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield Traces(provider.get_tracer("app"), exporter)
    instrumentor.uninstrument()
    provider.shutdown()


async def test_span_of_an_awaited_call_is_a_child_of_the_callers_span(traces: Traces) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        retry = RetryPolicy(initial=0.0, maximum=0.0, attempts=2)
        async with AsyncMixpanel("token", api_host=server.url, identity_retry=retry) as mp:
            for call in (partial(mp.alias, "user", "visitor"), partial(mp.track_immediate, "user", "Paid")):
                with traces.tracer.start_as_current_span("sign-up") as parent:
                    await call()
                (span,) = traces.requests()
                assert span.parent is not None
                assert span.parent.span_id == parent.get_span_context().span_id
                assert span.context.trace_id == parent.get_span_context().trace_id
            # Each attempt is a span of the same trace, also of a call that fails.
            emulator.fail_next(status=503, times=2)
            with traces.tracer.start_as_current_span("sign-up") as parent, pytest.raises(MixpanelException):
                await mp.alias("user", "visitor")
            spans = traces.requests()
            assert [span.parent and span.parent.span_id for span in spans] == [parent.get_span_context().span_id] * 2


async def test_span_of_a_batch_has_no_parent(traces: Traces) -> None:
    with Emulator().serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, batching=BatchPolicy(linger=3600.0))
        # The first call, which starts the background tasks, is made inside a span as well.
        with traces.tracer.start_as_current_span("page"):
            await mp.track("user", "Page viewed")
            await mp.alias("user", "visitor")
        traces.requests()
        with traces.tracer.start_as_current_span("page"):
            await mp.track("user", "Page viewed")
            await mp.flush()
        (span,) = traces.requests()
        assert span.parent is None
        await mp.aclose()
