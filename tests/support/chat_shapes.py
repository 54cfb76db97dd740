"""Chat templates of the shapes that models ship with, written for these tests, and chats."""

from __future__ import annotations

from typing import Any

CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = '1 Jan 2025' %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{% if tools is not none %}
You may call:
    {% for tool in tools %}
{{ tool | tojson(indent=4) }}

    {% endfor %}
{% endif %}
{{ system }}<|eot_id|>
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('one call at a time') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- {'name': call.name, 'parameters': call.arguments} | tojson }}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INSTRUCTIONS = """\
{%- set ns = namespace(index=0, system='') -%}
{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'system' %}
{%- set ns.system = message['content'] ~ '\\n\\n' %}
{%- continue %}
{%- endif %}
{%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
{{- raise_exception('roles must alternate: ' ~ message.role) }}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' ~ (ns.system if loop.last else '') ~ message['content'] ~ ' [/INST]' }}
{%- else %}
{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}
{%- endif %}
{%- set ns.index = ns.index + 1 %}
{%- endfor %}
"""

MACROS = """\
{%- macro block(role, text) -%}
[{{ role | upper }}] {{ text }}
{%- endmacro -%}
{%- for message in messages if message.thinking %}({{ message.reasoning_content }}){% endfor %}
{%- for message in messages recursive %}
{{ block(message.role, message.content if message.content is string else
    message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ')) }}
{%- if loop.index0 > 2 %}{% break %}{% endif %}
{%- endfor %}
{%- for document in documents or [] %}
{{ loop.index }}/{{ loop.length }}: {{ document['title'] }} {{ document.items() | list }}
{%- endfor %}
{{ [1, 2.5, true, none, 'é<&>'] | tojson }}
{{ dict(a=1) | tojson(separators=(',', ':'), sort_keys=true) }} {{ extra | default('-') }}
{{ ('%s and %05.1f' | format('x', 3.14159)) }} {{ '%d%%' % 7 }} {{ 2 ** 5 }} {{ 'ab' * 3 }}
"""

NAMES = ("chatml", "headers", "instructions", "macros")
TEMPLATES = dict(zip(NAMES, (CHATML, HEADERS, INSTRUCTIONS, MACROS), strict=True))

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city — now, <b>in full</b>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
DOCUMENTS = [{"title": "One", "text": "first"}, {"title": "Zwei", "text": "zweite"}]

CHATS: dict[str, list[dict[str, Any]]] = {
    "short": [{"role": "user", "content": " Hello \n"}],
    "turns": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "Who are you? 你好 <|im_end|>"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Really?"},
    ],
    "thoughts": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", "reasoning": "Two and two."},
        {"role": "user", "content": "Sure?"},
    ],
    "calls": [
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
            ],
        },
        {"role": "tool", "content": {"sky": "grey", "t": [1, 2.5]}},
    ],
}
