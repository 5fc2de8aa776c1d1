"""The tables of CIFT, SAAI and G2DA: which models and rankings make their lines, and what the papers print there."""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.tables.data import METRICS
from benchmarks.tables.options import Plan
from benchmarks.tables.rerank_accuracy import METHODS
from vireid.protocols import DIRECTIONS

SYSU = ("all single-shot", "all multi-shot", "indoor single-shot", "indoor multi-shot")
REGDB_COLUMNS: tuple[str, ...] = DIRECTIONS
RANKS = ("rank1", "rank10", "rank20", "mAP")
Printed = dict[str, tuple[float, ...]]


class Line(NamedTuple):
    """A line of a table.

    Attributes:
        label: as shown.
        plan: its model, a key of `PLANS`.
        way: how it ranks: "features" (their cosine), "transferred", a form of AIM, or the name of a re-ranker.
        printed: what the paper prints, by column, in the order of the table's metrics.
    """

    label: str
    plan: str
    way: str = "features"
    printed: Mapping[str, tuple[float, ...]] = {}


class Table(NamedTuple):
    """A table of a paper.

    Attributes:
        title: what it shows.
        blocks: its lines, by the title of a block; "" for the paper's own.
        columns: of SYSU-MM01, if it has not all four.
        metrics: its metrics; ("error_rate", "Q_A") for the affinities instead of a ranking.
        datasets: those that the paper prints it for; it runs on any.
    """

    title: str
    blocks: Mapping[str, tuple[Line, ...]]
    columns: tuple[str, ...] = SYSU
    metrics: tuple[str, ...] = METRICS
    datasets: tuple[str, ...] = ("SYSU-MM01",)


PLANS = {
    **{
        f"cift_{row}" if row != "cri" else "cift": Plan(label, "cift", ("--ablation", row))
        for row, label in {
            "baseline": "CIFT's backbone",
            "gft": "+ GFT",
            "ubs": "+ GFT + UBS",
            "h2g": "+ GFT + UBS + H2G",
            "cri": "CIFT",
        }.items()
    },
    "cift_shared": Plan("CIFT's backbone, cm-SSFT", "cift", ("--ablation", "shared")),
    **{
        row if transfer == "none" else f"{row}_{transfer}": Plan(
            f"{row.upper()}{name}", "agw", ("--ablation", row, "--transfer", transfer)
        )
        for row in ("agw", "hc", "hct")
        for transfer, name in {"none": "", "shared": ", cm-SSFT", "h2ft": ", CIFT"}.items()
    },
    "saai_baseline": Plan("Baseline", "saai", ("--ablation", "baseline")),
    "saai_id": Plan("SAFL, L_id", "saai", ("--part-diversity", "0", "--center-separation", "0")),
    "saai_id_pd": Plan("SAFL, L_id + L_pd", "saai", ("--center-separation", "0")),
    "saai_id_cs": Plan("SAFL, L_id + L_cs", "saai", ("--part-diversity", "0")),
    "saai": Plan("SAAI", "saai"),
    "g2da_baseline": Plan("B", "g2da", ("--ablation", "baseline")),
    "g2da_ot": Plan("B + O", "g2da", ("--ablation", "ot")),
    "g2da_cl": Plan("B + O + CL", "g2da", ("--ablation", "cl")),
    "g2da_graph": Plan("B + O + CL + G", "g2da", ("--ablation", "graph")),
    "g2da": Plan("B + O + CL + G + MF", "g2da", ("--ablation", "g2da")),
}
"""Models of all tables by the folder of their runs."""

AIM_FORMS = {"AIM": (True, True), "AIM⁻": (False, False), "removing": (True, False), "expanding": (False, True)}
"""Forms of AIM (SAAI's Table 6): whether values are removed (k1) and rows expanded (k2)."""

_METHODS = {method.name: method for method in METHODS}
RERANKERS = {
    "k-reciprocal": _METHODS["k-reciprocal, alone"],
    "GNN": _METHODS["GNN, alone"],
    "k-reciprocal, all queries": _METHODS["k-reciprocal"],
    "GNN, all queries": _METHODS["GNN"],
}
"""Re-rankers whose parameters are chosen on training identities."""


def uses_of(way: str) -> str:
    """Return what a ranking looks at."""
    if way.endswith("all queries"):
        return "transductive"
    return "query" if way == "features" else "gallery"


def numbers(*values: float, columns: tuple[str, ...] = SYSU) -> Printed:
    """Return the numbers of a line, column by column."""
    width = len(values) // len(columns)
    return {column: values[n * width : (n + 1) * width] for n, column in enumerate(columns)}


