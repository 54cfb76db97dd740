"""Questions with several answers, decided by which answer the model holds for likeliest.

The file has one JSON object a line, as EleutherAI's lm-evaluation-harness has them: what its
multiple-choice tasks make of a question (``query``, ``choices``, ``gold``), a sample that it logs
(``arguments``, ``target``), or a question of the ARC data set (``question``, ``choices`` with
``text`` and ``label``, ``answerKey``). As there, an answer follows the question after a space, and
``acc_norm`` divides its log-likelihood by its number of characters.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.records import dataclass

_LONGEST_LINE = 1 << 20
_MOST_ANSWERS = 100

Encode = Callable[[str], "array[int]"]


@dataclass(frozen=True)
class Question:
    """A text, the answers that may follow it (each with the space before it), which is right, and
    the lengths by which ``acc_norm`` divides."""

    text: str
    answers: tuple[str, ...]
    right: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """For each question whether the likeliest answer was the right one, by the sum of the
    log-likelihoods and by that over the answer's length. ``cut`` answers were longer than the
    context with their question, of which the beginning was left out."""

    acc: NDArray[np.float64]
    acc_norm: NDArray[np.float64]
    cut: int


def read_questions(path: Path) -> list[Question]:
    """All questions in a file. UsageError that names the line for what is none."""
    found: list[Question] = []
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(_LONGEST_LINE + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > _LONGEST_LINE:
                raise UsageError(f"{where} is longer than {_LONGEST_LINE} bytes")
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise UsageError(f"{where} is not JSON: one question a line is read") from None
            try:
                found.append(_question(value))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise UsageError(
                    f"{where} is no question with several answers (query, choices and gold; or "
                    f"arguments and target): {_reason(error)}"
                ) from None
    if not found:
        raise UsageError(f"{path} has no questions")
    return found


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _question(value: dict[str, Any]) -> Question:
    if "arguments" in value:
        pairs = _pairs(value["arguments"])
        texts = {text for text, _ in pairs}
        if len(texts) != 1:
            raise ValueError("its answers follow different texts")
        answers = [answer for _, answer in pairs]
        return _checked(texts.pop(), answers, int(value["target"]))
    if "answerKey" in value:
        labels = value["choices"]["label"]
        right = labels.index(value["answerKey"])
        text = f"Question: {value['question']}\nAnswer:"
        return _checked(text, [f" {answer}" for answer in value["choices"]["text"]], right)
    answers = [f" {_text(answer)}" for answer in value["choices"]]
    return _checked(value["query"], answers, int(value["gold"]))


def _pairs(arguments: Any) -> list[tuple[str, str]]:
    """A list of [text, answer], or the harness's newer {"gen_args_0": {"arg_0": text, ...}}."""
    if isinstance(arguments, dict):
        arguments = [[a["arg_0"], a["arg_1"]] for a in arguments.values()]
    return [(_text(text), _text(answer)) for text, answer in arguments]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _checked(text: Any, answers: Sequence[str], right: int) -> Question:
    if not 2 <= len(answers) <= _MOST_ANSWERS:
        raise ValueError(f"it has {len(answers)} answers")
    if not 0 <= right < len(answers):
        raise ValueError(f"answer {right} is right, of {len(answers)}")
    # What ends the text belongs to the answer, as its tokens do.
    whole = _text(text)
    kept = whole.rstrip()
    if not kept:
        raise ValueError("its text is empty")
    lengths = tuple(max(1, len(answer.removeprefix(" "))) for answer in answers)
    return Question(kept, tuple(whole[len(kept) :] + a for a in answers), right, lengths)


def answer(
    engine: Engine,
    questions: Sequence[Question],
    encode: Encode,
    progress: Callable[[int], None] | None = None,
) -> Answered:
    """What the model answers; ``encode`` makes tokens of a text with those that begin one."""
    plain, normalized = np.zeros(len(questions)), np.zeros(len(questions))
    cut = 0
    for number, question in enumerate(questions):
        sums = []
        for ids, first in _tokens(question, encode):
            if len(ids) > engine.context:
                cut += 1
                gone = len(ids) - engine.context
                ids, first = ids[gone:], max(1, first - gone)
            sums.append(float(engine.logprobs(ids, first - 1).sum()))
        by_length = [total / n for total, n in zip(sums, question.lengths, strict=True)]
        plain[number] = int(np.argmax(sums)) == question.right
        normalized[number] = int(np.argmax(by_length)) == question.right
        if progress is not None:
            progress(number + 1)
    return Answered(plain, normalized, cut)


def _tokens(question: Question, encode: Encode) -> Iterator[tuple[list[int], int]]:
    """For each answer all tokens, and how many of them are the question's."""
    before = len(encode(question.text))
    for each in question.answers:
        ids = encode(question.text + each).tolist()
        # At least one token is the answer's, whatever merged with the question's last.
        yield ids, max(1, min(before, len(ids) - 1))
