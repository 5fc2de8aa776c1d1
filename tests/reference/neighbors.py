"""Plain loops of the searches, pair by pair, in Python's float64."""

import math

import torch


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    """±√(dot² / (|a|² |b|²)), 0 with a zero row: equal where whole numbers have equal cosines, so ties are ties."""
    product, squares = dot(a, b), dot(a, a) * dot(b, b)
    return math.copysign(math.sqrt(product * product / squares), product) if squares > 0 else 0.0


def cosines(rows, columns):
    """Lists of the cosines of all rows (N, d) with all columns (M, d)."""
    rows, columns = rows.double().tolist(), columns.double().tolist()
    return [[cosine(a, b) for b in columns] for a in rows]


def nearest(row, k, itself=None):
    """Indices of the k largest, ties by index; the image itself before all others."""
    return sorted(range(len(row)), key=lambda j: (j != itself, -row[j], j))[:k]


def topk(query, gallery, k, metric="cosine"):
    """Values and indices (Nq, k) as of `vireid.neighbors.topk`, in float64."""
    if metric == "cosine":
        scores = cosines(query, gallery)
    else:
        q, g = query.double().tolist(), gallery.double().tolist()
        score = dot if metric == "dot" else lambda a, b: -math.dist(a, b)
        scores = [[score(a, b) for b in g] for a in q]
    indices = [nearest(row, k) for row in scores]
    values = torch.tensor(scores, dtype=torch.float64).gather(1, torch.tensor(indices))
    return -values if metric == "euclidean" else values, torch.tensor(indices)


def graph(x, k):
    """Values and indices (N, k) as of `vireid.neighbors.NeighborGraph`, in float64."""
    scores = cosines(x, x)
    indices = [nearest(row, k, i) for i, row in enumerate(scores)]
    values = [[1.0 if j == i else scores[i][j] for j in near] for i, near in enumerate(indices)]
    return torch.tensor(values, dtype=torch.float64), torch.tensor(indices)
