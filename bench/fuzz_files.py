"""Attacks on the files beside the weights: each ends in a named error or in an answer.

A tiny model is written as a Hugging Face directory and as a GGUF file. Every attack changes what
one of its files says, mostly a value among values of the right form, sometimes its bytes: metadata
of the GGUF file with its vocabulary, config.json, tokenizer.json, tokenizer_config.json,
special_tokens_map.json, generation_config.json, chat_template.jinja, the index of shards. The model
is then opened, built, asked for ids, text, a chat's prompt and some tokens, in a process of its own
that may take 10 seconds of a processor and 300 MB. Some are quantised, or guess for another model;
of heads that were trained to guess for one (EAGLE's, Medusa's) config.json and tensors are changed.

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
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from attacked import Ending, run_apart
from fuzz_inputs import attack_input
from machine import describe
from mutations import change, change_bytes, change_metadata, write_changed
from strata.decode import SamplingParams
from strata.formats import open_model
from strata.llm import LLM
from strata.quantizer.mixes import Facts, choose_types, find_mix
from strata.quantizer.opening import as_gguf, source_of
from strata.quantizer.quantise import quantise

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
import make_tiny_directories
import make_tiny_hybrids
import make_tiny_models
import make_tiny_variants
from strata.backends.cpu.backend import CpuBackend
from support import foreign_checkpoints, head_files
from support.forward import Forward

FAMILIES = ("llama", "phi3_long", "gemma3", "gpt2", "qwen2")
KINDS = ("llama", "t5", "gemma4", "gpt2", "bert", "rwkv", "plamo2", "whitespace", "hybriddna")
INDEX = "model.safetensors.index.json"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEXTS = ("Hello there, aaa 123", "\u00e9\u4e2d\U0001f600 <|end|> \x00\ud800", " \n\n\t ")
# A file of so many bytes has no blocks: whoever reads it whole has no memory left.
SPARSE = 50_000_000_000

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
        self.guessed_for = head_files.write_target(directory / "guessed-for")
        self.heads = {
            kind: head_files.write_heads(directory / f"heads-{kind}", kind)
            for kind in head_files.KINDS
        }


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
        metadata["tokenizer.ggml.model"] = rng.choice(KINDS)
    path = target / "model.gguf"
    return write_changed(path, metadata, tensors, rng)


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
    return write_changed(target / "model.gguf", metadata, tensors, rng)


def attack_heads(seeds: Seeds, target: Path, rng: random.Random) -> Path:
    """Heads whose config.json, or some of whose tensors, are changed."""
    path = target / "heads"
    shutil.copytree(seeds.heads[rng.choice(head_files.KINDS)], path)
    config = path / "config.json"
    how = rng.random()
    if how < 0.1:
        config.write_bytes(change_bytes(config.read_bytes(), rng))
    elif how < 0.4:
        stated = json.loads(config.read_text())
        stated["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}
        for _ in range(rng.choice((1, 1, 3))):
            change(stated, rng)
        config.write_text(json.dumps(stated), errors="surrogatepass")
    (file,) = path.glob("*.safetensors")
    if how < 0.3:
        return path
    if how > 0.9:
        file.write_bytes(change_bytes(file.read_bytes(), rng))
        return path
    arrays = load_file(file)
    for _ in range(rng.choice((1, 1, 2))):
        _change_tensors(arrays, rng)
    save_file(arrays, file)
    return path


def _change_tensors(arrays: dict[str, Any], rng: random.Random) -> None:
    """One of them is missing, named otherwise, of another shape or type, or of other values."""
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    how = rng.randrange(6)
    if how == 0:
        del arrays[name]
    elif how == 1:
        names = ("more", f"{name}.weight", "d2t", "t2d", "0.0.linear.weight", "31.9.linear.weight")
        arrays[rng.choice(names)] = arrays.pop(name)
    elif how == 2:
        shapes = ((0,), (1,), array.shape[::-1], (*array.shape, 1), (array.size,), (2, 3))
        arrays[name] = np.zeros(rng.choice(shapes), array.dtype)
    elif how == 3:
        kinds = (np.int64, np.bool_, np.float16, np.float64, np.int8)
        with np.errstate(invalid="ignore"):
            arrays[name] = array.astype(rng.choice(kinds))
    else:
        values = (0, 1, -1, 2**31, -(2**62)) if array.dtype == np.int64 else (0, 1e30, -1e-40)
        if array.dtype.kind == "f":
            values = (*values, np.nan, np.inf)
        arrays[name] = array.copy()
        flat = arrays[name].reshape(-1)
        flat[:: rng.choice((1, 7))] = np.array(rng.choice(values), np.float64).astype(array.dtype)


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


def use_quantised(path: Path) -> None:
    """A model is written in smaller types."""
    with open_model(path) as opened:
        source = source_of(as_gguf(opened))
        shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
        mix = find_mix("Q4_K_M")
        types = choose_types(mix, Facts.of(source.keys, list(shapes), False), shapes)
        out = path.parent / "smaller.gguf"
        quantise(source, out, types, file_type=mix.number, threads=1)


def use_as_draft(path: Path, model: Path) -> None:
    """A model guesses for another one."""
    with LLM(model, threads=1, context=16, draft_model=path) as llm:
        llm.generate([1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True))


def attack(seeds: Seeds, number: int) -> Ending:
    """The attack of that number and what it ended in."""
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as target:
        if number % 8 == 5:
            return run_apart(attack_input(Path(target), rng))
        if number % 4 == 3:
            file = attack_architecture(Path(target), rng)
            return run_apart(lambda: (use_quantised if number % 12 == 7 else use_ids)(file))
        if number % 16 == 6:
            heads = attack_heads(seeds, Path(target), rng)
            return run_apart(lambda: use_as_draft(heads, seeds.guessed_for))
        make = attack_gguf if rng.random() < 0.4 else attack_directory
        path = make(seeds, Path(target), rng)
        if number % 16 == 10:
            return run_apart(lambda: use_quantised(path))
        if number % 16 == 2:
            return run_apart(lambda: use_as_draft(path, seeds.directories["llama"]))
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
    parser.add_argument("--minutes", type=float, default=60.0, help="none is made after so many")
    parser.add_argument("--only", type=int, help="this attack alone, with all that it says")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.attacks) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as directory:
        seeds = Seeds(Path(directory))
        endings = {}
        until = time.monotonic() + 60 * args.minutes
        for number in numbers:
            if time.monotonic() > until:
                break
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
