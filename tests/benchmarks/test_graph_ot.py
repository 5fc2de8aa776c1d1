"""The benchmark of graph transport: what it writes, and the check that fails where the exact solver is worse."""

import pytest
import torch

import vireid.ot
from benchmarks.speed import graph_ot as benchmark
from benchmarks.speed.measure import read_table, value_of


@pytest.mark.parametrize("data", ["matched", "unrelated", "weighted"])
def test_the_command(data, tmp_path, capsys):
    output = tmp_path / "graph_ot.csv"
    benchmark.main(["--quick", "--data", data, "--output", str(output)])
    about, rows = read_table(output)
    labels = [benchmark.Task(k, name, 2).label for k, names in benchmark.CONTENDERS.items() for name in names]
    for way in benchmark.WAYS:
        own = [row for row in rows if row["what"] == way]
        assert [row["method"] for row in own if row["metric"] == "median_s"] == ["products", *labels]
        assert {row["size"] for row in own} == {f"2 pairs, 14 nodes, d 16, {data}"}
    for method in ("exact, abs", "exact, square", "POT loop, square"):
        assert value_of(rows, "gap_mean", method=method, what="forward") >= 0
        assert value_of(rows, "marginal_error", method=method, what="forward") < 1e-6
    assert "POT " in about["versions"]
    shown = capsys.readouterr().out
    assert "x products" in shown
    assert "x POT loop, square" in shown


def test_an_exact_solver_that_costs_more_than_pots_loop_is_not_timed(monkeypatch):
    def in_order(x, y, **options):
        out = vireid.ot.graph_ot(x, y, **options)
        return out._replace(plan=torch.eye(x.shape[1]).expand_as(out.plan) / x.shape[1])

    monkeypatch.setattr(benchmark, "graph_ot", in_order)
    with pytest.raises(RuntimeError, match="the exact solver must not cost more than POT's loop"):
        benchmark.main(["--quick"])
