"""Hugging Face directories as GGUF files: the same logits and tokens, by transformers' own figures.

The bound of logits is that of ``tests/models/test_goldens.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import make_tiny_models
from strata.cli import main
from strata.formats import ModelFile, open_model
from strata.formats.gguf import stored_values
from strata.models import ConfigError
from strata.quantizer.directories import ARCHITECTURES, Unconvertible, as_gguf
from strata.quantizer.opening import source_of
from strata.quantizer.vocabularies import _TEXTS, UnknownVocabulary
from strata.text import load_tokenizer
from support.forward import logits
from support.headers import huggingface
from support.quantised import check_quantised

TOLERANCE = 1e-4
# GGUF has no key for windows of some layers alone in this family.
REFUSED = "qwen2_window_yarn"
NAMES = [
    name
    for name in make_tiny_models.names()
    if make_tiny_models.golden(name).config["architectures"][0] in ARCHITECTURES and name != REFUSED
]


def written(path: Path, name: str, out: Path, *more: str) -> Path:
    directory = make_tiny_models.write_directory(path, make_tiny_models.golden(name))
    assert main(["quantize", str(directory), str(out), "--quiet", *more]) == 0
    return out


def matrices(file: ModelFile, name: str) -> bytes:
    return file.read(name).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    out = written(tmp_path / "m", name, tmp_path / "m.gguf", "--type", "F32")
    with open_model(out) as file:
        found = logits(file, golden.tokens, golden.context)
        np.testing.assert_allclose(found[golden.rows], golden.logits(), rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", make_tiny_models.names())
def test_quantised_on_the_fly_is_the_file_or_the_same_refusal(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    assert check_quantised(directory, golden.tokens[:20]) == (name in NAMES)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3_long", "granite"])
def test_files_hold_what_a_converter_would_write(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    out = written(tmp_path / "m", name, tmp_path / "m.gguf", "--type", "F32")
    other = make_tiny_models.write_gguf(tmp_path / "o.gguf", golden)
    with open_model(out) as mine, open_model(other) as theirs:
        assert mine.tensors.keys() == theirs.tensors.keys()
        for tensor in theirs.tensors:
            assert mine.tensors[tensor].shape == theirs.tensors[tensor].shape
            a, b = (np.frombuffer(matrices(f, tensor), "<f4") for f in (mine, theirs))
            np.testing.assert_allclose(a, b, rtol=1e-5 if "rope" in tensor else 0)
        for key, value in theirs.metadata.items():
            if key.startswith(("tokenizer.ggml.tokens", "tokenizer.ggml.merges")):
                assert list(mine.metadata[key]) == list(value)
            elif key in mine.metadata and isinstance(value, (int, float)):
                assert mine.metadata[key] == pytest.approx(value, rel=1e-6), key


def test_tokens_and_ends_are_those_of_the_directory(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": make_tiny_models.END, "chat_template": "{{ messages }}"})
    )
    with open_model(directory) as file:
        theirs = load_tokenizer(file)
        ours = load_tokenizer(as_gguf(file))
    for text in (*_TEXTS, f"a{make_tiny_models.END}b"):
        assert ours.encode(text, add_special=True) == theirs.encode(text, add_special=True)
    assert ours.stop_ids == theirs.stop_ids == {make_tiny_models.VOCABULARY - 1}
    assert list(ours.chat_templates) == ["default"]


@pytest.mark.parametrize("prepended", [True, False])
def test_vocabularies_of_sentencepiece(prepended: bool, tmp_path: Path) -> None:
    """Merges by rank are merges by score."""
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("l", "l"), ("e", "ll"), ("he", "ll")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581thelo"]
    words += list(dict.fromkeys("".join(pair) for pair in merges))
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [{"type": "Prepend", "prepend": "\u2581"}] if prepended else []
    golden = make_tiny_models.golden("llama")
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    stripped = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepended else []
    tokenizer |= {
        "added_tokens": [
            {"id": id, "content": words[id], "special": True, **special} for id in range(3)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, replaced]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *stripped,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {word: id for id, word in enumerate(words)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"})
    )
    with open_model(directory) as file:
        theirs, ours = load_tokenizer(file), load_tokenizer(as_gguf(file))
        assert as_gguf(file).metadata["tokenizer.ggml.model"] == "llama"
    for text in ("hello the  hell tell", " the", "\u00e9\n the\t"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_bytes_do_not_depend_on_the_budget_and_are_those_of_the_converted_file(
    tmp_path: Path,
) -> None:
    from strata.memory import process_memory

    small = str(process_memory().total + 100_000_000)
    golden = make_tiny_models.golden("mistral_window")
    # Every row of the table is of three blocks of 32.
    one = written(tmp_path / "m", golden.name, tmp_path / "1.gguf", "--type", "Q8_0", "-t", "1")
    two = written(tmp_path / "m", golden.name, tmp_path / "2.gguf", "--type", "Q8_0", "-m", small)
    assert one.read_bytes() == two.read_bytes()
    floats = written(tmp_path / "m", golden.name, tmp_path / "f.gguf", "--type", "F32")
    again = tmp_path / "again.gguf"
    assert main(["quantize", str(floats), str(again), "--type", "Q8_0", "--quiet"]) == 0
    with open_model(one) as a, open_model(again) as b:
        assert stored_values(a.files[0]).keys() == stored_values(b.files[0]).keys()
        assert all(matrices(a, name) == matrices(b, name) for name in b.tensors)


def test_experts_apart_are_stacked(tmp_path: Path) -> None:
    """Mixtral's experts are tensors of their own; rows of a piece may be of two of them."""
    rng = np.random.default_rng(1)
    golden = make_tiny_models.golden("llama")
    config = {
        **golden.config,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    }
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    (directory / "config.json").write_text(json.dumps(config))
    arrays = {n: x for n, x in golden.weights().items() if ".mlp." not in n}
    width, ffn = config["hidden_size"], config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}.block_sparse_moe."
        arrays[f"{at}gate.weight"] = rng.standard_normal((3, width)).astype("<f4")
        for e in range(3):
            for name, shape in (("w1", (ffn, width)), ("w3", (ffn, width)), ("w2", (width, ffn))):
                arrays[f"{at}experts.{e}.{name}.weight"] = (
                    rng.standard_normal(shape).astype("<f4") / 8
                )
    save_file(arrays, directory / "model.safetensors")
    with open_model(directory) as file:
        expected = logits(file, golden.tokens[:20])
        found = logits(as_gguf(file), golden.tokens[:20])
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("turned", [True, False])
def test_experts_together_are_read_one_at_a_time(
    turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    golden = make_tiny_models.golden("llama")
    more = {"num_local_experts": 3, "num_experts_per_tok": 2}
    config = {**golden.config, "architectures": ["MixtralForCausalLM"], **more}
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    (directory / "config.json").write_text(json.dumps(config))
    arrays = {n: x for n, x in golden.weights().items() if ".mlp." not in n}
    width, ffn = config["hidden_size"], config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}.block_sparse_moe."
        arrays[f"{at}gate.weight"] = rng.standard_normal((3, width)).astype("<f4")
        for name, shape in (("gate_up_proj", (2 * ffn, width)), ("down_proj", (width, ffn))):
            arrays[f"{at}experts.{name}"] = rng.standard_normal((3, *shape)).astype("<f4") / 8
    expected = {n: x for n, x in arrays.items() if ".experts." in n}
    stored = {n: np.ascontiguousarray(x.swapaxes(1, 2)) for n, x in expected.items()}
    save_file(arrays | stored if turned else arrays, directory / "model.safetensors")
    with open_model(directory) as file:
        made = as_gguf(file)
        read, largest = file.read, 0

        def reading(name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
            nonlocal largest
            found = read(name, rows)
            largest = max(largest, found.nbytes) if ".experts." in name else largest
            return found

        monkeypatch.setattr(file, "read", reading)
        found = {
            part: made.read(f"blk.0.ffn_{part}_exps.weight").view("<f4").reshape(3, -1, columns)
            for part, columns in (("gate", width), ("up", width), ("down", ffn))
        }
        held = max(tensor.held for tensor in source_of(made).tensors.values())
    both = expected["model.layers.0.block_sparse_moe.experts.gate_up_proj"]
    np.testing.assert_array_equal(found["gate"], both[:, :ffn])
    np.testing.assert_array_equal(found["up"], both[:, ffn:])
    down = expected["model.layers.0.block_sparse_moe.experts.down_proj"]
    np.testing.assert_array_equal(found["down"], down)
    assert largest == both[0].nbytes
    assert held == 2 * largest


def test_what_cannot_be_converted_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("opt"))
    assert main(["quantize", str(directory), str(tmp_path / "o.gguf")]) == 2
    said = capsys.readouterr().err
    assert "no GGUF file is made of OPTForCausalLM" in said
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_file_that_would_be_another_model_is_refused(tmp_path: Path) -> None:
    directory = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(REFUSED))
    with open_model(directory) as file, pytest.raises(Unconvertible, match="another model"):
        as_gguf(file)


