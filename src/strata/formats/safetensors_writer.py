"""Writing safetensors files: the header, then tensor by tensor from iterators.

Source: the format section of the safetensors project's README.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from strata.formats.errors import WriteError, shown
from strata.formats.safetensors import DTYPES
from strata.formats.writing import (
    TensorSource,
    Written,
    new_file,
    refuse_duplicates,
    write_tensor,
)


def write_safetensors(
    path: str | Path,
    tensors: Sequence[TensorSource],
    *,
    written: Written | None = None,
    keep_partial: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; it appears under its name only when it is complete.

    Raises DiskFullError before writing if there is no room, WriteError for a type that the format
    does not have. `written` and `keep_partial` as in `write_gguf`; ``notes`` go into
    ``__metadata__``.
    """
    refuse_duplicates(tensors)
    entries: dict[str, object] = {"__metadata__": dict(notes or {"format": "pt"})}
    offset = 0
    for tensor in tensors:
        if tensor.type.name not in DTYPES:
            raise WriteError(
                f"tensor {shown(tensor.name)}: safetensors has no dtype {tensor.type.name}"
            )
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.type.name,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(entries).encode()
    # Spaces may follow the object, so that the data begins at a multiple of 8 bytes.
    header += b" " * (-len(header) % 8)
    with new_file(Path(path), 8 + len(header) + offset, keep_partial=keep_partial) as out:
        out.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            write_tensor(out, tensor, written)
