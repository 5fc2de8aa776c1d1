"""The benchmark of nearest neighbors: contenders that agree, and what a run prints and records."""

import pytest
import torch

from benchmarks.speed import neighbors as benchmark
from benchmarks.speed.measure import read_table, value_of


def test_all_contenders_find_the_same_neighbors(monkeypatch):
    benchmark.check_agreement(torch.device("cpu"))

    def wrong(q, g, k):
        return {"product + topk": lambda: [(None, (q @ g.T).topk(k, dim=1, largest=False).indices)]}

    monkeypatch.setattr(benchmark, "exact_cases", wrong)
    with pytest.raises(RuntimeError, match=r"product \+ topk must find the true neighbors, found 0"):
        benchmark.check_agreement(torch.device("cpu"))


def test_the_quick_run_prints_tables_and_writes_figures(tmp_path, capsys):
    path = tmp_path / "neighbors.csv"
    benchmark.main(["--quick", "--repeats", "2", "--output", str(path)])
    printed = capsys.readouterr().out
    for text in ("20 x 300 x 16, k = 5, float32", "one query, prepared gallery, 300 x 16", "k-NN graph, 300 x 16"):
        assert text in printed
    about, rows = read_table(path)
    assert about["threads"] == "1"
    assert "scipy " in about["versions"]
    what = ["exact search", "one query, prepared gallery", "k-NN graph", "approximate search"]
    assert list(dict.fromkeys(row["what"] for row in rows)) == what
    assert rows[0]["size"] == "20 x 300 x 16, k = 5, float32"
    for row in rows:
        assert float(row["value"]) > 0
        assert (row["iqr"] != "") == (row["metric"] == "median_s")
    recalls = {row["method"]: float(row["value"]) for row in rows if row["metric"] == "recall"}
    assert recalls["exact"] == 1
    assert all(0 < share <= 1 for share in recalls.values())
    assert value_of(rows, "build_s", method="exact") is None


def test_parts_and_bad_counts(capsys):
    benchmark.main(["--quick", "--repeats", "1", "--parts", "prepared"])
    assert "k-NN graph" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats", "0"])


def test_the_product_keeps_nothing_and_the_half_covers_it(monkeypatch):
    q, g = torch.randn(7, 3), torch.randn(9, 3)
    monkeypatch.setattr(benchmark, "BLOCK_BYTES", 4 * 9 * 2)
    assert [float(x) for x in benchmark.product(q, g)] == pytest.approx([float((q @ g.T)[i, 0]) for i in (0, 2, 4, 6)])
    found = torch.cat([part.indices for part in benchmark.product(q, g, 3)])
    assert torch.equal(found, (q @ g.T).topk(3, dim=1).indices)
