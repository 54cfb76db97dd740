"""``POST /v1/responses`` and what was stored of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from time import time
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.server.answers import Answers, respond
from strata.server.conversation import Conversation, count_tokens, past_call, start_chat
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError, error_body
from strata.server.logprobs import logprobs_of
from strata.server.openai.response_requests import ResponseRequest, conversation
from strata.server.openai.response_store import ResponseStore
from strata.server.parsers import CallBegin, CallDelta, Piece, Thought
from strata.server.parsers.base import parse_json
from strata.server.replies import EVENT_STREAM, Reply, sse, sse_progress, while_there
from strata.server.service import Service
from strata.server.timings import PromptProgress, timings

PATH = "/v1/responses"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    store = ResponseStore(service.admission)
    errors = documented(OpenAIError)

    async def wanted_by(body: ResponseRequest) -> Conversation:
        service.check_model(body.model)
        before = body.previous_response_id
        return await conversation(service, body, store.get(before).messages if before else ())

    @routes.post(PATH.removeprefix("/v1"), include_in_schema=False)
    @routes.post(PATH, responses=documented(OpenAIError, EVENT_STREAM))
    async def responses(body: ResponseRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of events; what is stored can be gone on
        with by its id."""
        wanted = await while_there(request, wanted_by(body))
        answers = await while_there(request, start_chat(service, wanted))
        writer = _Writer(service, answers, body, wanted, store)
        return await respond(request, answers, writer, bool(body.stream))

    @routes.post(f"{PATH.removeprefix('/v1')}/input_tokens", include_in_schema=False)
    @routes.post(f"{PATH}/input_tokens", responses=errors)
    async def input_tokens(body: ResponseRequest) -> Reply:
        """How many tokens a conversation's prompt has."""
        count = await count_tokens(service, await wanted_by(body))
        return Reply({"object": "response.input_tokens", "input_tokens": count})

    @routes.get(f"{PATH}/{{id}}", responses=errors)
    async def stored(id: str) -> Reply:
        """A response that is still known."""
        return Reply(store.get(id).response)

    @routes.delete(f"{PATH}/{{id}}", responses=errors)
    async def forget(id: str) -> Reply:
        """Forget a response."""
        store.drop(id)
        return Reply({"id": id, "object": "response", "deleted": True})

    @routes.get(f"{PATH}/{{id}}/input_items", responses=errors)
    async def items(id: str) -> Reply:
        """What a response was the answer to."""
        found = list(store.get(id).items)
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        return Reply({"object": "list", "data": found, "has_more": False, **ends})


