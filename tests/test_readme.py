"""The pages' Python blocks run in order, and their figures are those of the recorded tables."""

import importlib
import re
import statistics

import pytest

from benchmarks.speed.measure import read_table, value_of
from benchmarks.tables.records import line_of, read_rows
from places import ROOT
from vireid.protocols import DIRECTIONS

RESULTS = ROOT / "benchmarks/results"
WAYS = ("forward", "forward and backward")


@pytest.mark.parametrize("page", ["README.md", "docs/components.md", "docs/index.md"])
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


def lines_of(page: str) -> list[str]:
    return (ROOT / page).read_text(encoding="utf-8").splitlines()


def recorded_tables() -> dict[str, list[str]]:
    pytest.importorskip("lightning_fabric", reason="the tables need the extra train")
    cift, saai, saai_table, g2da, rerank_accuracy = (
        importlib.import_module(f"benchmarks.tables.{name}")
        for name in ("cift", "saai", "saai_table", "g2da", "rerank_accuracy")
    )
    about, rows = read_rows(RESULTS / "saai.csv")
    quoted = saai.quote(saai.QUOTED, about["data"], about["trials"])
    tables = {
        "cift": cift.make_table(*read_rows(RESULTS / "cift.csv")),
        "saai": saai_table.make_table(about, rows, quoted),
        "g2da": g2da.make_table(*read_rows(RESULTS / "g2da.csv")),
        "g2da_synthetic": g2da.make_table(*read_rows(RESULTS / "g2da_synthetic.csv")),
        "rerank_accuracy": rerank_accuracy.make_table(read_rows(RESULTS / "rerank_accuracy.csv")[1]),
    }
    return {name: table.splitlines() for name, table in tables.items()}


def test_the_tables_in_the_pages_are_the_recorded_ones() -> None:
    tables = recorded_tables()
    everything = {line for table in tables.values() for line in table}
    figures = re.compile(r"\d ± \d")
    phi = {line for line in lines_of("docs/results-g2da.md") if re.match(r"\| [\d.]+ \| \d", line)}
    for page, count in (
        ("README.md", 12),
        ("docs/results.md", 39),
        ("docs/results-saai.md", 80),
        ("docs/results-g2da.md", 44),
    ):
        shown = [line for line in lines_of(page) if line.startswith("| ") and figures.search(line)]
        assert len(shown) >= count, page
        assert set(shown) - phi <= everything, page
    page = set(lines_of("docs/results-g2da.md"))
    for name in ("g2da", "g2da_synthetic"):
        assert {line for line in tables[name] if line.startswith(("| B", "| G2DA"))} <= page
    chosen = [line for line in tables["cift"] if re.match(r"\| (Baseline|CIFT†) \+ .*\| (n|k1) \d", line)]
    assert len(chosen) == 6
    assert set(chosen) <= set(lines_of("docs/results.md"))


def test_the_tables_of_the_readings_are_the_recorded_ones() -> None:
    pytest.importorskip("lightning_fabric", reason="the tables need the extra train")
    from benchmarks.tables import readings

    page = (ROOT / "docs/results-readings.md").read_text(encoding="utf-8")
    hcc, every = (readings.make_table(*read_rows(RESULTS / f"{name}.csv")) for name in ("readings_hcc", "readings"))
    assert hcc in page
    assert every[: every.index("\nPairs of an image")] in page


def test_the_accuracies_of_the_re_rankers_in_the_page_are_the_recorded_ones() -> None:
    page = "\n".join(lines_of("docs/re-ranking.md"))
    for line in recorded_tables()["rerank_accuracy"][2:]:
        _, name, _, _, *accuracies = [part.strip() for part in line.split("|")][:8]
        name = "none" if name.startswith("CIFT's") else name
        shown = [other for other in page.splitlines() if other.startswith(f"| {name} |")]
        assert any(all(number in other for number in accuracies) for other in shown), line


def test_g2das_sweep_in_the_page_is_the_recorded_one() -> None:
    rows = read_rows(RESULTS / "g2da_phi.csv")[1]
    assert [row.key for row in rows] == ["0", "0.25", "0.5", "0.75", "1"]
    for row in rows:
        assert f"| {row.key} | {' | '.join(line_of(row)[2:])} |" in lines_of("docs/results-g2da.md")


