"""A hostile template: it reaches nothing, and it ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from strata.errors import UsageError
from strata.guard import limits
from strata.guard.nursery import nursery
from strata.guard.wire import FrameError
from strata.memory import peak_bytes
from strata.text import ChatTemplate, ChatTemplateError

_CHAT = [{"role": "user", "content": "hi"}]
_RANGES = "range(99999) | map('string') | list"
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
        "{{ '%*.*f' % (10**9, 10**9, 1.0) }}",
        "{{ ('x'.encode() * 10**9) | length }}",
        "{{ 10**9 * 'x'.encode() }}",
        "{{ 'x\\nx' | indent(width=10**9, first=true) }}",
        "{{ ('x' * 10**6) | replace(old='x', new='y' * 10**6) }}",
        "{{ ('x' * 10**6) | join(d='y' * 10**6) }}",
        "{{ [[1, 2]] * 10**6 | join(attribute=0, d='y' * 10**6) }}",
        "{{ ['x'] * 99999 | map('center', 10**6) | list }}",
        f"{{{{ {_RANGES} | map('center', 99999) | join }}}}",
        "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}"
        "{% set ns.a = (" + "'x' ~ i," * 3000 + "ns.a) %}"
        "{% endfor %}{{ ns.a }}",
        "{{ range(99999) | map('multiply') | sum }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% if range(99999) | sum %}{% endif %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{{ " + "[" * 5000 + "1" + "]" * 5000 + " }}",
        "{% if true %}" * 300 + "{% endif %}" * 300,
        "{{ " + "-" * 20000 + "1 }}",
        "{% raw",
    ],
)
def test_explosions_end(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_S", 0.2)
    before = forget_peak()
    with pytest.raises(ChatTemplateError, match="chat template"):
        ChatTemplate(source).render(_CHAT)
    assert peak_bytes() - before < 30e6
    # A ward that was ended takes nothing with it.
    assert ChatTemplate("{{ messages[0].content }}").render(_CHAT) == "hi"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% if range(99999) | sum %}{% endif %}{% endfor %}",
    ],
)
def test_the_system_ends_a_template_that_takes_too_long(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the patience of whoever waits, which is for a machine that is busy."""
    monkeypatch.setattr(limits, "TEMPLATE_S", 0.2)
    monkeypatch.setattr(limits, "PATIENCE", 1000)
    with pytest.raises(ChatTemplateError, match="processor time") as told:
        ChatTemplate(source).render(_CHAT)
    error: BaseException = told.value
    while error.__context__ is not None:
        error = error.__context__
    assert isinstance(error, FrameError)


def forget_peak() -> int:
    """Lets ``peak_bytes`` begin anew; returns what it begins with."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_ward_is_held_to_its_memory() -> None:
    template = ChatTemplate("{{ 'x' * n }}")
    template.render(_CHAT, n=1)
    assert template._renderer is not None
    ward = template._renderer.ward
    assert ward is not None
    status = Path(f"/proc/{ward.pid}/status")

    def most() -> int:
        words = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(words.split()[1]) * 1024

    # What it shares with the nursery is as large as what others have asked of that.
    shared, peaks = most(), []
    for n in (10**5, 10**7, 10**8, 10**9):
        with suppress(ChatTemplateError):
            template.render(_CHAT, n=n)
        if ward.end.alive:
            peaks.append(most())
    assert peaks
    assert max(peaks) < shared + limits.TEMPLATE_BYTES + 1e6


def test_what_was_ended_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_S", 0.1)
    template = ChatTemplate(
        "{% for i in range(messages[0].n) %}{% for j in range(messages[0].n) %}"
        "{% endfor %}{% endfor %}done"
    )
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=r"0\.1 s of processor time or 16 MiB"):
            template.render([{"role": "user", "n": 99999}])
        assert template.render([{"role": "user", "n": 1}]) == "done"
    # Also the nursery itself.
    pid = nursery().pid
    assert pid is not None
    os.kill(pid, 9)
    assert ChatTemplate("{{ 1 }}").render(_CHAT) == "1"
    assert nursery().pid != pid


def test_an_interrupted_rendering_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render([{"content": "first"}]) == "first"

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("strata.guard.nursery.Ward.receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render([{"content": "second"}])
    assert template.render([{"content": "third"}]) == "third"


def test_errors_are_short() -> None:
    with pytest.raises(ChatTemplateError) as info:
        ChatTemplate("{{ raise_exception('x' * 100000) }}").render(_CHAT)
    assert len(str(info.value)) < 1000


def test_deep_messages_and_odd_variables() -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="deep"):
        ChatTemplate("{{ 1 }}").render([{"role": "user", "content": deep}])
    assert ChatTemplate("{{ self }}").render(_CHAT, **{"self": 1, "a b": 2}) is not None
    assert ChatTemplate("{{ messages[0].content }}").render([{"content": "\ud800"}]) == "\ud800"


def test_ordinary_numbers_are_within_the_bounds() -> None:
    source = "{{ none | default(10**9) }} {{ 'x' * 50 }} {{ 10**9 * 7 }} {{ '%05d' % 10**4 }}"
    assert ChatTemplate(source).render(_CHAT).startswith("None ")
    assert ChatTemplate("{{ absent | default(10**9) }}").render(_CHAT) == "1000000000"


def test_long_chats_are_within_the_bounds() -> None:
    chat = [{"role": "user", "content": "word " * 2000}] * 500
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}"
    assert len(ChatTemplate(source).render(chat)) > 5_000_000
