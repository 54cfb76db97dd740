"""Chat templates of the shapes in which families print calls, written for these tests.

Each is for one call with a string ``b``, a number ``a`` and nothing else; what comes before and
after is short.
"""

from __future__ import annotations

_BODY = """\
{%- for tool in tools or [] %}<tool>{{ tool.function.name }}</tool>{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- begin_answer }}
{%- if message.reasoning_content %}{{ THOUGHTS }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{%- set name, arguments = call.function.name, call.function.arguments %}
{{- CALL }}
{%- endfor %}{{ end }}
{%- else %}<{{ message.role }}>{{ message.content }}{{ end }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ begin_answer }}{% endif %}
"""

_THINK = "'<think>' ~ message.reasoning_content ~ '</think>'"
_ON = "message.reasoning_content ~ '</think>'"
"""Where the beginning of an answer has opened them."""
_JSON = "arguments | tojson"

# How thoughts are printed, how calls are, what an answer begins with, and what ends a message.
_SHAPES: dict[str, tuple[str, str, str, str]] = {
    "Hermes": (
        _THINK,
        "'<tool_call>\\n' ~ {'name': name, 'arguments': arguments} | tojson ~ '\\n</tool_call>'",
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "QwenCoder": (
        _ON,
        "'<tool_call>\\n<function=' ~ name ~ '>\\n<parameter=a>\\n' ~ arguments.a ~ "
        "'\\n</parameter>\\n<parameter=b>\\n' ~ arguments.b ~ '\\n</parameter>\\n</function>\\n"
        "</tool_call>'",
        "<|im_start|>assistant\n<think>\n",
        "<|im_end|>",
    ),
    "Glm": (
        _THINK,
        "'<tool_call>' ~ name ~ '\\n<arg_key>a</arg_key>\\n<arg_value>' ~ arguments.a ~ "
        "'</arg_value>\\n<arg_key>b</arg_key>\\n<arg_value>' ~ arguments.b ~ '</arg_value>\\n"
        "</tool_call>'",
        "<|assistant|>",
        "",
    ),
    "DeepSeek": (
        _THINK,
        "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' ~ name ~ '<｜tool▁sep｜>' ~ "
        f"{_JSON} ~ '<｜tool▁call▁end｜><｜tool▁calls▁end｜>'",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "Kimi": (
        _THINK,
        "'<|tool_calls_section_begin|><|tool_call_begin|>functions.' ~ name ~ ':0"
        f"<|tool_call_argument_begin|>' ~ {_JSON} ~ '<|tool_call_end|><|tool_calls_section_end|>'",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_end|>",
    ),
    "Invoke": (
        _ON,
        "'<minimax:tool_call>\\n<invoke name=\"' ~ name ~ '\">\\n<parameter name=\"a\">' ~ "
        "arguments.a ~ '</parameter>\\n<parameter name=\"b\">' ~ arguments.b ~ '</parameter>\\n"
        "</invoke>\\n</minimax:tool_call>'",
        "]~b]ai\n<think>\n",
        "[e~[",
    ),
    "Gemma4": (
        "'<|channel>thought\\n' ~ message.reasoning_content ~ '\\n<channel|>'",
        "'<|tool_call>call:' ~ name ~ '{a:' ~ arguments.a ~ ',b:<|\"|>' ~ arguments.b ~ "
        "'<|\"|>}<tool_call|>'",
        "<|turn>model\n",
        "<turn|>",
    ),
    "Lfm2": (
        _THINK,
        "'<|tool_call_start|>[' ~ name ~ '(a=' ~ arguments.a ~ ', b=' ~ arguments.b | tojson ~ "
        "')]<|tool_call_end|>'",
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "Mistral": (
        "'[THINK]' ~ message.reasoning_content ~ '[/THINK]'",
        f"'[TOOL_CALLS]' ~ name ~ '[ARGS]' ~ {_JSON}",
        "[/INST]",
        "</s>",
    ),
    "Harmony": (
        "'<|channel|>analysis<|message|>' ~ message.reasoning_content ~ "
        "'<|end|><|start|>assistant'",
        "'<|channel|>commentary to=functions.' ~ name ~ ' <|constrain|>json<|message|>' ~ "
        f"{_JSON} ~ '<|call|>'",
        "<|start|>assistant",
        "",
    ),
    "Llama3": (
        "''",
        "'{\"name\": \"' ~ name ~ '\", \"parameters\": ' ~ arguments | tojson ~ '}'",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "",
    ),
}


def _template(thoughts: str, call: str, begin: str, end: str) -> str:
    opened = "{%- set begin_answer = BEGIN %}{% set end = END %}"
    whole = (opened + _BODY).replace("BEGIN", repr(begin)).replace("END", repr(end))
    return whole.replace("THOUGHTS", thoughts).replace("CALL", f"({call})")


TEMPLATES = {name: _template(*shape) for name, shape in _SHAPES.items()}
