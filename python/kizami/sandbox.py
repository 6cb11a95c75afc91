"""A Jinja environment for templates nobody has vouched for.

Knows: how to keep a template from Python's objects, and from eating time and memory.
Does not know: what a template is for (template.py).

jinja2's immutable sandbox does the first half. For the second, the syntax tree is given counters before it is
compiled: every piece of output, every turn of a loop and every call is charged against one budget per
rendering, and every operation that can make a large value out of a small one (`*`, `+`, `~`, literals that
hold a value twice, joins, replacements, padding) is checked first. Between two checks a step may take as
long as values within the limits allow.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_OUTPUT = 8 << 20  # characters rendered, captured blocks included
MAX_VALUE = 8 << 20  # characters of one text
MAX_ITEMS = 1 << 20  # of one value, nested ones included
MAX_STEPS = 1_000_000  # loop turns, calls and pieces of output
MAX_SECONDS = 2.0
MAX_DEPTH = 64  # of nested blocks
MAX_NUMBER = 1 << 63
MAX_WIDTH = 1000  # of padding and indentation

# Filters that cannot blow up, filters of one text (it is measured first), and below them our own.
_FILTERS = (
    "abs count d default dictsort first float groupby int items last length map max min reject rejectattr "
    "reverse round select selectattr sort unique"
).split()
_TEXT_FILTERS = "capitalize e escape lower safe string title trim upper".split()
_METHODS = frozenset(
    (
        "capitalize count endswith find index isalnum isalpha isascii isdecimal isdigit islower isspace "
        "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex "
        "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper"
    ).split()
)


class OverLimit(Exception):
    """A template used up one of its limits."""


class Refusal(Exception):
    """The template called raise_exception: it does not accept this conversation."""


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.steps, self.output = MAX_STEPS, MAX_OUTPUT
        self.deadline = time.monotonic() + MAX_SECONDS

    def charge(self, characters: int = 0, steps: int = 1) -> None:
        self.steps -= steps
        self.output -= characters
        if self.steps < 0:
            raise OverLimit(f"more than {MAX_STEPS:,} steps")
        if self.output < 0:
            raise OverLimit(f"more than {MAX_OUTPUT:,} characters of output")
        if (steps > 1 or self.steps % 64 == 0) and time.monotonic() > self.deadline:
            raise OverLimit(f"more than {MAX_SECONDS:g} seconds")


current: ContextVar[Budget] = ContextVar("current")


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        raise OverLimit(f"a text of {size:,} characters, the limit is {MAX_VALUE:,}")


def _measured(value: object) -> object:
    """`value`, if it is small when written out: a list that holds a list twice counts it twice."""
    items = characters = 0
    stack = [value]
    while stack:
        item = stack.pop()
        items += 1
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
        if items + len(stack) > MAX_ITEMS or characters > MAX_VALUE:
            raise OverLimit(f"a value of more than {MAX_ITEMS:,} items or {MAX_VALUE:,} characters")
    if items > 1:
        current.get().charge(steps=1 + items // 64)
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(_measured(value))


# -- counters put into the syntax tree ---------------------------------------------------------------------


class _Meter(NodeTransformer):
    """Rewrites a template so that loops, output and concatenation go through the functions below."""

    def __init__(self) -> None:
        self.depth = 0

    def generic_visit(self, node: nodes.Node, *args: object, **kwargs: object) -> nodes.Node:
        self.depth += 1
        if self.depth > MAX_DEPTH * 4:  # a block, its body, an expression and its operands are levels each
            raise OverLimit(f"nested deeper than {MAX_DEPTH} blocks")
        try:
            return super().generic_visit(node, *args, **kwargs)
        finally:
            self.depth -= 1

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node = self.generic_visit(node)
        node.iter = _filter("_metered", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        node = self.generic_visit(node)
        constant = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        charge = nodes.ExprStmt(
            _filter("_charged", nodes.Const(constant, lineno=node.lineno)), lineno=node.lineno
        )
        return [charge, node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node = self.generic_visit(node)
        return _filter("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filter("_measured", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filter("_measured", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        node = self.generic_visit(node)
        return _filter("_measured", node) if node.ctx == "load" else node


def _filter(name: str, argument: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(argument, name, [], [], None, None, lineno=argument.lineno)


@jinja2.pass_context  # which also keeps the compiler from evaluating these two on its own
def _metered(context: object, values: Iterable[object]) -> Iterator[object]:
    budget = current.get()
    for value in values:
        budget.charge()
        yield value


@jinja2.pass_context
def _charged(context: object, characters: int) -> None:
    current.get().charge(characters)


def _concatenated(values: Sequence[object]) -> str:
    texts = [_text(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _finalize(value: object) -> object:
    """Sees every value a template prints, also inside macros and captured blocks."""
    if (budget := current.get(None)) is not None:
        text = _text(value)
        budget.charge(len(text))
        return text
    return value  # constants folded while compiling


# -- the sandbox -------------------------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_finalize,
            cache_size=0,
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {
            **{name: _of_text(self.filters[name]) for name in _TEXT_FILTERS},
            "list": _list,
            "sum": _sum,
            "tojson": _tojson,
            "join": _join,
            "replace": _replace,
            "indent": _indent,
            "_metered": _metered,
            "_charged": _charged,
            "_measured": _measured,
            "_concatenated": _concatenated,
        }
        self.globals = {
            name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")
        } | {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: object, **kwargs: object) -> str:
        return super()._generate(_Meter().visit(source), *args, **kwargs)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        if callable(value) and isinstance(obj, (str, bytes, int, float)):
            return isinstance(obj, str) and attr in _METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") == "format":
            return functools.partial(_format, owner)
        return None

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if numbers and max(abs(left), abs(right)) > MAX_NUMBER:
            raise OverLimit("a number beyond 64 bits")
        if operator == "**" and not (numbers and abs(right) <= 64):
            raise OverLimit("a power beyond 64 bits")
        if operator == "*" and not numbers:
            text, count = (left, right) if isinstance(left, str) else (right, left)
            if not isinstance(text, str) or not isinstance(count, int):
                raise OverLimit("a repetition of something other than text")
            _check_size(len(text) * max(count, 0))
        if operator == "%" and not numbers:
            raise OverLimit("a format string; use concatenation")
        if operator == "+" and not numbers:
            _measured([left, right])
        return super().call_binop(context, operator, left, right)

    def call(self, context: object, function: object, *args: object, **kwargs: object) -> object:
        current.get().charge()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):  # a bound method of a string, one of _METHODS
            name = getattr(function, "__name__", "")
            if name == "replace" and len(args) >= 2:
                return _replace(owner, *args)
            if name == "join" and len(args) == 1:
                return _join(args[0], owner)
        if isinstance(function, type):  # dict() and namespace() hold what they are given
            _measured([args, kwargs])
        return super().call(context, function, *args, **kwargs)


def _of_text(function: Callable[..., object]) -> Callable[..., object]:
    return lambda value, *args, **kwargs: function(_text(value), *args, **kwargs)


def _list(values: Iterable[object]) -> object:
    return _measured(list(values))


def _sum(values: Iterable[object], attribute: str | None = None, start: float = 0) -> float:
    if attribute is not None:
        values = [value.get(attribute, 0) if isinstance(value, Mapping) else 0 for value in values]
    total = start
    for value in [0, *values]:
        if not isinstance(value, (int, float)) or not isinstance(total, (int, float)):
            raise OverLimit("a sum of something other than numbers")
        total += value
    return total


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: object) -> str:
    """As transformers defines it: plain JSON, nothing escaped for HTML."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise OverLimit("an indentation over 16")
    allowed = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    text = json.dumps(_measured(value), ensure_ascii=ensure_ascii, indent=indent, **allowed)
    _check_size(len(text))
    return text


