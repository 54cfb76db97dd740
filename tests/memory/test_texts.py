"""Texts have an owner: what encoding takes is asked for before, and ids are held as numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from sys import getsizeof
from typing import Any

import pytest
from click.testing import CliRunner

from obeyed import six_scripts
from strata.backends.cpu.host import available_isas
from strata.cli.run import command as run_verb
from strata.engine import runtime, texts
from strata.engine.loading import load
from strata.engine.runtime import LoadOptions, base_memory
from strata.engine.texts import OWNER, TextWorkload, chat_ids, encoded
from strata.errors import UsageError
from strata.formats import open_model
from strata.llm import LLM
from strata.machine.probe import load_machine
from strata.memory import Ledger, LedgerError, process_memory
from strata.models import build_model
from strata.plan import BudgetTooSmall, Workload
from strata.plan.outline import tokenizer_outline
from strata.plan.tokenizer_memory import tokenizer_building_bytes
from strata.text import Tokenizer, load_tokenizer
from support.weighing import settled_bytes

MACHINE = Path(__file__).resolve().parents[1] / "support" / "machines" / "server.json"
UNCUT = "A" * 400_000


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    with open_model(smollm2_path) as file:
        return load_tokenizer(file)


@pytest.fixture
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none is measured."""
    machine = replace(load_machine(MACHINE), isa=available_isas()[0], cores=2)
    monkeypatch.setattr(runtime, "this_machine", lambda file: machine)


def test_ids_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    text, ledger = six_scripts(100_000), Ledger()
    ids = encoded(tokenizer, text, ledger, add_special=True, parse_special=True)
    assert ids.tolist() == tokenizer.encode(text, add_special=True, parse_special=True)
    assert ids.itemsize == 4
    few = encoded(tokenizer, text, ledger, add_special=True, parse_special=True, most=1000)
    assert 1000 <= len(few) < 5000
    assert ids[: len(few)] == few
    assert ledger.owned[OWNER] == 0


def test_what_has_no_room_is_not_encoded(tokenizer: Tokenizer) -> None:
    ledger = Ledger(tokenizer.working_bytes(UNCUT) - 1)
    with pytest.raises(LedgerError, match=r"cannot be cut .*texts would take 64\.0 MB"):
        encoded(tokenizer, UNCUT, ledger)
    assert not ledger.owned.get(OWNER)
    # As long, and cut.
    assert len(encoded(tokenizer, "A word. " * 50_000, Ledger(2_500_000))) > 100_000


def test_ids_and_copies_of_a_text_are_entered_as_they_come(tokenizer: Tokenizer) -> None:
    text = "\U0001f642 word. " * 50_000
    ledger = Ledger(getsizeof(text) + 1_000_000)
    with pytest.raises(LedgerError, match="texts would take"):
        encoded(tokenizer, text, ledger)
    assert ledger.total == 0
    # Of few ids little is entered.
    assert len(encoded(tokenizer, text, ledger, most=1000)) < 5000
    with pytest.raises(LedgerError, match="texts would take"):
        chat_ids(tokenizer, [{"role": "user", "content": text}], ledger, most=1000)
    assert ledger.total == 0


def test_a_prompt_beyond_any_context_is_refused_while_it_is_encoded(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*args: Any, **kwargs: Any) -> array[int]:
        made.append(encoded(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(texts, "encoded", counted)
    for raw in ((), ("--raw",)):
        done = CliRunner().invoke(
            run_verb, [str(smollm2_path), "--context", "64", *raw, "-p", "word " * 100_000]
        )
        assert isinstance(done.exception, UsageError)
        assert "has 64 tokens or more and leaves no room" in str(done.exception)
    assert all(len(ids) < 5000 for ids in made)


@pytest.mark.usefixtures("_known_machine")
def test_building_a_tokenizer_leaves_room_for_what_it_touches(smollm2_path: Path) -> None:
    # So much is known of it, and libraries are touched besides.
    with open_model(smollm2_path) as file:
        needed = tokenizer_building_bytes(tokenizer_outline(build_model(file, 64), file))
    process = base_memory(planned=True)
    options = LoadOptions(memory=process + needed + 1_000_000, context=64)
    with pytest.raises(BudgetTooSmall, match=r"is too little for .* its tokenizer of"):
        load(smollm2_path, options)


@pytest.mark.usefixtures("_known_machine")
def test_a_long_word_keeps_to_the_budget(smollm2_path: Path) -> None:
    memory = settled_bytes() + 350 * 10**6
    with LLM(smollm2_path, memory=memory, context=256, threads=1) as llm:
        before = process_memory().total
        for ask in (llm.generate, llm.tokenize, llm.perplexity):
            with pytest.raises(LedgerError, match="cannot be cut"):
                ask("A" * 3_000_000)
        assert process_memory().total - before < 30 * 10**6


@pytest.mark.usefixtures("_known_machine")
def test_what_a_text_holds_is_planned_for(smollm2_path: Path) -> None:
    memory, held = settled_bytes() + 120 * 10**6, 30 * 10**6
    found = []
    for nbytes in (0, held):

        def workload(tokenizer: Tokenizer, ledger: Ledger, nbytes: int = nbytes) -> Workload:
            assert ledger.budget == memory
            assert ledger.owned["tokenizer"] > 0
            return Workload(100, answer_tokens=8, text_bytes=nbytes)

        planned = TextWorkload(Workload(), workload)
        with LLM(smollm2_path, memory=memory, context=256, threads=1, workload=planned) as llm:
            assert llm.plan is not None
            assert llm.ledger.owned.get(OWNER, 0) == nbytes
            found.append(llm.plan.predicted.memory.resident)
    # What the text takes the weights do not.
    assert found[0] - found[1] > held - 5 * 10**6


@pytest.mark.slow
def test_a_list_of_ids_is_printed_without_being_made(smollm2_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(six_scripts(1_000_000))
    # Of a process whose only child it is: its size is that of the child.
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    sizes = []
    for options in ((), ("--json",), ("--json", "--pieces")):
        command = [sys.executable, "-m", "strata", "tokenize", str(smollm2_path), *options]
        done = subprocess.run(
            [sys.executable, "-c", script, *command, "--file", str(text)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ,
        )
        sizes.append(int(done.stdout))
    assert max(sizes) - sizes[0] < 8 * 10**6
