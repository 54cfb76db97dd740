"""The bits of answers by every family, block format and KV type, to compare two commits.

    BEFORE/bin/python tools/record_bits.py before.npz --models DIRECTORY
    AFTER/bin/python  tools/record_bits.py after.npz  --models DIRECTORY
    python tools/compare_bits.py before.npz after.npz

BEFORE and AFTER are environments, each with the package of one commit and its ``test`` extra; this
script, the same file for both, asks for nothing but ``strata.LLM`` and ``strata.SamplingParams``.
DIRECTORY gets the model files at the first call (see bits_models.py) and is read by the second.

OUT.npz holds one array a case, named ``isa/model/kv type/work``: uint64 [prompts, tokens, ...] with
each token, its log-probability, the most probable tokens and theirs, as float64 bits. Each of them
depends on the sum over all logits, so a changed bit of any logit shows, unless its token is so
improbable that float64 does not hold it in that sum. OUT.json beside it is the manifest: shape and
digest of each case, digests of the model files, the instruction set behind ``best``.
Works of the same model share one engine, so the later ones meet KV that the earlier ones left.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bits_models
import strata
from strata import LLM, Output, SamplingParams

Bits = NDArray[np.uint64]
Work = Callable[[LLM, "Case"], Bits]

KV_TYPES = ("f16", "bf16", "q8_0", "int4")
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 8
CROWDED_KV_BYTES = 1 << 20
"""Of 64 KB blocks: 16, where the five requests of a crowd want 24."""

STORE = "store"
"""Stands for a new directory that the cases of one process share."""


@dataclass(frozen=True)
class Case:
    """A model under some options, and the works that are recorded of it."""

    model: str
    works: tuple[str, ...]
    kv: str = "f16"
    context: int = 256
    vocabulary: int = 256
    options: dict[str, Any] = field(default_factory=dict)

    def prompt(self, length: int, seed: int) -> list[int]:
        """Token ids that are the same wherever they are drawn."""
        drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, self.vocabulary, length)
        return [int(token) for token in drawn]


def bits_of(outputs: Sequence[Output]) -> Bits:
    """uint64 [prompts, tokens, 2 + 2 * top] of what was answered."""
    return np.array([[_sample(s) for s in output.logprobs or ()] for output in outputs], np.uint64)


def _sample(sample: Any) -> list[int]:
    floats = np.array([sample.logprob, *(p for _, p in sample.top)], np.float64).view(np.uint64)
    return [sample.token, *(token for token, _ in sample.top), *(int(f) for f in floats)]


def answers(llm: LLM, prompts: list[list[int]], tokens: int, top: int, **more: Any) -> Bits:
    """What ``tokens`` tokens of answers to all prompts together have for bits."""
    params = SamplingParams(max_tokens=tokens, logprobs=top, ignore_eos=True, **more)
    return bits_of(llm.generate(prompts, params))


def greedy(llm: LLM, case: Case) -> Bits:
    """A short prompt and a short answer."""
    return answers(llm, [case.prompt(20, 1)], 10, 100)


def long(llm: LLM, case: Case) -> Bits:
    """A prompt of several KV blocks and several windows."""
    return answers(llm, [case.prompt(case.context - 20, 2)], 4, 100)


def again(llm: LLM, case: Case) -> Bits:
    """One that begins as ``long`` does: its KV may be found again."""
    prompt = case.prompt(case.context - 20, 2)[: case.context - 50] + case.prompt(10, 3)
    return answers(llm, [prompt], 4, 100)


def together(llm: LLM, case: Case) -> Bits:
    """More prompts than may run at once, at and around the borders of KV blocks."""
    lengths = (1, 17, 63, 64, 65, case.context // 2 - 10)
    return answers(llm, [case.prompt(n, 10 + n) for n in lengths], 5, 20)


def sampled(llm: LLM, case: Case) -> Bits:
    """Drawn from the whole distribution."""
    prompts = [case.prompt(n, 20 + n) for n in (5, 30)]
    return answers(llm, prompts, 10, 20, temperature=0.8, seed=11)


def filtered(llm: LLM, case: Case) -> Bits:
    """Drawn with every filter and penalty."""
    more = {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 5, "temperature": 1.1}
    penalties = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}
    return answers(llm, [case.prompt(30, 30)], 12, 20, **more, **penalties)


def text(llm: LLM, case: Case) -> Bits:
    """Log-probabilities of many positions of one step, as the sums that perplexity gives."""
    del case
    found = llm.perplexity(TEXT, context=100, chunks=1)
    return np.array([found.perplexity, found.nll, found.stderr], np.float64).view(np.uint64)


def crowd(llm: LLM, case: Case) -> Bits:
    """Requests that do not all have room: some wait, some give way and are resumed."""
    return answers(llm, [case.prompt(n, 40 + n) for n in (250, 310, 370, 120, 60)], 70, 20)


WORKS: dict[str, Work] = {
    work.__name__: work for work in (greedy, long, again, together, sampled, filtered, text, crowd)
}
ALL_WORKS = ("greedy", "long", "again", "together", "sampled", "filtered", "text")


def context_of(directory: Path) -> int:
    """Positions of a tiny model."""
    config = json.loads((directory / "config.json").read_text())
    found: int = config.get("max_position_embeddings") or config["n_positions"]
    return min(found, 256)


def tiny_cases(models: Path, *, whole: bool) -> Iterator[Case]:
    """Families, shapes, formats and recipes; without ``whole`` only what shows another kernel."""
    works = ALL_WORKS if whole else ("long", "together")
    for path in sorted((models / "families").iterdir()):
        context = context_of(path.with_suffix(""))
        case = Case(f"families/{path.name}", works, context=context)
        yield case
        if whole or path.suffix == ".gguf":
            for kv in KV_TYPES[1:]:
                yield replace(case, kv=kv, works=("long", "together"))
    wide = 768 if whole else 300
    for path in sorted((models / "shapes").iterdir()):
        yield Case(f"shapes/{path.name}", works, context=wide)
        if path.suffix == ".gguf":
            for kv in KV_TYPES[1:]:
                yield Case(f"shapes/{path.name}", ("long", "together"), kv, context=wide)
    for folder in ("recipes", "formats") if whole else ("formats",):
        for path in sorted((models / folder).iterdir()):
            yield Case(f"{folder}/{path.name}", works if whole else ("together",))
    if whole:
        crowded = {"kv_bytes": CROWDED_KV_BYTES}
        for family in ("llama", "gemma3"):
            yield Case(f"shapes/{family}.gguf", ("crowd",), context=768, options=crowded)
            for work in ("long", "again"):
                stored = {"kv_store": STORE}
                yield Case(f"shapes/{family}.gguf", (work,), context=768, options=stored)


def oracle_cases(models: Path) -> Iterator[Case]:
    """The reference backend; it keeps KV in float32."""
    for path in sorted((models / "families").glob("*.gguf")):
        yield Case(
            f"families/{path.name}",
            ("greedy", "together"),
            kv="f32",
            context=128,
            options={"backend": "reference", "threads": None},
        )


def smollm2_cases(models: Path, *, whole: bool) -> Iterator[Case]:
    """The built-in model."""
    del models
    works: tuple[str, ...] = ALL_WORKS if whole else ("greedy", "text")
    for kv in KV_TYPES if whole else KV_TYPES[:1]:
        yield Case("smollm2", works, kv, context=768, vocabulary=49152)
        works = ("long",)


def streamed_cases(name: str, memory: str) -> Iterator[Case]:
    """A model under a budget smaller than its file."""
    yield Case(
        name,
        ("greedy", "together"),
        context=256,
        vocabulary=49152,
        options={"memory": memory},
    )


@dataclass(frozen=True)
class Part:
    """What one process records: an instruction set and its cases."""

    isa: str
    cases: Callable[[Path], Iterator[Case]]


def parts() -> dict[str, Part]:
    """By name. Under a budget a process runs one model, because all that it holds counts."""
    arm = platform.machine() in ("aarch64", "arm64")
    found = {
        "tiny": Part("best", lambda m: tiny_cases(m, whole=True)),
        "oracle": Part("best", oracle_cases),
        "smollm2": Part("best", lambda m: smollm2_cases(m, whole=True)),
    }
    for isa in ("scalar",) if arm else ("avx2", "scalar"):
        found[f"tiny-{isa}"] = Part(isa, lambda m: tiny_cases(m, whole=False))
    if not arm:
        found["smollm2-avx2"] = Part("avx2", lambda m: smollm2_cases(m, whole=False))
    name = f"streamed/{bits_models.STREAMED}.gguf"
    found["streamed-smollm2"] = Part("best", lambda m: streamed_cases("smollm2", "125MB"))
    found["streamed-file"] = Part("best", lambda m: streamed_cases(name, "170MB"))
    return found


def name_of(part: Part, case: Case) -> str:
    """Of a case, without the work."""
    kind = "reference" if "backend" in case.options else part.isa
    for option, word in (("memory", "streamed"), ("kv_bytes", "crowded"), ("kv_store", "stored")):
        kind += f"-{word}" if option in case.options else ""
    return f"{kind}/{case.model}/{case.kv}"


def record(part: Part, models: Path, threads: int, only: str) -> tuple[dict[str, Bits], str]:
    """Arrays of all cases of a part by name, and the instruction set that ran."""
    found: dict[str, Bits] = {}
    isa = ""
    with tempfile.TemporaryDirectory() as store:
        for case in part.cases(models):
            name = name_of(part, case)
            works = [w for w in case.works if fnmatch.fnmatch(f"{name}/{w}", only)]
            if not works:
                continue
            path = case.model if case.model == "smollm2" else str(models / case.model)
            options = {"threads": threads, "context": case.context, "parallel": 4, **case.options}
            if "kv_store" in options:
                options["kv_store"] = store
            if "backend" not in options:
                options["kv_type"] = case.kv
            try:
                with LLM(path, **options) as llm:
                    for work in works:
                        found[f"{name}/{work}"] = WORKS[work](llm, case)
                    if "backend" not in options:
                        isa = llm.isa
            except strata.StrataError as error:
                raise SystemExit(f"{name}: {error}") from error
    return found, isa


def digest(raw: Any) -> str:
    """Short, and of more bits than chance can match."""
    return hashlib.sha256(raw).hexdigest()[:32]


def manifest(arrays: dict[str, Bits], isas: dict[str, str], models: Path) -> dict[str, Any]:
    """What the recording holds, small enough to read."""
    files = sorted(p for p in models.rglob("*") if p.suffix in (".gguf", ".safetensors"))
    return {
        "strata": strata.__version__,
        "numpy": np.__version__,
        "isas": isas,
        "models": {str(p.relative_to(models)): digest(p.read_bytes()) for p in files},
        "cases": {
            name: {"shape": list(array.shape), "digest": digest(array.tobytes())}
            for name, array in sorted(arrays.items())
        },
    }


def main() -> None:
    """Record every part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="OUT.npz; OUT.json is written beside it")
    parser.add_argument("--models", type=Path, required=True, help="written if not there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="*", help="cases whose names match this pattern")
    parser.add_argument("--part", choices=parts(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        arrays, isa = record(parts()[args.part], args.models, args.threads, args.only)
        np.savez(args.out, **arrays)
        print(isa)
        return
    bits_models.write_all(args.models)
    arrays, isas = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts().items():
            began = time.perf_counter()
            out = Path(folder) / "part.npz"
            command = [sys.executable, __file__, str(out), "--models", str(args.models)]
            command += ["--threads", str(args.threads), "--only", args.only, "--part", name]
            environment = {k: v for k, v in os.environ.items() if k != "STRATA_ISA"}
            if part.isa != "best":
                environment["STRATA_ISA"] = part.isa
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"part {name} ended with {done.returncode}")
            with np.load(out) as loaded:
                arrays |= {case: loaded[case] for case in loaded.files}
            if isa := done.stdout.strip():
                isas[part.isa] = isa
            seconds = time.perf_counter() - began
            print(f"{name}: {len(arrays)} cases so far, {seconds:.0f} s", file=sys.stderr)
    np.savez_compressed(args.out, **arrays)
    text = json.dumps(manifest(arrays, isas, args.models), indent=1)
    args.out.with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
