"""run, perplexity, bench and tokenize from the command line: output, JSON keys, and failures."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from strata.cli import main
from strata.formats import ModelFile
from strata.text import Tokenizer, load_tokenizer
from support.fixed_machine import MACHINE

BACKEND = "cpu" if importlib.util.find_spec("strata._native") else "reference"
ENGINE = ["--backend", BACKEND, "--threads", "2"]


@pytest.fixture
def model(smollm2_path: Path) -> str:
    return str(smollm2_path)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, "one object and nothing else"
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Strata:
    """Runs a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch

    def __call__(self, *args: str, stdin: bytes | None = b"") -> Result:
        """``stdin`` None is a terminal at which nobody types."""
        text = _Terminal(io.BytesIO()) if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
        self._patch.setattr(sys, "stdin", text)
        self._capsys.readouterr()
        code = main(args)
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)


_TOKENIZERS: dict[Path, Tokenizer] = {}


@pytest.fixture(autouse=True)
def _one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a short run is spent on making the same one again."""

    def known(file: ModelFile) -> Tokenizer:
        if file.path not in _TOKENIZERS:
            _TOKENIZERS[file.path] = load_tokenizer(file)
        own = copy(_TOKENIZERS[file.path])
        # Which an option replaces.
        own.chat_templates = {**own.chat_templates}
        return own

    monkeypatch.setattr("strata.engine.loading.load_tokenizer", known)


@pytest.fixture
def strata(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Strata:
    return Strata(capsys, monkeypatch)


def test_run_prints_the_answer_and_nothing_else(strata: Strata, model: str) -> None:
    plain = strata("run", model, "Say hello.", "--max-tokens", "30", "--quiet", *ENGINE)
    assert (plain.code, plain.err) == (0, "")
    result = strata("run", model, "Say hello.", "--max-tokens", "30", "--json", *ENGINE)
    value = result.json
    assert plain.out == value["text"] + "\n"
    assert set(value) >= {
        "text", "tokens", "prompt_tokens", "completion_tokens", "timings", "memory", "model",
        "finish_reason",
    }  # fmt: skip
    assert set(value["timings"]) == {"load_s", "prefill_tok_s", "decode_tok_s", "ttft_s"}
    assert all(seconds > 0 for seconds in value["timings"].values())
    assert value["memory"]["peak_bytes"] > 50_000_000
    assert value["completion_tokens"] == len(value["tokens"]) <= 30
    assert value["prompt_tokens"] > 10


def test_run_takes_standard_input(strata: Strata, model: str) -> None:
    options = ["--max-tokens", "5", *ENGINE]
    argument = strata("run", model, "Say hello.", *options)
    assert strata("run", model, *options, stdin=b"Say hello.\n").out == argument.out
    assert strata("run", model, "-", *options, stdin=b"Say hello.\r\n").out == argument.out
    both = strata("run", model, "Say", "hello.", *options, stdin=b"Be kind.\n")
    assert both.out == strata("run", model, "Be kind.\n\nSay hello.", *options).out != argument.out


def test_run_takes_what_users_of_llama_cpp_type(strata: Strata, model: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("Be kind.\n")
    common = ["-n", "5", "-t", "2", "--backend", BACKEND, "-q"]
    ours = strata("run", model, "Be kind.\n\nSay hello.", *common)
    theirs = strata("run", "-m", model, "-p", "Say hello.", "-f", str(file), "-ngl", "99", *common)
    assert theirs.out == ours.out
    assert theirs.err == "-ngl has no effect: everything is computed on the processor\n"
    template = ["--chat-template", "{{ messages[0].content }}"]
    assert strata("run", model, "Once", *template, *common).out == strata(
        "run", model, "Once", "--raw", *common
    ).out.removeprefix(" ")


@pytest.mark.parametrize(
    ("option", "value", "matches"),
    [
        ("--regex", "(yes|no), (sir|madam)", r"(yes|no), (sir|madam)"),
        ("--grammar", 'root ::= "a" | "bc"', "a|bc"),
        ("--json-schema", '{"type": "object", "properties": {}}', r"\{.*\}"),
    ],
)
def test_run_obeys_a_grammar(
    strata: Strata, model: str, option: str, value: str, matches: str
) -> None:
    pytest.importorskip("llguidance")
    answer = strata("run", model, "Is it so?", option, value, "-n", "30", *ENGINE)
    assert re.fullmatch(matches, answer.out.removesuffix("\n"), re.DOTALL)


def test_run_says_what_was_cut(strata: Strata, model: str) -> None:
    limit = strata("run", model, "Tell a story.", "--max-tokens", "5", *ENGINE)
    assert "cut off after 5 tokens, as --max-tokens says" in limit.err
    context = strata("run", model, "Tell a story.", "--context", "48", "--ignore-eos", *ENGINE)
    assert "cut off: the context of 48 positions is full" in context.err
    whole = strata("run", model, "Tell a story.", "--max-tokens", "5", "--stop", "e", *ENGINE)
    assert "cut off" not in whole.err


@pytest.mark.skipif(BACKEND != "cpu", reason="nothing is planned")
def test_run_tells_its_speed_before_it_starts(
    strata: Strata, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strata.backends.cpu.host import available_isas
    from strata.machine.probe import load_machine

    args = ["run", model, "Hi", "--max-tokens", "1", "--threads", "2"]
    monkeypatch.setattr("strata.machine.probe.known_machine", lambda path: None)
    assert "`strata probe` measures this machine" in strata(*args).err
    assert "probe" not in strata(*args, "--quiet").err
    machine = replace(load_machine(MACHINE), isa=available_isas()[0], memory_available=8 * 10**9)
    monkeypatch.setattr("strata.machine.probe.known_machine", lambda path: machine)
    told = strata(*args).err
    assert re.match(
        r"all 9\d\.\d MB of weights stay in memory; predicted: the first token of a prompt of \d+ "
        r"after .* m?s, then \S+ tok/s\n",
        told,
    )


def test_run_options_reach_the_model(strata: Strata, model: str) -> None:
    def run(*options: str) -> dict[str, Any]:
        return strata(
            "run", model, "Once upon a time", "--json", "--max-tokens", "20", *ENGINE, *options
        ).json

    chat, raw = run(), run("--raw")
    assert raw["prompt_tokens"] < chat["prompt_tokens"]
    system = run("--system", "You are a pirate.")
    assert system["prompt_tokens"] != chat["prompt_tokens"]
    stop = raw["text"][5:8]
    stopped = run("--raw", "--stop", "never there", "--stop", stop)
    assert stopped["text"] == raw["text"][: raw["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"
    drawn = run("--raw", "--temperature", "1", "--seed", "3", "--top-k", "50", "--top-p", "0.9")
    assert drawn["seed"] == 3
    assert drawn["tokens"] != raw["tokens"]
    assert run("--raw", "--temperature", "1", "--top-k", "1")["tokens"] == raw["tokens"]
    penalised = run("--raw", "--repetition-penalty", "3", "--ignore-eos")
    assert penalised["completion_tokens"] == 20
    assert penalised["tokens"] != raw["tokens"]


def test_run_without_a_template_continues_the_prompt(
    strata: Strata, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_templates(file: ModelFile) -> Tokenizer:
        tokenizer = load_tokenizer(file)
        tokenizer.chat_templates.clear()
        return tokenizer

    options = ["Once upon a time", "--max-tokens", "5", *ENGINE]
    raw = strata("run", model, "--raw", *options)
    monkeypatch.setattr("strata.engine.loading.load_tokenizer", without_templates)
    plain = strata("run", model, *options)
    assert plain.out == raw.out
    assert "no chat template" in plain.err
    system = strata("run", model, "--system", "Be brief.", *options)
    assert system.code == 2
    assert "--system" in system.err


def test_run_stats_go_to_standard_error(strata: Strata, model: str) -> None:
    result = strata("run", model, "Hi", "--stats", "--max-tokens", "4", *ENGINE)
    assert "tok/s" in result.err
    assert "peak memory" in result.err
    assert "tok/s" not in result.out


def test_tokenize(strata: Strata, model: str, tmp_path: Path) -> None:
    text = "Hello <|im_start|>wörld\n🙂"
    file = tmp_path / "text"
    file.write_bytes(text.encode())
    plain = strata("tokenize", model, text, "--json").json["ids"]
    assert strata("tokenize", model, "--file", str(file), "--json").json == {"ids": plain}
    assert strata("tokenize", model, "--json", stdin=text.encode()).json == {"ids": plain}
    assert strata("tokenize", model, text).out == " ".join(map(str, plain)) + "\n"
    special = strata("tokenize", model, text, "--parse-special", "--pieces", "--json").json
    assert len(special["ids"]) == len(special["pieces"]) < len(plain)
    assert special["pieces"][2] == "<|im_start|>"
    assert r"\xf0\x9f" in "".join(special["pieces"]), "half a character is shown by its bytes"
    assert strata("tokenize", model, text, "--pieces").out.count("\n") == len(plain)
    assert strata("tokenize", model, "", "--json").json == {"ids": []}


def test_tokenize_reads_no_weights(
    strata: Strata, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(ModelFile, "readinto", refuse)
    assert strata("tokenize", model, "Hello").code == 0


def test_perplexity(strata: Strata, model: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("The cat sat on the mat and watched the birds. " * 10 + "\n")
    options = ["--text", str(file), "--context", "32", *ENGINE]
    result = strata("perplexity", model, *options, "--chunks", "2", "--json")
    assert set(result.json) >= {"perplexity", "stderr", "tokens", "chunks", "context", "model"}
    assert result.json["tokens"] == 30
    assert result.json["chunks"] == 2
    assert result.err.splitlines()[-1].startswith("[2/2] ")
    plain = strata("perplexity", model, *options, "--chunks", "2", "--quiet")
    assert plain.out.startswith(f"perplexity {result.json['perplexity']:.4f} ")
    assert plain.err == ""
    everything = strata("perplexity", model, *options, "--json").json
    assert everything["chunks"] == 3


def test_bench(strata: Strata, model: str) -> None:
    options = ["--prompt", "20", "--gen", "3", "--depth", "10", "--repeat", "2", *ENGINE]
    value = strata("bench", model, *options, "--json").json
    for key in ("prefill_tok_s", "decode_tok_s", "ttft_s"):
        assert 0 < value[f"{key}_min"] <= value[key] <= value[f"{key}_max"]
    # Of SmolLM2's weights a token reads all but the embedding table, whose place the head takes.
    assert value["weight_bytes_per_token"] == pytest.approx(96.6e6, rel=0.01)
    assert value["weight_read_gb_s"] > 0
    assert set(value) >= {"threads", "isa", "load_s", "memory", "depth", "repeat"}
    table = strata("bench", model, *options).out
    assert "decode of 3 at depth 10" in table
    half = strata("bench", model, *options, "--gen", "0", "--json").json
    assert half["decode_tok_s"] is None


@pytest.mark.skipif(BACKEND != "cpu", reason="no native kernels")
def test_bench_of_ops(strata: Strata, model: str) -> None:
    options = ["--prompt", "20", "--gen", "1", "--repeat", "1", "--ops", "--threads", "2"]
    ops = strata("bench", model, *options, "--json").json["ops"]
    assert ops["limits"]["read_gb_s"] > 0
    assert set(ops["overhead"]) == {"call_s", "node_s"}
    for step in (ops["prefill"], ops["decode"]):
        spent = sum(op["seconds"] for op in step["ops"])
        assert spent == pytest.approx(step["ops_s"])
        assert step["ops_s"] + step["outside_s"] == pytest.approx(step["step_s"])
        assert {"bytes", "gb_s", "flops", "gflops_s", "roofline"} <= set(step["ops"][0])
    table = strata("bench", model, *options).out
    assert "matmul ffn_gate+ffn_up" in table
    assert "head: matmul token_embd" in table


@pytest.mark.parametrize(
    ("args", "stdin", "code", "says"),
    [
        (["run", "MODEL", ""], b"", 2, "the prompt is empty"),
        (["run", "MODEL"], b" \n", 2, "the prompt is empty"),
        (["run", "MODEL"], b"\xff", 2, "standard input is not UTF-8 text (byte 0)"),
        (["run", "MODEL", "a", "--temperature", "-1"], b"", 2, "temperature must be at least 0"),
        (["run", "MODEL", "a", "--seed", "-1"], b"", 2, "seed"),
        (["run", "MODEL", "a", "--max-tokens", "0"], b"", 2, "max_tokens must be at least 1"),
        (["run", "MODEL", "a", "--context", "1"], b"", 2, "--context"),
        (["run", "MODEL", "a", "--context", "1000000"], b"", 2, "context"),
        (["run", "MODEL", "a " * 70, "--context", "64", "--quiet"], b"", 2, "raise the context"),
        (["run", "MODEL", "a", "--raw", "--system", "b"], b"", 2, "--raw"),
        (["run", "MODEL", "a", "--json-schema", "{"], b"", 2, "the JSON schema is not JSON"),
        (["run", "MODEL", "a", "--json-schema", "3"], b"", 2, "a JSON schema is an object"),
        (["run", "MODEL", "a", "--regex", "a", "--grammar", "b"], b"", 2, "exclude each other"),
        (["run", "MODEL", "a", "--chat-template", "none"], b"", 2, "no chat template none"),
        (["run", "MODEL", "a", "--backend", "gpu"], b"", 2, "--backend"),
        (["run", "/no/such.gguf", "a"], b"", 1, "/no/such.gguf"),
        (["tokenize", "MODEL", "a", "--file", "FILE"], b"", 2, "not both"),
        (["tokenize", "MODEL", "--file", "/no/such"], b"", 2, "/no/such"),
        (["tokenize", "MODEL"], b"\x80", 2, "not UTF-8"),
        (["perplexity", "MODEL"], b"", 2, "--text"),
        (["perplexity", "MODEL", "--text", "/no/such"], b"", 2, "/no/such"),
        (["perplexity", "MODEL", "--text", "FILE"], b"", 2, "enough for 0"),
        (["perplexity", "MODEL", "--text", "FILE", "--context", "3"], b"", 2, "--context"),
        (
            ["perplexity", "MODEL", "--text", "FILE", "--context", "4", "--chunks", "99"],
            b"",
            2,
            "99 windows of 4 tokens",
        ),
        (["perplexity", "MODEL", "--text", "EMPTY"], b"", 2, "is empty"),
        (["perplexity", "MODEL", "--text", "BYTES"], b"", 2, "not UTF-8 text (byte 3)"),
        (["bench", "MODEL", "--prompt", "0", "--gen", "0"], b"", 2, "nothing to measure"),
        (["bench", "MODEL", "--prompt", "1000000"], b"", 2, "context"),
        (["bench", "MODEL", "--repeat", "0"], b"", 2, "--repeat"),
        (["bench", "MODEL", "--ops", "--backend", "reference"], b"", 2, "does not measure"),
    ],
)
def test_failures_are_one_line(
    strata: Strata,
    model: str,
    tmp_path: Path,
    args: list[str],
    stdin: bytes,
    code: int,
    says: str,
) -> None:
    files = {"MODEL": model}
    for name, content in (("FILE", b"one two three four five six"), ("EMPTY", b"\n"),
                          ("BYTES", b"abc\xc3")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        files[name] = str(tmp_path / name)
    verb = args[0]
    quick = [] if verb == "tokenize" or "--backend" in args else ENGINE
    result = strata(*(files.get(a, a) for a in args), *quick, stdin=stdin)
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("strata: error: ")
    assert says in result.err
    assert result.err.count("\n") == 1


def test_what_needs_a_prompt_or_a_text_says_so(strata: Strata, model: str) -> None:
    chat = strata("run", model, "--json", stdin=None)
    assert chat.code == 2
    assert "--json needs a prompt" in json.loads(chat.out)["error"]["message"]
    tokens = strata("tokenize", model, stdin=None)
    assert tokens.code == 2
    assert "standard input" in tokens.err
