"""Chat templates: messages to the prompt that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strata.errors import UsageError
from strata.text.errors import ChatTemplateError

if TYPE_CHECKING:
    import jinja2

# Stands for the end of the message that is to be continued, while the template runs.
_OPEN_END = "STRATA_OPEN_END_OF_FINAL_MESSAGE "
# Names under which interfaces pass what a model thought; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A jinja2 template with the semantics of transformers, in a sandbox with bounds.

    It is compiled at its first use. `special_tokens` (`bos_token`, `eos_token`, ...) are variables
    of the template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._compiled: jinja2.Template | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
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
        UsageError for malformed messages.
        """
        chat = _plain_messages(messages)
        if continue_final_message:
            if add_generation_prompt:
                raise UsageError("continue_final_message excludes add_generation_prompt")
            _open_end(chat[-1])
        variables = {
            **self._special_tokens,
            **{name: _plain(value) for name, value in kwargs.items()},
            "messages": chat,
            "tools": None if tools is None else _plain(list(tools)),
            "documents": None if documents is None else _plain(list(documents)),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._run(variables)
        return _cut_at_open_end(text) if continue_final_message else text

    def _run(self, variables: Mapping[str, Any]) -> str:
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        from strata.text.bounds import MAX_CHARACTERS, start_counting

        parts: list[str] = []
        size = 0
        try:
            start_counting()
            for part in self._template().generate(**variables):
                size += len(part)
                if size > MAX_CHARACTERS:
                    raise ChatTemplateError(
                        f"the chat template wrote more than {MAX_CHARACTERS} characters"
                    )
                parts.append(part)
        except TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template does not parse: {error.message} (line {error.lineno})"
            ) from error
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template failed: {error.message}") from error
        except RecursionError as error:
            raise ChatTemplateError("the chat template calls itself too deeply") from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            TypeError,
            ValueError,
        ) as error:
            # Whatever a template trips over in the messages it was given.
            raise ChatTemplateError(
                f"the chat template failed: {type(error).__name__}: {error}"
            ) from error
        return "".join(parts)

    def _template(self) -> jinja2.Template:
        if self._compiled is None:
            from strata.text.sandbox import ChatEnvironment

            self._compiled = ChatEnvironment().from_string(self.source)
        return self._compiled


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