class _Writer:
    media_type = EVENT_STREAM

    def __init__(
        self,
        service: Service,
        answers: Answers,
        body: ResponseRequest,
        wanted: Conversation,
        store: ResponseStore,
    ) -> None:
        self._tokenizer = service.llm.tokenizer
        self._answers = answers
        (self._answer,) = answers.choices
        self._body = body
        self._wanted = wanted
        self._store = store
        self._pause_s = service.settings.keepalive_s
        self._items = _Items(body.top_logprobs is not None, self._tokens)
        self._sequence = -1
        params = wanted.params
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": service.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning and body.reasoning.effort, "summary": None},
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": _format(body)},
            "tool_choice": _choice(body),
            "tools": [{**tool.model_dump(), "strict": True} for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": None,
            "metadata": body.labels or {},
        }

    def whole(self) -> dict[str, Any]:
        """See Writer."""
        answer = self._answer
        pieces: list[Piece] = [Thought(answer.thoughts)] if answer.thoughts else []
        if answer.text.strip() or not answer.calls:
            pieces.append(answer.text)
        for call in answer.calls:
            pieces += [CallBegin(call.name, call.id), CallDelta(call.arguments), call]
        for piece in pieces:
            # The events are for nobody.
            list(self._items.add(piece, answer.samples))
        list(self._items.finish(self._complete))
        return self._finished()

    async def stream(self) -> AsyncGenerator[str, None]:
        """See Writer."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._response})
        timed = bool(self._body.timings_per_token)
        progress = PromptProgress(self._answers, timed=timed)
        async for part in self._answers.parts(self._pause_s):
            for news in progress.news() if self._wanted.progress else ():
                event = {"type": "response.in_progress", "response": self._response}
                yield self._event({**event, **news})
            if part is None:
                yield sse_progress(self._answers.run.progress)
                continue
            _, pieces, samples = part
            beside = {"timings": timings(self._answer)} if timed else {}
            for piece in pieces:
                for event in self._items.add(piece, samples):
                    yield self._event({**event, **beside})
        if not self._items.done and self._items.open is None:
            for event in self._items.add("", []):
                yield self._event(event)
        for event in self._items.finish(self._complete):
            yield self._event(event)
        response = self._finished()
        last = {"type": f"response.{response['status']}", "response": response}
        yield self._event({**last, **({"timings": timings(self._answer)} if timed else {})})

    def failed(self, error: ApiError) -> str:
        """See Writer."""
        said = error_body(PATH, error)["error"]
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        response = {
            **self._response,
            "status": "failed",
            "error": {"code": code, "message": said["message"]},
        }
        return self._event({"type": "response.failed", "response": response})

    @property
    def _complete(self) -> bool:
        return self._answer.finish_reason != "length"

    def _finished(self) -> dict[str, Any]:
        """The response at its end, which is stored."""
        answers = self._answers
        self._response |= {
            "status": "completed" if self._complete else "incomplete",
            "completed_at": int(time()),
            "incomplete_details": None if self._complete else {"reason": "max_output_tokens"},
            "output": self._items.done,
            "usage": {
                "input_tokens": answers.prompt_tokens,
                "input_tokens_details": {"cached_tokens": answers.cached_tokens},
                "output_tokens": answers.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answers.prompt_tokens + answers.output_tokens,
            },
        }
        if self._body.store is not False:
            self._keep()
        return self._response

    def _keep(self) -> None:
        answer = self._answer
        said: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.thoughts:
            said["reasoning_content"] = answer.thoughts
        if answer.calls:
            said["tool_calls"] = [
                past_call(f"call_{call.id}", call.name, _arguments(call.arguments))
                for call in answer.calls
            ]
        messages: Sequence[Mapping[str, Any]] = self._wanted.messages
        if self._body.instructions:
            # They hold for one response.
            messages = messages[1:]
        items = [
            {
                "id": f"msg_{uuid4().hex}",
                "type": "message",
                "role": message["role"],
                "content": [{"type": "input_text", "text": message["content"]}],
            }
            for message in messages
            if message["role"] != "tool" and "tool_calls" not in message
        ]
        self._store.put(self._response, [*messages, said], items)

    def _tokens(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        return logprobs_of(self._tokenizer, samples)

    def _event(self, event: Mapping[str, Any]) -> str:
        self._sequence += 1
        return sse({**event, "sequence_number": self._sequence}, event["type"])


class _Items:
    """The items of an answer, one after the other, and the events that tell of them."""

    def __init__(self, logprobs: bool, tokens: Any) -> None:
        self.done: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._samples: list[Sample] = []
        self._logprobs = logprobs
        self._tokens = tokens

    def add(self, piece: Piece, samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        """The events of one piece of the answer."""
        if isinstance(piece, str):
            yield from self._switch("message")
            tokens = self._tokens(samples) if self._logprobs else []
            self._samples += samples
            self._text.append(piece)
            if piece:
                yield self._part("output_text.delta", delta=piece, logprobs=tokens)
        elif isinstance(piece, Thought):
            yield from self._switch("reasoning")
            self._text.append(piece.text)
            yield self._part("reasoning_text.delta", delta=piece.text)
        elif isinstance(piece, CallBegin):
            yield from self.finish(True)
            self.open = {
                "id": f"fc_{piece.id}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": f"call_{piece.id}",
                "name": piece.name,
                "arguments": "",
            }
            yield self._item("added")
        elif isinstance(piece, CallDelta):
            self._text.append(piece.text)
            yield {
                "type": "response.function_call_arguments.delta",
                "item_id": self.open and self.open["id"],
                "output_index": len(self.done),
                "delta": piece.text,
            }
        else:
            yield from self.finish(True)

    def finish(self, complete: bool) -> Iterator[dict[str, Any]]:
        """The events of the end of the item that is open, if one is."""
        if self.open is None:
            return
        item, text = self.open, "".join(self._text)
        if item["type"] == "function_call":
            item["arguments"] = text
            yield {
                "type": "response.function_call_arguments.done",
                "item_id": item["id"],
                "output_index": len(self.done),
                "name": item["name"],
                "arguments": text,
            }
        else:
            said = item["type"] == "message"
            (part,) = item["content"]
            part["text"] = text
            logprobs = {}
            if said:
                part["logprobs"] = self._tokens(self._samples) if self._logprobs else []
                logprobs = {"logprobs": part["logprobs"]}
            kind = "output_text" if said else "reasoning_text"
            yield self._part(f"{kind}.done", text=text, **logprobs)
            yield self._part("content_part.done", part=dict(part))
        item["status"] = "completed" if complete else "incomplete"
        yield self._item("done")
        self.done.append(item)
        self.open = None
        self._text.clear()
        self._samples.clear()

    def _switch(self, kind: str) -> Iterator[dict[str, Any]]:
        if self.open is not None and self.open["type"] == kind:
            return
        yield from self.finish(True)
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "message":
            self.open = {"id": f"msg_{uuid4().hex}", **item, "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            self.open = {"id": f"rs_{uuid4().hex}", **item, "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        yield self._item("added")
        self.open["content"] = [part]
        yield self._part("content_part.added", part=dict(part))

    def _item(self, what: str) -> dict[str, Any]:
        return {
            "type": f"response.output_item.{what}",
            "output_index": len(self.done),
            "item": dict(self.open or {}),
        }

    def _part(self, kind: str, **data: Any) -> dict[str, Any]:
        return {
            "type": f"response.{kind}",
            "item_id": self.open and self.open["id"],
            "output_index": len(self.done),
            "content_index": 0,
            **data,
        }


def _arguments(written: str) -> Any:
    value = parse_json(written)
    return value if isinstance(value, dict) else written


def _format(body: ResponseRequest) -> dict[str, Any]:
    form = body.text and body.text.format
    return form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}


def _choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump(exclude_none=True)
