"""Tiny GGUF files of the architectures in models/variants.py, and llama.cpp's logits of them.

    python tools/make_tiny_variants.py DIRECTORY [NAME ...] [--llama-cpp SOURCE BUILD]

DIRECTORY/NAME.gguf is written for each; with the folders of llama.cpp's source and of its build,
llama.cpp's logits of them go to tests/goldens/variants.npz.

A file holds every tensor that llama.cpp reads for its architecture, optional ones included, with
weights from a counter-based generator keyed by the tensor's name: the same bits on every machine.
Optional tensors that llama.cpp does not know are listed in tests/goldens/variants.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from make_tiny_models import weight
from strata.formats import TensorInfo
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.models.composed import settled
from strata.models.composed_tensors import layer_config, tensors
from strata.models.experts import settled as settled_mixture
from strata.models.variants import GGUF
from strata.quant import by_name

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "variants.npz"
UNREAD = GOLDENS.with_suffix(".json")
VOCABULARY, TOKENS = 48, 24
# Positions whose logits are kept: the first, one within the window and two beyond it.
ROWS = [0, 5, 17, 23]
# llama.cpp reads q, k and v of these only as one tensor.
_FUSED = (
    *("bailingmoe2", "bloom", "cogvlm", "dbrx", "falcon", "gptneox", "jais", "mpt", "openelm"),
    *("plamo3", "qwen", "starcoder"),
)
# With these llama.cpp's graph cannot be made.
_FAILS = {"mpt": {f"attn_{x}_norm.{kind}" for x in "qk" for kind in ("weight", "bias")}}
_WIDTH, _FFN, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 32, 48, 2, 4, 2, 8
# As many heads of keys as of queries, where llama.cpp asks for it.
_ALIKE = (
    *("bloom", "jais", "mpt", "qwen", "starcoder", "gptneox", "cogvlm"),
    *("dots1", "olmoe"),
)

# As many tokens choose among as many experts as differ in what they choose; the first layer has
# none where a family may have such. What a family does not heed says other than it does.
_EXPERTS = {
    "expert_count": 6,
    "expert_used_count": 3,
    "expert_feed_forward_length": 24,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": 40,
    "expert_gating_func": 2,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
    "leading_dense_block_count": 1,
    "interleave_moe_layer_step": 1,
}
# Windows may turn by a base of their own, and with the scaling or without.
_LOCAL = {
    "rope.freq_base_swa": 700.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 1.5,
}


def names() -> list[str]:
    """All architectures that are rows of a table."""
    return sorted(GGUF)


def metadata(name: str, **changed: Any) -> dict[str, Any]:
    """The header's keys; those of ``changed`` are without the architecture, ... removes one."""
    layers = 4 if name == "smollm3" else _LAYERS
    kv_heads = _HEADS if name in _ALIKE else _KV_HEADS
    keys: dict[str, Any] = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": _WIDTH,
        "feed_forward_length": 2 * _FFN if GGUF[name].half_ffn else _FFN,
        "attention.head_count": _HEADS,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": _HEAD_DIM,
        "attention.value_length": _HEAD_DIM,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": [i % 2 == 0 for i in range(layers)],
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 0.7,
        "rope.dimension_count": _HEAD_DIM,
        "use_parallel_residual": True,
        "logit_scale": 1.5,
        "vocab_size": VOCABULARY,
    }
    if name in ("deci", "openelm"):
        keys["attention.head_count"] = [4, 2]
        keys["attention.head_count_kv"] = [2, 1]
        keys["feed_forward_length"] = [48, 32]
    if name == "muse-glimmer":
        keys["final_logit_softcapping"] = 5.0
    if name == "qwen2vl":
        # llama.cpp does not read it, and has 0.
        keys["attention.layer_norm_rms_epsilon"] = 0.0
    if name in ("qwen2vl", "qwen3vl", "qwen3tts", "qwen3vlmoe", "paddleocr"):
        keys["rope.dimension_sections"] = [2, 1, 1, 0]
    if GGUF[name].multipliers:
        keys |= {"embedding_scale": 3.0, "residual_scale": 0.5}
    if GGUF[name].mixture is not None:
        keys |= _EXPERTS | _LOCAL
    if name == "grovemoe":
        keys |= {"expert_chunk_feed_forward_length": 16, "experts_per_group": 2}
        keys["expert_group_scale"] = 0.7
    if name == "smallthinker":
        # llama.cpp has this one whatever the file says.
        keys["attention.sliding_window"] = 4096
        keys["attention.sliding_window_pattern"] = [False, True]
    keys = {key: value for key, value in {**keys, **changed}.items() if value is not ...}
    made = {"general.architecture": name, **{f"{name}.{k}": v for k, v in keys.items()}}
    if name == "apertus":
        made |= {"xielu.alpha_n": [0.3, -0.2], "xielu.alpha_p": [0.1, 0.9]}
        made |= {"xielu.beta": [0.5, 0.4], "xielu.eps": [-1e-6, -1e-6]}
    tokens = [f"tok_{i}" for i in range(VOCABULARY)]
    return {
        **made,
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * VOCABULARY,
    }


class _Sizes:
    """Enough of a file to read hyperparameters from."""

    kind = "gguf"

    def __init__(self, keys: dict[str, Any], tied: bool) -> None:
        f32, shape = by_name("F32"), (VOCABULARY, _WIDTH)
        self.metadata = keys
        self.tensors = {
            name: TensorInfo(name, shape, f32, Path("x"), 0, f32.tensor_nbytes(shape))
            for name in ("token_embd.weight", *(() if tied else ("output.weight",)))
        }


