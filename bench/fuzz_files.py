"""Attacks on the files beside the weights: each ends in a named error or in an answer.

A tiny model is written as a Hugging Face directory and as a GGUF file. Every attack changes what
one of its files says, mostly a value among values of the right form, sometimes its bytes: metadata
of the GGUF file with its vocabulary, config.json, tokenizer.json, tokenizer_config.json,
special_tokens_map.json, generation_config.json, chat_template.jinja, the index of shards. The model
is then opened, built, asked for ids, text, a chat's prompt and some tokens, in a process of its own
that may take 10 seconds and 300 MB.

Every eighth attack changes what verbs read beside models: importance matrices of both forms, lines
of questions with several answers and of requests, kept logits, models of a server and names that
were made over HTTP, settings. Every fourth changes the metadata of
a tiny GGUF file of any architecture that has one (its vocabulary it leaves alone), and some ids go
through the model.

`python bench/fuzz_files.py --attacks 2000 --json out.json`; `--only N` makes one attack again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors import safe_open

from attacked import Ending, run_apart
from machine import describe
from strata.cli.verbs import root
from strata.decode import SamplingParams
from strata.errors import UsageError
from strata.formats import open_model
from strata.formats.errors import WriteError
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.llm import LLM
from strata.quant import by_name
from strata.quantizer.importance import read_importance
from strata.report.quality.kept_logits import MAGIC, peek
from strata.report.quality.tasks import read_questions
from strata.server.batch import RULES, _request, requests_in
from strata.server.fleet.entries import Entries, read_entries

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import make_tiny_directories
import make_tiny_hybrids
import make_tiny_models
import make_tiny_variants
from strata.backends.cpu.backend import CpuBackend
from support import foreign_checkpoints
from support.forward import Forward

FAMILIES = ("llama", "phi3_long", "gemma3", "gpt2", "qwen2")
INDEX = "model.safetensors.index.json"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEXTS = ("Hello there, aaa 123", "\u00e9\u4e2d\U0001f600 <|end|> \x00\ud800", " \n\n\t ")
# A file of so many bytes has no blocks: whoever reads it whole has no memory left.
SPARSE = 50_000_000_000

NUMBERS = [0, 1, -1, 2, 3, 7, 64, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64]
NUMBERS += [10**40, 0.0, 0.5, -0.5, 1e-300, 1e-6, 1e6, 1e30, 1e308, 1.0000001]
STRINGS = ["", "a", "\x00", "\x1b[2J", "\ud800", "x" * 70_000, "default", "yarn", "longrope"]
STRINGS += ["llama3", "linear", "dynamic", "<|end|>", "\u2581", "\u00e9" * 300, "../x", "true"]
RAW = ["NaN", "Infinity", "1e999", "-0", "1" * 5000, "[" * 3000, '{"a":1,"a":2}', '"\\ud800"']
STEPS: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "xy"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
    {"type": "Prepend", "prepend": "\u2581"},
    {"type": "Prepend", "prepend": "x" * 10_000},
    {"type": "NFKD"},
    {"type": "ByteLevel"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAAAA=="},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
CUTS: list[dict[str, Any]] = [
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 1},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "Digits", "individual_digits": True},
    {"type": "UnicodeScripts"},
]
PROCESSORS: list[dict[str, Any]] = [
    {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 2**32 - 1]},
    {"type": "RobertaProcessing", "sep": ["a", 0], "cls": ["b", 1]},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 500,
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 2**31], "tokens": ["a", "b"]}},
    },
]
MODELS: list[dict[str, Any]] = [
    {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}},
    {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}},
    {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", -2.0]]},
    {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1e308], ["b", 1e308]]},
    {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]},
    {"type": "BPE", "vocab": {}, "merges": []},
    {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": ["a b"]},
    {"type": "BPE", "vocab": {"a" * 100_000: 0}, "merges": []},
]
ROPES: list[dict[str, Any]] = [
    {"rope_type": kind, "rope_theta": theta, "factor": factor, **more}
    for kind in ("yarn", "longrope", "llama3", "linear")
    for theta in (1.0, 1.0000001, 10000.0)
    for factor in (0, 1, 4.0, 1e6)
    for more in (
        {"original_max_position_embeddings": 0, "beta_fast": 0},
        {"original_max_position_embeddings": 1, "low_freq_factor": 4, "high_freq_factor": 4},
        {"beta_slow": 0, "long_factor": [0] * 8, "short_factor": [1e-6] * 8},
        {"mscale": 1e6, "mscale_all_dim": 1e-6, "attention_factor": 0},
    )
]


FOREIGN = ("gptq", "awq", "w4a16", "nf4", "int8", "hqq")
"""Checkpoints that others quantised."""


class Seeds:
    """The models that are attacked: metadata, weights and side files of each family."""

    def __init__(self, directory: Path) -> None:
        self.directories: dict[str, Path] = {}
        self.gguf: dict[str, tuple[dict[str, Any], list[tuple[str, Any, Any]]]] = {}
        for name in FAMILIES:
            golden = make_tiny_models.golden(name)
            path = make_tiny_models.write_directory(directory / name, golden)
            self.directories[name] = path
            _add_side_files(path)
            if golden.architecture is None:
                continue
            file = make_tiny_models.write_gguf(directory / f"{name}.gguf", golden)
            with open_model(file) as opened:
                tensors = [(i.name, i, opened.read(i.name)) for i in opened.tensors.values()]
                metadata = {k: _plain(v) for k, v in opened.metadata.items()}
            self.gguf[name] = metadata, tensors
        for scheme in FOREIGN:
            path, _, _ = foreign_checkpoints.write(directory / scheme, scheme)
            self.directories[scheme] = path
            _add_side_files(path)


def _plain(value: Any) -> Any:
    return list(value) if not isinstance(value, (str, int, float, np.ndarray)) else value


def _add_side_files(path: Path) -> None:
    tokens = json.loads((path / "tokenizer.json").read_text())["added_tokens"]
    end = {**tokens[0]}
    number = end.pop("id")
    with safe_open(path / "model.safetensors", "np") as opened:
        names = list(opened.keys())
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(number): end},
            "eos_token": end["content"],
            "bos_token": {"content": end["content"], "special": True},
            "add_bos_token": False,
            "chat_template": TEMPLATE,
        },
        "special_tokens_map.json": {"eos_token": end["content"]},
        "generation_config.json": {"eos_token_id": [number], "temperature": 0.7},
        INDEX: {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")},
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    (path / "chat_template.jinja").write_text(TEMPLATE)


def nasty(rng: random.Random) -> Any:
    """A value that a file may hold and no model has."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(STRINGS)
    flat = [None, True, False, [], {}, [[]], [None], [1, "a"], {"": {}}, {"content": None}]
    if kind == 5:
        return rng.choice(flat)
    if kind == 6:
        return [rng.choice(NUMBERS + STRINGS) for _ in range(rng.choice((1, 2, 8, 1000)))]
    deep: Any = 0
    for _ in range(rng.choice((10, 70, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        now = left.pop()
        keys = list(now) if isinstance(now, dict) else range(len(now))
        found += [(now, key) for key in keys]
        left += [now[key] for key in keys if isinstance(now[key], (dict, list))]
    return found


def change(value: dict[str, Any], rng: random.Random) -> None:
    """One change of a JSON value, in place; the outer keys as often as all others."""
    places = [(value, key) for key in value] if rng.random() < 0.5 else _places(value)
    if not places:
        return
    where, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del where[key]
    elif kind == 1 and isinstance(where, dict):
        where[rng.choice(STRINGS)] = where[key]
    elif kind == 2:
        other, there = rng.choice(places)
        try:
            where[key] = copy.deepcopy(other[there])
        except (KeyError, IndexError, RecursionError):
            where[key] = None
    else:
        where[key] = nasty(rng)


def change_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A bit, a cut, a copy or a word."""
    out = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.randrange(1, 60)]
        elif kind == 2:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif kind == 3:
            out[at:at] = rng.choice(RAW).encode("utf-8", "replace")
        else:
            del out[at:]
    return bytes(out)


def _several(steps: list[dict[str, Any]], name: str, rng: random.Random) -> dict[str, Any]:
    return {"type": "Sequence", name: rng.choices(steps, k=rng.choice((1, 2, 3, 12, 40)))}


def change_tokenizer(value: dict[str, Any], rng: random.Random) -> None:
    """A part of the pipeline that harms."""
    kind = rng.randrange(5)
    if kind == 0:
        value["normalizer"] = _several(STEPS, "normalizers", rng)
    elif kind == 1:
        value["pre_tokenizer"] = _several(CUTS, "pretokenizers", rng)
    elif kind == 2:
        value["post_processor"] = rng.choice(PROCESSORS)
    elif kind == 3:
        value["model"] = copy.deepcopy(rng.choice(MODELS))
    else:
        change(value["model"], rng)


def attack_directory(seeds: Seeds, target: Path, rng: random.Random) -> Path:
    """A directory one of whose files is changed."""
    path = target / "model"
    shutil.copytree(rng.choice(list(seeds.directories.values())), path)
    names = sorted(p.name for p in path.iterdir() if p.suffix in (".json", ".jinja"))
    file = path / rng.choice([*names, "config.json", "tokenizer.json", "tokenizer.json"])
    if file.name == INDEX:
        (path / "model.safetensors").rename(path / "model-1.safetensors")
    how = rng.random()
    if how < 0.04:
        with file.open("wb") as opened:
            os.truncate(opened.fileno(), SPARSE)
    elif how < 0.06:
        file.unlink()
        rng.choice((os.mkfifo, os.mkdir))(file)
    elif how < 0.2 or file.suffix == ".jinja":
        file.write_bytes(change_bytes(file.read_bytes(), rng))
    else:
        value = json.loads(file.read_text())
        if file.name == "tokenizer.json" and rng.random() < 0.7:
            change_tokenizer(value, rng)
        elif file.name == "config.json" and rng.random() < 0.3:
            value["rope_parameters"] = rng.choice(ROPES)
        for _ in range(rng.choice((0, 1, 1, 3)) if rng.random() < 0.9 else 1):
            change(value, rng)
        file.write_text(json.dumps(value), errors="surrogatepass")
    return path


def attack_gguf(seeds: Seeds, target: Path, rng: random.Random) -> Path:
    """A GGUF file with changed metadata."""
    metadata, tensors = seeds.gguf[rng.choice(list(seeds.gguf))]
    metadata = dict(metadata)
    change_metadata(metadata, "", rng)
    if rng.random() < 0.2:
        metadata["tokenizer.ggml.model"] = rng.choice(["llama", "t5", "gemma4", "gpt2", "bert"])
    path = target / "model.gguf"
    return _write(path, metadata, tensors, rng)


def attack_architecture(target: Path, rng: random.Random) -> Path:
    """A GGUF file of any architecture, or a directory of a family, with changed metadata."""
    if rng.random() < 0.4:
        name = rng.choice(list(make_tiny_directories.CONFIGS))
        path = make_tiny_directories.write(target / "model", name)
        stated = copy.deepcopy(make_tiny_directories.config(name))
        change_metadata(stated, "", rng)
        (path / "config.json").write_text(json.dumps(stated), errors="surrogatepass")
        return path
    tiny = rng.choice((make_tiny_variants, make_tiny_variants, make_tiny_hybrids))
    name = rng.choice(tiny.names())
    with open_model(tiny.write(target / "whole.gguf", name)) as opened:
        tensors = [(i.name, i, opened.read(i.name)) for i in opened.tensors.values()]
        metadata = {k: _plain(v) for k, v in opened.metadata.items()}
    change_metadata(metadata, f"{name}.", rng)
    return _write(target / "model.gguf", metadata, tensors, rng)


def change_metadata(metadata: dict[str, Any], prefix: str, rng: random.Random) -> None:
    """Changes of some of the keys that begin with ``prefix``, in place."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice([key for key in metadata if key.startswith(prefix)])
        kind = rng.randrange(8)
        value = metadata[key]
        if kind == 0 and len(metadata) > 1:
            del metadata[key]
        elif kind == 1:
            metadata[key] = [value, value] if isinstance(value, (str, int, float)) else []
        elif kind == 2 and isinstance(value, list) and value:
            value = list(value)
            value[rng.randrange(len(value))] = rng.choice(STRINGS[:8] + STRINGS[9:])
            metadata[key] = value
        elif kind == 3 and isinstance(value, np.ndarray):
            metadata[key] = np.resize(value, rng.choice((0, 1, len(value) // 2, len(value) * 3)))
        elif kind == 4:
            metadata[key] = rng.choice([float("nan"), float("inf"), -float("inf"), 1e-300, -1.0])
        elif kind == 5:
            metadata[key] = rng.choice([n for n in NUMBERS if isinstance(n, float) or n < 2**64])
        elif kind == 6:
            metadata[key] = rng.choice(["\udcff\udcfe", *STRINGS[:4], *STRINGS[5:]])
        else:
            metadata[key] = rng.choice([True, False, [True] * 9, ["a"] * 300, [1.0] * 300, [-1]])


def _write(
    path: Path, metadata: dict[str, Any], tensors: list[tuple[str, Any, Any]], rng: random.Random
) -> Path:
    sources = [TensorSource(n, i.shape, i.type, _once(raw)) for n, i, raw in tensors]
    try:
        write_gguf(path, metadata, sources)
    except WriteError:  # changes of one key that together are nothing that GGUF can hold
        metadata = {k: v for k, v in metadata.items() if not isinstance(v, list)}
        write_gguf(path, metadata, sources)
    if rng.random() < 0.15:
        # Within the header: a byte of a weight only makes another model.
        raw = path.read_bytes()
        size = len(raw) - sum(len(r) for _, _, r in tensors)
        path.write_bytes(change_bytes(raw[:size], rng) + raw[size:])
    return path


def _once(raw: Any) -> Callable[[], Any]:
    return lambda: iter([raw])


def use(path: Path) -> None:
    """All that a user does with a model."""
    # What is repacked goes with the attack.
    os.environ["STRATA_HOME"] = str(path.parent / "home")
    with LLM(path, threads=1, context=16) as llm:
        tokenizer = llm.tokenizer
        for text in TEXTS:
            for special in (False, True):
                ids = tokenizer.encode(text, add_special=special, parse_special=special)
                tokenizer.decode(ids)
        for id in range(min(tokenizer.vocab_size, 2000)):
            tokenizer.token_bytes(id, special=True)
        if tokenizer.chat_template is not None:
            tokenizer.apply_chat_template([{"role": "user", "content": TEXTS[0]}])
        llm.generate(tokenizer.encode("a")[:8] or [0], SamplingParams(max_tokens=2, seed=1))


def use_ids(path: Path) -> None:
    """Some ids go through the model of a file that has no text."""
    with open_model(path) as file:
        Forward(file, 16, CpuBackend(threads=1)).logits([1, 2, 3])


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
    kind = rng.choice(("matrix", "old matrix", *LINES, *TABLES))
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
            _write(path, metadata, sources, rng)
        return lambda: path.exists() and read_importance(path)
    if kind == "old matrix":
        name = b"blk.0.ffn_up.weight"
        old = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii8f", 3, 8, *range(8))
        path.write_bytes(change_bytes(old + struct.pack("<ii", 1, 1) + b"a", rng))
        return lambda: read_importance(path)
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
    return lambda: [_named(lambda line=line: _request(line, "it", RULES)) for line in asked]


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


def attack(seeds: Seeds, number: int) -> Ending:
    """The attack of that number and what it ended in."""
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as target:
        if number % 8 == 5:
            return run_apart(attack_input(Path(target), rng))
        if number % 4 == 3:
            file = attack_architecture(Path(target), rng)
            return run_apart(lambda: use_ids(file))
        make = attack_gguf if rng.random() < 0.4 else attack_directory
        path = make(seeds, Path(target), rng)
        return run_apart(lambda: use(path))


def summary(endings: dict[int, Ending]) -> dict[str, Any]:
    """Counts of endings, what was not allowed, and the longest and the largest."""
    kinds = Counter(e.kind if e.allowed else "anything else" for e in endings.values())
    names = Counter(e.message.split(":")[0] for e in endings.values() if e.kind == "error")
    return {
        "attacks": len(endings),
        "endings": {kind: kinds[kind] for kind in ("answer", "error", "anything else")},
        "errors": dict(names.most_common()),
        "not_allowed": [
            {"attack": n, "kind": e.kind, "message": e.message}
            for n, e in endings.items()
            if not e.allowed
        ],
        "longest_s": max(e.seconds for e in endings.values()),
        "largest_bytes": max(e.nbytes for e in endings.values()),
    }


def main() -> None:
    """Make the attacks and tell what they ended in; exit code 1 if any was not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first attack")
    parser.add_argument("--only", type=int, help="this attack alone, with all that it says")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.attacks) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as directory:
        seeds = Seeds(Path(directory))
        endings = {}
        for number in numbers:
            ending = endings[number] = attack(seeds, number)
            if not ending.allowed or args.only is not None:
                print(f"attack {number}: {ending.kind}\n{ending.message}", flush=True)
    told = {"machine": describe(), **summary(endings)}
    text = json.dumps(told, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(json.dumps({k: v for k, v in told.items() if k not in ("machine", "not_allowed")}))
    sys.exit(bool(told["not_allowed"]))


if __name__ == "__main__":
    main()
