"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.giving_way import give_way
from strata.server.answers import Answer, Answers, respond
from strata.server.beams import BeamAnswers, beam_params, check_beams, search_beams
from strata.server.bodies import ToolDefinition, allowed, tools_of
from strata.server.conversation import (
    Conversation,
    ToolChoice,
    count_tokens,
    past_call,
    ready_chat,
    start_chat,
)
from strata.server.document import OpenAIError, documented
from strata.server.logprobs import logprobs_of
from strata.server.openai.params import grammar_of, limit_of, prompt_scores, sampling_params
from strata.server.openai.replies import ChatCompletion
from strata.server.openai.requests import (
    AllowedTools,
    ChatRequest,
    FunctionName,
    Message,
    NamedTool,
)
from strata.server.openai.writer import OpenAIWriter
from strata.server.parsers import CallBegin, CallDelta, Piece, Thought, Tool, ToolCall
from strata.server.parsers.base import parse_json
from strata.server.preset import thinking_variables
from strata.server.replies import EVENT_STREAM, Reply, while_there
from strata.server.service import Service

PATH = "/v1/chat/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    document: Any = {
        "response_model": ChatCompletion,
        "responses": documented(OpenAIError, EVENT_STREAM),
    }

    # llama-server's path, which its clients use.
    @routes.post(PATH.removeprefix("/v1"), include_in_schema=False)
    @routes.post(PATH, **document)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, at once or as a stream of chunks."""
        service.check_model(body.model)
        if check_beams(body):
            found = await while_there(request, _beams(service, body))
            return Reply(_Writer(service, found, body).whole())
        answers, scores = await while_there(request, _start(service, body))
        writer = _Writer(service, answers, body)
        writer.prompt_logprobs = scores
        return await respond(request, answers, writer, bool(body.stream))

    @routes.post(f"{PATH.removeprefix('/v1')}/input_tokens", include_in_schema=False)
    @routes.post(f"{PATH}/input_tokens", responses=documented(OpenAIError))
    async def input_tokens(body: ChatRequest) -> Reply:
        """How many tokens a conversation's prompt has."""
        service.check_model(body.model)
        return Reply(
            {"input_tokens": await count_tokens(service, await conversation(service, body))}
        )


async def _beams(service: Service, body: ChatRequest) -> BeamAnswers:
    wanted = await conversation(service, body)
    params = beam_params(body, wanted.params.max_tokens, wanted.params.logprobs)
    ready = await ready_chat(service, wanted)
    return await search_beams(
        service,
        [ready.prompt],
        params,
        continuing=wanted.continue_last,
        show_special=ready.show_special,
        parser=ready.parser,
    )


async def _start(service: Service, body: ChatRequest) -> tuple[Answers, list[Any] | None]:
    answers = await start_chat(service, await conversation(service, body))
    if body.prompt_logprobs is None:
        return answers, None
    try:
        return answers, await prompt_scores(
            service, answers.run.run.jobs[0].prompt, body.prompt_logprobs
        )
    except BaseException:
        answers.run.cancel()
        raise


async def conversation(service: Service, body: ChatRequest) -> Conversation:
    if body.top_logprobs and not body.logprobs:
        raise UsageError("top_logprobs needs logprobs to be true")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit, silent = limit_of(body.max_completion_tokens, body.max_tokens, body.n_predict)
    grammar = await grammar_of(service, body, body.response_format)
    tools, choice, tool = _tools(body)
    messages = await service.beside(lambda: [plain_message(message) for message in body.messages])
    continued = _is_continued(body, messages)
    return Conversation(
        messages=messages,
        params=sampling_params(service, body, max_tokens=limit, logprobs=logprobs, grammar=grammar),
        choices=body.n or 1,
        tools=tools,
        tool_choice=choice,
        tool=tool,
        variables=_variables(body),
        continue_last=continued,
        begin_answer=body.add_generation_prompt is not False,
        parallel_calls=body.parallel_tool_calls is not False and not body.functions,
        silent=silent,
        drops_oldest=body.truncation == "auto",
        progress=bool(body.stream and body.return_progress),
    )


