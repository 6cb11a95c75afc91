"""Chat templates: the conversation comes out right, and a hostile template gets nowhere."""

from __future__ import annotations

import json
import time
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizami.errors import FormatError, KizamiError, UsageError
from kizami.template import render

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1 < 3?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Sure?"},
]


def test_embedded_template() -> None:
    config = files("kizami") / "data" / "tiny-deepseek" / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8"))["chat_template"]
    expected = "<B>Be brief.<｜User｜>1 + 1 < 3?<｜Assistant｜>Yes.<E><｜User｜>Sure?"
    assert render(template, TALK, "<B>", "<E>", add_generation_prompt=False) == expected
    assert render(template, TALK, "<B>", "<E>") == expected + "<｜Assistant｜>"


# The parts of Jinja that published templates use, each with what it must give.
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "{% for m in messages %}{{ loop.index }}{{ m.role[0] }}{% if not loop.last %}"
            ",{% endif %}{% endfor %}",
            "1s,2u,3a,4u",
        ),
        (
            "{%- set ns = namespace(n=0) -%} {%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
            "{%- endfor -%}{{ ns.n }}",
            "4",
        ),
        (
            "{% for m in messages if m['role'] == 'user' %}{% if loop.index == 2 %}{% break %}"
            "{% endif %}x{% endfor %}",
            "x",
        ),
        ("{% macro f(a, b='!') %}{{ a ~ b }}{% endmacro %}{{ f('hi') }}{{ f('ho', b='?') }}", "hi!ho?"),
        ("{% set t %}a{{ messages | length }}{% endset %}{{ t | trim }}", "a4"),
        ("{{ messages[0]['content'] | upper }} {{ messages[1:]|length }}", "BE BRIEF. 3"),
        ("{{ {'a': [1, 'é<']} | tojson }}", '{"a": [1, "é<"]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ 'a,b'.split(',') | join('-') }}{{ ' x '.strip() }}{{ 'abc'.replace('b', '') }}", "a-bxac"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last }}",
            "Sure?",
        ),
        ("{{ missing is defined }} {{ missing | default('d') }} {{ 'a' in 'abc' }}", "False d True"),
        ("{% if true %}\n  line\n{% endif %}\nend", "  line\nend"),
        ("{{ '=' * 3 }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 'x{}'.format(1) }}", "===38x1"),
        ("{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}", "<B><E>True"),
        ("{{ 'two\nlines' | indent(2) }}", "two\n  lines"),
    ],
)
def test_published_constructs(template: str, expected: str) -> None:
    assert render(template, TALK, "<B>", "<E>") == expected


def test_the_template_may_refuse() -> None:
    with pytest.raises(UsageError, match="refuses this conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", TALK)
    with pytest.raises(UsageError, match="message 1"):
        render("x", [TALK[0], {"content": "no role"}])


DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
)


def doubling(start: str, following: str) -> str:
    return DOUBLING.replace("START", start).replace("NEXT", following)


HOSTILE = {
    "deep blocks": "{% if 1 %}" * 6000 + "{% endif %}" * 6000,
    "deep expression": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "long expression": "{{ " + "1+" * 50_000 + "1 }}",
    "nested loops": "{% for a in range(100000) %}" * 4 + "x" + "{% endfor %}" * 4,
    "wide range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "repeated text": "{{ 'x' * 10 ** 12 }}",
    "repeated list": "{{ [1] * 10 ** 9 }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "numbers": DOUBLING.replace("START", "3").replace("NEXT", "ns.x * ns.x"),
    "padding": "{{ 'x'.ljust(10 ** 10) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format filter": "{{ '%0999999999d' | format(1) }}",
    "date": "{{ strftime_now('%0999999999d') }}",
    "text doubling": doubling("'aaaa'", "ns.x ~ ns.x"),
    "text doubling, plus": doubling("'aaaa'", "ns.x + ns.x"),
    "list doubling": doubling("[1]", "[ns.x, ns.x]"),
    "tuple doubling": doubling("[1]", "(ns.x, ns.x)"),
    "dict doubling": doubling("[1]", "dict(a=ns.x, b=ns.x)"),
    "list doubling, plus": doubling("[1]", "ns.x + ns.x"),
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "captured output": "{% set t %}{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}{% endset %}",
    "replacement": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "joining": "{{ range(100000) | join('x' * 100000) }}",
    "joining, method": "{{ ('x' * 100000).join(range(100000) | map('string')) }}",
    "summing lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "python objects": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "mutation": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "too large": "x" * (1 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(FormatError, match="^chat template"):
        render(HOSTILE[name], TALK)
    assert time.monotonic() - started < 20  # seconds; the limit is two, the machine may be busy


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a\nb{% if %}", "chat template, line 2: "),
        ("{{ 1 | nope }}", "No filter named 'nope'"),
        ("{{ nobody.home }}", "'nobody' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_errors_say_what(template: str, words: str) -> None:
    with pytest.raises(FormatError) as error:
        render(template, TALK)
    assert words in str(error.value)


PIECES = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    " for m in messages ",
    " endfor ",
    " if ",
    " endif ",
    "messages",
    "[0]",
]
PIECES += [
    "'a'",
    "1",
    "+",
    "*",
    "|",
    "upper",
    "length",
    ".role",
    "(",
    ")",
    " set x=",
    "x",
    " macro f() ",
    " endmacro ",
]


@settings(max_examples=300, deadline=None)
@given(template=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20).map("".join))
def test_any_template_gives_text_or_our_error(template: str) -> None:
    try:
        assert isinstance(render(template, TALK), str)
    except KizamiError as error:
        assert error.exit_code in (2, 65)


def test_one_rendering_does_not_use_up_the_next() -> None:
    template = "{% for i in range(90000) %}{% endfor %}{{ 'x' * 5000000 }}"
    for _ in range(3):
        assert len(render(template, TALK)) == 5_000_000
