"""Hugging Face directories that others quantised: the tensors behind a weight become one tensor of
a block type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.formats.errors import ForeignFormatError, shown
from strata.formats.foreign import bitsandbytes, compressed, dbrx, exl3, gpt_oss, hqq, words
from strata.formats.foreign.weight import ForeignWeight, ReadSmall
from strata.formats.tensor_info import TensorInfo

_FINDERS = {
    "gptq": words.gptq,
    "awq": words.awq,
    "bitsandbytes": bitsandbytes.find,
    "hqq": hqq.find,
    "compressed-tensors": compressed.find,
    "mxfp4": gpt_oss.find,
    "exl3": exl3.find,
}
# By `model_type`, whatever the weights are: experts of which some lie in turn.
_IN_TURN = {"gpt_oss": "mxfp4"}

METHODS = tuple(_FINDERS)
"""``quant_method`` of config.json that are read here."""


def present_foreign(
    stored: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    where: str,
    read: ReadSmall | None = None,
) -> tuple[dict[str, TensorInfo], dict[str, ForeignWeight]]:
    """Replace what each quantised weight is made of by one tensor; others stay.

    ``read`` gives the bytes of a small tensor, None where none can be read. Returns the tensors and
    those that are put together. ForeignFormatError names what is not supported.
    """
    kind = config.get("model_type")
    stored = dbrx.apart(stored, config)
    usual = _IN_TURN.get(kind) if isinstance(kind, str) else None
    settings = config.get("quantization_config") or {"quant_method": usual}
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    finder = _FINDERS.get(method) if isinstance(method, str) else None
    if finder is None or not isinstance(settings, Mapping):
        return dict(stored), {}
    try:
        weights = finder(stored, settings, read)
    except ForeignFormatError as error:
        raise ForeignFormatError(f"{where}: {shown(method)}: {error}") from None
    gone = {part.name for weight in weights for part in weight.parts.values()}
    gone |= {name for weight in weights for name in weight.unused}
    presented = {name: info for name, info in stored.items() if name not in gone}
    presented |= {weight.info.name: weight.info for weight in weights}
    return presented, {weight.info.name: weight for weight in weights}
