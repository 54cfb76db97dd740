"""Which chat templates are rendered in place, and what may not be among them."""

from __future__ import annotations

import re

import pytest

import check_template
from strata.formats import open_model
from strata.guard import known_templates
from strata.text import ChatTemplate

HARMFUL = [
    # Through everything, for each part of something.
    "{% for m in messages %}{{ messages }}{% endfor %}",
    "{% for m in messages %}{% for t in tools %}{{ t.name }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.tool_calls %}{{ m.content }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% set x = messages %}{% for y in x %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ messages }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}",
    "{% for m in messages %}{% if m.content in messages %}x{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.length == 3 %}{{ messages }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% for c in m.calls %}{% if loop.first %}{% if loop.last %}"
    "{{ messages }}{% endif %}{% endif %}{% endfor %}{% endfor %}",
    # What grows from turn to turn.
    "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content %}"
    "{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for m in messages %}{% set t = ns.s ~ ns.s %}"
    "{% set ns.s = t %}{% endfor %}",
    # What makes much of little.
    "{{ 'x' * 99999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ messages[0].content % 3 }}",
    "{{ some % 3 }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ messages | tojson(indent=99) }}",
    "{{ messages[0].content | indent(99) }}",
    "{{ messages[0].content | replace('a', messages[1].content) }}",
    "{{ messages[0].content.replace('a', messages[1].content) }}",
    "{{ messages | join(messages[1].content) }}",
    "{{ messages | map('center', 9999999) | list }}",
    "{% for i in range(99999) %}x{% endfor %}",
    "{% for i in range(messages[0].n) %}x{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% for m in messages recursive %}{{ loop(m) }}{% endfor %}",
    "{% include messages[0].content %}",
]
HARMLESS = [
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content | trim }}{% endfor %}{{ tools | tojson }}",
    "{% for m in messages %}{% if loop.first %}{{ messages[0].content }}{% endif %}"
    "{% for c in m.tool_calls %}{{ c | tojson(indent=4) }}{% endfor %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ m.content.split('x')[-1] }}{% endif %}"
    "{% endfor %}",
    "{% macro show(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}{{ show(m) }}"
    "{% if loop.index0 and messages[loop.index0 - 1].role == 'user' %}x{% endif %}{% endfor %}",
]


@pytest.mark.parametrize("source", HARMFUL)
def test_what_is_not_linear_is_not_listed(source: str) -> None:
    with pytest.raises(check_template.NotLinear):
        check_template.Checker(source).check()


@pytest.mark.parametrize("source", HARMLESS)
def test_what_goes_through_its_input_once_may_be(source: str) -> None:
    check_template.Checker(source).check()


def test_the_list_is_of_digests_in_order() -> None:
    lines = known_templates._LISTED.strip().splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{64}  \S.*", line) for line in lines)
    names = [line.split("  ")[1].lower() for line in lines]
    assert names == sorted(names)
    assert len({line.split()[0] for line in lines}) == len(lines)


def test_a_built_in_models_template_is_known_by_its_digest(smollm2_path: object) -> None:
    with open_model(smollm2_path) as file:  # type: ignore[arg-type]
        source = file.metadata["tokenizer.chat_template"]
    check_template.Checker(source).check()
    assert not ChatTemplate(source).foreign
    assert not ChatTemplate(f"\n{source}  \n").foreign
    assert ChatTemplate(source.replace("assistant", "model")).foreign