def _is_continued(body: ChatRequest, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answer goes on with the last message: one of the assistant's, unless said
    otherwise."""
    if body.continue_final_message and body.add_generation_prompt:
        raise UsageError(
            "add_generation_prompt and continue_final_message exclude each other: the last message "
            "is continued, or an answer begins"
        )
    begun = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    if body.continue_final_message and not begun:
        raise UsageError("continue_final_message: the last message is not the assistant's")
    before = messages[-2]["role"] if len(messages) > 1 else None
    if begun and before == "assistant" and body.continue_final_message is not False:
        raise UsageError(
            "the last two messages are the assistant's: one to be continued stands alone at the end"
        )
    if body.continue_final_message is None:
        return begun and body.add_generation_prompt is None
    return body.continue_final_message


def _tools(body: ChatRequest) -> tuple[list[Tool], ToolChoice, str | None]:
    """What can be called, whether something must be, and what; ``functions`` are the old form."""
    if body.functions is not None:
        if body.tools:
            raise UsageError("tools and functions exclude each other")
        tools = tools_of([ToolDefinition(function=function) for function in body.functions])
        if isinstance(body.function_call, FunctionName):
            return tools, "required", body.function_call.name
        return tools, body.function_call or "auto", None
    tools = tools_of(body.tools)
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        return tools, "required", choice.function.name
    if isinstance(choice, AllowedTools):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        return allowed(tools, names), choice.allowed_tools.mode, None
    return tools, "required" if choice == "any" else choice or "auto", None


def _variables(body: ChatRequest) -> dict[str, Any]:
    return {**thinking_variables(body.reasoning_effort), **(body.chat_template_kwargs or {})}


def plain_message(message: Message) -> dict[str, Any]:
    """The form that chat templates expect."""
    give_way()
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    content = message.content
    if isinstance(content, list):
        if any(part.type not in ("text", "refusal", "input_text") for part in content):
            raise UsageError("this server reads text only: a message has a part of another type")
        content = "".join(part.text or "" for part in content)
    # Templates ask for the text of a message that has none, too.
    plain: dict[str, Any] = {"role": role, "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            # Templates print arguments as JSON: a string would be quoted twice.
            past_call(call.id, call.function.name, _object_or_text(call.function.arguments))
            for call in message.tool_calls
        ]
    elif message.function_call is not None:
        call = message.function_call
        plain["tool_calls"] = [past_call(None, call.name, _object_or_text(call.arguments))]
    return plain


def _object_or_text(arguments: str) -> Any:
    value = parse_json(arguments)
    return value if isinstance(value, dict) else arguments


class _Writer(OpenAIWriter):
    path = PATH
    prefix = "chatcmpl"
    objects = ("chat.completion", "chat.completion.chunk")

    def __init__(self, service: Service, answers: Answers, body: ChatRequest) -> None:
        super().__init__(service, answers, body)
        self._logprobs = bool(body.logprobs)
        self._legacy = body.functions is not None
        self._calls = [0] * len(answers.choices)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWriter."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.text.strip() or not answer.calls else None,
            "refusal": None,
        }
        if answer.thoughts:
            message["reasoning_content"] = answer.thoughts
        if answer.calls and self._legacy:
            (call,) = answer.calls
            message["function_call"] = {"name": call.name, "arguments": call.arguments}
        elif answer.calls:
            message["tool_calls"] = [
                _call(call.id, call.name, call.arguments) for call in answer.calls
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._tokens(answer.samples),
            "finish_reason": self._finish_reason(answer),
        }

    def beginning(self, index: int) -> dict[str, Any]:
        """See OpenAIWriter."""
        # Null, as llama-server has it: what follows is text, thoughts or calls.
        return self._chunk(index, {"role": "assistant", "content": None}, [])

    def nothing(self, index: int) -> dict[str, Any]:
        """See OpenAIWriter."""
        return self._chunk(index, {}, [])

    def chunks(
        self, index: int, answer: Answer, pieces: list[Piece], samples: list[Sample]
    ) -> Iterator[dict[str, Any]]:
        """See OpenAIWriter."""
        if self._logprobs and samples and all(isinstance(piece, ToolCall) for piece in pieces):
            pieces = [""]
        for piece in pieces:
            if not isinstance(piece, ToolCall):
                yield self._chunk(index, self._delta(index, piece), samples)
                samples = []
        if answer.finish_reason is not None:
            yield {**self._chunk(index, {}, []), "finish_reason": self._finish_reason(answer)}

    def _chunk(self, index: int, delta: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
        logprobs = self._tokens(samples)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def _delta(self, index: int, piece: str | Thought | CallBegin | CallDelta) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"content": piece}
        if isinstance(piece, Thought):
            return {"reasoning_content": piece.text}
        if isinstance(piece, CallBegin):
            self._calls[index] += 1
            part = _call(piece.id, piece.name, "")
        else:
            part = {"function": {"arguments": piece.text}}
        if self._legacy:
            return {"function_call": part["function"]}
        return {"tool_calls": [{"index": self._calls[index] - 1, **part}]}

    def _finish_reason(self, answer: Answer) -> str | None:
        if answer.calls and answer.finish_reason == "stop":
            return "function_call" if self._legacy else "tool_calls"
        return answer.finish_reason

    def _tokens(self, samples: list[Sample]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": logprobs_of(self.tokenizer, samples), "refusal": None}


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
