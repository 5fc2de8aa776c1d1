"""Plain loops of the re-rankers, from the papers' texts, in float64 and with dense lists."""

import math

import torch

from reference.neighbors import cosine, cosines, dot, nearest


def _kept(affinity, k1, *, of_itself=False):
    result = []
    for i, row in enumerate(affinity):
        near = nearest(row, k1, i if of_itself else None)
        result.append([x if j in near else 0.0 for j, x in enumerate(row)])
    return result


def _expanded(affinity, kept, k2):
    result = []
    for i, row in enumerate(affinity):
        near = nearest(row, k2, i)
        result.append([math.fsum(kept[n][j] for n in near) / len(near) for j in range(len(row))])
    return result


def _unit(row, noise=0.0):
    """The row scaled to length 1, or a zero row if all its entries are rounding."""
    length = math.sqrt(dot(row, row)) if max(map(abs, row)) > noise else 0.0
    return [x / length if length else 0.0 for x in row]


def _times(a, b):
    return [[math.fsum(x * b[n][j] for n, x in enumerate(row)) for j in range(len(b[0]))] for row in a]


def _transpose(a):
    return [list(column) for column in zip(*a, strict=True)]


def aim(query, gallery, *, k1, k2, variant, use_query_relations=False):
    """SAAI, Algorithm 1."""
    k1 = len(query) + len(gallery) if k1 is None else k1
    a_qg, a_gg = cosines(query, gallery), cosines(gallery, gallery)
    left, right = _kept(a_qg, k1), _expanded(a_gg, _kept(a_gg, k1, of_itself=True), k2)
    if use_query_relations:
        a_qq, a_gq = cosines(query, query), _transpose(a_qg)
        among = _expanded(a_qq, _kept(a_qq, k1, of_itself=True), k2)
        if variant == "paper":
            right = [*left, *right]
        else:
            right = [[*a, *b] for a, b in zip(_kept(a_gq, k1), right, strict=True)]
        left = [[*a, *b] for a, b in zip(among, left, strict=True)]
    if variant == "released":
        left, right = ([_unit(row, 1e-7) for row in rows] for rows in (left, right))
        right = _transpose(right)
    amended = _times(left, right)
    result = [[1 - a - b for a, b in zip(*rows, strict=True)] for rows in zip(a_qg, amended, strict=True)]
    return torch.tensor(result, dtype=torch.float64)


def k_reciprocal(query, gallery, *, k1, k2, lambda_value):
    """Zhong et al., CVPR 2017, as published: a k-neighborhood is the first k + 1 of the ranking."""
    x = torch.cat([query, gallery])
    n, nq = len(x), len(query)
    cosine = cosines(x, x)
    rank = [nearest(row, n, i) for i, row in enumerate(cosine)]
    distance = []
    for i in range(n):
        row = [0.0 if i == j else 2 - 2 * cosine[i][j] for j in range(n)]
        largest = max(row)
        distance.append([d / largest if largest > 1e-12 else 0.0 for d in row])

    def reciprocal(i, k):
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    encoding = []
    for i in range(n):
        start = reciprocal(i, k1)
        members = set(start)
        for c in start:
            candidates = reciprocal(c, round(k1 / 2))
            if len(candidates & start) > 2 / 3 * len(candidates):
                members |= candidates
        weights = {j: math.exp(-distance[i][j]) for j in members}
        encoding.append({j: w / sum(weights.values()) for j, w in weights.items()})
    expanded = []
    for i in range(n):
        near = rank[i][:k2]
        expanded.append({j: sum(encoding[m].get(j, 0) for m in near) / len(near) for m in near for j in encoding[m]})
    result = torch.zeros(nq, n - nq, dtype=torch.float64)
    for q in range(nq):
        for g in range(nq, n):
            smaller = sum(min(v, expanded[g].get(j, 0)) for j, v in expanded[q].items())
            jaccard = 1 - smaller / (2 - smaller)
            result[q, g - nq] = (1 - lambda_value) * jaccard + lambda_value * distance[q][g]
    return result


def alone(method, query, gallery, **settings):
    """Each query by itself with the gallery, as if the other queries did not exist."""
    rows = [method(q[None], gallery, **settings) for q in query]
    return torch.cat([torch.empty(0, len(gallery), dtype=torch.float64), *rows])


def gnn(query, gallery, *, k1, k2, layers, alpha):
    """Zhang et al., 2020."""
    x = torch.cat([query, gallery])
    n, nq = len(x), len(query)
    cosine = cosines(x, x)
    rank = [nearest(row, n, i) for i, row in enumerate(cosine)]
    rows = [[1.0 if j in rank[i][:k1] else 0.0 for j in range(n)] for i in range(n)]
    for _ in range(layers):
        both = [[rows[i][j] + rows[j][i] for j in range(n)] for i in range(n)]
        rows = [
            _unit([sum(abs(cosine[i][m]) ** alpha * both[m][j] for m in rank[i][:k2]) for j in range(n)])
            for i in range(n)
        ]
    result = [[1 - dot(rows[q], rows[g]) for g in range(nq, n)] for q in range(nq)]
    return torch.tensor(result, dtype=torch.float64).view(nq, n - nq)


def sim(query, gallery, *, k1, k2, lambda_value):
    """The formula of `vireid.rerank.sim`, with sets."""
    affinity, among = cosines(query, gallery), cosines(gallery, gallery)
    near = [nearest(row, k2, i) for i, row in enumerate(among)]
    mutual = [{j for j in near[i] if i in near[j]} for i in range(len(gallery))]
    result = torch.empty(len(query), len(gallery), dtype=torch.float64)
    for i, row in enumerate(affinity):
        own = set(nearest(row, k1))
        for j, c in enumerate(row):
            jaccard = 1 - len(own & mutual[j]) / len(own | mutual[j])
            result[i, j] = (1 - lambda_value) * jaccard + lambda_value * (1 - c)
    return result


def query_expansion(query, gallery, *, n, alpha):
    """One query after the other: its n nearest, the weighted mean, the cosine distance."""
    rows, result = gallery.double().tolist(), []
    for q in query.double().tolist():
        affinity = [cosine(q, row) for row in rows]
        mean = _unit(q)
        for j in nearest(affinity, n):
            weight = max(affinity[j], 0.0) ** alpha
            mean = [a + weight * b for a, b in zip(mean, _unit(rows[j]), strict=True)]
        result.append([1 - dot(_unit(mean), _unit(row)) for row in rows])
    return torch.tensor(result, dtype=torch.float64)
