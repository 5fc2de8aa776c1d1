import json

import pytest
import torch

from benchmarks.speed import neighbors as benchmark


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_contenders_find_the_same_neighbours(monkeypatch):
    benchmark.check_agreement(torch.device("cpu"))

    def wrong(q, g, k):
        return {"product + topk": lambda: [(None, (q @ g.T).topk(k, dim=1, largest=False).indices)]}

    monkeypatch.setattr(benchmark, "exact_cases", wrong)
    with pytest.raises(RuntimeError, match=r"product \+ topk must find the true neighbours, found 0"):
        benchmark.check_agreement(torch.device("cpu"))


def test_the_quick_run_prints_tables_and_writes_figures(tmp_path, capsys):
    path = tmp_path / "neighbors.json"
    benchmark.main(["--quick", "--repeats", "2", "--output", str(path)])
    printed = capsys.readouterr().out
    for text in ("20 x 300 x 16, k = 5, float32", "one query, prepared 300 x 16", "k-NN graph of 300 x 16", "exact"):
        assert text in printed
    content = json.loads(path.read_text())
    assert content["threads"] == 1
    assert {"python", "torch", "vireid", "numpy"} <= set(content["versions"])
    assert set(content["results"]) == {"exact", "prepared", "graph", "approximate"}
    first = content["results"]["exact"][0]
    assert (first["queries"], first["gallery"], first["d"], first["k"]) == (20, 300, 16, 5)
    for result in first["results"].values():
        assert len(result["seconds"]) == 2
        assert 0 < result["min_s"] <= result["median_s"]
    rows = content["results"]["approximate"][0]["results"]
    assert rows[0]["index"] == "exact"
    assert all(0 < row["recall"] <= 1 for row in rows)


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