def single(rank1: float, mean_ap: float) -> Printed:
    """Return the numbers of all-search, single-shot."""
    return {SYSU[0]: (rank1, mean_ap)}


def multi_gallery_lines() -> dict[str, tuple[Line, ...]]:
    """Return CIFT's Table 2: four backbones, each with the methods that look at the gallery."""
    backbones = {"agw": "AGW", "hc": "HC", "hct": "HCT", "cift_baseline": "Our backbone"}
    printed = {
        "": ((47.22, 47.78), (54.52, 54.06), (61.05, 56.97), (70.49, 66.58)),
        "k-reciprocal": ((47.63, 51.81), (53.91, 60.03), (62.33, 62.05), (71.47, 72.49)),
        "GNN": ((46.96, 52.01), (55.05, 59.79), (60.52, 62.72), (70.40, 73.21)),
        "cm-SSFT": ((48.65, 51.76), (56.17, 61.36), (62.27, 61.85), (69.92, 71.77)),
        "CIFT": ((52.12, 56.92), (61.03, 64.05), (66.18, 68.09), (74.08, 74.79)),
    }
    lines, transductive = [], []
    for n, (row, name) in enumerate(backbones.items()):
        own = row == "cift_baseline"
        names = ("cift_shared", "cift") if own else (f"{row}_shared", f"{row}_h2ft")
        models = dict(zip(("cm-SSFT", "CIFT"), names, strict=True))
        for method, values in printed.items():
            way = "features" if not method else "transferred" if method in models else method
            label = f"{name} + {method}" if method else name
            lines.append(Line(label, models.get(method, row), way, single(*values[n])))
        transductive += [Line(f"{name} + {way}", row, way) for way in RERANKERS if uses_of(way) == "transductive"]
    return {"": tuple(lines), "All queries together, which is another class of information": tuple(transductive)}


def aim_lines() -> tuple[Line, ...]:
    """Return SAAI's Table 5: AIM on other methods."""
    lines = []
    printed = {"AGW": numbers(52.47, 41.48, 60.59, 54.31, columns=MULTI)}
    printed["AGW + AIM"] = numbers(55.01, 55.18, 63.84, 67.51, columns=MULTI)
    models = {"agw": "AGW", "saai_baseline": "SAAI's baseline", "cift": "CIFT†", "g2da": "G2DA"}
    for row, name in models.items():
        for way, label in {"features": name, "AIM": f"{name} + AIM"}.items():
            lines.append(Line(label, row, way, printed.get(label, {})))
    return tuple(lines)


