"""k-reciprocal encoding in sparse form, with memory linear in the number of images."""

from collections.abc import Iterator
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vireid._checks import Array, ArrayT, check_count, check_fraction, check_option
from vireid._ops import equalize_columns, repeated_rows
from vireid.neighbors import NeighborGraph
from vireid.neighbors._exact import blocks, neighbors_within, search
from vireid.neighbors._scores import Rows
from vireid.rerank._alone import Entrance, find
from vireid.rerank._blocks import Queries, collect, joined, uses
from vireid.rerank._jaccard import distances, encoding, jaccard, listed, mean_over, members, mixed, scale_of
from vireid.rerank._reciprocal import ChangedRows, Sets, SpannedGraph
from vireid.rerank._sparse import Sparse, entries, parts, reciprocal, rows_of
from vireid.rerank.fitted import GalleryReranker, rank_alone

_PAIRS = 2**10  # of queries and the rankings they enter, per block on the CPU


class KReciprocal(GalleryReranker):
    """`k_reciprocal` with ``queries="alone"`` fitted to a gallery; see there for the settings.

    A query changes the few sets near the images whose rankings it enters, and the D of images that it is farthest from.
    Only the encodings that have a column in common with the query's are computed for it, from those of the gallery's
    sets that stay and those that change. A query costs its product with the gallery, plus little.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> KReciprocal(k1=1, k2=1).fit(gallery).topk(torch.tensor([[1.0, 0.0]]), 2)[1].tolist()
        [[1, 2]]
    """

    _graph_type = SpannedGraph

    def __init__(self, *, k1: int = 20, k2: int = 6, lambda_value: float = 0.3) -> None:
        self.k1, self.k2 = check_count("k1", k1), check_count("k2", k2)
        self.lambda_value = check_fraction("lambda_value", lambda_value)
        self._neighbors = max(self.k1 + 1, self.k2)

    def _prepare(self, graph: NeighborGraph) -> None:
        assert isinstance(graph, SpannedGraph)
        n, x, index = len(graph), graph.rows.proposal, graph.indices
        self._lowest = graph.lowest
        k1 = min(self.k1, 2 * n + 2)  # half of it is all images
        widths = k1 + 1, round(k1 / 2) + 1, self.k2
        self._entrance = Entrance(graph, widths)
        self._wide, self._narrow = (Sets.of(index, width) for width in widths[:2])
        sets = members(*self._wide.images, n, listed(*self._narrow.images))
        self._members = distances(x, x, *sets, same=True)._replace(columns=n + 1)
        self._keys = sets[0] * (n + 1) + sets[1]
        self._in_sets = self._members.transpose()
        self._near = index[:, : self.k2].contiguous()
        self._near_of = rows_of(self._near, torch.empty_like(self._near), n + 1).transpose()

    def _distance(self, query: Rows) -> Tensor:
        n = len(self.graph)
        wanted = max(self._wide.near.shape[1] - 1 - self._wide.full, min(self.k2 - 1, n), 1)
        (found,) = search(query, self.graph.rows, wanted, block=len(query.given))
        row, column, enters = self._entrance(found, query, self.graph.rows)
        block = equalize_columns(found.product, self._repeated)
        scale = scale_of(block.amin(1))
        weight, rest = self.lambda_value * scale[:, None], 1 - self.lambda_value
        count = row.bincount(minlength=len(block))
        near = []
        for part in parts(count + 8, _PAIRS if block.device.type == "cpu" else 32 * _PAIRS):
            low, high = (torch.searchsorted(row, end) for end in (part.start, part.stop))
            here = (row[low:high] - part.start) * (n + 1) + column[low:high], enters[low:high]
            key, shared = self._shared(found.indices[part], block[part], scale[part], *here)
            one, image = key // (n + 1) + part.start, key % (n + 1)
            distance = (weight[one, 0] * (1 - block[one, image])).clamp_min_(0)
            near.append((one, image, distance + rest * (2 - 2 / (2 - shared))))
        torch.addcmul(weight + rest, weight, block, value=-1, out=block).clamp_min_(rest)  # λ D + 1 - λ, where S = 0
        for one, image, distance in near:
            block[one, image] = distance
        return block

    def _shared(
        self, nearest: Tensor, cosine: Tensor, scale: Tensor, keys: Tensor, enters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute S of b queries with the images where it is not 0: keys (P,) and S (P,).

        Args:
            nearest: (b, ≥ k) gallery images.
            cosine: (b, n) with the gallery.
            scale: (b,) of the queries' D.
            keys: (E,) sorted, of the images whose rankings the query enters.
            enters: (E, 3) whether it is among the first k1 + 1, k1/2 + 1 and k2.
        """
        b, n = cosine.shape
        nodes = n + 1
        first = nodes * torch.arange(b, device=keys.device)[:, None]
        sets = self._sets(nearest, cosine, keys, enters)
        # V of all images that have a column of the query's encoding, in these columns
        close = torch.cat([first + n, first + nearest[:, : self.k2 - 1]], 1)
        owner, column, _ = sets.entries(close.flatten())
        support = (first.expand_as(close).flatten()[owner] + column).unique()
        owner, entry = entries(self._in_sets.start, support % nodes)
        rows = torch.cat([sets.keys, support[owner] // nodes * nodes + self._in_sets.column[entry]]).unique()
        query, image = rows // nodes, rows % nodes
        at = image.clamp_max(n - 1)
        scales = scale_of(torch.minimum(self._lowest[at], cosine[query, at]))
        scales[image == n] = scale
        owner, column, distance = sets.entries(rows)
        value = (distance * scales[owner]).neg_().exp_()
        value /= value.new_zeros(len(rows)).index_add_(0, owner, value)[owner]
        place, found = find(support, query[owner] * nodes + column)
        owner, place = owner[found], place[found]
        start = torch.searchsorted(support, F.pad(first[:, 0], (0, 1), value=b * nodes))
        encoding = value.new_zeros(len(rows), int(start.diff().max()))
        encoding[owner, place - start[query[owner]]] = value[found]
        return self._overlap(rows, encoding, torch.searchsorted(rows, close), keys[enters[:, 2]])

    def _sets(self, nearest: Tensor, cosine: Tensor, keys: Tensor, enters: Tensor) -> ChangedRows:
        """Return the expanded sets R* in {q} ∪ G, with 1 - cos of their members; arguments as of `_shared`."""
        nodes = len(self.graph) + 1
        wide = self._wide.with_queries(keys[enters[:, 0]], nearest)
        narrow = self._narrow.with_queries(keys[enters[:, 1]], nearest)
        itself = nodes * torch.arange(1, len(nearest) + 1, device=keys.device) - 1
        image = narrow.keys % nodes
        around = ((narrow.keys - image)[:, None] + self._wide.near[image])[self._wide.kept[image]]
        changed = torch.cat([itself, wide.keys, around]).unique()  # those that may differ from the gallery's
        owner = changed // nodes
        row, column = members(
            *wide.rows(owner, changed % nodes), nodes, lambda rows, near: narrow.rows(owner[rows, None], near)
        )
        distance = self._distances(cosine, changed[row], column)
        return ChangedRows(self._members, changed, Sparse.of(row, column, distance, (len(changed), nodes)))

    def _overlap(self, rows: Tensor, encoding: Tensor, close: Tensor, joins: Tensor) -> tuple[Tensor, Tensor]:
        """Compute S from V, by means over the first k2 of the rankings: keys (P,) and S (P,).

        Args:
            rows: (R,) sorted keys of the rows of V.
            encoding: (R, c) V in the columns of the query's encoding, whose number differs by query.
            close: (b, k2) rows of the first k2 of the queries' rankings.
            joins: sorted keys of the images with the query among the first k2 of their rankings.
        """
        n = len(self.graph)
        nodes, size = n + 1, min(self.k2, n + 1)
        query, image = rows // nodes, rows % nodes
        own = F.embedding_bag(close, encoding, mode="sum") / size
        owner, entry = entries(self._near_of.start, image)
        pair = query[owner] * nodes + self._near_of.column[entry]
        if self.k2 <= n:  # the query takes the last one's place
            displaced = find(joins, pair)[1] & (self._near[pair % nodes, -1] == image[owner])
            pair, owner = pair[~displaced], owner[~displaced]
        pair, order = torch.cat([pair, joins]).sort()
        owner = torch.cat([owner, close[joins // nodes, 0]])[order]
        pair, count = pair.unique_consecutive(return_counts=True)
        offset = F.pad(count.cumsum(0), (1, 0))
        shared = encoding.new_empty(len(pair))
        for part in blocks(len(pair), encoding.shape[1], encoding.element_size()):
            bags = offset[part.start : part.stop + 1]
            mean = F.embedding_bag(owner[bags[0] : bags[-1]], encoding, bags[:-1] - bags[0], mode="sum") / size
            shared[part] = torch.minimum(mean, own[pair[part] // nodes]).sum(1).clamp_max_(1)
        return pair, shared

    def _distances(self, cosine: Tensor, key: Tensor, column: Tensor) -> Tensor:
        """Compute 1 - cos of entries: of queries and images (P,), by their keys, with nodes (P,)."""
        n, x = len(self.graph), self.graph.rows.proposal
        query, row = key // (n + 1), key % (n + 1)
        place, known = find(self._keys, row * (n + 1) + column)
        distance = self._members.value[place]
        with_query = (row == n) | (column == n)
        image = torch.minimum(row, column)[with_query].clamp_max(n - 1)
        distance[with_query] = 1 - cosine[query[with_query], image]
        distance[row == column] = 0
        missing = (~known & ~with_query).nonzero().flatten()
        for part in missing.split(max(1, 2**20 // max(1, x.shape[1]))):
            distance[part] = 1 - (x[row[part]] * x[column[part]]).sum(1)
        return distance.clamp_min_(0)


@overload
def k_reciprocal(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    lambda_value: float = ...,
    queries: Queries = ...,
    top: None = ...,
) -> ArrayT: ...
@overload
def k_reciprocal(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = ...,
    k2: int = ...,
    lambda_value: float = ...,
    queries: Queries = ...,
    top: int,
) -> tuple[ArrayT, ArrayT]: ...
@uses("transductive")  # with queries="alone" it is "gallery"
def k_reciprocal(
    query: ArrayT,
    gallery: Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    queries: Queries = "all",
    top: int | None = None,
) -> ArrayT | tuple[ArrayT, ArrayT]:
    """Compute (1 - λ) Jaccard + λ D over queries and gallery together: k-reciprocal encoding (Zhong et al., CVPR 2017).

    D is the squared Euclidean distance of the L2-normalized features, row i divided by its largest entry over queries
    and gallery. A k-neighborhood is the first k + 1 of the ranking, the image itself first, as in the published code.
    R(i, k1) holds the reciprocal neighbors of i; each c in it adds R(c, round(k1/2)) when more than 2/3 of that set
    lies in R(i, k1). V_i = exp(-D_i) over the set, normalized to 1, then the mean of V over the first k2 of i's
    ranking; Jaccard = 1 - S / (2 - S), S the sum of the smaller entries of both encodings.

    It is transductive: a query's ranking depends on the other queries; with ``queries="alone"`` it depends on the
    gallery only, as in tables that compare methods for single queries. Neighbors are ranked by the exact cosine, ties
    by index, and rows of D whose largest entry is only rounding (all images alike) count as 0 (our choices). Time is
    that of half the product of all images with all, plus little; memory is O((Nq + Ng) k1), one block, and the result.
    In float32 the error of D is about 1e-7 / (largest 1 - cos): use float64 if all features are close together.

    Args:
        query: (Nq, d) floating point, tensor or NumPy array. Nq may be 0.
        gallery: (Ng, d), on the query's device.
        k1: size of the reciprocal neighborhoods, at least 1; paper: 20. More than there are images means all.
        k2: encodings averaged, the image's own included, at least 1; paper: 6.
        lambda_value: λ in [0, 1], the weight of D; paper: 0.3.
        queries: "all" as published, or "alone": for each query what the method gives for it and the gallery, without
            the other queries (the query first, for ties). `KReciprocal` keeps a gallery for that.
        top: None for all distances, or the number of nearest gallery images to return, at least 1, without an (Nq, Ng)
            matrix.

    Returns:
        (Nq, Ng) distance in [0, 1], float64 if either input is, else float32; with ``top`` distances and indices
        (int64), both (Nq, min(top, Ng)), nearest first, ties by index. NumPy arrays if ``query`` is one.

    Raises:
        ValueError, TypeError: for a bad shape, type, value or option, an empty gallery, NaN or an infinity, or two
            devices.

    Example:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]])
        >>> k_reciprocal(query, gallery, k1=1, k2=1, top=2)[1].tolist()
        [[1, 2]]
    """
    check_option("queries", queries, ("all", "alone"))
    ranker = KReciprocal(k1=k1, k2=k2, lambda_value=lambda_value)
    if queries == "alone":
        return rank_alone(ranker, query, gallery, top)
    rows, nq = joined(query, gallery, top)
    ng = len(rows.given) - nq
    with torch.no_grad(), torch.autocast(rows.given.device.type, enabled=False):
        out = rows.proposal.new_empty(nq, ng if top is None else min(top, ng))
        k1 = min(ranker.k1, 2 * len(rows.given))  # half of it is all images
        found = _distances(rows, nq, k1, ranker.k2, ranker.lambda_value, out if top is None else None)
        return collect(query, out, found, top)


def _distances(
    rows: Rows, nq: int, k1: int, k2: int, lambda_value: float, cosines: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Compute the distances (b, Ng) of blocks of queries; ``cosines`` (Nq, Ng), if given, is workspace."""
    x, n = rows.proposal, len(rows.proposal)
    lowest = x.new_full((n,), torch.inf)  # cosine of each row

    def visit(part: slice, columns: slice, cosine: Tensor) -> None:
        lowest[part] = torch.minimum(lowest[part], cosine.amin(1))
        lowest[columns] = torch.minimum(lowest[columns], cosine.amin(0))
        if cosines is not None and part.start < nq < columns.stop:
            end, start = min(part.stop, nq), max(columns.start, nq)
            here = cosine[: end - part.start, start - columns.start :]  # queries with gallery
            cosines[part.start : end, start - nq : columns.stop - nq] = here

    index = neighbors_within(rows, min(max(k1 + 1, k2), n), visit=visit)[1]
    scale = scale_of(lowest)
    wide, narrow = index[:, : k1 + 1], index[:, : round(k1 / 2) + 1]
    encodings = encoding(
        x, x, *members(wide, reciprocal(wide), n, listed(narrow, reciprocal(narrow))), scale, same=True
    )
    if k2 > 1:
        encodings = mean_over(index[:, :k2], encodings)
    lists = encodings.select(slice(nq, n)).transpose()
    repeated = repeated_rows(rows.given[nq:])
    for part in blocks(nq, n - nq, x.element_size()):
        shares = jaccard(encodings.select(part), lists)
        block = x[part] @ x[nq:].T if cosines is None else cosines[part]
        yield part, mixed(block, shares, scale[part], lambda_value, repeated)
