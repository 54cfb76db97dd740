"""Any opened model as a source of tensors under GGUF's names."""

from __future__ import annotations

from functools import partial

from strata.formats import ModelFile
from strata.quantizer.directories import Converted, as_gguf
from strata.quantizer.sources import Source, SourceTensor, gguf_source, identity
from strata.quantizer.vocabularies import plain

__all__ = ["as_gguf", "source_of"]


def source_of(file: ModelFile) -> Source:
    """The tensors and metadata of a GGUF file, or of what `as_gguf` makes of a directory."""
    if not isinstance(file, Converted):
        return gguf_source(file)
    tensors = {
        name: SourceTensor(
            name, info.shape, info.type, partial(file.matrix_rows, name), file.held(name)
        )
        for name, info in file.tensors.items()
    }
    return Source(plain(file.values), file.values, tensors, identity(file), file.forget_cached)
