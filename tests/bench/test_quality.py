"""The comparison of formats: what it writes, reads and says, on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("strata._native")

import make_tiny_models
import quality
from strata.formats import ModelFile, open_model
from strata.quant import by_name, dequantize


@pytest.fixture
def source(tmp_path: Path) -> ModelFile:
    golden = make_tiny_models.golden("llama")
    return open_model(make_tiny_models.write_gguf(tmp_path / "m.gguf", golden))


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_1"])
def test_a_file_in_another_format(name: str, source: ModelFile, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    used = quality.requantised(source, name, path)
    with source, open_model(path) as file:
        assert set(file.tensors) == set(source.tensors)
        matrices = [t for t in file.tensors.values() if len(t.shape) == 2]
        assert sum(used.values()) == len(matrices)
        for info in file.tensors.values():
            wanted = name if len(info.shape) == 2 else "F32"
            if info.name in quality.EMBEDDINGS and name != "F16":
                wanted = "Q8_0"
            assert info.type.name == wanted
            old = source.tensors[info.name]
            before = dequantize(old.type, source.read(old.name), old.shape)
            after = dequantize(info.type, file.read(info.name), info.shape)
            # The coarsest: a sixteenth of a block's range.
            assert np.abs(after - before).max() <= np.ptp(before) / 16


def test_every_format_has_a_fallback_for_short_rows() -> None:
    for name in quality.FORMATS:
        if by_name(name).elements == 256:
            assert by_name(quality.FALLBACK[name]).elements == 32


def test_errors_and_what_they_mean() -> None:
    generator = np.random.default_rng(0)
    reference = -generator.random(1000)
    noise = generator.standard_normal(1000)
    noise -= noise.mean()
    found = quality.compare(reference - 0.001 + 0.01 * noise, reference)
    assert found["ratio"] == pytest.approx(np.exp(0.001))
    assert found["rms"] == pytest.approx(0.01, rel=0.1)
    assert found["ratio_stderr"] == pytest.approx(0.01 / 1000**0.5, rel=0.1)
    cut = reference.copy()
    cut[::2] = np.nan
    assert quality.compare(cut, reference, 3.0)["rms"] == 0
    # Worse by 0.001, of which the standard error is 0.01 / sqrt(500).
    sigmas = quality.sigmas(reference - 0.001 + 0.01 * noise, cut)
    assert sigmas == pytest.approx(0.001 / (0.01 / 500**0.5), abs=1.5)


@pytest.mark.parametrize(
    ("ratio", "perplexity", "sigmas", "good"),
    [
        (1.004, 10.0, -1.0, True),
        (1.004, 11.0, 1.5, True),
        (1.004, 11.0, 2.5, False),
        (1.006, 10.0, -1.0, False),
        (0.994, 10.0, -1.0, False),
    ],
)
def test_what_is_good(ratio: float, perplexity: float, sigmas: float, good: bool) -> None:
    cpu = {"ratio": ratio, "perplexity": perplexity, "sigmas": sigmas}
    assert quality.good(cpu, {"perplexity": 10.5}) is good


def test_the_peers_file_is_read(tmp_path: Path) -> None:
    """Two windows of 8 tokens: 3 scored positions each; level 0 is cut off."""
    vocabulary, context, chunks = 5, 8, 2
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8) % vocabulary
    levels = np.full((2, 3, 6), 100, np.uint16)
    levels[0, 0, tokens[0, 5]] = 65535
    levels[1, 2, tokens[1, 7]] = 0
    scale = np.array([16 / 65535, -16], np.float32).view(np.uint16)
    rows = np.concatenate([np.broadcast_to(scale, (2, 3, 4)), levels], axis=2)
    head = np.array([context, vocabulary, chunks], np.int32).tobytes()
    (tmp_path / "canned").write_bytes(b"_logits_" + head + tokens.tobytes() + rows.tobytes())
    tool = tmp_path / "llama-perplexity"
    tool.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        "saved = sys.argv[sys.argv.index('--save-all-logits') + 1]\n"
        f"shutil.copy({str(tmp_path / 'canned')!r}, saved)\n"
        "print('Final estimate: PPL = 12.5 +/- 1')\n"
    )
    tool.chmod(0o755)
    found, printed, _ = quality.peers(tool, tmp_path / "m.gguf", tmp_path, context, chunks, 1)
    assert printed == 12.5
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(found[5])
    assert found[1:5] == pytest.approx(100 * 16 / 65535 - 16, abs=1e-5)
