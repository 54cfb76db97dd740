"""A request to every endpoint, which uses all fields in the form of its protocol."""

from __future__ import annotations

from typing import Any

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SCHEMAS: list[Any] = [
    {"type": "integer", "multipleOf": 7},
    {"type": "string", "pattern": "(a+)+$", "maxLength": 3},
    {"$ref": "#"},
    {"$ref": "https://example.org/x"},
    {"anyOf": [SCHEMA] * 20},
    {"enum": [1, "a", None]},
    {"type": "array", "items": SCHEMA, "minItems": 2**31},
    {"properties": {"\ud800": {}}},
    {"const": "\x1b[2J"},
    {"type": ["string", "null"], "format": "date-time"},
    True,
    [],
]
FUNCTION = {"name": "look", "description": "looks", "parameters": SCHEMA}
SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.01,
    "seed": 3,
    "stop": ["zz"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
}
CALLS = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
OPENAI = {
    **SAMPLING,
    "n": 1,
    "stream": False,
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": 1.5},
    "max_tokens": 3,
    "repetition_penalty": 1.1,
    "ignore_eos": False,
}
BEAMED = ("/v1/chat/completions", "/v1/completions")
BEAMS = {"use_beam_search": True, "beam_width": 3, "length_penalty": 0.5}
POSTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **OPENAI,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
            {"role": "user", "content": "Hi"},
        ],
        "max_completion_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto",
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
        "truncation": "auto",
        "grammar": 'root ::= "a"',
        "regex": "a+",
    },
    "/v1/completions": {
        **OPENAI,
        "prompt": ["Hi", "there"],
        "logprobs": 2,
        "echo": False,
        "suffix": None,
        "best_of": 1,
        "grammar": 'root ::= "a"',
    },
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "so", "signature": ""},
                    {"type": "tool_use", "id": "1", "name": "look", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "done"}],
            },
        ],
        "system": [{"type": "text", "text": "Be short."}],
        "tools": [{"name": "look", "description": "looks", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto", "name": "look"},
        "thinking": {"type": "disabled"},
        "max_tokens": 3,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "stop_sequences": ["zz"],
        "stream": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
    },
    "/api/chat": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "",
                "thinking": "so",
                "tool_calls": [{"function": {"name": "look", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "done", "tool_name": "look"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "stream": False,
        "options": {**SAMPLING, "num_predict": 3, "repeat_penalty": 1.1},
        "format": SCHEMA,
        "think": False,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/api/generate": {
        "prompt": "Hi",
        "system": "Be short.",
        "suffix": None,
        "template": None,
        "raw": False,
        "images": [],
        "context": [1, 2],
        "stream": False,
        "options": {**SAMPLING, "num_predict": 3, "repeat_penalty": 1.1},
        "format": "json",
        "think": False,
    },
    "/api/show": {"name": "x"},
    "/tokenize": {"content": "Hi there", "add_special": True, "parse_special": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/tools": {"tool": "echo_say", "params": {"text": "hi", "numbers": [1, 2], "inner": {"a": 1}}},
}
POSTS["/v1/messages/count_tokens"] = {
    key: POSTS["/v1/messages"][key] for key in ("messages", "system", "tools", "tool_choice")
}
POSTS["/v1/chat/completions/input_tokens"] = POSTS["/v1/chat/completions"]
POSTS["/apply-template"] = POSTS["/v1/chat/completions"]
POSTS["/predict"] = {
    "instances": [
        {"@requestFormat": "chatCompletions", **POSTS["/v1/chat/completions"]},
        {"@requestFormat": "/tokenize", **POSTS["/tokenize"]},
    ]
}
POSTS["/v1/responses"] = {
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ],
    "instructions": "Be short.",
    "previous_response_id": None,
    "store": True,
    "max_output_tokens": 3,
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": "auto",
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "truncation": "auto",
    "top_logprobs": 2,
    "metadata": {"a": "b"},
    "stream": False,
    "temperature": 0.5,
    "top_p": 0.9,
}
POSTS["/v1/responses/input_tokens"] = POSTS["/v1/responses"]
POSTS["/completion"] = {
    **SAMPLING,
    "prompt": ["Hi", [1, "there", 2], {"prompt_string": "Hi"}],
    "n_predict": 3,
    "n_probs": 2,
    "logit_bias": [[5, 1.5], ["Hi", False]],
    "return_tokens": True,
    "response_fields": ["content", "timings/predicted_n"],
    "n_cmpl": 1,
    "json_schema": SCHEMA,
    "grammar": 'root ::= "a"',
    "cache_prompt": True,
    "id_slot": 0,
    "stream": False,
}
POSTS["/infill"] = {
    **POSTS["/completion"],
    "prompt": "Hi",
    "input_prefix": "def f(",
    "input_suffix": "return",
    "input_extra": [{"filename": "a.py", "text": "x"}],
}
OF_EMBEDDING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {
        "input": ["hi there", [5, 6], {"prompt_string": "hi"}, [5, "hi"]],
        "encoding_format": "base64",
        "dimensions": 8,
        "embd_normalize": 2,
    },
    "/api/embed": {"input": ["hi there", "hi"], "truncate": True, "dimensions": 8},
    "/api/embeddings": {"prompt": "hi there"},
}
OF_RANKING: dict[str, dict[str, Any]] = {
    "/v1/rerank": {
        "query": "hi there",
        "documents": ["hi", {"text": "there"}],
        "texts": None,
        "top_n": 1,
        "return_documents": True,
        "return_text": False,
    },
}
POSTS |= OF_EMBEDDING | OF_RANKING
