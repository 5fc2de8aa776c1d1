"""Plain loops of CMKR (YYDS) and MSER (MCJA), from what their published code computes."""

import math

import torch

from reference.neighbors import cosines


def _encoded(members, distance):
    weights = {j: math.exp(-distance(j)) for j in members}
    return {j: w / sum(weights.values()) for j, w in weights.items()}


def _mean(encodings):
    return {j: sum(v.get(j, 0) for v in encodings) / len(encodings) for v in encodings for j in v}


def _jaccard(v, w):
    smaller = sum(min(x, w.get(j, 0)) for j, x in v.items())
    return 1 - smaller / (2 - smaller)


class _TwoSets:
    """Rankings and distances of queries and gallery, each image among all or among one of the two."""

    def __init__(self, query, gallery):
        x = torch.cat([query, gallery])
        self.n, self.nq = len(x), len(query)
        self.cosine = cosines(x, x)
        self.q, self.g = range(self.nq), range(self.nq, self.n)
        self.all = range(self.n)

    def other(self, i):
        return self.g if i < self.nq else self.q

    def rank(self, i, among):
        return sorted(among, key=lambda j: (j != i, -self.cosine[i][j], j))

    def distance(self, i, among):
        row = {j: 0.0 if i == j else 2 - 2 * self.cosine[i][j] for j in among}
        largest = max(row.values())
        return lambda j: row[j] / largest if largest > 1e-12 else 0.0

    def reciprocal(self, i, k, among, back):
        """Images of ``among`` near i that rank i near among the images ``back``."""
        return {j for j in self.rank(i, among)[: k + 1] if i in self.rank(j, back)[: k + 1]}

    def expanded(self, start, k, among):
        members = set(start)
        for c in start:
            candidates = self.reciprocal(c, round(k / 2), among, among)
            if len(candidates & start) > 2 / 3 * len(candidates):
                members |= candidates
        return members

    def within(self, one, k1, k2, *, expand=True, weigh_over=None):
        """Encodings of all images over the images of one set."""
        grown = (lambda start: self.expanded(start, k1, one)) if expand else (lambda start: start)
        v = {}
        for i in self.all:
            own = self.q if i < self.nq else self.g
            start = self.reciprocal(i, k1, one, own)
            v[i] = _encoded(grown(start), self.distance(i, (weigh_over or one) if i in one else one))
        return v if k2 == 1 else {i: _mean([v[j] for j in self.rank(i, one)[:k2]]) for i in self.all}


def cmkr(query, gallery, *, neighbors, k1, k2, k3=None, lambda_value):
    """YYDS, as its published code, with the expansion of "constrained" over the neighbors themselves."""
    sets = _TwoSets(query, gallery)
    result = torch.zeros(sets.nq, sets.n - sets.nq, dtype=torch.float64)
    if not sets.nq:
        return result
    if neighbors in ("joint", "extended"):
        v = {}
        for i in sets.all:
            start = sets.reciprocal(i, k1, sets.all, sets.all)
            if neighbors == "extended":
                across = sets.other(i)
                start |= sets.reciprocal(i, k1, across, sets.q if i < sets.nq else sets.g)
            v[i] = _encoded(sets.expanded(start, k1, sets.all), sets.distance(i, sets.all))
        if k2 > 1:
            near = {i: sets.rank(i, sets.all)[:k2] for i in sets.all}
            if k3 is not None:
                near = {i: sets.rank(i, sets.q)[: k2 - k3] + sets.rank(i, sets.g)[:k3] for i in sets.all}
            v = {i: _mean([v[j] for j in near[i]]) for i in sets.all}
        encodings = [v]
    else:
        encodings = [sets.within(one, k1, k2) for one in ([sets.q, sets.g] if neighbors == "constrained" else [sets.q])]
    for q in sets.q:
        distance = sets.distance(q, sets.all)
        for g in sets.g:
            jaccard = sum(_jaccard(v[q], v[g]) for v in encodings) / len(encodings)
            result[q, g - sets.nq] = (1 - lambda_value) * jaccard + lambda_value * distance(g)
    return result


def mser(query, gallery, *, k1, k2, lambda_value, query_spectra=(), gallery_spectra=()):
    """MCJA, as its published code: neighbors are queries, of any spectrum, then the mean over the spectra."""
    queries, galleries = [query, *query_spectra], [gallery, *gallery_spectra]
    sets = _TwoSets(torch.cat(queries), torch.cat(galleries))
    result = torch.zeros(len(query), len(gallery), dtype=torch.float64)
    v = sets.within(sets.q, k1, k2, expand=False, weigh_over=sets.all) if sets.nq else {}
    for q in sets.q:
        distance = sets.distance(q, sets.all)
        for g in sets.g:
            value = (1 - lambda_value) * _jaccard(v[q], v[g]) + lambda_value * distance(g)
            result[q % len(query), (g - sets.nq) % len(gallery)] += value / len(queries) / len(galleries)
    return result
