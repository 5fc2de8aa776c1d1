"""The command as a whole: help, options read from signatures, processes, signals."""

import inspect
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import vireid
from places import ROOT
from vireid import rerank as rerankers
from vireid.cli.app import vireid as command
from vireid.cli.rerankers import METHODS, settings_of
from vireid.cli.signatures import NEEDED, keyword_arguments


def commands(group=command, path=()):
    """Every command by its path, such as ("draw", "plan"), and whether it is a leaf."""
    paths = {}
    for name, found in group.commands.items():
        paths[*path, name] = not isinstance(found, click.Group)
        if isinstance(found, click.Group):
            paths |= commands(found, (*path, name))
    return paths


def keywords(function):
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {name: NEEDED if value is inspect.Parameter.empty else value for name, value in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_rerankers_are_those_of_their_signatures(method):
    function, fitted = getattr(rerankers, method), METHODS[method]
    settings = settings_of(method)
    assert function.uses == ("gallery" if fitted and "queries" not in settings else "transductive")
    left_out = ("top", "use_query_relations", "query_spectra", "gallery_spectra")
    assert settings == {name: default for name, default in keywords(function).items() if name not in left_out}
    if fitted:
        kind = getattr(rerankers, fitted)
        assert kind.uses == "gallery"
        assert keywords(kind) == {name: default for name, default in settings.items() if name != "queries"}


def test_help_names_every_setting_and_default(run):
    text = " ".join(run("evaluate", "--help")[0].split())
    for method in METHODS:
        for name, default in settings_of(method).items():
            assert "--" + name.replace("_", "-") in text
            assert default in (NEEDED, None) or f"{method} [{default}]" in text
    assert run("--version")[0].strip() == vireid.__version__


def examples(run):
    """The examples of every help and of the documentation, without their line breaks and comments."""
    texts = [run(*path, "-h")[0] for path in [(), *commands()]]
    assert texts == [run(*path, "--help")[0] for path in [(), *commands()]]
    pages = ("docs/command-line.md", "docs/pictures.md", "docs/key-points.md", "README.md")
    texts += [(ROOT / page).read_text(encoding="utf-8") for page in pages]
    lines = [line.partition("#")[0].split() for text in texts for line in text.replace("\\\n", " ").splitlines()]
    found = [line[1:] for line in lines if line[:1] == ["vireid"] and line[1].islower() and "trial*.npz" not in line]
    return list(dict.fromkeys(map(tuple, found)))


def test_examples_are_accepted(run, file, tmp_path, monkeypatch):
    """Each example line parses: what stops it then is a file or the data, no option."""
    monkeypatch.chdir(tmp_path)
    found = examples(run)
    for path in {tmp_path / word for example in found for word in example if "." in word}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.read_bytes() if path.suffix == ".npz" else b"unreadable")

    def stopped(*_, **__):
        raise ValueError("stopped")

    for name in ("launch", "open_dataset"):
        monkeypatch.setattr(f"vireid.training.{name}", stopped)
    leaves = {path for path, leaf in commands().items() if leaf}
    assert leaves == {path for path in leaves for example in found if example[: len(path)] == path}
    for example in found:
        result = CliRunner().invoke(command, example)
        works = example[0] in ("evaluate", "rerank", "info") and "features.npz" in example
        works = (works or "trial1.npz" in example) and "--permutations" not in example
        assert result.exit_code == (0 if works else 1), (example, result.output)


# As a process


def process(*arguments, **options):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_module_runs():
    result = process("-m", "vireid", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{vireid.__version__}\n", "")


def test_no_help_loads_torch():
    paths = [list(path) for path in [(), *commands()]]
    code = f"""
import sys
from click.testing import CliRunner
from vireid.cli.app import vireid
for path in {paths!r}:
    assert CliRunner().invoke(vireid, [*path, "--help"]).exit_code == 0
assert not {{"torch", "numpy"}} & set(sys.modules)
sys.argv = ["x", "evaluate", "/nowhere.npz"]
from vireid.cli import main
main()
"""
    result = process("-c", code)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("Usage: vireid evaluate ")


@pytest.mark.parametrize("missing", ["click", "tqdm"])
def test_without_the_extra_it_is_named(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    from vireid.cli import main

    with pytest.raises(SystemExit) as caught:
        main()
    text = f"Error: the command line needs {missing}: pip install 'vireid[cli]'\n"
    assert (caught.value.code, *capsys.readouterr()) == (1, "", text)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("sent", "code_of_exit", "text"), [(signal.SIGINT, 1, "Aborted!"), (signal.SIGTERM, 143, "")], ids=["INT", "TERM"]
)
def test_an_interrupt_leaves_no_file(sent, code_of_exit, text, tmp_path):
    """Stopped while a command writes its output: nothing half-written stays, neither does the temporary file."""
    code = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from vireid._files import written_whole
from vireid.cli import app, main
@app.vireid.command()
def slow():
    with written_whole(Path("a.npz")) as temporary:
        temporary.write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)
sys.argv = ["vireid", "slow"]
main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        try:
            assert child.stdout.readline() == "writing\n"
            assert len(list(tmp_path.iterdir())) == 1
            child.send_signal(sent)
            _, err = child.communicate(timeout=50)  # it would sleep for 60
        finally:
            child.kill()
    assert child.returncode == code_of_exit
    assert err.strip() == text
    assert not list(tmp_path.iterdir())


def test_arguments_are_read_from_sources():
    from vireid.training import METHODS, settings_of

    for name, method in METHODS.items():
        found = keyword_arguments(f"training/methods/{name}.py", method.settings.__name__)
        assert {key: value.default for key, value in found.items()} == settings_of(name)
        assert all(value.text for value in found.values())
