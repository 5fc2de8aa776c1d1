"""G2DA (Wan et al., 2021) as plain loops, written from the equations alone.

Slow on purpose. Everything takes and gives float64 tensors and is differentiable. Nothing here imports vireid.
"""

import torch
from torch import Tensor, nn

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
    images, count, dim = nodes.shape
    heads, size = net.heads, dim // net.heads
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
    out = torch.zeros(images, count, dim).double()
    for b in range(images):
        for i in range(count):
            for head in range(heads):
                for c in range(size):
                    others = [y[b, i, other, c] for other in range(heads) if other != head]
                    replaced = others and not gamma[i, head, c] > net.threshold
                    out[b, i, head * size + c] = sum(others) / len(others) if replaced else y[b, i, head, c]
    return out
