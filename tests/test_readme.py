"""The README's Python blocks run in order, as a reader would paste them."""

import importlib
import json
import re
import statistics

import pytest

from benchmarks.speed.measure import read_table, value_of
from places import ROOT

RESULTS = ROOT / "benchmarks/results"
WAYS = ("forward", "forward and backward")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_python_blocks_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("kornia", reason="the augmentation's block needs the extra train")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    session: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), session)
    assert capsys.readouterr().out


def test_the_first_two_blocks_are_one_command_each() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.DOTALL)
    for language, block in blocks[:2]:
        assert language == "sh"
        assert block.count("\n") == 1
        assert "-c constraints.txt" in block
        assert "&&" in block


def test_no_page_holds_a_placeholder() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"\b[A-Z]+_GO_HERE\b|\bTODO\b|^(TABLE|READING|HEADS|TRANSFER)$", page.read_text(), re.M), (
            page
        )


def test_the_results_in_the_pages_are_the_recorded_ones() -> None:
    content = json.loads((ROOT / "benchmarks/results/cift.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in content["rows"] if not row["post_processing"]}
    for page in ("README.md", "docs/results.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in ("Baseline", "+ GFT", "+ UBS", "+ H2G", "CIFT†", "CIFT"):
            line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
            shown = [float(number) for number in re.findall(r"(\d+\.\d+) ±", line)]
            recorded = [
                rows[name]["results"][direction][metric]["mean"]
                for direction in ("visible_to_infrared", "infrared_to_visible")
                for metric in ("rank1", "mAP")
            ]
            assert shown == pytest.approx(recorded, abs=0.006)


def test_saais_results_in_the_pages_are_the_recorded_ones() -> None:
    pytest.importorskip("tqdm", reason="the benchmarks need the extra train")
    pytest.importorskip("lightning_fabric", reason="the benchmarks need the extra train")
    saai_table = importlib.import_module("benchmarks.tables.saai_table")
    recorded = saai_table.make_table(json.loads((ROOT / "benchmarks/results/saai.json").read_text(encoding="utf-8")))
    for page, rows in (("README.md", 7), ("docs/results-saai.md", 60)):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        shown = [line for line in lines if re.match(r"\| (SAFL|CIFT ∘|Baseline .*form)", line)]
        assert len(shown) >= rows - 1, page  # the plain Baseline is also a row of CIFT's table
        assert set(shown) <= set(recorded.splitlines()), page


def test_g2das_results_in_the_pages_are_the_recorded_ones() -> None:
    pytest.importorskip("tqdm", reason="the benchmarks need the extra train")
    pytest.importorskip("lightning_fabric", reason="the benchmarks need the extra train")
    make_table = importlib.import_module("benchmarks.tables.g2da_table").make_table
    results = [ROOT / "benchmarks/results" / name for name in ("g2da.json", "g2da_synthetic.json")]
    recorded = [make_table(json.loads(path.read_text(encoding="utf-8"))).splitlines() for path in results]
    page = (ROOT / "docs/results-g2da.md").read_text(encoding="utf-8").splitlines()
    for table in recorded:
        assert {line for line in table if line.startswith(("| B", "| G2DA"))} <= set(page)
    pattern = re.compile(r"\| (B|G2DA|CIFT†? \+ D_ot|SAAI)")
    shown = {line for line in page if pattern.match(line) and " ± " in line}
    assert len(shown) > 20
    assert shown <= {line for table in recorded for line in table}
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    readme = [line for line in lines if re.match(r"\| B( \+ \w+)* \| query", line)]
    assert len(readme) == 5
    assert set(readme) <= set(recorded[0])


def test_g2das_sweep_in_the_page_is_the_recorded_one() -> None:
    page = (ROOT / "docs/results-g2da.md").read_text(encoding="utf-8")
    records = json.loads((ROOT / "benchmarks/results/g2da_phi.json").read_text(encoding="utf-8"))["records"]
    for value in ("0", "0.25", "0.5", "0.75", "1"):
        cells = []
        for direction in ("visible_to_infrared", "infrared_to_visible"):
            found = [r for r in records if r["value"] == float(value) and r["direction"] == direction]
            assert len(found) == 3
            for metric in ("rank1", "mAP"):
                numbers = [r[metric] for r in found]
                cells.append(f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}")
        assert f"| {value} | {' | '.join(cells)} |" in page


def speed(name: str) -> list[dict[str, str]]:
    return read_table(RESULTS / f"{name}.csv")[1]


def test_the_cost_of_transport_in_the_pages_is_the_recorded_one() -> None:
    page = (ROOT / "docs/results-g2da.md").read_text(encoding="utf-8")
    for row in speed("graph_ot"):
        if (row["what"], row["metric"]) == ("forward", "median_s"):
            pairs = int(row["size"].split()[0])
            both = value_of(
                speed("graph_ot"), "median_s", what="forward and backward", size=row["size"], method=row["method"]
            )
            times = [f"{seconds / pairs * 1e6:.0f}" for seconds in (float(row["value"]), both)]
            assert f"| {row['method']} | {pairs} | {times[0]} | {times[1]} |" in page
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for file, text in (
        ("graph_ot", "in {} ms forward and {} ms with backward on one thread"),
        ("graph_ot", "POT's exact solver, pair by pair, in {} and {} ms"),
        ("graph_ot_2_threads", "--repeats 3`) {} and {} against"),
        ("graph_ot_2_threads", "against {} and {} ms."),
    ):
        method = "POT loop, square" if text.startswith(("POT", "against")) else "exact, square"
        size = "256 pairs, 14 nodes, d 2048, matched"
        found = [value_of(speed(file), "median_s", method=method, size=size, what=way) for way in WAYS]
        assert text.format(*(f"{1e3 * seconds:.0f}" for seconds in found)) in readme


def test_the_cost_of_the_heads_in_the_pages_is_the_recorded_one() -> None:
    readme, saai, cift = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/results-saai.md", "docs/results.md")
    )
    for name, page, digits in (("heads", cift, 1), ("heads_saai", saai, 0)):
        rows = speed(name)
        floor = value_of(rows, "median_s", method="classifier")
        for method in dict.fromkeys(row["method"] for row in rows):
            median, peak = (
                value_of(rows, "median_s", method=method),
                value_of(rows, "peak_bytes", method=method) / 2**20,
            )
            line = f"| {1e3 * median:.{digits}f} | {median / floor:.1f} | {peak:.{digits}f} |"
            assert line in page, (name, method)
            if (name, method) in (("heads_saai", "vireid"), ("heads_saai", "loop")):
                assert f"{1e3 * median:.0f} ms and {peak:.0f} MiB" in readme


def test_the_cost_of_the_transfer_in_the_page_is_the_recorded_one() -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    rows = speed("transfer")
    for row in rows:
        if row["metric"] == "median_s" and row["method"] != "products":
            seconds, size = float(row["value"]), row["size"]
            ratio = seconds / value_of(rows, "median_s", method="products", size=size)
            peak = value_of(rows, "peak_bytes", method=row["method"], size=size) / 2**20
            assert f"| {seconds:.3g} | {ratio:.2f} | {peak:.0f} |" in page, row


def test_the_cost_of_evaluation_in_the_page_is_the_recorded_one() -> None:
    page = (ROOT / "docs/re-ranking.md").read_text(encoding="utf-8")
    rows = [row for row in speed("evaluation") if row["metric"] == "median_s"]
    for row in rows:
        assert f"| {row['method']} | {float(row['value']):.3f} |" in page or "second" in row["what"], row
    second = [row for row in rows if "second" in row["what"]]
    shown = [row for row in second if f"| {row['method']} | {float(row['value']):.3f} |" in page]
    assert len(shown) >= 6


def test_the_re_ranking_figures_in_the_pages_are_the_recorded_ones() -> None:
    page = (ROOT / "docs/re-ranking.md").read_text(encoding="utf-8")
    accuracy = json.loads((ROOT / "benchmarks/results/rerank_accuracy.json").read_text(encoding="utf-8"))
    for row in accuracy["rows"]:
        name = "none" if row["name"].startswith("CIFT's") else row["name"]
        lines = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        recorded = [
            row["results"][direction][metric]["mean"]
            for direction in ("visible_to_infrared", "infrared_to_visible")
            for metric in ("rank1", "mAP")
        ]
        shown = [[float(number) for number in re.findall(r"(\d+\.\d+) ±", line)] for line in lines]
        assert any(numbers == pytest.approx(recorded, abs=0.006) for numbers in shown), name
    rows = speed("rerank")
    for setting in ("sysu", "market", "msmt17"):
        own = [row for row in rows if row["size"].startswith(setting)]
        for method in ("AIM (vireid)", "k-reciprocal (vireid)", "GNN (vireid)"):
            seconds, peak = (value_of(own, metric, method=method) for metric in ("median_s", "peak_bytes"))
            if seconds is not None:
                for text in (page, (ROOT / "README.md").read_text(encoding="utf-8")):
                    assert f"{seconds:.2f} s" in text, (setting, method)
                    assert f"{peak / 2**20:,.0f} MiB" in text, (setting, method)
    for row in rows:
        if (row["what"], row["metric"]) == ("one query at a time", "median_s"):
            assert f"| {1e3 * float(row['value']):.1f} |" in page
