"""AGW (Ye et al., 2021), HC (Zhu et al., 2020), HCT (Liu et al., 2020) and cm-SSFT's shared transfer as plain loops.

Slow on purpose. Everything takes and gives float64 tensors. Nothing here imports vireid.
"""

import math

import torch
from torch import Tensor


def unit(row: Tensor) -> Tensor:
    length = math.sqrt(sum(float(v) ** 2 for v in row))
    return row / length if length else row


def distance(a: Tensor, b: Tensor) -> float:
    return math.sqrt(sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True)))


def centers(x: Tensor, labels: Tensor, modality: Tensor, normalize: bool) -> dict[tuple[int, int], Tensor]:
    """The mean of each identity's images in each modality where it has some."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    for row, label, kind in zip(x, labels.tolist(), modality.tolist(), strict=True):
        found.setdefault((label, kind), []).append(unit(row) if normalize else row)
    return {key: sum(rows) / len(rows) for key, rows in found.items()}


def hetero_center(x: Tensor, labels: Tensor, modality: Tensor, normalize: bool, reduction: str) -> Tensor:
    center = centers(x, labels, modality, normalize)
    values = [distance(c, center[i, 1]) ** 2 for (i, kind), c in center.items() if kind == 0 and (i, 1) in center]
    return torch.tensor(sum(values) / (max(len(values), 1) if reduction == "mean" else 1), dtype=torch.double)


def hetero_center_triplet(x: Tensor, labels: Tensor, modality: Tensor, margin: float, normalize: bool) -> Tensor:
    center = centers(x, labels, modality, normalize)
    values = []
    for (i, kind), anchor in center.items():
        negatives = [distance(anchor, c) for (j, _), c in center.items() if j != i]
        if (i, 1 - kind) in center and negatives:
            values.append(max(0.0, margin + distance(anchor, center[i, 1 - kind]) - min(negatives)))
    return torch.tensor(sum(values) / max(len(values), 1), dtype=torch.double)


def weighted_triplet(x: Tensor, labels: Tensor, normalize: bool) -> Tensor:
    rows = [unit(row) if normalize else row for row in x]
    values = []
    for i, anchor in enumerate(rows):
        pairs = [(j, distance(anchor, row)) for j, row in enumerate(rows) if j != i]
        positives = [d for j, d in pairs if labels[j] == labels[i]]
        negatives = [d for j, d in pairs if labels[j] != labels[i]]
        if positives and negatives:
            margin = mean_by(positives, 1) - mean_by(negatives, -1)
            values.append(max(margin, 0.0) + math.log1p(math.exp(-abs(margin))))
    return torch.tensor(sum(values) / max(len(values), 1), dtype=torch.double)


def mean_by(distances: list[float], sign: int) -> float:
    """The mean with the weights exp(sign · d)."""
    largest = max(sign * d for d in distances)
    weights = [math.exp(sign * d - largest) for d in distances]
    return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)


def shared_transfer(x: Tensor, modality: Tensor, weight: Tensor, k: int, relu: bool) -> Tensor:
    """cm-SSFT's shared transfer of a set of images: F = σ(D⁻¹ A X W), k neighbors in each modality."""
    out = []
    for i in range(len(x)):
        row: dict[int, float] = {}
        for kind in (0, 1):
            scores = {j: 1 - distance(unit(x[i]), unit(x[j])) / 2 for j in range(len(x)) if modality[j] == kind}
            scores |= {i: 1.0} if modality[i] == kind else {}
            kept = sorted(scores, key=lambda j: (j != i, -scores[j], j))[:k]
            row |= {j: scores[j] for j in kept}
        feature = sum(a * (weight @ x[j]) for j, a in row.items()) / sum(row.values())
        out.append(feature.clamp_min(0) if relu else feature)
    return torch.stack(out)


def shared_distance(query: Tensor, gallery: Tensor, weight: Tensor, k: int, relu: bool) -> Tensor:
    """Each query by itself with the gallery: 1 - cos of its feature and of the gallery's."""
    rows = []
    for q in query:
        kinds = torch.tensor([0] + [1] * len(gallery))
        f = shared_transfer(torch.cat([q[None], gallery]), kinds, weight, k, relu)
        rows.append(torch.stack([1 - unit(f[0]) @ unit(g) for g in f[1:]]))
    return torch.stack(rows)
