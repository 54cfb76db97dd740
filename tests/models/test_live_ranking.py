"""Models that rank against transformers, with texts. Needs torch and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("strata._native")

from strata import LLM, UsageError
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.models import ConfigError
from strata.quant import by_name

pytestmark = pytest.mark.slow

WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 4, 128
QUERY = "what is a panda"
TEXTS = ["hi", "a giant panda is a bear", "it is warm in the south of the land " * 2]


@pytest.fixture
def ranking(tmp_path: Path) -> Any:
    """A directory as transformers writes it, and the scores that it gives."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in [QUERY, *TEXTS] for word in text.split()})
    pieces = [(f"\u2581{word}", -2.0 - i / 10) for i, word in enumerate(words)]
    letters = [(c, -9.0) for c in "\u2581abcdefghijklmnopqrstuvwxyz"]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces, *letters], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<pad>", sep_token="</s>", cls_token="<s>",
    )  # fmt: skip
    config = transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, intermediate_size=96,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, type_vocab_size=1, num_labels=1,
        max_position_embeddings=CONTEXT + 2, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(2)
    model = transformers.XLMRobertaForSequenceClassification(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_().mul_(0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
        pairs = [fast(QUERY, text, return_tensors="pt") for text in TEXTS]
        expected = [float(model(**pair).logits[0, 0]) for pair in pairs]
    model.save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    return (
        tmp_path / "model",
        expected,
        model.state_dict(),
        [p.input_ids[0].tolist() for p in pairs],
    )


def test_a_directory_of_transformers(ranking: Any) -> None:
    path, expected, _, pairs = ranking
    with LLM(path, embedding=True, backend="reference") as llm:
        assert np.allclose(llm.rank(QUERY, TEXTS), expected, atol=1e-3)
        assert np.array_equal(llm.rank(QUERY, TEXTS), llm.rank("", pairs))
        with pytest.raises(UsageError, match="embeds none"):
            llm.embed("a")
    with LLM(path, embedding=True, threads=2, parallel=3) as llm:
        together = llm.rank(QUERY, TEXTS)
        assert np.allclose(together, expected, atol=0.1 * np.abs(expected).max())
        alone = [llm.rank(QUERY, [text])[0] for text in TEXTS]
        assert np.array_equal(together, alone)
    with pytest.raises(UsageError, match="embeds texts"):
        LLM(path)


def test_a_gguf_file(ranking: Any, tmp_path: Path) -> None:
    _, expected, weights, pairs = ranking
    names = {
        "roberta.embeddings.word_embeddings": "token_embd",
        "roberta.embeddings.token_type_embeddings": "token_types",
        "roberta.embeddings.LayerNorm": "token_embd_norm",
        "classifier.dense": "cls",
        "classifier.out_proj": "cls.output",
    }
    layer = {
        "attention.self.query": "attn_q", "attention.self.key": "attn_k",
        "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
    }  # fmt: skip
    for i in range(LAYERS):
        names |= {f"roberta.encoder.layer.{i}.{k}": f"blk.{i}.{v}" for k, v in layer.items()}
    arrays = {f"{names[n]}.{k}": weights[f"{n}.{k}"].numpy() for n in names
              for k in ("weight", "bias") if f"{n}.{k}" in weights}  # fmt: skip
    # The converter leaves out the rows that no position has.
    arrays["position_embd.weight"] = weights[
        "roberta.embeddings.position_embeddings.weight"
    ].numpy()[2:]
    metadata = {
        "general.architecture": "bert",
        "bert.block_count": LAYERS,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": 96,
        "bert.attention.head_count": HEADS,
        "bert.context_length": CONTEXT,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.pooling_type": 4,
    }
    path = tmp_path / "model.gguf"

    def write(**changed: Any) -> None:
        found = {**arrays, **changed}
        sources = [TensorSource.of(n, a.shape, by_name("F32"), a) for n, a in found.items()]
        write_gguf(path, metadata, sources)

    write()
    from strata.backends.reference import ReferenceBackend
    from strata.backends.weights import WeightSource
    from strata.engine import Engine, Runner
    from strata.models import build_model

    with open_model(path) as file:
        model = build_model(file)
        assert model.ranks
        runner = Runner(ReferenceBackend(), model, WeightSource(file))
        found = Engine(runner, context=CONTEXT, token_budget=CONTEXT).embed(pairs, "first")
    assert np.allclose(found[:, 0], expected, atol=1e-3)
    # The second text of BERT's pairs has tokens of another type.
    write(**{"token_types.weight": np.zeros((2, WIDTH), np.float32)})
    with open_model(path) as file, pytest.raises(ConfigError, match="another type"):
        build_model(file)
