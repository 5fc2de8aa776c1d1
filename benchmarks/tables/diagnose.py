"""The CIFT paper's diagnostics of a trained model on the test set."""

import statistics

import torch

from benchmarks.tables.records import Row
from benchmarks.tables.runs import Run
from vireid import INFRARED, VISIBLE
from vireid._ops import evaluated, normalize_rows
from vireid.metrics import affinity_error_rate, affinity_quality, feature_margin
from vireid.nn import GFT, H2FT

MARGIN_IDENTITIES = 64  # Q_X and Q_Y look at all images of so many identities: they compare every pair exactly


@torch.no_grad()
def diagnose(run: Run) -> dict[str, float]:
    """Return the diagnostics, each the mean over both directions.

    Of the affinity cos(v(query), v(gallery)): ``error_rate`` (Table 4, 4 neighbors, percent) and ``Q_A``, the share
    of queries (percent) whose weakest true match is above their strongest wrong one. ``Q_X`` and ``Q_Y``: margins of
    v(x) and of the transferred features, rows L2-normalized (our choice), over all images of up to 64 evenly chosen
    identities. GFT's gallery features depend on the query; here they are those without it. A model without a
    ``transfer`` has no v and no Q_Y: its rows are the features.
    """
    features, ids, kinds = run.features
    transfer = getattr(run.model, "transfer", None)
    rows = features
    graph = transfer if isinstance(transfer, H2FT) else None
    if isinstance(transfer, GFT):
        graph = H2FT(transfer.dim, k=transfer.k, tau_hom=transfer.tau, tau_het=transfer.tau, value=transfer.value)
    if isinstance(transfer, GFT | H2FT):
        rows = evaluated(transfer.value)(features)
    people = ids.unique()
    chosen = people[torch.linspace(0, len(people) - 1, min(MARGIN_IDENTITIES, len(people))).long()]
    found: dict[str, list[float]] = {}
    for kind in (VISIBLE, INFRARED):
        q, g = (kinds == kind).nonzero().flatten(), (kinds != kind).nonzero().flatten()
        affinity = normalize_rows(rows[q]) @ normalize_rows(rows[g]).T
        results = {
            "error_rate": 100 * affinity_error_rate(affinity, ids[q], ids[g]),
            "Q_A": 100 * affinity_quality(affinity, ids[q], ids[g]),
        }
        names = torch.cat([ids[q], ids[g]])
        few = torch.isin(names, chosen)
        both = torch.cat([rows[q], rows[g]])[few]
        results["Q_X"] = feature_margin(normalize_rows(both), names[few])
        if graph is not None:
            moved = torch.cat(graph.transfer(features[q], features[g]))[few]
            results["Q_Y"] = feature_margin(normalize_rows(moved), names[few])
        for name, value in results.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}


def diagnostic_rows(labels: dict[str, str], runs: list[Run]) -> list[Row]:
    """Return a row of diagnostics per model."""
    rows = {row: Row("diagnostics", row, label) for row, label in labels.items()}
    for run in runs:
        rows[run.row].add(run.trial, {"mean": diagnose(run)})
    return list(rows.values())
