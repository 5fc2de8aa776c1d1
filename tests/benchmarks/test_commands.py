"""Commands of the benchmarks that the pages, the recorded tables and the docstrings print: each is accepted."""

import argparse
import importlib
import re
import shlex

import pytest

from benchmarks.tables.options import read_options
from places import ROOT

PRINTED = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*/*.*")]
COMMAND = re.compile(r"python -m (benchmarks\.[\w.]+)([^`\n]*)")


def commands():
    """Return the module and the options of each command once; a backslash continues the line."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(PRINTED) if path.suffix in (".md", ".csv", ".py"))
    found = dict.fromkeys(one for text in texts for one in COMMAND.findall(re.sub(r"\\\n\s*", "", text)))
    return [(module, options) for module, options in found if options.strip() != "sweep"]  # that names no values


def test_commands_are_found():
    assert len({module for module, _ in commands()}) >= 12


class Accepted(Exception):
    """Ends a command once its options are read."""


@pytest.mark.parametrize(("module", "options"), commands())
def test_a_printed_command_is_accepted(module, options, monkeypatch):
    given, read = shlex.split(options), argparse.ArgumentParser.parse_args

    def parse_args(parser, *arguments):
        raise Accepted(read(parser, *arguments))

    benchmark = importlib.import_module("benchmarks.tables.__main__" if module == "benchmarks.tables" else module)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Accepted) as accepted:
        benchmark.main(given)
    monkeypatch.undo()
    (arguments,) = accepted.value.args
    if module.startswith("benchmarks.tables"):
        name = module.split(".")[-1]
        method = {"rerank_accuracy": "cift", "readings": "cift", "tables": getattr(arguments, "paper", "")}.get(
            name, name
        )
        trained = [given[given.index("--") + 1 :]] if "--" in given else []
        trained += [shlex.split(variant.partition("=")[2]) for variant in getattr(arguments, "variant", ())]
        for one in trained:
            read_options(method, one)
