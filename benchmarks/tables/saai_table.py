"""The Markdown tables of `saai.py`, from the rows of its results."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.tables.diagnose import MARGIN_IDENTITIES
from benchmarks.tables.records import (
    Row,
    accuracy_section,
    diagnostic_section,
    difference_section,
    of_table,
    trials_text,
)

LOSSES = ("saai_id", "saai_id_pd", "saai_id_cs", "saai")
AFFINITY = ("saai", "saai_affinity", "saai_affinity_control")
SHOWN = ("none", "paper, paper", "chosen, paper")  # what Table 4 and ours are shown with
FULL = (*SHOWN, "paper, released", "chosen, released")


def pairs(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return the keys of each two rows that are compared, of those that may be there."""
    for form in FULL:
        yield f"saai/backbone/{form}", f"baseline/backbone/{form}"
    for form in FULL[1:]:
        yield f"saai/backbone/{form}", "baseline/backbone/none"
    for key in keys:  # AIM on every model, each form of it
        row, kind, form = key.split("/")
        if form in FULL[1:]:
            yield key, f"{row}/{kind}/none"
    for form, row in itertools.product(SHOWN, LOSSES[1:]):
        yield f"{row}/backbone/{form}", f"saai_id/backbone/{form}"
    for choice, variant in itertools.product(("paper", "chosen"), ("paper", "released")):
        for off in ("", ", no removing", ", no expanding"):
            neither = f"saai/backbone/paper, {variant}, no removing, no expanding"
            yield f"saai/backbone/{choice}, {variant}{off}", neither
    for form in SHOWN:
        affinity, control, plain = (f"{row}/backbone/{form}" for row in (*AFFINITY[1:], "saai"))
        yield from ((affinity, plain), (control, plain), (affinity, control))
    for form in SHOWN:
        yield f"saai_cift/backbone/{form}", f"saai/backbone/{form}"
        yield f"saai_cift/transferred/{form}", f"saai_cift/backbone/{form}"


def make_table(about: Mapping[str, str], rows: Sequence[Row], quoted: Sequence[Row] = ()) -> str:
    """Return table.md.

    Args:
        about: "trials" and "chosen_on".
        rows: of all tables.
        quoted: of CIFT, on the same data.
    """
    found = {row.key: row for row in of_table(rows, "accuracy")}
    diagnostics = of_table(rows, "diagnostics")
    shown: set[str] = set()
    chosen = f"AIM with k1 and k2 of the paper for RegDB, or chosen on {about['chosen_on']}"
    parts = [f"{trials_text(about['trials'])} {chosen}.\n"]

    def add(title: str, wanted: Iterable[str]) -> None:
        keys = [key for key in wanted if key in found]
        if not shown.issuperset(keys):  # else all of them stand above
            shown.update(keys)
            parts.append(accuracy_section(title, [found[key] for key in keys]))

    def product(models: Sequence[str], forms: Sequence[str], kinds: Sequence[str] = ("backbone",)) -> list[str]:
        return ["/".join(key) for key in itertools.product(models, kinds, forms)]

    add("SAFL and AIM (Table 3)", product(("baseline", "saai"), FULL))
    add("The losses (Table 4)", product(LOSSES, SHOWN))
    steps = (", no removing, no expanding", ", no expanding", ", no removing", "")
    forms = [f"{c}, {v}{s}" for v in ("paper", "released") for c in ("paper", "chosen") for s in steps]
    add("AIM's removing and expanding (Table 6)", product(("saai",), forms))
    add("Trained with affinities (our choice)", product(AFFINITY, SHOWN))
    add("CIFT ∘ SAAI (our choice)", product(("saai_cift",), SHOWN, ("backbone", "transferred")))
    models = list(dict.fromkeys(key.split("/")[0] for key in found))
    others = [row for row in models if row not in {"baseline", *LOSSES, *AFFINITY, "saai_cift"}]
    add("Further rows", product(others, SHOWN, ("backbone", "transferred")))
    parts.append(accuracy_section("Quoted from the results of CIFT", quoted))
    parts.append(difference_section(found, pairs(found)))
    title = "Features on the test set, mean of both directions: 4 neighbors; margins of features of length 1, over "
    title += f"{MARGIN_IDENTITIES} identities at most, before (Q_X) and after (Q_Y) a transfer"
    parts.append(diagnostic_section(title, diagnostics))
    return "".join(parts)
