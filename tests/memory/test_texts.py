"""Texts have an owner: what encoding takes is asked for before, and ids are held as numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from obeyed import six_scripts
from strata.backends.cpu.backend import available_isas
from strata.engine import runtime
from strata.engine.texts import OWNER, TextWorkload, encoded
from strata.formats import open_model
from strata.llm import LLM
from strata.machine.probe import load_machine
from strata.memory import Ledger, LedgerError, process_memory
from strata.plan import Workload
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
    assert len(encoded(tokenizer, "A word. " * 50_000, Ledger(2_000_000))) > 100_000


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