def unread(name: str) -> set[str]:
    """Tensors that llama.cpp's form of an architecture does not have, without their layer."""
    listed = set(json.loads(UNREAD.read_text()).get(name, [])) if UNREAD.exists() else set()
    return listed | _FAILS.get(name, set())


def part_of_layer(key: str) -> str:
    """A tensor's name without its layer."""
    return key.split(".", 2)[2] if key.startswith("blk.") else key


def arrays(name: str, keys: dict[str, Any], without: set[str]) -> dict[str, NDArray[np.float32]]:
    """The file's tensors, rows first, but for those of ``without``."""
    c, v = settled(_Sizes(keys, GGUF[name].tied), name, None, GGUF[name])  # type: ignore[arg-type]
    shapes: dict[str, tuple[int, ...]] = {}
    m = None if v.mixture is None else settled_mixture(c, v.mixture)
    for key, tensor in tensors(c, v, [layer_config(c, i) for i in range(c.layers)], m).items():
        part, stored = tensor.part, key
        apart = tensor.apart and not (name in _FUSED and "attn_qkv" in (part.gguf if part else ""))
        if key.startswith("rope_") and (key != "rope_freqs.weight" or v.rope is None):
            continue
        if v.fused and "ffn_gate" in key:
            continue
        if part is not None and not apart:
            stored = part.gguf
        shape = tensor.shape if part is None or apart else (part.total, *tensor.shape[1:])
        if name == "plamo3" and part is not None and "post_" in key:
            stored = part.gguf
        if part_of_layer(stored) not in without:
            shapes[stored] = shape
    made = {key: weight(f"{name}.{key}", shape) for key, shape in shapes.items()}
    for key, array in made.items():
        if key.endswith((".scale", ".scales", "rope_freqs.weight")):
            made[key] = np.abs(array) + np.float32(0.5)
    return made


def write(path: Path, name: str, without: set[str] | None = None, **changed: Any) -> Path:
    """Write the tiny file of an architecture."""
    without = unread(name) if without is None else without
    keys = metadata(name, **changed)
    f32 = by_name("F32")
    sources = [
        TensorSource.of(key, array.shape, f32, array)
        for key, array in arrays(name, keys, without).items()
    ]
    write_gguf(path, keys, sources)
    return path


def tokens() -> list[int]:
    """The sequence, as llamacpp_logits.cpp makes it."""
    return [(7 + 13 * i) % VOCABULARY for i in range(TOKENS)]


def logits_of_llama_cpp(program: Path, model: Path, count: int) -> NDArray[np.float32]:
    """[tokens, vocabulary] of the fixed sequence. Raises CalledProcessError."""
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run(
            [program, model, out.name, str(count)], check=True, capture_output=True, text=True
        )
        return np.fromfile(out.name, np.float32).reshape(count, -1)


def compile_program(source: Path, build: Path, folder: Path) -> Path:
    """llamacpp_logits, made with llama.cpp's headers and libraries."""
    program = folder / "llamacpp_logits"
    libraries = build / "bin"
    here = Path(__file__).resolve().parent / "llamacpp_logits.cpp"
    subprocess.run(
        [
            *("c++", "-O1", "-std=c++17", f"-I{source}/include", f"-I{source}/ggml/include"),
            *(str(here), f"-L{libraries}", "-lllama", "-lggml", "-lggml-base"),
            *(f"-Wl,-rpath,{libraries}", "-o", str(program)),
        ],
        check=True,
    )
    return program


def find_unread(program: Path, path: Path, name: str) -> set[str]:
    """Those without which llama.cpp reads as many tensors as with them."""

    def read(without: set[str]) -> int | None:
        """How many tensors were read, where that is not all of them; 0 where it is."""
        write(path, name, without | _FAILS.get(name, set()))
        done = subprocess.run([program, path, path.with_suffix(".out"), "1"], **_TEXT)
        found = re.search(r"expected \d+, got (\d+)", done.stderr)
        return int(found[1]) if found else None if done.returncode else 0

    most = read(set())
    optional = {part_of_layer(key) for key in arrays(name, metadata(name), set())}
    return {key for key in sorted(optional) if read({key}) in (most, 0)} if most else set()


_TEXT: Any = {"capture_output": True, "text": True}


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--llama-cpp", nargs=2, type=Path, metavar=("SOURCE", "BUILD"))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    files = {
        name: write(options.directory / f"{name}.gguf", name) for name in options.names or names()
    }
    if options.llama_cpp is None:
        return
    program = compile_program(*options.llama_cpp, options.directory)
    found = dict(np.load(GOLDENS)) if GOLDENS.exists() else {}
    not_read = json.loads(UNREAD.read_text()) if UNREAD.exists() else {}
    for name, path in files.items():
        not_read[name] = sorted(find_unread(program, path, name))
        UNREAD.write_text(json.dumps(not_read, indent=1) + "\n")
        write(path, name)
        try:
            found[name] = logits_of_llama_cpp(program, path, TOKENS)[ROWS]
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error.stderr.strip().splitlines()[-1:]}")
    np.savez_compressed(GOLDENS, **found)


if __name__ == "__main__":
    main()
