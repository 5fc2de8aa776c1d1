"""G2DA (Wan et al., 2021) as plain loops, written only from the equations.

Slow on purpose. Everything takes and gives float64 tensors and is differentiable. Nothing here imports vireid.
"""

import itertools

import torch
from torch import Tensor, nn

from reference.ot import brute_force

# -- skeleton graph (Eq. 2) and message fusion attention (Eq. 8-11) ------------------------------------------------


def keypoint_pooling(feature_map: Tensor, heatmaps: Tensor) -> Tensor:
    """Eq. 2 for heatmaps of the map's size."""
    images, channels, height, width = feature_map.shape
    out = torch.zeros(images, heatmaps.shape[1], channels, dtype=feature_map.dtype)
    for b in range(images):
        for k in range(heatmaps.shape[1]):
            for y in range(height):
                for x in range(width):
                    out[b, k] = out[b, k] + feature_map[b, :, y, x] * heatmaps[b, k, y, x] / (height * width)
    return out


def message_fusion(net: nn.Module, nodes: Tensor, training: bool, mask: Tensor | None = None) -> Tensor:
    """Eq. 8-11, node by node, head by head and channel by channel; the score from features put side by side.

    The weights, the running statistics, the adjacency and the threshold are those of the layer ``net``.
    """
    if mask is not None:
        nodes = nodes.where(mask[:, :, None], torch.zeros(()).to(nodes))
    images, count, _ = nodes.shape
    heads, size = net.heads, len(net.project.weight) // net.heads
    weight, left, right = net.project.weight, *net.score
    gamma, beta, mean, var = (
        t.view(count, heads, size)
        for t in (net.norm.weight, net.norm.bias, net.norm.running_mean.clone(), net.norm.running_var.clone())
    )
    v = [[[None] * heads for _ in range(count)] for _ in range(images)]
    for b in range(images):
        for head in range(heads):
            h = [weight[head * size : (head + 1) * size] @ nodes[b, i] for i in range(count)]
            for i in range(count):
                neighbors = [j for j in range(count) if net.adjacency[i, j] and (mask is None or mask[b, j])]
                scores = []
                for j in neighbors:
                    score = torch.cat([left[head], right[head]]) @ torch.cat([h[i], h[j]])
                    scores.append(score if score > 0 else 0.2 * score)
                total = sum(s.exp() for s in scores)
                message = sum((s.exp() / total * h[j] for s, j in zip(scores, neighbors, strict=True)), 0 * h[i])
                v[b][i][head] = torch.where(message > 0, message, message.exp() - 1)  # ELU
    y = torch.zeros(images, count, heads, size).double()
    for i in range(count):
        for head in range(heads):
            for c in range(size):
                column = [v[b][i][head][c] for b in range(images)]
                m, s = mean[i, head, c], var[i, head, c]
                if training and images > 1:
                    m = sum(column) / images
                    s = sum((x - m) ** 2 for x in column) / images
                for b in range(images):
                    y[b, i, head, c] = gamma[i, head, c] * (column[b] - m) / (s + 1e-5) ** 0.5 + beta[i, head, c]
    out = torch.zeros(images, count, heads * size).double()
    for b in range(images):
        for i in range(count):
            for head in range(heads):
                for c in range(size):
                    others = [y[b, i, other, c] for other in range(heads) if other != head]
                    scale = abs(gamma[i, head, c]) if net.magnitude else gamma[i, head, c]
                    replaced = others and not scale > net.threshold
                    out[b, i, head * size + c] = sum(others) / len(others) if replaced else y[b, i, head, c]
    if net.out is None:
        return out
    return torch.stack([torch.stack([net.out.weight @ node for node in image]) for image in out]) if images else nodes


# -- losses (Eq. 1, 4-7) -------------------------------------------------------------------------------------------


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Its gradient at 0 is 0."""
    square = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    return square.sqrt() if square > 0 else square


def _unit(row: Tensor) -> Tensor:
    return row / (row @ row).sqrt() if row.any() else row


def triplet(x: Tensor, labels: Tensor, modality: Tensor, *, margin: float = 0.3, normalize: bool = False) -> Tensor:
    """Image by image: the farthest of its identity and the nearest of another, both in the other modality."""
    rows = [_unit(row) if normalize else row for row in x]
    identity, kind = labels.tolist(), modality.tolist()
    terms = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if kind[j] != kind[i]]
        positives = [distance(rows[i], rows[j]) for j in others if identity[j] == identity[i]]
        negatives = [distance(rows[i], rows[j]) for j in others if identity[j] != identity[i]]
        if positives and negatives:
            term = margin + max(positives) - min(negatives)
            terms.append(term if term > 0 else term * 0)
    return sum(terms) / len(terms) if terms else 0 * x.sum()


def part_contrastive(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    mask: Tensor | None = None,
    epsilon: float = 2.0,
    normalize: bool = False,
    average: str = "pairs",
) -> Tensor:
    """Eq. 5 over every visible with every infrared image, part by part."""
    identity, kind = labels.tolist(), modality.tolist()
    total, count = torch.zeros((), dtype=nodes.dtype), 0
    for i, j in itertools.product(range(len(nodes)), repeat=2):
        if kind[i] != 0 or kind[j] != 1:
            continue
        for k in range(nodes.shape[1]):
            if mask is not None and not (mask[i, k] and mask[j, k]):
                continue
            a, b = (_unit(v) if normalize else v for v in (nodes[i, k], nodes[j, k]))
            d = distance(a, b)
            count += 1
            if identity[i] == identity[j]:
                total = total + d * d
            elif d < epsilon:
                total = total + (epsilon - d) ** 2
    if average == "images":
        return total / (2 * max(len(nodes), 1) * nodes.shape[1])
    return total / (2 * count) if count else total


def pairs(labels: Tensor, modality: Tensor, mask: Tensor | None = None, which: str = "all") -> list[tuple[int, int]]:
    """The (visible, infrared) pairs of each identity that are aligned; two images without a common node are not."""
    out = []
    for label in sorted(set(labels.tolist())):
        own = [i for i in range(len(labels)) if labels[i] == label]
        visible, infrared = ([i for i in own if modality[i] == kind] for kind in (0, 1))
        out += itertools.product(visible, infrared) if which == "all" else zip(visible, infrared, strict=False)
    return [(i, j) for i, j in out if mask is None or any(a and b for a, b in zip(mask[i], mask[j], strict=True))]


def graph_transport(
    nodes: Tensor,
    labels: Tensor,
    modality: Tensor,
    *,
    phi: float = 0.5,
    loss: str = "abs",
    which: str = "all",
    average: str = "pairs",
) -> Tensor:
    """Mean D_ot of the pairs, each the lowest cost of all permutations; or their sum over the number of images."""
    chosen = pairs(labels, modality, None, which)
    x, y = (nodes[[pair[side] for pair in chosen]] for side in (0, 1))
    if not chosen:
        return 0 * nodes.sum()
    costs = brute_force(x, y, phi, loss)
    return costs.mean() if average == "pairs" else costs.sum() / len(nodes)
