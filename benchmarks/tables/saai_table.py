"""The differences and the Markdown tables of `saai.py`, from the rows of its results.json."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.tables.cift_table import COLUMNS, MARGIN_IDENTITIES, cell, markdown, parameters_text
from benchmarks.tables.runs import summary
from vireid.protocols import DIRECTIONS

HEAD = ("V→I rank-1", "V→I mAP", "I→V rank-1", "I→V mAP")
LOSSES = ("saai_id", "saai_id_pd", "saai_id_cs", "saai")
AFFINITY = ("saai", "saai_affinity", "saai_affinity_control")
NONE, PAPER, CHOSEN = "none", "paper, paper", "chosen, paper"  # what Table 4 and ours are shown with
SHOWN = (NONE, PAPER, CHOSEN)
FULL = (*SHOWN, "paper, released", "chosen, released")

Row = Mapping[str, Any]


def form_of(row: Row) -> str:
    """What ranks, as a key: "none", or the choice of k1 and k2 and the variant, and which steps are off."""
    aim = row["aim"]
    if aim is None:
        return NONE
    off = "".join(f", no {step}" for step in ("removing", "expanding") if not aim[step])
    return f"{aim['choice']}, {aim['variant']}{off}"


def index(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """The rows by (model, kind of features, what ranks)."""
    return {(row["row"], row["features"], form_of(row)): row for row in rows}


def name_of(row: Row) -> str:
    """Such as "SAFL + AIM (k1 8, k2 2, paper's form)"; "chosen" where k1 and k2 were."""
    name = row["name"] + (", transferred" if row["features"] == "transferred" else "")
    aim = row["aim"]
    if aim is None:
        return name
    k1 = "all" if aim["k1"] is None else aim["k1"]
    text = parameters_text({"k1": k1, "k2": aim["k2"], "variant": f"{aim['variant']} form"})
    return f"{name} + AIM ({text}{', chosen' if aim['choice'] == 'chosen' else ''})"


# -------------------------------------------------------------------------------------------------- differences


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Differences in points between pairs of rows, trial by trial: whether one is above the other in every trial."""
    found = index(rows)
    compared = []
    for table, first, second in pairs(rows):
        if first in found and second in found:
            a, b = found[first], found[second]
            entry = {"table": table, "row": name_of(a), "minus": name_of(b)}
            compared.append({**entry, "results": subtract(a["results"], b["results"])})
    return compared


def pairs(rows: Sequence[Row]) -> Iterator[tuple[str, tuple[str, str, str], tuple[str, str, str]]]:
    """Table, and the keys of the two rows that it compares."""
    own = "backbone"
    for form in FULL:
        yield "3", ("saai", own, form), ("baseline", own, form)
    for form in FULL[1:]:
        yield "3", ("saai", own, form), ("baseline", own, NONE)
    for row in rows:  # AIM on every model, each form of it
        if row["aim"] is not None and form_of(row) in FULL:
            table = {"baseline": "3", "saai": "3"}.get(row["row"], "AIM")
            yield table, (row["row"], row["features"], form_of(row)), (row["row"], row["features"], NONE)
    for form in SHOWN:
        yield from (("4", (row, own, form), ("saai_id", own, form)) for row in LOSSES[1:])
    for choice in ("paper", "chosen"):
        for variant in ("paper", "released"):
            neither = ("saai", own, f"paper, {variant}, no removing, no expanding")
            for off in ("", ", no removing", ", no expanding"):
                yield "6", ("saai", own, f"{choice}, {variant}{off}"), neither
    for form in SHOWN:
        affinity, control = ("saai_affinity", own, form), ("saai_affinity_control", own, form)
        for pair in ((affinity, ("saai", own, form)), (control, ("saai", own, form)), (affinity, control)):
            yield "affinity", *pair
    for form in SHOWN:
        yield "CIFT", ("saai_cift", own, form), ("saai", own, form)
        yield "CIFT", ("saai_cift", "transferred", form), ("saai_cift", own, form)


