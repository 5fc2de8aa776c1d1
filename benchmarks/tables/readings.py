"""Which readings of the papers matter: rows with one reading changed, each against the row of the defaults.

    python -m benchmarks.tables.readings --root RegDB --output runs/readings
    python -m benchmarks.tables.readings --root SYSU-MM01 --recipe paper --rows baseline baseline_neck cift cift_neck

Options after ``--`` go to every training run. Into --output go <row>/<trial>/ of each run, results.csv and table.md.
`docs/papers.md` says what each reading is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.tables.options import Plan, about_of, add_row_options, options_parser, parse, parse_variants
from benchmarks.tables.records import (
    Row,
    accuracy_section,
    cell,
    difference_section,
    of_table,
    section,
    trials_text,
)
from benchmarks.tables.runs import Run, accuracy_rows, runs_of, train_all, write_results
from vireid._ops import euclidean, normalize_rows
from vireid.data import EvalTransform
from vireid.training import open_dataset
from vireid.training.loop import make_sampler

MODULE = "benchmarks.tables.readings"
DEFAULTS = {
    "baseline": Plan("Baseline", "cift", ("--ablation", "baseline")),
    "cift_gft": Plan("+ GFT", "cift", ("--ablation", "gft")),
    "cift": Plan("CIFT", "cift"),
    "saai": Plan("SAAI", "saai"),
    "g2da": Plan("G2DA", "g2da"),
}
CHANGED = {
    "baseline": {"neck": ("HCC behind the neck", "--metric-features neck")},
    "cift": {
        "neck": ("HCC behind the neck", "--metric-features neck"),
        "cross": ("centers of the other modality", "--centers cross"),
        "sum": ("sum over negatives", "--negatives sum"),
        "from_center": ("KL from the center", "--kl-direction from_center"),
        "logits": ("center of logits", "--kl-center logits"),
        "predicted": ("X_μ, X_σ predicted from X", "--intervention predicted"),
    },
    "cift_gft": {"features": ("X transferred, not v(X)", "--transferred features")},
    "saai": {
        "batch": ("L_id: means over the batch", "--identity-means batch"),
        "logits": ("L_pd of P Tᵀ", "--maps logits"),
    },
    "g2da": {
        "signed": ("γ with its sign against θ", "--no-magnitude"),
        "head_dim": ("heads of size d", "--head-dim 945"),
        "sparsity": ("sparsity of γ, 0.001", "--fusion-sparsity 0.001"),
        "images": ("sums by N_t, the batch", "--average images"),
    },
}
"""Readings by the row whose default they change: name, and the option that changes it."""

ROWS = DEFAULTS | {
    f"{row}_{name}": Plan(
        f"{DEFAULTS[row].label}, {label}", DEFAULTS[row].method, (*DEFAULTS[row].options, *options.split())
    )
    for row, readings in CHANGED.items()
    for name, (label, options) in readings.items()
}
PAIRS = [(f"{row}_{name}", row) for row, readings in CHANGED.items() for name in readings]


@torch.no_grad()
def look_at_hinge(run: Run, batches: int = 20, margin: float = 0.6) -> dict[str, float]:
    """Return how often HCC's ρ acts on batches of the training images.

    ``pooled`` and ``neck``: percent of the pairs of an image and another identity's center that are nearer than ρ,
    before and behind the neck, rows of length 1; ``…_distance``: their mean distance.
    """
    images = open_dataset(
        run.data.dataset, "train", root=run.data.root, size=run.recipe.size, trial=run.kept["trial"], cache=False
    )
    sampler = make_sampler(images, run.recipe.replace(batches=batches), rank=0, replicas=1)
    model: Any = run.model
    distances: dict[str, list[torch.Tensor]] = {"pooled": [], "neck": []}
    for batch in DataLoader(images, batch_sampler=sampler):
        output = model(EvalTransform()(batch.image), batch.modality)
        for name, rows in {"pooled": output.pooled, "neck": output.features}.items():
            unit = normalize_rows(rows)
            people = batch.label.unique()
            centers = torch.stack([unit[batch.label == person].mean(0) for person in people])
            distances[name].append(euclidean(unit, centers)[batch.label[:, None] != people])
    found = {name: torch.cat(values) for name, values in distances.items()}
    shares = {name: 100 * float((values < margin).double().mean()) for name, values in found.items()}
    return shares | {f"{name}_distance": float(values.mean()) for name, values in found.items()}


def evaluate_all(plans: dict[str, Plan], runs: Sequence[Run]) -> list[Row]:
    """Return the rows of the accuracies and of the hinges, over all trials."""

    def name(run: Run, kind: str) -> str:
        return plans[run.row].label + (", backbone features" if kind == "backbone" and run.method == "cift" else "")

    hinges: dict[str, Row] = {}
    for run in runs:
        if "metric_features" in run.settings:
            hinge = hinges.setdefault(run.row, Row("hinge", run.row, plans[run.row].label))
            hinge.add(run.trial, {"": look_at_hinge(run)})
    return [*accuracy_rows(runs, name), *hinges.values()]


def make_table(about: dict[str, str], rows: Sequence[Row]) -> str:
    """Return table.md."""
    found = {row.key: row for row in of_table(rows, "accuracy")}
    kinds = dict.fromkeys(key.split("/")[1] for key in found)
    pairs = [(f"{row}/{kind}", f"{other}/{kind}") for row, other in PAIRS for kind in kinds]
    names = ("pooled", "neck", "pooled_distance", "neck_distance")
    hinges = [
        [row.name, *(cell(row.numbers("", name), 2 if name in ("pooled", "neck") else 3) for name in names)]
        for row in of_table(rows, "hinge")
    ]
    head = ("", "before the neck %", "behind it %", "mean distance before", "behind")
    title = "Pairs of an image and another identity's center within ρ = 0.6, of training images"
    run = {"run": "seed", "which": "Seeds"} if about.get("runs") == "seeds" else {}
    return "".join(
        [
            f"{trials_text(about['trials'], **run)}\n",
            accuracy_section("", list(found.values())),
            difference_section(found, pairs, run.get("run", "trial")),
            section(title, head, hinges, 1),
        ]
    )


def main(given: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate, write results.csv and table.md."""
    parser = options_parser(__doc__, "runs/readings")
    add_row_options(parser, ROWS)
    arguments, extra = parse(parser, given)
    plans = {row: ROWS[row] for row in arguments.rows} | parse_variants("cift", arguments.variant, ROWS)
    runs = runs_of(arguments, plans, extra)
    train_all(runs, arguments.jobs)
    rows, about = evaluate_all(plans, runs), about_of(arguments)
    write_results(arguments.output, MODULE, given, rows, make_table(about, rows), **about)


if __name__ == "__main__":
    main()
