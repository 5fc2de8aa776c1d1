"""Options read from the signatures of the functions that take them, without importing these: no help loads PyTorch."""

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

PACKAGE = Path(__file__).resolve().parents[1]

NEEDED = object()
"""Default of an argument that must be given."""


@dataclass(frozen=True)
class Argument:
    """A keyword-only argument.

    Attributes:
        name: as in the signature.
        kind: its annotation, as written.
        default: its value, or `NEEDED`.
        text: its description in the docstring.
    """

    name: str
    kind: str
    default: Any
    text: str


@functools.cache
def parse(file: str) -> ast.Module:
    """Return the syntax tree of a file of the package, such as "rerank/aim.py"."""
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


@functools.cache
def keyword_arguments(file: str, function: str) -> dict[str, Argument]:
    """Return the keyword-only arguments of a function by name; of one with overloads, the last definition counts."""
    defined = [x for x in parse(file).body if isinstance(x, ast.FunctionDef) and x.name == function]
    texts = _texts(file, ast.get_docstring(defined[-1]) or "")
    found = {}
    for argument, default in zip(defined[-1].args.kwonlyargs, defined[-1].args.kw_defaults, strict=True):
        kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
        value = NEEDED if default is None else ast.literal_eval(default)
        found[argument.arg] = Argument(argument.arg, kind, value, texts.get(argument.arg, ""))
    return found


def constant(file: str, name: str) -> Any:
    """Return the value of a constant at the top of a file: a number, a str, or a collection of them."""
    for node in parse(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    raise LookupError(f"{file} has no {name}")


def _texts(file: str, docstring: str) -> dict[str, str]:
    """Return the descriptions of a docstring's section Args; "as in `f`" is looked up in f's docstring."""
    section = re.search(r"^Args:\n((?:    .*\n?)+)", docstring, re.M)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.M)
    texts = {}
    for name, text in entries:
        text = " ".join(text.split()).rstrip(".").replace("`", "")
        other = re.fullmatch(r"as in (\w+)", text)
        texts[name] = keyword_arguments(file, other[1])[name].text if other else text
    return texts


def option(argument: Argument, choices: dict[str, str] | None = None) -> Callable[[Command], Command]:
    """Return the option of an argument, by its annotation; ``choices`` maps the values of a str to their meanings."""
    flag, name, kind = argument.name.replace("_", "-"), argument.name, argument.kind.removesuffix(" | None")
    first = argument.text[:1]
    text = f"{first.upper() if first.isascii() else first}{argument.text[1:]}."
    common: dict[str, Any] = {"default": argument.default, "show_default": argument.default is not None}
    if choices is not None:
        text = "; ".join(f"{value}: {meaning}" for value, meaning in choices.items()) + "."
        return click.option(f"--{flag}", name, type=click.Choice(list(choices)), help=text, **common)
    if kind.startswith("Literal["):
        values = ast.literal_eval(kind.removeprefix("Literal"))
        return click.option(f"--{flag}", name, type=click.Choice(values), help=text, **common)
    if kind == "bool":
        return click.option(f"--{flag}/--no-{flag}", name, help=text, **common)
    if kind == "Sequence[int]":
        return click.option(f"--{flag}", name, type=int, nargs=2, metavar="ROWS COLUMNS", help=text, **common)
    types = {"int": click.INT, "float": click.FLOAT, "str": click.STRING}
    return click.option(f"--{flag}", name, type=types[kind], help=text, **common)