def test_figures_in_the_text_of_the_results_are_the_recorded_ones() -> None:
    def shown(name: str, table: str, key: str, metric: str = "mAP") -> str:
        row = next(r for r in read_rows(RESULTS / f"{name}.csv")[1] if (r.table, r.key) == (table, key))
        return " / ".join(f"{statistics.fmean(row.numbers(d, metric)):.1f}" for d in DIRECTIONS)

    text = " ".join("\n".join(lines_of("docs/results.md")).split())
    long = "cift_40_epochs"
    for name, key in (("Baseline", "baseline/backbone"), ("+ H2G", "h2g/transferred"), ("CIFT†", "cri/backbone")):
        assert f"{name} {shown(long, 'accuracy', key)}" in text
    assert f"CIFT {shown(long, 'accuracy', 'cri/transferred')}" in text
    assert f"({shown(long, 'post-processing', 'baseline/AIM/default')})" in text
    assert f"({shown(long, 'post-processing', 'baseline/AIM/best')})" in text
    pictures = " ".join("\n".join(lines_of("docs/pictures.md")).split())
    assert f"best in mAP ({shown('saai_parts', 'sweep', '5')})" in pictures
    assert f"{shown('saai_part_diversity', 'sweep', '0.5')} against" in pictures
    assert f"{shown('saai_part_diversity', 'sweep', '0')} without L_pd" in pictures


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
    text_of_page = " ".join(page.split())
    for file, text in (
        ("graph_ot", "in {} ms forward and {} ms with backward on one thread"),
        ("graph_ot", "POT's exact solver, pair by pair, in {} and {} ms"),
        ("graph_ot_2_threads", "--repeats 3`) {} and {} against"),
        ("graph_ot_2_threads", "against {} and {} ms."),
    ):
        method = "POT loop, square" if text.startswith(("POT", "against")) else "exact, square"
        size = "256 pairs, 14 nodes, d 2048, matched"
        found = [value_of(speed(file), "median_s", method=method, size=size, what=way) for way in WAYS]
        assert text.format(*(f"{1e3 * seconds:.0f}" for seconds in found)) in text_of_page


def test_the_cost_of_the_heads_in_the_pages_is_the_recorded_one() -> None:
    saai, cift = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/results-saai.md", "docs/results.md"))
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


def test_the_cost_of_re_ranking_in_the_pages_are_the_recorded_ones() -> None:
    page = (ROOT / "docs/re-ranking.md").read_text(encoding="utf-8")
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


def test_the_cost_of_a_query_alone_in_the_page_is_the_recorded_one() -> None:
    page = (ROOT / "docs/re-ranking.md").read_text(encoding="utf-8")
    rows = speed("rerank_alone")
    for row in rows:
        own = [other for other in rows if other["size"] == row["size"]]
        if (row["what"], row["metric"]) == ("re-ranking", "median_s"):
            seconds, floor = float(row["value"]), value_of(own, "median_s", method="bare q·g and g·g")
            peak = value_of(own, "peak_bytes", method=row["method"])
            assert f"{seconds:.2f} s ({seconds / floor:.2f}×), {peak / 2**20:,.0f} MiB" in page, row
        elif row["metric"] == "median_s":
            seconds, search = float(row["value"]), value_of(own, "median_s", method="exact search, not fitted")
            assert f"| {1e3 * seconds:.1f} | {seconds / search:.1f} |" in page, row
        elif row["metric"] == "difference_to_ours":
            assert float(row["value"]) < 1e-6


def test_the_times_of_the_neighbors_in_the_page_are_the_recorded_ones() -> None:
    text = " ".join("\n".join(lines_of("docs/re-ranking.md")).split())
    rows = speed("neighbors")
    for size, shown in (
        ("15913 x 2048, k = 20", "took {:.1f} s where the bare product of all with all took {:.1f} s"),
        ("20000 x 512, k = 20", "took {:.1f}, {:.1f} and"),
    ):
        found = [value_of(rows, "median_s", method=name, size=size) for name in ("NeighborGraph.build", "product")]
        assert shown.format(*found) in text
        assert f"{value_of(rows, 'median_s', method='topk(g, g, k)', size=size):.1f} s" in text
        assert f"{1e3 * value_of(rows, 'median_s', method='extend by one', size=size):.0f} " in text


def test_links_of_the_readme_work_on_a_package_index_too() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    home = "https://github.com/vireid/vireid/blob/main/"
    assert links
    for link in links:
        assert link.startswith(home)
        assert (ROOT / link.removeprefix(home)).is_file()