def subtract(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Direction -> metric -> `summary` of the differences, and in how many trials they are above 0."""
    found: dict[str, dict[str, Any]] = {direction: {} for direction in DIRECTIONS}
    for direction in DIRECTIONS:
        for metric, values in a[direction].items():
            trials = zip(values["per_trial"], b[direction][metric]["per_trial"], strict=True)
            differences = [x - y for x, y in trials]
            found[direction][metric] = {**summary(differences), "above": sum(x > 0 for x in differences)}
    return found


# -------------------------------------------------------------------------------------------------- tables


def make_table(content: Mapping[str, Any]) -> str:
    """table.md from the content of results.json."""
    rows = content["rows"]
    found = index(rows)
    shown: set[tuple[str, str, str]] = set()
    trials = ", ".join(map(str, content["trials"]))
    spread = ", mean ± sample standard deviation over the trials" if len(content["trials"]) > 1 else ""
    parts = [
        f"Trials {trials}; percent{spread}. AIM with k1 and k2 of the paper for RegDB, or chosen on "
        f"{content['chosen_on']}.\n"
    ]

    def add(title: str, lines: Sequence[Sequence[str]], head: Sequence[str], words: int) -> None:
        if lines:
            parts.append(f"\n{title}:\n\n{markdown(head, lines, words)}")

    def add_rows(title: str, wanted: Iterable[tuple[str, str, str]]) -> None:
        keys = [key for key in wanted if key in found]
        if not shown.issuperset(keys):  # else all of them stand above
            shown.update(keys)
            add(title, [line(found[key]) for key in keys], ("", "looks at", *HEAD), 2)

    own = "backbone"
    add_rows("SAFL and AIM (Table 3)", ((row, own, form) for row in ("baseline", "saai") for form in FULL))
    add_rows("The losses (Table 4)", ((row, own, form) for row in LOSSES for form in SHOWN))
    steps = (", no removing, no expanding", ", no expanding", ", no removing", "")
    forms = [(v, c, s) for v in ("paper", "released") for c in ("paper", "chosen") for s in steps]
    add_rows("AIM's removing and expanding (Table 6)", (("saai", own, f"{c}, {v}{s}") for v, c, s in forms))
    add_rows("Trained with affinities (ours)", ((row, own, form) for row in AFFINITY for form in SHOWN))
    kinds = ("backbone", "transferred")
    add_rows("CIFT ∘ SAAI (ours)", (("saai_cift", kind, form) for kind in kinds for form in SHOWN))
    others = [row for row in content["labels"] if row not in {"baseline", *LOSSES, *AFFINITY, "saai_cift"}]
    add_rows("Further rows", ((row, kind, form) for row in others for kind in kinds for form in SHOWN))
    if content["quoted"]:
        quoted = content["quoted"]
        lines = [line({**row, "name": quoted_name(row)}) for row in quoted["rows"]]
        add(f"Quoted from {quoted['file']}, `{quoted['command']}`", lines, ("", "looks at", *HEAD), 2)
    add(
        "Differences in points, trial by trial, and in how many trials they are above 0",
        [[entry["row"], entry["minus"], *difference_cells(entry["results"])] for entry in content["differences"]],
        ("", "minus", *HEAD),
        2,
    )
    add(
        "Features on the test set, mean of both directions: 4 neighbours; margins of features of length 1, over "
        f"{MARGIN_IDENTITIES} identities at most, before (Q_X) and after (Q_Y) a transfer",
        diagnostic_lines(content),
        ("", *DIAGNOSTICS.values()),
        1,
    )
    return "".join(parts)


DIAGNOSTICS = {"error_rate": "affinity error %", "Q_A": "Q_A %", "Q_X": "Q_X", "Q_Y": "Q_Y"}


def diagnostic_lines(content: Mapping[str, Any]) -> list[list[str]]:
    """A line for each model."""
    digits = {name: 2 if "%" in title else 3 for name, title in DIAGNOSTICS.items()}
    return [
        [content["labels"][row], *(cell(found[n], digits[n]) if n in found else "-" for n in DIAGNOSTICS)]
        for row, found in content["diagnostics"].items()
    ]


def line(row: Row) -> list[str]:
    """Name, what it looks at, and the four columns."""
    name = name_of(row) if "aim" in row else row["name"]
    return [name, row["uses"], *(cell(row["results"][direction][metric]) for direction, metric in COLUMNS)]


def quoted_name(row: Row) -> str:
    """With the parameters of AIM, where there are any."""
    parameters = row.get("parameters")
    return row["name"] if parameters is None else f"{row['name']} ({parameters_text(parameters)} form)"


def difference_cells(results: Mapping[str, Any]) -> list[str]:
    """Such as "+1.25 ± 0.30, 3/3"."""
    cells = []
    for direction, metric in COLUMNS:
        values = results[direction][metric]
        spread = "" if values["std"] is None else f" ± {values['std']:.2f}"
        cells.append(f"{values['mean']:+.2f}{spread}, {values['above']}/{len(values['per_trial'])}")
    return cells
