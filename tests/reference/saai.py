"""SAAI (Fang et al., ICCV 2023) as plain loops, written only from the equations.

Slow on purpose. Everything takes and gives float64 tensors and is differentiable. Nothing here imports vireid.
"""

import torch
from torch import Tensor

from reference.cift import cosine

# -- prototype pooling (Eq. 1-2) -----------------------------------------------------------------------------------


def prototype_pooling(
    feature_map: Tensor, prototypes: Tensor, position: Tensor, position_in_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel by pixel: logits (B, p, n), attention (B, p, n), parts (B, p, c); ``position`` (c, h, w) fits the map."""
    images, _, h, w = feature_map.shape
    logits, attention, parts = [], [], []
    for b in range(images):
        for prototype in prototypes:
            total = 0
            for y in range(h):
                for x in range(w):
                    pixel, place = feature_map[b, :, y, x], position[:, y, x]
                    logits.append((prototype * (pixel + place)).sum())
                    attention.append(1 / (1 + torch.exp(-logits[-1])))
                    total = total + attention[-1] * (pixel + place if position_in_values else pixel)
            parts.append(total / (h * w))
    shape = (images, len(prototypes), h * w)
    return torch.stack(logits).view(shape), torch.stack(attention).view(shape), torch.stack(parts).view(*shape[:2], -1)


# -- losses (Eq. 4-5; the identity loss as the released model has it) ----------------------------------------------


def length(x: Tensor) -> Tensor:
    """Its gradient at 0 is 0."""
    squares = sum(v * v for v in x)
    return squares**0.5 if squares > 0 else 0 * squares


def part_diversity(attention: Tensor, maps: str = "sigmoid") -> Tensor:
    """Eq. 4, pair by pair, pixel by pixel."""
    total = 0 * attention.sum()
    for image in attention:
        parts, pixels = image.shape
        for i in range(parts):
            for j in range(i + 1, parts):
                norm = length(image[i] - image[j]) / (pixels**0.5 if maps == "sigmoid" else 1)
                total = total - 2 / (parts * (parts - 1)) * norm
    return total / max(len(attention), 1)


def center_separation(
    x: Tensor, labels: Tensor, *, rho1: float = 0.01, rho2: float = 0.7, normalize: bool = False
) -> Tensor:
    """Eq. 5, image by image and pair by pair."""
    rows = [row / length(row) if normalize and length(row) > 0 else row for row in x]
    identity = labels.tolist()
    centers = {}
    for of in set(identity):
        own = [row for row, y in zip(rows, identity, strict=True) if y == of]
        centers[of] = own[0] if len(own) == 1 else sum(own) / len(own)
    zero = 0 * x.sum()
    pull = sum((torch.maximum(length(r - centers[y]) - rho1, zero) for r, y in zip(rows, identity, strict=True)), zero)
    names, push = sorted(centers), zero
    for a, j in enumerate(names):
        for k in names[a + 1 :]:
            push = push + torch.maximum(rho2 - length(centers[j] - centers[k]), zero)
    pairs = len(names) * (len(names) - 1) / 2
    return pull / max(len(rows), 1) + (push / pairs if pairs else 0)


def mutual_identity(
    x: Tensor,
    labels: Tensor,
    modality: Tensor,
    shared: Tensor,
    specific: Tensor,
    averaged: Tensor,
    means: str = "modality",
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms, row by row, class by class; the second is a mean for each modality or one over the batch."""

    def probabilities(weight: Tensor, row: Tensor) -> list[Tensor]:
        logits = torch.stack([sum(w * v for w, v in zip(of, row, strict=True)) for of in weight])
        exponentials = torch.exp(logits - logits.max().detach())
        return list(exponentials / exponentials.sum())

    terms, of_modality = [], ([], [])
    for row, y, m in zip(x, labels.tolist(), modality.tolist(), strict=True):
        own = probabilities(specific[m], row)
        target = [p.detach() for p in probabilities(averaged[1 - m], row)]
        divergence = sum(t * (torch.log(t) - torch.log(q)) for t, q in zip(target, own, strict=True))
        terms.append((-torch.log(probabilities(shared, row)[y]), -torch.log(own[y]), divergence))
        of_modality[m].append(-torch.log(own[y]))
    if not terms:
        return (x.sum(),) * 3
    one, two, three = (sum(term) / len(x) for term in zip(*terms, strict=True))
    if means == "modality":
        two = sum(sum(own) / len(own) for own in of_modality if own)
    return one, two, three


# -- AIM within a batch (Eq. 6-10) and a contrastive loss on its scores --------------------------------------------


def _nearest(affinity: list[float], members: list[int], k: int, itself: int | None = None) -> list[int]:
    """The k of ``members`` with the largest values, ties by index; ``itself`` before all others."""
    return sorted(members, key=lambda j: (j != itself, -affinity[j], j))[:k]


def _unit(row: dict) -> dict:
    square = sum(v * v for v in row.values())
    return {j: v / square**0.5 if square > 0 else v for j, v in row.items()}


def affinity_scores(x: Tensor, modality: Tensor, *, k1: int, k2: int, variant: str, amend: bool = True) -> dict:
    """{(i, j): score} of each image i as the only query, with the images of the other modality."""
    kind, scores = modality.tolist(), {}
    cosines = [[cosine(a, b) for b in x] for a in x]
    plain = [[c.detach().item() for c in row] for row in cosines]
    cosines = cosines if x.requires_grad else plain
    for i in range(len(x)):
        gallery = [j for j in range(len(x)) if kind[j] != kind[i]]
        kept_q = {j: cosines[i][j] for j in _nearest(plain[i], gallery, k1)}
        kept = {g: {j: cosines[g][j] for j in _nearest(plain[g], gallery, k1, g)} for g in gallery}
        expanded = {}
        for g in gallery:
            near = _nearest(plain[g], gallery, k2, g)
            columns = {j for n in near for j in kept[n]}
            expanded[g] = {j: sum(kept[n][j] for n in near if j in kept[n]) / len(near) for j in columns}
        if variant == "released":
            kept_q, expanded = _unit(kept_q), {g: _unit(row) for g, row in expanded.items()}
        for j in gallery:
            if variant == "paper":
                amended = sum(value * expanded[g].get(j, 0) for g, value in kept_q.items())
            else:
                amended = sum(value * expanded[j].get(g, 0) for g, value in kept_q.items())
            scores[i, j] = cosines[i][j] + (amended if amend else 0)
    return scores


def affinity_inference(x: Tensor, labels: Tensor, modality: Tensor, *, temperature: float, **options) -> Tensor:
    """Each positive against the negatives of its query."""
    scores, y, losses = affinity_scores(x, modality, **options), labels.tolist(), []
    for i in range(len(x)):
        mine = {j: torch.as_tensor(s / temperature, dtype=torch.double).exp() for (q, j), s in scores.items() if q == i}
        positives, negatives = ([e for j, e in mine.items() if (y[j] == y[i]) is same] for same in (True, False))
        if positives and negatives:
            losses.append(sum(-torch.log(e / (e + sum(negatives))) for e in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0 * x.sum()
