"""The CIFT paper's diagnostics of a trained model on the test set."""

import statistics

import torch

from benchmarks.tables.records import Row
from benchmarks.tables.runs import Run
from vireid._ops import evaluated, normalize_rows
from vireid.metrics import affinity_error_rate, affinity_quality, feature_margin
from vireid.nn import GFT, H2FT

MARGIN_IDENTITIES = 64  # Q_X and Q_Y look at all images of so many identities: they compare every pair exactly


@torch.no_grad()
def diagnose(run: Run) -> dict[str, dict[str, float]]:
    """Return the diagnostics of each column of the data set's protocols, means over their galleries.

    Of the affinity cos(v(query), v(gallery)): ``error_rate`` (4 neighbors, percent: our reading of Table 4, which is
    not the measure that the paper prints), and ``Q_A``, the share of queries (percent) whose weakest true match is
    above their strongest wrong one. ``Q_X`` and ``Q_Y``: margins of v(x) and of the transferred features, rows
    L2-normalized (our choice), over the images of up to 64 evenly chosen identities in the queries and the first
    gallery. GFT's gallery features depend on the query; here they are those without it. A model without a
    ``transfer`` has no v and no Q_Y: its rows are the features.
    """
    features, ids = run.features.features, run.features.ids
    transfer = getattr(run.model, "transfer", None)
    rows = features
    graph = transfer if isinstance(transfer, H2FT) else None
    if isinstance(transfer, GFT):
        graph = H2FT(transfer.dim, k=transfer.k, tau_hom=transfer.tau, tau_het=transfer.tau, value=transfer.value)
    if isinstance(transfer, GFT | H2FT):
        rows = evaluated(transfer.value)(features)
    people = ids.unique()
    chosen = people[torch.linspace(0, len(people) - 1, min(MARGIN_IDENTITIES, len(people))).long()]
    found: dict[str, dict[str, float]] = {}
    for column, protocol in run.data.columns.items():
        wrong, right = [], []
        for trial in reversed(range(protocol.trials)):
            q, g = run.features.split(protocol, trial)
            affinity = normalize_rows(rows[q]) @ normalize_rows(rows[g]).T
            wrong.append(affinity_error_rate(affinity, ids[q], ids[g]))
            right.append(affinity_quality(affinity, ids[q], ids[g]))
        results = {"error_rate": 100 * statistics.fmean(wrong), "Q_A": 100 * statistics.fmean(right)}
        names = torch.cat([ids[q], ids[g]])
        few = torch.isin(names, chosen)
        both = torch.cat([rows[q], rows[g]])[few]
        results["Q_X"] = feature_margin(normalize_rows(both), names[few])
        if graph is not None:
            moved = torch.cat(graph.transfer(features[q], features[g]))[few]
            results["Q_Y"] = feature_margin(normalize_rows(moved), names[few])
        found[column] = results
    return found


def diagnostic_rows(labels: dict[str, str], runs: list[Run]) -> list[Row]:
    """Return a row of diagnostics per model, means over the columns."""
    rows = {row: Row("diagnostics", row, label) for row, label in labels.items()}
    for run in runs:
        columns = list(diagnose(run).values())
        mean = {name: statistics.fmean(column[name] for column in columns) for name in columns[0]}
        rows[run.row].add(run.trial, {"mean": mean})
    return list(rows.values())
