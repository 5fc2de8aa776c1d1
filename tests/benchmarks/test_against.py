"""Two versions of the library in one run: each run sees its own, the least times are compared."""

import pytest

from benchmarks.speed import against
from places import ROOT

FAKE = """
import sys
import benchmarks.speed
import vireid

with open(sys.argv[sys.argv.index("--output") + 1], "w") as file:
    file.write("# given: " + sys.argv[1] + "\\nwhat,size,method,metric,value,iqr\\n")
    file.write(f"w,s,method,median_s,{getattr(vireid, 'SECONDS', 0.5)},\\n")
"""


def test_each_run_imports_its_own_version(tmp_path, monkeypatch):
    (tmp_path / "fake_benchmark.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    old = tmp_path / "old" / "vireid"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("SECONDS = 2.0\n__version__ = 'old'\n")
    for package, seconds in ((old, 2.0), (ROOT / "vireid", 0.5), (old, 2.0)):
        found = against.run(package, "fake_benchmark", ["--option"], tmp_path)
        assert found == {("w", "s", "method"): seconds}


def test_the_least_times_are_compared(tmp_path, monkeypatch, capsys):
    times = {"old": iter([3.0, 2.0]), "new": iter([1.0, 4.0])}
    seen = []

    def run(package, module, options, folder):
        name = "old" if package.parent == tmp_path else "new"
        seen.append((name, module, options))
        return {("w", "s", "m"): next(times[name])} | ({("w", "s", "new"): 1.0} if name == "new" else {})

    monkeypatch.setattr(against, "run", run)
    (tmp_path / "vireid").mkdir()
    against.main([str(tmp_path), "heads", "--rounds", "2", "--", "--repeats", "1"])
    assert seen == [(name, "benchmarks.speed.heads", ["--repeats", "1"]) for name in ("old", "new")] * 2
    _, both, only = capsys.readouterr().out.splitlines()
    assert both.split() == ["w,", "s,", "m", "2000.00", "1000.00", "0.50"]
    assert only.split()[-2:] == ["-", "1000.00"]
    with pytest.raises(SystemExit):
        against.main([str(tmp_path / "nowhere"), "heads"])
    assert "checkout must hold vireid/" in capsys.readouterr().err