FULL = {"rope_type": "default", "rope_theta": 1e4}
ONE_LONG = {"long_factor": [1.0] * 8, "short_factor": ["x"] * 8}


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"full_attention": FULL, "sliding_attention": {"rope_theta": "x"}}},
            "sliding_attention.rope_theta' is 'x': a number is expected",
        ),
        (
            "llama",
            {
                "max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 32,
                    **ONE_LONG,
                },
            },
            "short_factor' is 'x': a number is expected",
        ),
        ("llama", {"rope_parameters": {**FULL, **ONE_LONG}}, ""),
        ("llama", {"routed_scaling_factor": 1e39}, "'routed_scaling_factor' is 1e[+]39: from"),
        ("gpt2", {"rope_parameters": {"full_attention": 5, "long_factor": "x"}}, ""),
    ],
)
def test_what_the_model_does_not_read_is_checked_too(
    name: str, changed: dict[str, object], message: str
) -> None:
    whole: Any = huggingface(name, **changed)
    whole.path, whole.files = Path("m"), ()
    if not message:
        assert as_gguf(whole, vocabulary=False).kind == "gguf"
        return
    with pytest.raises(ConfigError, match=message):
        as_gguf(whole, vocabulary=False)


def test_a_vocabulary_that_gguf_cannot_name_is_refused(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    directory = make_tiny_models.write_directory(tmp_path / "m", golden)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {**split, "pattern": {"Regex": "[aeiou]"}},
            {**letters, "use_regex": False},
        ],
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    with open_model(directory) as file, pytest.raises(UnknownVocabulary, match="no name"):
        as_gguf(file)
