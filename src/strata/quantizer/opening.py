"""Any opened model as a source of tensors under GGUF's names."""

from __future__ import annotations

from functools import partial

from strata.errors import UsageError
from strata.formats import ModelFile
from strata.quantizer.directories import as_gguf
from strata.quantizer.presented import Presented
from strata.quantizer.sources import Source, SourceTensor, gguf_source, identity

__all__ = ["as_gguf", "source_of"]


def source_of(file: ModelFile) -> Source:
    """The tensors and metadata of a GGUF file, or of what is presented as one."""
    if not isinstance(file, Presented):
        if file.foreign:
            raise UsageError(f"{file.path.name} is in a format that is studied: give its floats")
        return gguf_source(file)
    tensors = {
        name: SourceTensor(
            name, info.shape, info.type, partial(file.matrix_rows, name), file.held(name)
        )
        for name, info in file.tensors.items()
    }
    own = identity(file) + file.changes
    return Source(file.keys, file.values, tensors, own, file.forget_cached)