MULTI = (SYSU[1], SYSU[3])
SINGLE = (SYSU[0], SYSU[2])
ALL_SINGLE = (SYSU[0],)
CIFT_ALL = (
    Line(
        "CIFT†",
        "cift",
        printed=numbers(71.77, 67.64, 78.00, 62.46, 78.65, 82.11, 86.97, 77.03)
        | numbers(92.17, 86.96, 90.12, 84.81, columns=REGDB_COLUMNS),
    ),
    Line(
        "CIFT",
        "cift",
        "transferred",
        numbers(74.08, 74.79, 79.74, 75.56, 81.82, 85.61, 88.32, 86.42)
        | numbers(91.96, 92.00, 90.30, 90.78, columns=REGDB_COLUMNS),
    ),
)
ABLATION = {
    "cift_gft": single(72.01, 72.12),
    "cift_ubs": single(72.90, 71.97),
    "cift_h2g": single(72.29, 73.79),
    "cift": single(74.08, 74.79),
}
CIFT = {
    "table1": Table("CIFT on SYSU-MM01 and RegDB", {"": CIFT_ALL}, datasets=("SYSU-MM01", "RegDB")),
    "table2": Table("Methods that look at the gallery, on four backbones", multi_gallery_lines(), ALL_SINGLE),
    "table3": Table(
        "CIFT's ablation",
        {
            "": (
                Line("Backbone", "cift_baseline", printed=single(70.49, 66.58)),
                *(Line(PLANS[row].label, row, "transferred", printed) for row, printed in ABLATION.items()),
            ),
            "The same models, their backbone features": tuple(Line(PLANS[row].label, row) for row in ABLATION),
        },
        ALL_SINGLE,
    ),
    "table4": Table(
        "Affinity error, our reading: it cannot be the measure that the paper prints",
        {
            "": (
                Line("Without CRI", "cift_h2g", printed=numbers(5.16, 3.95, 6.54, 6.15)),
                Line("With CRI", "cift", printed=numbers(3.90, 2.76, 5.03, 4.66)),
            )
        },
        metrics=("error_rate", "Q_A"),
    ),
}
SAAI_ALL = (
    Line("SAAI without AIM", "saai", printed=single(75.03, 71.69)),
    Line(
        "SAAI",
        "saai",
        "AIM",
        numbers(75.90, 77.03, 82.86, 82.39, 83.20, 88.01, 90.73, 91.30)
        | numbers(91.07, 91.45, 92.09, 92.01, columns=REGDB_COLUMNS),
    ),
)
LOSSES = {
    "saai_id": ("L_id", single(71.81, 72.15)),
    "saai_id_pd": ("L_id + L_pd", single(72.24, 72.54)),
    "saai_id_cs": ("L_id + L_cs", single(74.71, 76.12)),
    "saai": ("L_id + L_pd + L_cs", single(75.90, 77.03)),
}
STEPS = {
    "AIM⁻": ("AIM⁻", (79.58, 67.69)),
    "removing": ("AIM⁻ + removing", (82.72, 79.67)),
    "expanding": ("AIM⁻ + expanding", (80.58, 74.27)),
    "AIM": ("AIM⁻ + removing + expanding", (82.86, 82.39)),
}
SAAI = {
    "table1": Table("SAAI on SYSU-MM01", {"": SAAI_ALL}),
    "table2": Table("SAAI on RegDB", {"": SAAI_ALL}, datasets=("RegDB",)),
    "table3": Table(
        "SAFL and AIM",
        {
            "": (
                Line("Baseline", "saai_baseline", printed=single(66.79, 61.59)),
                Line("+ SAFL", "saai", printed=single(75.03, 71.69)),
                Line("+ AIM", "saai_baseline", "AIM", single(67.88, 67.78)),
                Line("+ SAFL + AIM", "saai", "AIM", single(75.90, 77.03)),
            )
        },
        ALL_SINGLE,
    ),
    "table4": Table(
        "The losses; the paper's numbers are with AIM",
        {
            "": tuple(Line(label, row, "AIM", printed) for row, (label, printed) in LOSSES.items()),
            "Without AIM": tuple(Line(label, row) for row, (label, _) in LOSSES.items()),
        },
        ALL_SINGLE,
    ),
    "table5": Table("AIM on other methods", {"": aim_lines()}, MULTI),
    "table6": Table(
        "Removing and expanding",
        {"": tuple(Line(label, "saai", way, {SYSU[1]: printed}) for way, (label, printed) in STEPS.items())},
        (SYSU[1],),
    ),
}
G2DA_ALL = Line(
    "G2DA",
    "g2da",
    printed=numbers(
        *(57.07, 90.99, 96.28, 55.05),
        *(64.47, 94.22, 98.18, 48.91),
        *(63.70, 94.06, 98.35, 69.83),
        *(72.62, 95.99, 98.87, 61.89),
    )
    | numbers(71.72, 87.13, 91.92, 65.90, 69.50, 84.87, 89.85, 63.88, columns=REGDB_COLUMNS),
)
PARTS = {
    "g2da_baseline": (49.17, 84.38, 92.16, 47.27, 53.60, 89.67, 95.63, 61.41),
    "g2da_ot": (53.58, 88.26, 94.27, 52.00, 57.13, 92.23, 97.55, 64.86),
    "g2da_cl": (54.56, 88.89, 95.05, 53.52, 57.74, 93.47, 98.09, 65.69),
    "g2da_graph": (56.65, 90.84, 96.18, 54.83, 61.80, 93.85, 97.93, 68.77),
    "g2da": (57.07, 90.99, 96.28, 55.05, 63.70, 94.06, 98.35, 69.83),
}
G2DA = {
    "table1": Table("G2DA on SYSU-MM01", {"": (G2DA_ALL,)}, metrics=RANKS),
    "table2": Table("G2DA on RegDB", {"": (G2DA_ALL,)}, metrics=RANKS, datasets=("RegDB",)),
    "table3": Table(
        "G2DA's ablation",
        {
            "": tuple(
                Line(PLANS[row].label, row, printed=numbers(*values, columns=SINGLE)) for row, values in PARTS.items()
            )
        },
        SINGLE,
        RANKS,
    ),
}
TABLES: Mapping[str, Mapping[str, Table]] = {"cift": CIFT, "saai": SAAI, "g2da": G2DA}
"""Paper -> table."""
