"""A hostile template: it reaches nothing, and it ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from strata.memory import peak_bytes
from strata.text import ChatTemplate, ChatTemplateError, bounds

_CHAT = [{"role": "user", "content": "hi"}]
_DOUBLE = "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ dict.__class__ }}{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ (messages | attr('__class__')).__name__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '%s' | format(''.__class__) }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ lipsum.__globals__ }}",
        "{{ joiner.__init__ }}",
        "{% for x in [].__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
        "{{ open('/etc/hostname') }}",
        "{{ import('os') }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}",
        "{% extends 'base' %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].clear() }}",
    ],
)
def test_nothing_outside_can_be_reached(source: str) -> None:
    try:
        text = ChatTemplate(source).render(_CHAT)
    except ChatTemplateError:
        return
    # jinja2 shows some forbidden attributes as undefined: nothing is printed.
    assert text.strip() == ""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 10**10 }}",
        "{{ 10**10 * 'x' }}",
        "{{ [0] * 10**10 }}",
        "{{ 9 ** (9**9) }}",
        "{{ (2**4000) ** (2**4000) }}",
        "{{ 2.5 ** 99999 }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x' | indent(10**10) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10**10, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        "{{ [[1]] | tojson(indent=10**10) }}",
        "{{ (1).to_bytes(10**10) }}",
        _DOUBLE + "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = ''.join([ns.s, ns.s]) %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ ns.s | tojson }}",
        _DOUBLE + "{% set ns.s = {1: ns.s, 2: ns.s} %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = [ns.s] * 2 %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}{{ ns.s }}",
        _DOUBLE + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}{{ ns.s }}",
        "{{ lipsum(n=10**6) }}",
        "{{ '{:{}}'.format(1, '9999999999') }}",
        "{{ '{:{w[0]}}'.format(1, w=[10**10]) }}",
        "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
        "{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}",
        "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
        "{{ ('x' * 10**6).join('y' * 10**6) }}",
        "{{ ('y' * 10**6) | join('x' * 10**6) }}",
        "{{ ('y' * 10**6) | map('upper') | join('x' * 10**6) }}",
        "{{ ('x' * 10**6).join(('y' * 10**6) | map('upper')) }}",
        "{{ ('\\t' * 10**6).expandtabs(10**6) }}",
        "{{ ('\\n' * 10**6) | indent(10**6, true, true) }}",
        "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
        "{{ ('%(a)s' * 10**6) % {'a': 'x' * 10**6} }}",
        "{{ ('%(a)s' * 10**6) | format(a='x' * 10**6) }}",
        "{{ ('x' * 10**6).translate('x'.maketrans({'x': 'y' * 10**6})) }}",
        "{{ ('x ' * 10**6) | wordwrap(1, wrapstring='y' * 10**6) }}",
        "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}"
        "{% endfor %}{{ ns.n }}",
    ],
)
def test_explosions_end_before_they_are_large(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_STEPS", 300_000)
    before = forget_peak()
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source).render(_CHAT)
    assert peak_bytes() - before < 200e6


def forget_peak() -> int:
    """Lets ``peak_bytes`` begin anew; returns what it begins with."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def test_ordinary_numbers_are_within_the_bounds() -> None:
    source = "{{ none | default(10**9) }} {{ 'x' * 50 }} {{ 10**9 * 7 }} {{ '%05d' % 10**4 }}"
    assert ChatTemplate(source).render(_CHAT).startswith("None ")
    assert ChatTemplate("{{ absent | default(10**9) }}").render(_CHAT) == "1000000000"


def test_long_chats_are_within_the_bounds() -> None:
    chat = [{"role": "user", "content": "word " * 2000}] * 500
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}"
    assert len(ChatTemplate(source).render(chat)) > 5_000_000
