"""`strata quantize`: files that are whole or not there, the same whatever they are made with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strata.cli import main
from strata.formats import open_model
from strata.formats.gguf import stored_values
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.memory import process_memory
from strata.quant import by_name
from strata.quantizer.mixes import Facts, choose_types, find_mix


def run(*args: object) -> int:
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of floats."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("floats") / "floats.gguf"
    shapes = {
        "token_embd.weight": (300, 256),
        "blk.0.attn_norm.weight": (256,),
        "blk.0.attn_v.weight": (64, 256),
        "blk.0.ffn_down.weight": (256, 96),
        "blk.0.ffn_gate_exps.weight": (3, 40, 256),
    }
    floats = by_name("F32")
    tensors = [
        TensorSource.of(name, shape, floats, rng.standard_normal(shape).astype("<f4"))
        for name, shape in shapes.items()
    ]
    keys = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "odd.numbers": np.arange(3, dtype=np.int16),
        "odd.words": ["a", "b\udcff"],
    }
    write_gguf(path, keys, tensors)
    return path


def test_every_key_is_carried_and_bytes_do_not_depend_on_threads_or_budget(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []
    # Other tests have left their memory in this process.
    budget = ["-m", process_memory().total + 200_000_000]
    for number, more in enumerate((["-t", 1], ["-t", 3], budget)):
        out = tmp_path / f"{number}.gguf"
        assert run("quantize", model, out, "--type", "q4_k_m", "--json", *more) == 0
        answer = json.loads(capsys.readouterr().out)
        outs.append(out.read_bytes())
    assert outs[0] == outs[1] == outs[2]
    assert answer["tensors"] == {"F32": 1, "Q4_K": 1, "Q6_K": 2, "Q8_0": 1}
    with open_model(model) as before, open_model(out) as after:
        was, now = stored_values(before.files[0]), stored_values(after.files[0])
        assert {k: now[k] for k in was} == was
        assert after.metadata["general.file_type"] == 15
        assert after.tensors["blk.0.ffn_down.weight"].type.name == "Q8_0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.gguf", "1.gguf", "2.gguf"]


def test_progress_of_what_is_no_bytes_is_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quantize", model, tmp_path / "o.gguf", "--bpw", 6) == 0
    steps, written = capsys.readouterr().err.splitlines()
    assert "errors of types" in steps
    assert "4/4 " in steps
    assert "bytes" not in steps
    assert " kB" in written


def test_chosen_tensors_get_chosen_types(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.gguf"
    assert run("quantize", model, out, "--type", "IQ2_XS", "--pure", "--tensor", "exps=Q8_0") == 0
    with open_model(out) as file:
        types = {name: info.type.name for name, info in file.tensors.items()}
    assert types["blk.0.ffn_gate_exps.weight"] == "Q8_0"
    assert types["token_embd.weight"] == "IQ2_XS"
    assert types["blk.0.ffn_down.weight"] == "IQ4_NL"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--type", "Q9"], 2, "there is no type 'Q9'"),
        (["--tensor", "x"], 2, "PATTERN=TYPE"),
        (["--tensor", "(=Q4_0"], 2, "regular expression"),
        (["-m", "1MB"], 2, "give at least"),
    ],
)
def test_wrong_wishes_are_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    words: str,
) -> None:
    assert run("quantize", model, tmp_path / "o.gguf", *args) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken_or_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quantize", model, model) == 2
    assert run("quantize", model, model, "--force") == 2
    assert "is the model itself" in capsys.readouterr().err
    assert run("quantize", model, tmp_path / "o.bin") == 2
    assert run("quantize", tmp_path / "none.gguf", tmp_path / "o.gguf") == 1
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-50])
    assert run("quantize", short, tmp_path / "o.gguf") == 1
    assert "cut off" in capsys.readouterr().err


def test_what_is_no_number_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bytearray(model.read_bytes())
    raw[-4:] = b"\xff\xff\xff\x7f"
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(raw)
    assert run("quantize", bad, tmp_path / "o.gguf") == 1
    assert "'blk.0.ffn_gate_exps.weight', rows" in capsys.readouterr().err
    assert not (tmp_path / "o.gguf").exists()


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    big, floats = tmp_path / "big.gguf", by_name("F32")
    write_gguf(
        big,
        {"general.architecture": "llama"},
        [
            TensorSource.of(f"blk.{i}.ffn_up.weight", (512, 1024), floats, x)
            for i in range(6)
            for x in [rng.standard_normal((512, 1024)).astype("<f4")]
        ],
    )
    script = (
        "import strata.formats.writing as w, sys; w._SECONDS_BETWEEN_MARKS = 0.0\n"
        "import strata.quantizer.quantise as q, time\n"
        "old = q._pieces\n"
        "def slow(t, *a):\n"
        "    if t.name.startswith('blk.4'):\n"
        "        print('here', flush=True); time.sleep(60)\n"
        "    yield from old(t, *a)\n"
        "q._pieces = slow\n"
        "from strata.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    out, whole = tmp_path / "out.gguf", tmp_path / "whole.gguf"
    args = [sys.executable, "-c", script, "quantize", str(big), str(out), "--type", "Q5_K"]
    told = b"strata: error: terminated; the same command goes on from here\n"
    for ending in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            process.send_signal(ending)
            said = process.communicate()[1]
        assert not out.exists()
        assert ending == signal.SIGKILL or process.returncode == 143
        assert ending == signal.SIGKILL or said.endswith(told)
    note = json.loads((tmp_path / "out.gguf.partial.job").read_text())
    assert note["tensors"] == 4
    partial = tmp_path / "out.gguf.partial"
    before = os.stat(partial).st_ino
    assert run("quantize", big, out, "--type", "Q5_K") == 0
    assert os.stat(out).st_ino == before
    assert run("quantize", big, whole, "--type", "Q5_K") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.gguf", "out.gguf", "whole.gguf"]
    # Another job does not go on with what this one left.
    partial.write_bytes(b"x" * 100)
    (tmp_path / "out.gguf.partial.job").write_text(json.dumps(note))
    assert run("quantize", big, out, "--type", "Q4_K", "--force") == 0
    assert run("quantize", big, whole, "--type", "Q4_K", "--force") == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_full_disk_is_one_line_and_no_file(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno

    from strata.formats import writing

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.ResumedFile, "mark", full)
    assert run("quantize", model, tmp_path / "o.gguf") == 1
    assert "the disk became full" in capsys.readouterr().err
    assert not (tmp_path / "o.gguf").exists()


def test_mixes_know_layers_and_experts() -> None:
    """As llama-quantize chooses them (checked with its --dry-run over all mixes)."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (100, 512),
        "output.weight": (100, 512),
    }
    for layer in range(16):
        shapes[f"blk.{layer}.attn_v.weight"] = (128, 512)
        shapes[f"blk.{layer}.ffn_down.weight"] = (512, 512)
        shapes[f"blk.{layer}.attn_norm.weight"] = (512,)
    types = choose_types(find_mix("Q4_K_M"), Facts("llama", 16, 0, 4, tied=False), shapes)
    assert types["output.weight"].name == "Q6_K"
    assert types["token_embd.weight"].name == "Q4_K"
    downs = [types[f"blk.{i}.ffn_down.weight"].name for i in range(16)]
    assert [i for i, t in enumerate(downs) if t == "Q6_K"] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert "blk.0.attn_norm.weight" not in types
    eight = choose_types(find_mix("q4_k"), Facts("llama", 16, 8, 4, tied=False), shapes)
    assert eight["blk.3.attn_v.weight"].name == "Q8_0"
