"""Plain loop of expanded cross neighborhood re-ranking (Sarfraz et al., CVPR 2018), from its published code."""

import torch

from reference.neighbors import cosines, nearest


def ecn(query, gallery, *, t=3, q=8, k=25, metric="rank"):
    x = torch.cat([query, gallery])
    n, nq = len(x), len(query)
    cosine = cosines(x, x)
    rank = [nearest(row, n, i) for i, row in enumerate(cosine)]

    def distance(i, j):
        if metric == "cosine":
            return 1 - cosine[i][j]
        shared = sum((k - a) * (k - rank[j].index(m)) for a, m in enumerate(rank[i][:k]) if m in rank[j][:k])
        return 1 - shared / sum(a * a for a in range(k, k - min(k, n), -1))

    def expanded(i):
        near = rank[i][1 : t + 1]
        return near + [m for j in near for m in rank[j][1 : q + 1]]

    result = torch.zeros(nq, n - nq, dtype=torch.float64)
    for p in range(nq):
        for g in range(nq, n):
            both = [distance(m, g) for m in expanded(p)] + [distance(m, p) for m in expanded(g)]
            result[p, g - nq] = sum(both) / len(both)
    return result
