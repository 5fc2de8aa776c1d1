"""Options read from the sources of the functions and dataclasses that take them: no help loads PyTorch."""

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

NEEDED = object()
"""Default of an argument that must be given."""


@dataclass(frozen=True)
class Argument:
    """A keyword-only argument of a function, or a field of a dataclass.

    Attributes:
        name: as in the source.
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
    return ast.parse((Path(__file__).parents[1] / file).read_text(encoding="utf-8"))


@functools.cache
def keyword_arguments(file: str, name: str) -> dict[str, Argument]:
    """Return the keyword-only arguments of a function, or the fields of a dataclass and of its bases, by name.

    A base that the file imports from another file of the package is read there.

    Of a function with overloads, the last definition counts.
    """
    defined = [node for node in parse(file).body if getattr(node, "name", None) == name][-1]
    assert isinstance(defined, ast.FunctionDef | ast.ClassDef)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", ast.get_docstring(defined) or "", re.M)
    texts = {entry: " ".join(text.split()).rstrip(".").replace("`", "") for entry, text in entries}
    if isinstance(defined, ast.FunctionDef):
        arguments = zip(defined.args.kwonlyargs, defined.args.kw_defaults, strict=True)
        listed = [(argument.arg, argument.annotation, default) for argument, default in arguments]
    else:
        declared = [node for node in defined.body if isinstance(node, ast.AnnAssign)]
        listed = [(ast.unparse(node.target), node.annotation, node.value) for node in declared]
    found = {}
    for argument, annotation, default in listed:
        kind = "" if annotation is None else ast.unparse(annotation)
        value = NEEDED if default is None else ast.literal_eval(default)
        found[argument] = Argument(argument, kind, value, texts.get(argument, ""))
    for base in getattr(defined, "bases", []):
        found = found | keyword_arguments(_home(file, ast.unparse(base)), ast.unparse(base)) | found
    return found


def _home(file: str, name: str) -> str:
    """Return the file of the package that ``file`` imports a name from, or ``file``."""
    for node in parse(file).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return f"{str(node.module).removeprefix('vireid.').replace('.', '/')}.py"
    return file


def constant(file: str, name: str) -> Any:
    """Return the value of a constant at the top of a file: a number, a str, or a collection of them."""
    return ast.literal_eval(_assigned(file, name))


def keys(file: str, name: str) -> list[str]:
    """Return the keys, each a str, of a dict at the top of a file."""
    found = _assigned(file, name)
    assert isinstance(found, ast.Dict)
    return [ast.literal_eval(key) for key in found.keys if key is not None]


def _assigned(file: str, name: str) -> ast.expr:
    for node in parse(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise LookupError(f"{file} has no {name}")


def option(argument: Argument, choices: dict[str, str] | None = None) -> Callable[[Command], Command]:
    """Return the option of an argument, by its annotation; ``choices`` maps the values of a str to their meanings."""
    flag, kind = argument.name.replace("_", "-"), argument.kind.removesuffix(" | None")
    first = argument.text[:1]
    how: dict[str, Any] = {"default": argument.default}
    how["help"] = f"{first.upper() if first.isascii() else first}{argument.text[1:]}."
    if choices is not None:
        how["type"] = click.Choice(list(choices))
        how["help"] = "; ".join(f"{value}: {meaning}" for value, meaning in choices.items()) + "."
    elif kind.startswith("Literal["):
        how["type"] = click.Choice(ast.literal_eval(kind.removeprefix("Literal")))
    elif kind == "bool":
        flag = f"{flag}/--no-{flag}"
    elif kind == "Sequence[int]":
        how |= {"type": int, "nargs": 2, "metavar": "ROWS COLUMNS"}
    else:
        how["type"] = {"int": click.INT, "float": click.FLOAT, "str": click.STRING}[kind]
    return click.option(f"--{flag}", argument.name, **how)
