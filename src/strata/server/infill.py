"""Filling a gap in a text, for models that were trained with tokens for it."""

from __future__ import annotations

from collections.abc import Sequence

from strata.server.errors import ApiError
from strata.server.service import Service

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
)
"""What families call the tokens before the text, before what follows the gap, and before what fills
it."""
_FILE = ("<|file_sep|>", "<file_sep>", "<filename>")


def infill_tokens(service: Service) -> tuple[int, int, int] | None:
    """The three tokens, if the model has them."""
    for names in _MARKS:
        found = [special_token(service, (name,)) for name in names]
        if None not in found:
            prefix, suffix, middle = (token for token in found if token is not None)
            return prefix, suffix, middle
    return None


def special_token(service: Service, names: Sequence[str]) -> int | None:
    """The first special token of these names that the model has."""
    tokenizer = service.llm.tokenizer
    for name in names:
        ids = tokenizer.encode(name, parse_special=True)
        if len(ids) == 1 and not tokenizer.token_bytes(ids[0]):
            return ids[0]
    return None


async def infill_prompt(
    service: Service,
    before: str,
    after: str,
    files: Sequence[tuple[str, str]] = (),
    *,
    refused: int = 400,
) -> list[int]:
    """The prompt whose continuation stands between ``before`` and ``after``; ``files`` are names
    and texts of others that belong to it. ApiError ``refused`` for a model that was not trained for
    it; OpenAI's clients would ask again after a status of 500 or above."""
    marks = infill_tokens(service)
    if marks is None:
        raise ApiError(
            refused,
            "this model has no tokens for filling in: texts are continued at their end only "
            "(models for code, as Qwen2.5-Coder, StarCoder or CodeGemma, have them)",
            param="suffix",
        )
    prefix, suffix, middle = marks
    ids: list[int] = []
    separator = special_token(service, _FILE)
    for name, text in files:
        if separator is not None:
            ids.append(separator)
        ids += await _plain(service, f"{name}\n{text}\n")
    if files and separator is not None:
        ids += [separator, *await _plain(service, "filename\n")]
    tokenizer = service.llm.tokenizer
    start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    head, tail = await _plain(service, before), await _plain(service, after)
    return [*start, *ids, prefix, *head, suffix, *tail, middle]


async def _plain(service: Service, text: str) -> list[int]:
    most = service.llm.context
    return (await service.tokenize(text, parse_special=False, most=most)).tolist()
