"""lm-evaluation-harness over completions: what it computes of a task is what the model gives in
process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strata import LLM
from strata.formats import open_model
from support.running import NAMES, Running

pytestmark = pytest.mark.slow

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "a river", "7"], "answer": 0},
    {"question": "Two and two make", "choices": ["green", "four", "a ship"], "answer": 1},
    {"question": "Snow is", "choices": ["hot and dry", "loud", "white"], "answer": 2},
]
TASK = """
task: three_questions
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def write_tokenizer(model: Path, folder: Path) -> None:
    """The directory of a tokenizer, made of a GGUF file's vocabulary by the library alone."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    with open_model(model) as file:
        tokens: Any = file.metadata["tokenizer.ggml.tokens"]
        merges: Any = file.metadata["tokenizer.ggml.merges"]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    engine = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=engine).save_pretrained(folder)


def test_log_likelihoods_are_those_in_process(
    server: Running,
    llm: LLM,
    smollm2_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # The harness tokenizes for itself, by a directory as the hub has them.
    write_tokenizer(smollm2_path, tmp_path / "t")
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "three.yaml").write_text(TASK % data)

    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": NAMES[0],
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(tmp_path / "t"),
            "num_concurrent": 1,
        },
        tasks=["three_questions"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    answered = found["samples"]["three_questions"]
    assert len(answered) == len(QUESTIONS)
    right = 0
    for each in answered:
        doc, expected = each["doc"], []
        for choice in doc["choices"]:
            before = llm.tokenize(doc["question"])
            whole = llm.tokenize(f"{doc['question']} {choice}")
            assert whole[: len(before)] == before
            logprobs = llm.prompt_logprobs(whole)[len(before) :]
            expected.append(sum(p for p in logprobs if p is not None))
        got = [float(answer[0]) for answer in each["filtered_resps"]]
        assert got == pytest.approx(expected, abs=1e-12, rel=1e-12)
        right += max(range(3), key=expected.__getitem__) == doc["answer"]
    assert found["results"]["three_questions"]["acc,none"] == right / len(QUESTIONS)
