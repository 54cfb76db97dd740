"""Files that verbs read beside models, changed; see ``fuzz_files``."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np

from mutations import change, change_bytes, change_metadata, write_changed
from strata.cli.verbs import root
from strata.engine.hot_experts import hot_file, recall
from strata.errors import UsageError
from strata.formats.errors import WriteError
from strata.formats.gguf_writer import TensorSource
from strata.quant import by_name
from strata.quantizer.importance import read_importance
from strata.quantizer.lab import read_recipe
from strata.report.quality.kept_logits import MAGIC, peek
from strata.report.quality.tasks import read_questions
from strata.server.batch import RULES, _request, requests_in
from strata.server.fleet.entries import Entries, read_entries

CALL = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
LINES: dict[str, list[dict[str, Any]]] = {
    "questions": [
        {"query": "Is it?", "choices": ["yes", "no"], "gold": 1},
        {"arguments": [["Is it?", " yes"], ["Is it?", " no"]], "target": 0},
        {"arguments": {"gen_args_0": {"arg_0": "Is?", "arg_1": " a"}}, "target": "0"},
        {
            "question": "Is it?",
            "choices": {"label": ["A", "B"], "text": ["yes", "no"]},
            "answerKey": "B",
        },
    ],
    "requests": [
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CALL},
        {"custom_id": "2", "method": "POST", "url": "/v1/embeddings", "body": {"input": "hi"}},
    ],
    "logits": [
        {
            "version": 1,
            "text": "a",
            "model": "b",
            "windows": 1,
            "context": 8,
            "first": 4,
            "vocab_size": 16,
        }
    ],
    "names": [
        {
            "name": "a",
            "model": "b",
            "aliases": ["c"],
            "context": 64,
            "keep_alive_s": 1.0,
            "system": "d",
            "sampling": {"temperature": 0.5, "stop": ["e"]},
            "origin": "created",
        }
    ],
}
EXPERTS = {"experts": [4, 4], "scores": [[0, 1.5], [5, 2.0]]}
RECIPE = b"blk.0.ffn_up.weight Q4_K # as before\noutput.weight q6_k 12345 0.5\n"
TABLES: dict[str, dict[str, Any]] = {
    "models": {
        "models": {
            "a": {
                "model": "b",
                "aliases": ["c"],
                "context": 64,
                "parallel": 2,
                "keep_alive": "5m",
                "system": "d",
                "template": "{{ messages }}",
                "sampling": {"temperature": 0.5, "stop": ["e"], "num_predict": 3},
            }
        }
    },
    "settings": {"threads": 2, "run": {"max_tokens": 5, "memory": "1GB", "stop": ["a"]}},
}


def attack_input(target: Path, rng: random.Random) -> Callable[[], object]:
    """A file that a verb reads beside the model, changed, and who reads it."""
    kind = rng.choice(("matrix", "old matrix", "experts", "recipe", *LINES, *TABLES))
    path = target / "input"
    if kind == "matrix":
        shapes = rng.choice(((2, 8), (2, 8), (16,), (1,), (0, 8), (2, 0)))
        of = {"in_sum2": shapes, "counts": rng.choice(((2, 1), (2, 1), (1, 1), (3, 1), (0, 1)))}
        sources = []
        for name, shape in of.items():
            raw = np.ones(shape, np.float32)
            source = TensorSource.of("", shape, by_name("F32"), raw)
            sources.append((f"blk.0.ffn_up.weight.{name}", source, raw.view(np.uint8).reshape(-1)))
        metadata: dict[str, Any] = {
            "general.type": "imatrix",
            "imatrix.datasets": ["a"],
            "imatrix.chunk_count": 1,
            "imatrix.chunk_size": 512,
        }
        change_metadata(metadata, "", rng)
        with suppress(WriteError, UnicodeEncodeError):
            write_changed(path, metadata, sources, rng)
        return lambda: path.exists() and read_importance(path)
    if kind == "old matrix":
        name = b"blk.0.ffn_up.weight"
        old = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii8f", 3, 8, *range(8))
        path.write_bytes(change_bytes(old + struct.pack("<ii", 1, 1) + b"a", rng))
        return lambda: read_importance(path)
    if kind == "experts":
        value = copy.deepcopy(EXPERTS)
        change(value, rng)
        raw = json.dumps(value).encode()
        raw = change_bytes(raw, rng) if rng.random() < 0.3 else raw
        path.write_bytes(raw)
        return lambda: _recalled(path, raw)
    if kind == "recipe":
        path.write_bytes(change_bytes(RECIPE, rng).replace(b"Q", rng.choice((b"Q", b"\xff"))))
        return lambda: read_recipe(path)
    if kind in TABLES:
        table = copy.deepcopy(TABLES[kind])
        for _ in range(rng.choice((1, 1, 2, 4))):
            change(table, rng)
        raw = "\n".join(f"{toml_key(k)} = {toml(v)}" for k, v in table.items()).encode()
        path.write_bytes(change_bytes(raw, rng) if rng.random() < 0.2 else raw)
        return (lambda: read_entries(path)) if kind == "models" else (lambda: read_settings(path))
    lines = copy.deepcopy(rng.choices(LINES[kind], k=3))
    for line in lines:
        change(line, rng)
    joined = "\n".join(json.dumps(line) for line in lines).encode()
    joined = change_bytes(joined, rng) if rng.random() < 0.2 else joined
    if kind == "logits":
        said = json.dumps(lines[0]).encode()
        path.write_bytes(change_bytes(MAGIC + len(said).to_bytes(8, "little") + said, rng))
        return lambda: peek(path)
    if kind == "names":
        path.write_bytes(b'{"models": [' + joined.replace(b"\n", b",") + b"]}")
        return lambda: Entries([], path)
    path.write_bytes(joined)
    if kind == "questions":
        return lambda: read_questions(path)
    asked = list(requests_in(BytesIO(joined)))
    return lambda: [
        _named(lambda line=line: _request(line, "it", RULES.endpoints, {})) for line in asked
    ]


def _recalled(model: Path, raw: bytes) -> None:
    """Experts that are said to have been used most."""
    os.environ["STRATA_HOME"] = str(model.parent / "home")
    kept = hot_file(model)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(raw)
    recall(model, [4, 4])


def _asked(line: bytes) -> None:
    _request(line, "it", RULES.endpoints, {})


def toml(value: Any) -> str:
    """A value as TOML has it, where it has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_key(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def toml_key(key: str) -> str:
    """Of a table."""
    return json.dumps(key)


def read_settings(path: Path) -> None:
    """The options of a command, as a file of settings has them."""
    os.environ["STRATA_CONFIG"] = str(path)
    command = root.get_command(click.Context(root, resilient_parsing=True), "run")
    assert command is not None
    try:
        command.make_context("run", ["smollm2", "hi"])
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None


def _named(read: Callable[[], object]) -> None:
    """Lines of requests fail each alone."""
    with suppress(UsageError):
        read()