def _join(values: Iterable[object], separator: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = [value.get(attribute, "") if isinstance(value, Mapping) else "" for value in values]
    texts = [_text(value) for value in values]
    separator = _text(separator)
    _check_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: object, old: object, new: object, count: int | None = None) -> str:
    text, old, new = _text(text), _text(old), _text(new)
    _check_size(len(text) + (text.count(old) if count is None else max(int(count), 0)) * len(new))
    return text.replace(old, new, -1 if count is None else int(count))


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = width if isinstance(width, str) else " " * min(max(int(width), 0), MAX_WIDTH)
    text = _text(text)
    lines = text.splitlines(keepends=True)
    _check_size(len(text) + len(pad) * len(lines))
    return "".join(
        pad + line if (index or first) and (blank or line.strip()) else line
        for index, line in enumerate(lines)
    )


def _format(pattern: str, /, *args: object, **kwargs: object) -> str:
    """str.format without widths, conversions and attributes: `{}`, `{0}` and `{name}` only."""
    values = {key: _text(value) for key, value in kwargs.items() if not key.startswith("_")}
    fields = list(string.Formatter().parse(pattern))
    if any(field and not re.fullmatch(r"\w*", field) or spec or change for _, field, spec, change in fields):
        raise OverLimit("a format field with more than a name")
    _check_size(len(pattern) + len(fields) * max(map(len, [*map(_text, args), *values.values(), ""])))
    return pattern.format(*map(_text, args), **values)


def _raise_exception(message: object = "") -> None:
    raise Refusal(str(message))


def _strftime_now(format: str) -> str:
    # A width in a directive, as in %0100000d, is padding by another name.
    if len(format) > 100 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise OverLimit("a date format with widths")
    return datetime.datetime.now().strftime(format)
