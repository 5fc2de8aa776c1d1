"""GNN re-ranking of queries one by one: the rows that a query changes in the gallery's graph, and what follows.

Node i of query b is image i of the gallery, or the query itself at i = Ng; its number is b (Ng + 1) + i.

F has the rows of a layer, the adjacency first, and G = F + Fᵀ. A query changes some rows C of F, and so the rows and
columns C of G. The next layer's rows W G change where W does, or where an image has a neighbor whose row of G changes.
A row of the last layer that has no neighbor in C changes in the columns C only: this is all its length needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vireid.neighbors import NeighborGraph
from vireid.rerank._alone import find
from vireid.rerank._sparse import Sparse, accumulate, entries, from_coo, parts, product, product_unsorted, rows_of

_TERMS = 2**23  # of the products of rows that are made at once
_ROUNDING = 1e-4  # relative, of a length: images this near to the last of the nearest are compared exactly


class Fitted(NamedTuple):
    """The gallery's rows through all layers, with an empty row and column for a query."""

    adjacent: tuple[Tensor, Tensor]  # (Ng, k1) neighbors in the graph and their entries, 1
    used: tuple[Tensor, Tensor]  # (Ng, k2) images that are propagated to each image, and their weights
    columns: list[Sparse]  # Fᵀ of each layer
    both: list[Sparse]  # G of each layer
    weights: Tensor  # W in CSR form
    users: Sparse  # Wᵀ
    square: Tensor  # (Ng,) squared lengths of the last layer's rows W G
    reach: Tensor  # (Ng,) about the number of entries that change with an image's row


class Lists(NamedTuple):
    """First k of the rankings of queries, themselves (Ng) first, and the images whose first k have a query."""

    near: Tensor  # (b, k)
    weight: Tensor  # (b, k)
    query: Tensor  # (E,) ascending
    image: Tensor  # (E,) ascending per query
    entered: Tensor  # (E,) weights

    def select(self, part: slice) -> "Lists":
        """Return those of consecutive queries."""
        ends = torch.tensor([part.start, part.stop], device=self.query.device)
        some = slice(*torch.searchsorted(self.query, ends).tolist())
        first = self.near[part], self.weight[part]
        return Lists(*first, self.query[some] - part.start, self.image[some], self.entered[some])


def prepare(graph: NeighborGraph, k1: int, k2: int, layers: int, alpha: float) -> Fitted:
    """Compute the gallery's rows."""
    n, cosine = len(graph), graph.values.clone()
    cosine[:, 0].masked_fill_(graph.rows.square == 0, 0)  # a zero row has cosine 0 with all images, itself included

    def first(value: Tensor, k: int) -> tuple[Tensor, Tensor]:
        more = (0, int(k > n))  # in fewer than k there is room for the query: an entry of 0, which it replaces
        return pad(graph.indices[:, :k], more, value=n).contiguous(), pad(value[:, :k], more).contiguous()

    def matrix(near: Tensor, value: Tensor) -> Sparse:
        near, order = near.sort(dim=1)
        rows = rows_of(near, value.gather(1, order), n + 1).without_zeros()
        return rows._replace(start=torch.cat([rows.start, rows.start[-1:]]))

    adjacent, used = first(torch.ones_like(cosine), k1), first(cosine.abs_().pow_(alpha), k2)
    weights, rows, columns, both = matrix(*used), matrix(*adjacent), [], []
    for _ in range(layers):
        columns.append(rows.transpose())
        both.append(both_ways(rows, columns[-1]))
        rows = product(weights, both[-1])
        square = rows.square_sums()
        rows = rows.scaled(inverse(square))
    users = weights.transpose()
    size = both[-1].start.diff()
    reach = torch.zeros_like(size).index_add_(0, users.rows(), size[users.column])
    return Fitted(adjacent, used, columns, both, weights.csr(), users, square[:n], reach[:n])


