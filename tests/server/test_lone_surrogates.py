"""Half of a character, which no UTF-8 has: no body brings one, but JSON that a model wrote can."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from strata.guard.known_templates import is_known
from strata.memory import Ledger
from strata.server.admission import Admission
from strata.server.openai.response_store import ResponseStore
from strata.server.parsers.mistral import _short
from strata.server.replies import Reply, StreamReply, sse

HALF = json.loads(r'"a\ud800b"')


def test_an_answer_with_one_is_sent() -> None:
    assert json.loads(Reply({"text": HALF}).body) == {"text": "a?b"}


def test_a_stream_with_one_goes_on() -> None:
    sent: list[Any] = []

    async def parts() -> AsyncGenerator[str, None]:
        yield sse({"text": HALF})
        yield "end"

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(StreamReply(parts(), "text/event-stream")._send_all(send))
    assert [m["body"] for m in sent[1:]] == [b'data: {"text":"a?b"}\n\n', b"end", b""]


def test_a_response_with_one_is_kept() -> None:
    store = ResponseStore(Admission(Ledger(), 1 << 20))
    store.put({"id": "r", "text": HALF}, [{"content": HALF}], [])
    assert store.get("r").response["text"] == HALF


def test_what_is_named_after_one_has_a_name() -> None:
    assert len(_short(HALF)) == 9
    assert not is_known(HALF)
