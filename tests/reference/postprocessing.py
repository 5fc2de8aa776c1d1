"""Post-processing in plain loops: AIM (SAAI), k-reciprocal encoding, GNN re-ranking, query expansion."""

import math

import torch


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def rank(scores, first=None):
    """Indices by descending score, ties by index; ``first`` before all others."""
    return sorted(range(len(scores)), key=lambda j: (j != first, -scores[j], j))


def aim(q, g, k1, k2, variant):
    def keep(row, order):
        return [row[j] if j in order[:k1] else 0.0 for j in range(len(row))]

    a_gg = [[cosine(x, y) for y in g] for x in g]
    orders = [rank(row, i) for i, row in enumerate(a_gg)]
    kept = [keep(row, order) for row, order in zip(a_gg, orders, strict=True)]
    expanded = []
    for order in orders:
        near = order[:k2]
        expanded.append([sum(kept[l][j] for l in near) / len(near) for j in range(len(g))])  # noqa: E741
    result = []
    for x in q:
        row = [cosine(x, y) for y in g]
        noise_free = keep(row, rank(row))
        out = []
        for j in range(len(g)):
            if variant == "paper":
                star = sum(noise_free[l] * expanded[l][j] for l in range(len(g)))  # noqa: E741
            else:
                star = cosine(*torch.tensor([noise_free, expanded[j]], dtype=torch.double))
            out.append(1 - row[j] - star)
        result.append(out)
    return torch.tensor(result, dtype=torch.double)


def k_reciprocal(q, g, k1, k2, lambda_value):
    x = [row / row.norm() for row in [*q, *g]]
    n = len(x)
    distance = [[float((a - b).square().sum()) for b in x] for a in x]
    distance = [[value / max(row) for value in row] for row in distance]
    ranking = [rank([-value for value in row], i) for i, row in enumerate(distance)]

    def reciprocal(i, k):
        return {j for j in ranking[i][: k + 1] if i in ranking[j][: k + 1]}

    v = []
    for i in range(n):
        members = set(reciprocal(i, k1))
        for c in reciprocal(i, k1):
            extra = reciprocal(c, round(k1 / 2))
            if len(extra & reciprocal(i, k1)) > 2 / 3 * len(extra):
                members |= extra
        weights = [math.exp(-distance[i][j]) if j in members else 0.0 for j in range(n)]
        v.append([w / sum(weights) for w in weights])
    near = [ranking[i][:k2] for i in range(n)]
    v = [[sum(v[j][c] for j in near[i]) / len(near[i]) for c in range(n)] for i in range(n)]
    result = []
    for i in range(len(q)):
        out = []
        for j in range(len(q), n):
            smaller = sum(min(a, b) for a, b in zip(v[i], v[j], strict=True))
            out.append((1 - lambda_value) * (1 - smaller / (2 - smaller)) + lambda_value * distance[i][j])
        result.append(out)
    return torch.tensor(result, dtype=torch.double)


def gnn(q, g, k1, k2, layers, alpha):
    x = [*q, *g]
    n = len(x)
    s = [[cosine(a, b) for b in x] for a in x]
    ranking = [rank(row, i) for i, row in enumerate(s)]
    a = torch.tensor([[float(j in ranking[i][:k1]) for j in range(n)] for i in range(n)], dtype=torch.double)
    for _ in range(layers):
        a = a + a.T
        rows = [sum(abs(s[i][j]) ** alpha * a[j] for j in ranking[i][:k2]) for i in range(n)]
        a = torch.stack([row / row.norm() for row in rows])
    result = [[1 - cosine(a[i], a[j]) for j in range(len(q), n)] for i in range(len(q))]
    return torch.tensor(result, dtype=torch.double)


def query_expansion(q, g, n, alpha):
    result = []
    for x in q:
        scores = [cosine(x, y) for y in g]
        mean = x / x.norm()
        for j in rank(scores)[:n]:
            mean = mean + max(scores[j], 0.0) ** alpha * g[j] / g[j].norm()
        result.append([1 - cosine(mean, y) for y in g])
    return torch.tensor(result, dtype=torch.double)
