"""Two versions of the library in one run: each run sees its own, the least times are compared."""

import json

import pytest

from benchmarks.speed import against
from benchmarks.speed.measure import figures, write_table
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


def test_another_checkouts_own_script_is_run_there_and_matched_by_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "vireid").mkdir()
    old = {
        "batch": {"dim": 3},
        "results": {
            "sysu": {"cases": {"aim": {"runs": [{"seconds": 3.0}, {"seconds": 1.0}]}, "gone": {"runs": []}}},
            "more": [{"k": 2, "results": {"plain": {"seconds": [4.0, 2.0, 9.0]}, "other": {"seconds": 7.0}}}],
            "pairs": [
                {"name": "exact", "loss": "abs", "seconds": {"forward": [0.5], "forward_backward": [2.0, 2.0]}},
                {"name": "products", "loss": "square", "seconds": {"forward": [0.25], "forward_backward": [0.25]}},
            ],
        },
    }
    (tmp_path / "script.py").write_text(f"import sys\nopen(sys.argv[3], 'w').write({json.dumps(old)!r})\n")
    this = [("w", "", "AIM (vireid)"), ("w", "", "plain"), ("fw", "", "exact, abs"), ("bw", "", "exact, abs")]
    this += [("w", "", "products"), ("w", "s", "new")]
    monkeypatch.setattr(against, "run", lambda *_: dict.fromkeys(this, 1.0))
    against.main([str(tmp_path), "heads", "--rounds", "1", "--theirs", "python script.py --fast"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[-3] for line in lines[:4]] == ["2000.00", "4000.00", "500.00", "2000.00"]
    assert [line.split()[-2] for line in lines[4:]] == ["-", "-"]  # products: two times there, one here
    table = tmp_path / "t.csv"
    write_table(table, figures("w", "s", "m", [2.0], peak_bytes=3), {})
    (tmp_path / "script.py").write_text(f"import sys, shutil\nshutil.copy({str(table)!r}, sys.argv[2])\n")
    assert against.run_theirs(tmp_path, "python script.py", tmp_path) == [("m", 2.0)]
