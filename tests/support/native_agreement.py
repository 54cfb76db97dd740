"""What holds of any model on native kernels: the reference's numbers, and the same bits however it
is read and cut."""

from __future__ import annotations

import numpy as np

from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import ModelFile
from support.forward import Forward
from support.streaming import forward, least_ring, settings, units


def check_native(
    file: ModelFile,
    tokens: list[int],
    *,
    tiles: tuple[int, ...] = (40000,),
    near: float | None = 2.0**-8,
) -> None:
    """Native logits beside the reference's with keys and values rounded alike, as ``near`` as that
    part of the largest (None: not compared); streamed they are those of the resident model, to the
    bit, and so they are in chunks and on another number of threads."""
    resident = forward(file, None)
    native = resident.logits(tokens)
    if near is not None:
        rounded = Forward(file, backend=ReferenceBackend(KV_TYPES[0])).logits(tokens)
        assert np.abs(native - rounded).max() < near * np.abs(rounded).max()
    for chunks in ([len(tokens) - 8, 1, 7], [1] * len(tokens)):
        assert resident.logits(tokens, chunks).tobytes() == native.tobytes(), chunks
    assert forward(file, None, threads=1).logits(tokens).tobytes() == native.tobytes()
    for tile in tiles:
        # Experts that are tensors of their own have to fit.
        apart = any(".experts.0." in name for name in file.tensors)
        names = [u for u in units(file) if not (apart and ".experts" in u)]
        ring = 1 << 20 if apart else least_ring(file, tile)
        streamed = forward(file, settings(names, tile=tile, ring=ring))
        assert streamed.logits(tokens).tobytes() == native.tobytes(), tile
