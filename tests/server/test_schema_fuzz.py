"""Requests that schemathesis makes of the server's own OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.running import NAMES, Running, load, running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
pytestmark = pytest.mark.slow

EXAMPLES = 60
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.fixture(scope="module")
def small(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Answers are short, because there is no room for long ones."""
    kept = tmp_path_factory.mktemp("kept")
    files, store = kept / "files", str(kept / "kv")
    with (
        load(smollm2_path, context=64, serving=True, kv_store=store) as served,
        running(served, files=files, files_bytes=1 << 20) as server,
    ):
        yield server


def operations(server: Running) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = (result.ok() for result in schema.get_all_operations())
    return {f"{o.method.upper()} {o.path}": o for o in found}


ENDPOINTS = (
    "GET /v1/models",
    "GET /v1/models/{id}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /api/chat",
    "POST /api/generate",
    "POST /api/show",
    "GET /api/tags",
    "GET /api/ps",
    "GET /api/version",
    "POST /tokenize",
    "POST /detokenize",
    "GET /health",
    "GET /metrics",
    "GET /memory",
    "POST /memory",
    "DELETE /v1/files/{id}",
    "DELETE /v1/responses/{id}",
    "GET /kv",
    "GET /lora-adapters",
    "GET /props",
    "GET /slots",
    "GET /tools",
    "GET /v1/batches",
    "GET /v1/batches/{id}",
    "GET /v1/files",
    "GET /v1/files/{id}",
    "GET /v1/files/{id}/content",
    "GET /v1/responses/{id}",
    "GET /v1/responses/{id}/input_items",
    "POST /api/embed",
    "POST /api/embeddings",
    "POST /apply-template",
    "POST /completion",
    "POST /infill",
    "POST /kv/clear",
    "POST /kv/compress",
    "POST /kv/lookup",
    "POST /kv/pin",
    "POST /kv/unpin",
    "POST /predict",
    "POST /props",
    "POST /tools",
    "POST /v1/batches",
    "POST /v1/batches/{id}/cancel",
    "POST /v1/chat/completions/input_tokens",
    "POST /v1/embeddings",
    "POST /v1/files",
    "POST /v1/rerank",
    "POST /v1/responses",
    "POST /v1/responses/input_tokens",
)


def has_body(endpoint: str) -> bool:
    return endpoint.startswith("POST") and endpoint not in WITHOUT_BODY


# What this model, or any server, cannot do is said with 501, as llama-server does.
NOT_HERE = {"POST /infill", "POST /props"}
WITHOUT_BODY = {"POST /props", "POST /v1/batches/{id}/cancel"}


def test_every_endpoint_is_tried(small: Running) -> None:
    assert set(operations(small)) == set(ENDPOINTS)


@pytest.mark.parametrize(
    ("endpoint", "mode"),
    [
        *((endpoint, "positive") for endpoint in ENDPOINTS),
        # Where nothing is sent, nothing can be sent wrongly.
        *((endpoint, "negative") for endpoint in ENDPOINTS if has_body(endpoint)),
    ],
)
def test_no_request_breaks_the_server(small: Running, endpoint: str, mode: str) -> None:
    operation = operations(small)[endpoint]
    checks = [getattr(schemathesis.checks, name) for name in CHECKS]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    # A model's name that is right, or nothing but 404 would be seen.
    @given(case=cases, right=st.integers(0, 9))
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    def attempt(case: Any, right: int) -> None:
        if isinstance(case.body, dict) and "model" in case.body and right:
            case.body["model"] = NAMES[0]
        response = case.call(timeout=30)
        not_here = endpoint in NOT_HERE and response.status_code == 501
        case.validate_response(response, checks=checks[1:] if not_here else checks)

    attempt()
    small.wait_until_free()
