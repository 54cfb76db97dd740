"""Chat templates by the names that llama.cpp has for them (``--chat-template chatml``), for files
that come without one. What a tokenizer puts before every prompt is no part of them there."""

from __future__ import annotations

_MARKED = (
    "{{% for m in messages %}}{0}{{{{ m.role }}}}{1}{{{{ m.content{3} }}}}{2}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{0}assistant{1}{{% endif %}}"
)


def _marked(before: str, between: str, after: str, *, trimmed: bool = False) -> str:
    """Of families that write every message as its role and its content between marks."""
    return _MARKED.format(before, between, after, " | trim" if trimmed else "")


def _mistral(lead: str, trail: str, content: str = "m.content") -> str:
    return (
        "{% set turn = namespace(open=false) %}{% for m in messages %}{% if not turn.open %}"
        f"{{{{ '{lead}[INST]{trail}' }}}}{{% set turn.open = true %}}{{% endif %}}"
        "{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
        f"{{% elif m.role == 'user' %}}{{{{ m.content + '{lead}[/INST]' }}}}"
        f"{{% else %}}{{{{ '{trail}' + {content} + '</s>' }}}}{{% set turn.open = false %}}"
        "{% endif %}{% endfor %}"
    )


def _mistral_v7(trail: str) -> str:
    return (
        "{% for m in messages %}{% if m.role == 'system' %}"
        f"{{{{ '[SYSTEM_PROMPT]{trail}' + m.content + '[/SYSTEM_PROMPT]' }}}}"
        f"{{% elif m.role == 'user' %}}{{{{ '[INST]{trail}' + m.content + '[/INST]' }}}}"
        f"{{% else %}}{{{{ '{trail}' + m.content + '</s>' }}}}{{% endif %}}{{% endfor %}}"
    )


_LLAMA2 = (
    "{{ '[INST] ' }}{% set turn = namespace(open=true) %}{% for m in messages %}"
    "{% if not turn.open %}{{ '[INST] ' }}{% set turn.open = true %}{% endif %}"
    "{% if m.role == 'system' %}{{ '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + '</s>' }}{% set turn.open = false %}{% endif %}{% endfor %}"
)

_GEMMA = (
    "{% set first = namespace(said='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set first.said = first.said + (m.content | trim) %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{% if first.said and m.role != 'assistant' %}{{ first.said + '\\n\\n' }}"
    "{% set first.said = '' %}{% endif %}{{ (m.content | trim) + '<end_of_turn>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

_COMMAND_R = (
    "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + "
    "{'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>'}.get(m.role, '<|CHATBOT_TOKEN|>') + "
    "(m.content | trim) + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

_VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + '</s>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

TEMPLATES = {
    "chatml": _marked("<|im_start|>", "\n", "<|im_end|>\n"),
    "command-r": _COMMAND_R,
    "falcon3": _marked("<|", "|>\n", "\n"),
    "gemma": _GEMMA,
    "llama2": _LLAMA2,
    "llama3": _marked("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", trimmed=True),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", "(m.content | trim)"),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _mistral_v7(" "),
    "mistral-v7-tekken": _mistral_v7(""),
    "phi3": _marked("<|", "|>\n", "<|end|>\n"),
    "phi4": _marked("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "vicuna": _VICUNA,
    "zephyr": _marked("<|", "|>\n", "<|endoftext|>\n"),
}
"""Jinja by name. ``llama2`` has a system message, which llama.cpp calls ``llama2-sys``."""


def template_of(given: str, *, add_bos: bool) -> str:
    """``given``, or the template that has this name, after the token that begins every prompt where
    the tokenizer has one (``add_bos``)."""
    known = TEMPLATES.get(given)
    if known is None:
        return given
    return "{{ bos_token }}" + known if add_bos else known
