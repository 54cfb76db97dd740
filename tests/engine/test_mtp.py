"""The block of a file that predicts further tokens guesses for its model: no answer changes by it,
and it computes what the reference makes of the model's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import make_tiny_directories as tiny
import make_tiny_hybrids
import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.reference import ReferenceBackend
from strata.backends.weights import WeightSource
from strata.decode import Draft
from strata.engine import Engine, KVSettings, Runner
from strata.engine.mtp import MtpDraft
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.models import MissingTensor, build_model
from strata.models.mtp import mtp_model
from strata.quant import by_name
from support import latent_models
from support.forward import step
from support.guessing_runs import CONTEXT, answers, loaded, prompts
from support.headers import Header

GREEDY = SamplingParams(max_tokens=16, logprobs=2, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.1, top_p=0.95, repetition_penalty=1.2, seed=9)

Arrays = dict[str, NDArray[np.float32]]


def block_shapes() -> dict[str, tuple[int, ...]]:
    """Those of a tiny Qwen3.5 whose block is as its layer with attention."""
    golden = make_tiny_models.golden("qwen35")
    width = golden.config["hidden_size"]
    shapes = dict(golden.shapes)
    layer = "model.layers.1."
    for name, shape in golden.shapes.items():
        if name.startswith(layer):
            shapes[name.replace(layer, "mtp.layers.0.")] = shape
    shapes["mtp.fc.weight"] = (width, 2 * width)
    for name in ("mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"):
        shapes[f"{name}.weight"] = (width,)
    return shapes


def write_directory(path: Path, change: Callable[[Arrays], None] | None = None) -> Path:
    """A tiny Qwen3.5 with such a block."""
    shapes = block_shapes()
    arrays = {name: make_tiny_models.weight(name, shape) for name, shape in shapes.items()}
    if change is not None:
        change(arrays)
    made = make_tiny_models.write_directory(path, make_tiny_models.golden("qwen35"))
    save_file(arrays, made / "model.safetensors")
    return made


def write_file(path: Path) -> Path:
    """A tiny GGUF file of Qwen3.5 with experts, and a block that has a head of its own."""
    name = "qwen35moe"
    shapes = make_tiny_hybrids.shapes(name)
    last = max(int(key.split(".")[1]) for key in shapes if key.startswith("blk."))
    block = f"blk.{last + 1}."
    for key in list(shapes):
        if key.startswith(f"blk.{last}."):
            shapes[key.replace(f"blk.{last}.", block)] = shapes[key]
    vocabulary, width = shapes["token_embd.weight"]
    shapes[f"{block}nextn.eh_proj.weight"] = (width, 2 * width)
    shapes[f"{block}nextn.shared_head_head.weight"] = (vocabulary, width)
    for norm in ("enorm", "hnorm", "shared_head_norm"):
        shapes[f"{block}nextn.{norm}.weight"] = (width,)
    f32 = by_name("F32")
    sources = [
        TensorSource.of(key, shape, f32, make_tiny_hybrids.array(name, key, shape))
        for key, shape in shapes.items()
    ]
    keys = make_tiny_hybrids.metadata(name, block_count=last + 2, nextn_predict_layers=1)
    write_gguf(path, {**keys, "tokenizer.ggml.model": "llama"}, sources)
    return path


def write_latent(path: Path) -> Path:
    """A tiny DeepSeek as a GGUF file, whose block is another of its layers with experts."""
    arrays = latent_models.weights(absorbed=True)
    width = latent_models.WIDTH
    shapes = {"eh_proj": (width, 2 * width), "enorm": (width,), "hnorm": (width,)}
    block = {
        f"blk.2.{key.removeprefix('blk.1.')}": array
        for key, array in arrays.items()
        if key.startswith("blk.1.")
    }
    for key, shape in shapes.items():
        block[f"blk.2.nextn.{key}"] = make_tiny_models.weight(f"{key}.weight", shape)
    keys = {**latent_models.KEYS, "block_count": 3, "nextn_predict_layers": 1}
    keys["context_length"] = CONTEXT
    sources = [
        TensorSource.of(f"{key}.weight", array.shape, by_name("F32"), array)
        for key, array in {**arrays, **block}.items()
    ]
    stated = {f"deepseek2.{key}": value for key, value in keys.items()}
    write_gguf(path, {"general.architecture": "deepseek2", **stated}, sources)
    return path


WRITE = {"directory": write_directory, "file": write_file, "latent": write_latent}


def same_as_the_model(arrays: Arrays) -> None:
    """Layers give nothing, so that a model says of each token what follows it; and so does the
    block of the token behind its row."""
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            array[:] = 0
        if "pre_fc_norm" in name:
            array[:] = 0
    arrays["mtp.norm.weight"] = arrays["model.norm.weight"].copy()
    fc = arrays["mtp.fc.weight"]
    fc[:] = np.eye(*fc.shape, dtype=np.float32)


class Noted(MtpDraft):
    """Notes what it was asked and said."""

    def __init__(self, path: Path, vocabulary: int, parallel: int = 3) -> None:
        file = open_model(path)
        runner = loaded(file, mtp_model(file, CONTEXT), parallel)
        sees = (len(build_model(file, CONTEXT).segments) - 2,)
        super().__init__(
            runner, file, parallel=parallel, vocabulary=vocabulary, sees=sees, least=0.0
        )
        self.said: list[tuple[list[int], tuple[int, ...]]] = []

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        drafts = super().propose(texts, most, others)
        self.said += [(list(texts[id]), draft.tokens) for id, draft in drafts.items()]
        return drafts


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("p", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_block_changes_no_answer(kind: str, p: SamplingParams, tmp_path: Path) -> None:
    """Alone and together, where it is nearly always wrong, and prefixes are found again."""
    path = WRITE[kind](tmp_path / "m.gguf")
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    vocabulary = target.model.vocab_size
    asked = prompts(min(vocabulary, 250), 150, 30, 2)
    plain, _ = answers(target, asked, p, None)
    block = Noted(path, vocabulary)
    guessed, engine = answers(target, asked, p, block, turns=2, prefix_cache=True)
    assert guessed == plain * 2
    assert engine.status().draft_tokens > 40
    assert engine.status().prefix_hit_tokens > 0
    engine.close()


def test_a_block_that_says_what_its_model_says_is_always_right(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "m", same_as_the_model)
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    asked = prompts(250, 200, 70, 5)
    for p in (GREEDY, SAMPLED):
        plain, _ = answers(target, asked, p, None)
        block = Noted(path, target.model.vocab_size)
        guessed, engine = answers(target, asked, p, block)
        assert guessed == plain
        status = engine.status()
        assert status.draft_tokens_kept == status.draft_tokens > 25
        assert status.sweeps < 20
        engine.close()


def test_who_gives_way_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "m", same_as_the_model)
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    asked = prompts(250, 61, 62, 63)
    plain, _ = answers(target, asked, SAMPLED, None)
    blocks = tuple(8 if group.recurrent else 5 for group in target.model.groups)
    block = Noted(path, target.model.vocab_size)
    guessed, engine = answers(target, asked, SAMPLED, block, blocks=blocks)
    assert guessed == plain
    assert engine.status().preemptions > 0
    assert engine.status().draft_tokens_kept > 10
    engine.close()


class Oracle:
    """The block, computed in numpy from the first token on."""

    def __init__(self, file: ModelFile) -> None:
        self.model, self.block = build_model(file, CONTEXT), mtp_model(file, CONTEXT)
        self.backend = ReferenceBackend()
        source = WeightSource(file)
        self.runner = Runner(self.backend, self.model, source)
        self.segments = self.backend.load(self.block.segments, source)

    def rows(self, text: Sequence[int]) -> NDArray[np.float32]:
        """What the last layer gives."""
        found: list[NDArray[np.float32]] = []
        engine = Engine(self.runner, context=CONTEXT, kv=KVSettings(prefix_cache=False))
        engine.visit_logits(
            [*text, 0],
            len(text) - 1,
            lambda *_: None,
            lambda segment, given: found.append(given["x"]),
        )
        return found[len(self.model.segments) - 2]

    def logits(self, text: Sequence[int], guesses: Sequence[int]) -> NDArray[np.float32]:
        """Behind each of the ``guesses`` that follow the text, and behind the text itself."""
        enter, block, head = self.segments
        tokens = list(text[1:])
        part = step(tokens)
        values = self.backend.import_({"x": self.rows(text)[: len(tokens)]}, part)
        state = self.backend.state_cache(self.block.state, (4,))
        entered = self.backend.export(self.backend.run(enter, part, state, values), ("x",))["x"]
        found = []
        for guess in (*guesses, None):
            part = step(tokens)
            state = self.backend.state_cache(self.block.state, (4,))
            values = self.backend.run(block, part, state, {"x": entered})
            given = self.backend.export(values, ("x",))["x"]
            said = self.backend.run(head, part, state, values)
            found.append(self.backend.export(said, ("logits",))["logits"][-1])
            if guess is not None:
                tokens.append(guess)
                entered = np.concatenate([entered, given[-1:]])
        return np.array(found)


@pytest.mark.parametrize("kind", ["directory", "latent"])
def test_it_computes_what_the_reference_does(kind: str, tmp_path: Path) -> None:
    path = WRITE[kind](tmp_path / "m.gguf")
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    vocabulary = target.model.vocab_size
    block = Noted(path, vocabulary, parallel=2)
    _, engine = answers(
        target, prompts(min(vocabulary, 250), 90, 12), replace(GREEDY, max_tokens=4), block
    )
    oracle = Oracle(file)
    assert len(block.said) >= 4
    for text, guesses in block.said:
        logits = oracle.logits(text, guesses[:-1])
        for row, guess in zip(logits, guesses, strict=True):
            assert row[guess] > row.max() - 0.02
    engine.close()


@pytest.mark.parametrize("planned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_in_the_ledger_and_in_the_plan(planned: bool, tmp_path: Path) -> None:
    path = write_directory(tmp_path / "m", same_as_the_model)
    prompt, p = prompts(250, 40)[0], replace(GREEDY, max_tokens=12)
    with LLM(path, context=128, draft="off") as llm:
        plain = llm.generate(prompt, p)
        before = llm.ledger.owned.get("drafts", 0)
    with LLM(path, context=128, draft_model="self:mtp", planned=planned) as llm:
        assert llm.ledger.owned["drafts"] - before > 2**17
        assert (llm.plan is not None) == planned
        assert llm.plan is None or llm.plan.predicted.memory.drafts > 2**17
        drafting = llm.engine.drafting
        assert drafting is not None
        drafting.costs = None
        said = llm.generate(prompt, p)
        assert (said.token_ids, said.logprobs) == (plain.token_ids, plain.logprobs)
        assert llm.engine.status().draft_tokens_kept > 5
        llm.engine.check_integrity()
        llm.runtime.check_integrity()


def test_a_model_that_sees_has_it_beside_its_text_part() -> None:
    """As the checkpoints of Qwen3.5 have it."""
    golden = make_tiny_models.golden("qwen35")
    whole = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": golden.config,
        "vision_config": {},
    }
    shapes = {
        name.replace("model.", "model.language_model.", 1): shape
        for name, shape in block_shapes().items()
    }
    shapes["model.visual.blocks.0.attn.qkv.weight"] = (64, 64)
    header = Header("huggingface", whole, shapes)
    _, block, _ = mtp_model(header, 64).segments
    found = {weight.source for weight in block.weights}
    assert "mtp.layers.0.self_attn.q_proj.weight" in found
    assert {name for name in found if not name.startswith("mtp.")} == {
        "model.language_model.embed_tokens.weight"
    }
    assert not build_model(header, 64).embeds


@pytest.mark.parametrize("name", ["DeepseekV3", "Glm4MoeLite"])
def test_a_directory_may_have_it_behind_its_layers(name: str) -> None:
    stated = tiny.config(name)
    shapes = tiny.shapes(stated)
    i, width = stated["num_hidden_layers"], stated["hidden_size"]
    last, own = f"model.layers.{i - 1}.", f"model.layers.{i}."
    shapes |= {own + k.removeprefix(last): s for k, s in shapes.items() if k.startswith(last)}
    shapes[f"{own}eh_proj.weight"] = (width, 2 * width)
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        shapes[f"{own}{norm}.weight"] = (width,)
    shapes[f"{own}shared_head.head.weight"] = (stated["vocab_size"], width)
    _, block, head = mtp_model(Header("huggingface", stated, shapes), 64).segments
    found = {weight.source for weight in block.weights}
    assert found > {f"{own}eh_proj.weight", f"{own}shared_head.norm.weight"}
    assert all(source.startswith((own, "model.embed_tokens")) for source in found)
    assert [weight.source for weight in head.weights] == [f"{own}shared_head.head.weight"]


def test_who_has_no_block_is_told(tmp_path: Path) -> None:
    bare = make_tiny_models.write_directory(tmp_path / "q", make_tiny_models.golden("qwen35"))
    with pytest.raises(UsageError, match="q has no block that predicts further tokens"):
        LLM(bare, context=64, draft_model="self:mtp")
    other = make_tiny_models.write_directory(tmp_path / "l", make_tiny_models.golden("llama"))
    with pytest.raises(UsageError, match="are not known"):
        LLM(other, context=64, draft_model="self:mtp")
    path = write_directory(tmp_path / "m", lambda arrays: arrays.pop("mtp.norm.weight"))
    with open_model(path) as file:
        # Its norm may be the model's.
        assert mtp_model(file, 64).segments[1].weights
    path = write_directory(
        tmp_path / "n", lambda arrays: arrays.pop("mtp.layers.0.self_attn.k_proj.weight")
    )
    with open_model(path) as file, pytest.raises(MissingTensor, match=r"mtp\.layers\.0"):
        mtp_model(file, 64)
