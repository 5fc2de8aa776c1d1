"""The benchmark of graph transport: what it writes, and the check that fails where the exact solver is worse."""

import json

import pytest
import torch
from torch.testing import assert_close

import vireid.ot
from benchmarks.speed import graph_ot as benchmark


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("data", ["matched", "unrelated"])
def test_the_command(data, tmp_path, capsys):
    output = tmp_path / "graph_ot.json"
    benchmark.main(["--quick", "--data", data, "--output", str(output)])
    results = json.loads(output.read_text())["results"]
    lines = capsys.readouterr().out.splitlines()[-len(results) :]
    names = [(r["loss"], r["name"]) for r in results]
    assert names == [("square", "products")] + [(k, name) for k, v in benchmark.CONTENDERS.items() for name in v]
    loop = results[names.index(("square", "POT loop"))]["median_s"]
    for result, line in zip(results, lines, strict=True):
        assert result["name"] in line
        assert result["pairs"] == 4
        assert result["peak_bytes"] is None
        median, faster = result["median_s"], result["times_faster_than_pot_loop"]
        assert_close(faster, [loop[k] / median[k] for k in ("forward", "forward_backward")])
        assert_close(result["times_products"], median["forward"] / results[0]["median_s"]["forward"])
        assert f"{faster[0]:.1f}x{faster[1]:6.1f}x" in line
        if result["name"] in ("exact", "POT loop"):
            assert result["quality"]["gap_mean"] >= 0
            assert result["quality"]["marginal_error"] < 1e-6


def test_an_exact_solver_that_costs_more_than_pots_loop_is_not_timed(monkeypatch):
    def in_order(x, y, **options):
        out = vireid.ot.graph_ot(x, y, **options)
        return out._replace(plan=torch.eye(x.shape[1]).expand_as(out.plan) / x.shape[1])

    monkeypatch.setattr(benchmark, "graph_ot", in_order)
    with pytest.raises(RuntimeError, match="the exact solver must not cost more than POT's loop"):
        benchmark.main(["--quick"])
