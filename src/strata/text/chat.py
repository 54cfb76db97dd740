"""Chat templates: messages to the prompt that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strata.errors import UsageError
from strata.giving_way import give_way
from strata.guard.known_templates import is_known
from strata.text.errors import ChatTemplateBusy, ChatTemplateError

if TYPE_CHECKING:
    from strata.guard.rendering import GuardedRenderer

# Stands for the end of the message that is to be continued, while the template runs.
_OPEN_END = "STRATA_OPEN_END_OF_FINAL_MESSAGE "
# Names under which interfaces pass what a model thought; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A jinja2 template with the semantics of transformers.

    One that is `foreign` is rendered in a guarded process, with bounds of time and memory; others
    are known to be harmless. `special_tokens` (`bos_token`, `eos_token`, ...) are variables of the
    template. Templates of one model share a `renderer`.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        renderer: GuardedRenderer | None = None,
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self.foreign = not is_known(source)
        self._renderer = renderer

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text.

        With `continue_final_message` the prompt ends inside the last message, for the model to go
        on. Raises ChatTemplateError when the template does not parse, raises, or exceeds a bound;
        ChatTemplateBusy where there is no memory for a guarded process at the moment; UsageError
        for malformed messages.
        """
        try:
            chat = _plain_messages(messages)
            extra = {name: _plain(value) for name, value in kwargs.items()}
            asked_tools = None if tools is None else _plain(list(tools))
            given = None if documents is None else _plain(list(documents))
        except RecursionError:
            raise UsageError("the messages are nested too deeply") from None
        if continue_final_message:
            if add_generation_prompt:
                raise UsageError("continue_final_message excludes add_generation_prompt")
            _open_end(chat[-1])
        variables = {
            **self._special_tokens,
            **extra,
            "messages": chat,
            "tools": asked_tools,
            "documents": given,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(variables)
        return _cut_at_open_end(text) if continue_final_message else text

    def _run(self, variables: Mapping[str, Any]) -> str:
        if self.foreign:
            return self._run_guarded(variables)
        from strata.guard.errors import TemplateFailure
        from strata.guard.templates import render

        try:
            return render(self.source, variables, each=give_way)
        except TemplateFailure as failure:
            raise ChatTemplateError(str(failure)) from None

    def _run_guarded(self, variables: Mapping[str, Any]) -> str:
        from strata.guard.errors import GuardBusy, GuardError, TemplateFailure
        from strata.guard.rendering import GuardedRenderer

        if self._renderer is None:
            self._renderer = GuardedRenderer()
        try:
            return self._renderer.render(self.source, variables)
        except RecursionError:
            raise UsageError("the messages are nested too deeply") from None
        except GuardBusy as error:
            raise ChatTemplateBusy(f"the chat template waits: {error}") from None
        except GuardError as error:
            raise ChatTemplateError(f"the chat template was ended: {error}") from None
        except TemplateFailure as failure:
            raise ChatTemplateError(str(failure)) from None


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not messages:
        raise UsageError("messages must be a non-empty list of objects with a role and a content")
    chat = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{index}] must be an object, not {type(message).__name__}")
        # Interfaces send null for what is absent; templates ask whether the key is there.
        plain = {key: _plain(value) for key, value in message.items() if value is not None}
        reasoning = next((plain[name] for name in _REASONING if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
        give_way()
    return chat


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone: nothing with methods of its own reaches a template."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise UsageError(f"a chat can hold JSON values only, not {type(value).__name__}")


def _open_end(message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _OPEN_END
        return
    for block in reversed(content or []):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            block["text"] += _OPEN_END
            return
    raise UsageError("continue_final_message: the last message has no text to continue")


def _cut_at_open_end(text: str) -> str:
    end = text.rfind(_OPEN_END.rstrip())
    if end < 0:
        raise ChatTemplateError(
            "continue_final_message: the chat template does not print the last message"
        )
    # A template that strips the message has taken the mark's own space: strip with it.
    return text[:end] if text.startswith(_OPEN_END, end) else text[:end].rstrip()
