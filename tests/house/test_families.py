"""Every family is accounted for: read and told with what it was compared, or refused with its
reason."""

from __future__ import annotations

import pytest

import make_family_table
from strata.models import UnknownArchitecture, build_model, families
from strata.models.refused import REFUSED
from support.headers import huggingface


def test_the_page_of_families_is_what_the_code_says() -> None:
    """`python tools/make_family_table.py` writes it anew."""
    assert make_family_table.PAGE.read_text(encoding="utf-8") == make_family_table.page()


def test_what_is_refused_says_why() -> None:
    assert not set(REFUSED) & set(families())
    for name, reason in REFUSED.items():
        with pytest.raises(UnknownArchitecture) as raised:
            build_model(huggingface("llama", architectures=[name]))
        assert str(raised.value) == f"'{name}' is not built: {reason}"


def test_what_llama_cpp_writes_is_read_or_refused() -> None:
    logits = make_family_table.gguf_logits()
    assert set(logits) <= set(families()) | set(REFUSED)


@pytest.mark.slow
def test_each_family_of_transformers_is_read_or_refused() -> None:
    pytest.importorskip("torch")
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    known = set(families()) | set(REFUSED)
    for kind, names in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        assert known & {names if isinstance(names, str) else names[0], *names}, kind