class Graph:
    """G of a layer with queries: rows and columns C replaced."""

    def __init__(self, base: Sparse, columns: Sparse, changed: Tensor, rows: Sparse, first: Tensor) -> None:
        """Add new ``rows`` of F, those of the nodes ``changed``, to their transpose and to the others' ``columns``."""
        n = base.columns
        self.base, self.changed, self.first = base, changed, first
        self.query, self.image = changed // n, changed % n
        self.mark = torch.zeros(len(first) * n, dtype=torch.bool, device=first.device)
        self.mark[changed] = True
        self.place = torch.zeros(len(self.mark), dtype=torch.int64, device=first.device)
        self.place[changed] = torch.arange(len(changed), device=first.device)

        row = rows.rows()
        node = first[self.query].index_select(0, row) + rows.column
        within = self.mark.index_select(0, node).nonzero().flatten()
        other, at = entries(columns.start, self.image)
        column = columns.column.index_select(0, at)
        kept = (~self.mark.index_select(0, first[self.query].index_select(0, other) + column)).nonzero().flatten()
        self.rows = merged(
            torch.cat([row, other.index_select(0, kept), self.place[node[within]]]),
            torch.cat([rows.column, column.index_select(0, kept), self.image[row[within]]]),
            torch.cat([rows.value, columns.value.index_select(0, at.index_select(0, kept)), rows.value[within]]),
            (len(changed), n),
        )  # of G
        self.row = self.rows.rows()
        self.node = first[self.query].index_select(0, self.row) + self.rows.column

    def touched(self) -> Tensor:
        """Return a mask of the nodes whose rows are others than without the query."""
        mark = self.mark.clone()
        mark[self.node] = True
        owner, at = entries(self.base.start, self.image)
        mark[self.first[self.query].index_select(0, owner) + self.base.column.index_select(0, at)] = True
        return mark

    def times(self, x: Tensor) -> Tensor:
        """Return G x of each query's vector: (b, n) of (b, n)."""
        out, n = torch.zeros_like(x), self.base.columns
        query, column = x.nonzero().T
        node = query * n + column
        new = self.mark[node]
        for matrix, mask in ((self.base, ~new), (self.rows, new)):
            some = column[mask] if matrix is self.base else self.place[node[mask]]
            left = Sparse.of(query[mask], some, x[query[mask], column[mask]], (len(x), len(matrix.start) - 1))
            accumulate(out, left, matrix)
        out.view(-1)[self.changed] = self.rows.row_sums(self.rows.value * x.view(-1)[self.node])
        return out

    def stacked(self, node: Tensor) -> Sparse:
        """Return the rows of the ascending nodes."""
        n = self.base.columns
        place = torch.full_like(self.place, -1)
        place[node] = torch.arange(len(node), device=node.device)
        new = self.mark[node]
        old = (~new).nonzero().flatten()
        owner, at = entries(self.base.start, node[old] % n)
        column = self.base.column.index_select(0, at)
        row = old.index_select(0, owner)
        kept = (~self.mark.index_select(0, self.first[node // n].index_select(0, row) + column)).nonzero().flatten()
        here = place.index_select(0, self.node)
        back = ((here >= 0) & ~self.mark.index_select(0, self.node)).nonzero().flatten()
        mine = place[self.changed].index_select(0, self.row)
        whole = (mine >= 0).nonzero().flatten()
        row = torch.cat([row.index_select(0, kept), here.index_select(0, back), mine.index_select(0, whole)])
        order = row.int().argsort(stable=True)
        turned, at = self.row.index_select(0, back), at.index_select(0, kept)
        columns = column.index_select(0, kept), self.image.index_select(0, turned), self.rows.column[whole]
        values = self.base.value.index_select(0, at), *(self.rows.value.index_select(0, some) for some in (back, whole))
        column, value = (torch.cat(x).index_select(0, order) for x in (columns, values))
        return Sparse.of(row, column, value, (len(node), n))


class Block:
    """A block of queries, each with the gallery."""

    def __init__(self, fitted: Fitted, adjacent: Lists, used: Lists) -> None:
        self.fitted, self.adjacent, self.used = fitted, adjacent, used
        self.n = len(fitted.square) + 1
        self.first = torch.arange(len(used.near), device=used.near.device) * self.n
        self.itself = self.first + self.n - 1
        self.enters = self.first[used.query] + used.image

    def cosine(self, top: int) -> Tensor:
        """Return the cosines (b, Ng) of the rows after all layers, of which only the ``top`` largest must be right."""
        fitted, n = self.fitted, self.n
        changed = torch.cat([self.first[self.adjacent.query] + self.adjacent.image, self.itself]).sort().values
        rows = rows_of(*self._lists(changed, fitted.adjacent, self.adjacent), n)
        graph = Graph(fitted.both[0], fitted.columns[0], changed, rows, self.first)
        for base, columns in zip(fitted.both[1:], fitted.columns[1:], strict=True):
            changed = self._marked(self._users(graph.touched().nonzero().flatten()), self.enters, self.itself)
            rows = self._propagated(changed, graph)
            rows = rows.scaled(inverse(rows.square_sums()))
            graph = Graph(base, columns, changed, rows, self.first)
        return self._compared(graph, top)

    def _compared(self, graph: Graph, top: int) -> Tensor:
        fitted, n = self.fitted, self.n
        own = fitted.square.new_zeros(len(self.first), n)
        own = graph.times(own.scatter_(1, self.used.near, self.used.weight))
        back = graph.times(own)
        cosine = (fitted.weights @ back.T.contiguous())[:-1].T.contiguous()
        near, weight = self._lists(self.enters, fitted.used, self.used)
        near += self.first[self.used.query][:, None]
        cosine[self.used.query, self.used.image] = (back.view(-1)[near] * weight).sum(1)

        images, base, users = n - 1, graph.base, fitted.users
        wanted = cosine > 0
        if top < images:
            wanted &= self._among(cosine, graph, top)
            users = users._replace(value=users.value * pad(wanted.any(0), (0, 1))[users.column]).without_zeros()
        new, old = back.new_zeros(2, len(own) * images)  # squared lengths in the columns C
        for total, rows in ((new, graph.rows), (old, base.rows_at(graph.image))):
            size = users.start.diff().index_select(0, rows.column)
            for part in parts(rows.row_sums(size), _TERMS):
                found = product_unsorted(rows.select(part), users)
                place = (graph.query[part] * images).index_select(0, found.rows()) + found.column
                total.index_add_(0, place, found.value.square())
        square = (fitted.square + new.view(-1, images) - old.view(-1, images)).view(-1)
        node = self._marked(self._users(graph.changed))
        node = node[node % n < images]
        place = node - node // n
        seen = wanted.view(-1)[place].nonzero().flatten()
        node, place = node[seen], place[seen]
        size = base.start.diff()[fitted.used[0][node % n]].sum(1)
        other = [self._other_columns(node[part], graph) for part in parts(size, _TERMS)]
        square[place] = torch.cat([new[:0], *other]) + new[place]
        square[self.enters - self.used.query] = self._propagated(self.enters, graph).square_sums()
        return cosine * inverse(square.view_as(cosine)) * inverse(own.square().sum(1, keepdim=True))

    def _among(self, cosine: Tensor, graph: Graph, top: int) -> Tensor:
        """Return which images may be among the ``top``, by their products (b, Ng) with the query's row.

        A row W G becomes longer or shorter by at most W times the lengths of what changes in the rows of G.
        """
        fitted, number = self.fitted, torch.arange(len(graph.changed), device=cosine.device)
        both = stacked(graph.base.rows_at(graph.image), graph.rows)
        pair = torch.stack([number, number + len(number)], 1)
        change = product_unsorted(rows_of(pair, (pair - pair.flip(1)).sign().to(cosine), len(both.start) - 1), both)
        square = change.value.square()
        node = self.first[graph.query].index_select(0, change.rows()) + change.column
        gap = cosine.new_zeros(len(self.first) * self.n).index_add_(0, node, square)
        gap[graph.changed] = change.row_sums(square)
        slack = (fitted.weights @ gap.sqrt().view(-1, self.n).T)[:-1].T
        length = fitted.square.sqrt()
        least = cosine / (length + slack).clamp_min(torch.finfo(cosine.dtype).tiny)
        least[self.used.query, self.used.image] = 0
        return cosine >= least.topk(top).values[:, -1:] * (length * (1 - _ROUNDING) - slack)

    def _other_columns(self, node: Tensor, graph: Graph) -> Tensor:
        """Return the squared lengths of the nodes' rows of W G in the columns other than C."""
        query, image = node // self.n, node % self.n
        near, weight = (x.index_select(0, image) for x in self.fitted.used)
        inner = (self.first.index_select(0, query)[:, None] + near).view(-1)
        needed = self._marked(inner)
        new = graph.mark[needed]
        needed, stack = needed[~new], graph.rows
        place = graph.place + len(needed)
        place[needed] = torch.arange(len(needed), device=node.device)
        stack = stacked(graph.base.rows_at(needed % self.n), stack)
        left = rows_of(place.index_select(0, inner).view_as(near), weight, len(stack.start) - 1)
        found = product_unsorted(left, stack)
        row = found.rows()
        other = ~graph.mark.index_select(0, (node - image).index_select(0, row).add_(found.column))
        return weight.new_zeros(len(node)).index_add_(0, row, found.value.square().mul_(other))

    def _propagated(self, node: Tensor, graph: Graph) -> Sparse:
        """Return the nodes' rows of W G."""
        near, weight = self._lists(node, self.fitted.used, self.used)
        row, place = weight.nonzero().T
        inner = self.first[node // self.n][row] + near[row, place]
        needed = self._marked(inner)
        left = Sparse.of(row, torch.searchsorted(needed, inner), weight[row, place], (len(node), len(needed)))
        return product_unsorted(left, graph.stacked(needed))

    def _lists(self, node: Tensor, fitted: tuple[Tensor, Tensor], lists: Lists) -> tuple[Tensor, Tensor]:
        """Return the images (P, k) in the nodes' lists, and their weights."""
        query, image = node // self.n, node % self.n
        near, weight = (x[image.clamp_max(self.n - 2)] for x in fitted)
        own = (image == self.n - 1).nonzero().flatten()
        near[own], weight[own] = lists.near[query[own]], lists.weight[query[own]]
        place, hit = find(self.first[lists.query] + lists.image, node)
        hit = hit.nonzero().flatten()
        near[hit, -1], weight[hit, -1] = self.n - 1, lists.entered[place[hit]]
        return near, weight

    def _users(self, node: Tensor) -> Tensor:
        """Return the nodes that have these in the gallery's lists."""
        image = node % self.n
        owner, at = entries(self.fitted.users.start, image)
        return (node - image)[owner] + self.fitted.users.column[at]

    def _marked(self, *nodes: Tensor) -> Tensor:
        """Return the distinct nodes, ascending."""
        mark = torch.zeros(len(self.first) * self.n, dtype=torch.bool, device=self.first.device)
        for some in nodes:
            mark[some] = True
        return mark.nonzero().flatten()


def merged(row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Sparse:
    """Return the matrix of these entries, of which several may be in one place."""
    key = row * shape[1] + column
    key, order = (key.int() if shape[0] * shape[1] < 2**31 else key).sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    torch.ne(key[1:], key[:-1], out=first[1:])
    kept = order.index_select(0, first.nonzero().flatten())
    total = value.new_zeros(len(kept)).index_add_(0, first.cumsum(0) - 1, value.index_select(0, order))
    return Sparse.of(row.index_select(0, kept), column.index_select(0, kept), total, shape)


def stacked(above: Sparse, below: Sparse) -> Sparse:
    """Return the rows of one matrix, then those of the other."""
    start = torch.cat([above.start, below.start[1:] + above.start[-1]])
    return Sparse(start, torch.cat([above.column, below.column]), torch.cat([above.value, below.value]), above.columns)


def both_ways(matrix: Sparse, transposed: Sparse | None = None) -> Sparse:
    """Return the sum of a square matrix and its transpose."""
    return from_coo(matrix.coo() + (transposed or matrix.transpose()).coo())


def inverse(square: Tensor) -> Tensor:
    """Return 1 / length of rows by their squared lengths, 0 for a zero row."""
    return torch.where(square > 0, square.rsqrt(), 0)
