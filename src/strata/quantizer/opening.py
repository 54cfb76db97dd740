"""Any opened model as a source of tensors under GGUF's names."""

from __future__ import annotations

from strata.errors import UsageError
from strata.formats import ModelFile
from strata.quantizer.sources import Source, gguf_source


def source_of(file: ModelFile) -> Source:
    """The model's tensors and metadata as a GGUF file has them."""
    if file.kind == "gguf":
        return gguf_source(file)
    raise UsageError(
        f"{file.path} is a Hugging Face directory, which cannot be quantised yet: give a GGUF file"
    )
