"""Questions: the harness's forms of them, and which answer is held for likeliest."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from strata.errors import UsageError
from strata.report.quality.tasks import Question, answer, read_questions
from support.fake_model import VOCABULARY, fake_engine

DOC = {"query": "The sky is", "choices": ["green", "blue"], "gold": 1}
WANTED = Question("The sky is", (" green", " blue"), 1, (5, 4))


def written(path: Path, *values: Any) -> Path:
    path.write_text("\n".join(v if isinstance(v, str) else json.dumps(v) for v in values))
    return path


@pytest.mark.parametrize(
    "value",
    [
        DOC,
        {"arguments": [["The sky is", " green"], ["The sky is", " blue"]], "target": "1"},
        {
            "arguments": {
                "gen_args_0": {"arg_0": "The sky is", "arg_1": " green"},
                "gen_args_1": {"arg_0": "The sky is", "arg_1": " blue"},
            },
            "target": 1,
        },
    ],
)
def test_forms_of_a_question(tmp_path: Path, value: Any) -> None:
    assert read_questions(written(tmp_path / "t.jsonl", value, "", value)) == [WANTED, WANTED]


def test_a_question_of_arc(tmp_path: Path) -> None:
    choices = {"text": ["up", "down"], "label": ["A", "B"]}
    value = {"question": "Where?", "choices": choices, "answerKey": "B"}
    (found,) = read_questions(written(tmp_path / "t.jsonl", value))
    assert found == Question("Question: Where?\nAnswer:", (" up", " down"), 1, (2, 4))


def test_a_space_at_the_end_belongs_to_the_answer(tmp_path: Path) -> None:
    value = {"arguments": [["It is ", "so"], ["It is ", "not"]], "target": 0}
    (found,) = read_questions(written(tmp_path / "t.jsonl", value))
    assert found == Question("It is", (" so", " not"), 0, (2, 3))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no json", "line 2 is not JSON"),
        ({"query": "a", "choices": ["b", "c"]}, "'gold' is missing"),
        ({**DOC, "gold": 2}, "answer 2 is right, of 2"),
        ({**DOC, "choices": ["one"]}, "it has 1 answers"),
        ({**DOC, "choices": [1, 2]}, "1 is not a text"),
        ({**DOC, "query": " "}, "its text is empty"),
        ([], "no question"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_questions(written(tmp_path / "t.jsonl", DOC, value))


def test_a_number_without_end_is_named(tmp_path: Path) -> None:
    line = '{"query": "a", "choices": ["b", "c"], "gold": 1e999}'
    with pytest.raises(UsageError, match="line 1 is no question"):
        read_questions(written(tmp_path / "t.jsonl", line))


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no questions"):
        read_questions(written(tmp_path / "t.jsonl", ""))


def test_the_likeliest_answer_counts() -> None:
    """Against sums of log-probabilities that are taken apart from it."""
    engine = fake_engine()

    def encode(text: str) -> array[int]:
        return array("i", [1, *(ord(c) % VOCABULARY for c in text)])

    texts = ["abc", "hello there", "x"]
    questions = [Question(t, (" one", " another", " thing"), 1, (3, 7, 5)) for t in texts]
    found = answer(engine, questions, encode)
    for number, question in enumerate(questions):
        before = len(encode(question.text))
        sums = [
            sum(engine.logprobs(encode(question.text + a).tolist(), before - 1))
            for a in question.answers
        ]
        ratios = [s / n for s, n in zip(sums, question.lengths, strict=True)]
        assert found.acc[number] == (sums.index(max(sums)) == 1)
        assert found.acc_norm[number] == (ratios.index(max(ratios)) == 1)
    assert found.cut == 0


def test_what_is_longer_than_the_context_loses_its_beginning() -> None:
    engine = fake_engine(context=8)

    def encode(text: str) -> array[int]:
        return array("i", [ord(c) % VOCABULARY for c in text])

    found = answer(engine, [Question("a" * 20, ("b", "c"), 0, (1, 1))], encode)
    assert found.cut == 2
    short = answer(engine, [Question("a" * 7, ("b", "c"), 0, (1, 1))], encode)
    assert short.cut == 0
    assert short.acc[0] == found.acc[0]
