"""The k-NN graph of a gallery: built once, saved, extended by new images, used by the re-rankers."""

import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from vireid._checks import Array, ArrayT, check_count, check_finite, check_path, check_tensor, same_kind, to_matrix
from vireid._files import load_arrays, save_arrays
from vireid._ops import at_least_float32, has_float64
from vireid.neighbors._exact import best_per_row, neighbors_within, search
from vireid.neighbors._scores import Rows, infinity, prepare, rescore, to_float, to_scores

_KIND, _VERSION = "vireid neighbor graph", 1
_PAIRS = 1 << 22  # new neighbors that `extend` collects before it merges them into the lists


class NeighborGraph:
    """The k nearest neighbors of every gallery image by cosine, the image itself first.

    Made by `build`, `load` or `extend`; none of its methods changes it.

    Attributes:
        features: (N, d) as given to `build`, not a copy: do not change them afterwards.
        indices: (N, k) int64, neighbors by descending cosine, ties by index behind the image itself.
        values: (N, k) their cosines, float32 (float64 for float64 features), 0 with a zero row; 1 for the image itself.

    Example:
        >>> graph = NeighborGraph.build(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [4.0, 3.0]]), k=2)
        >>> graph.indices.tolist()
        [[0, 2], [1, 3], [2, 0], [3, 0]]
        >>> graph.extend(torch.tensor([[0.0, 1.0]])).indices.tolist()
        [[0, 2], [1, 4], [2, 0], [3, 0], [4, 1]]
    """

    def __init__(
        self, features: Tensor, indices: Tensor, values: Tensor, *, k: int | None = None, rows: Rows | None = None
    ) -> None:
        check_tensor("features", features, "N d", like=features)
        check_tensor("indices", indices, "N k", kind="integer", like=features, N=len(features))
        check_tensor("values", values, "N k", like=features, N=len(features), k=indices.shape[1])
        self.features = features.detach() if features.requires_grad else features
        self.indices, self.values = indices, values.detach()
        # a gallery of fewer than k images has fewer columns, until it is extended
        self._wanted = indices.shape[1] if k is None else check_count("k", k)
        self._rows = rows

    @property
    def rows(self) -> Rows:
        """Gallery prepared for `vireid.neighbors._exact`; made at the first use, and as large as ``features``."""
        if self._rows is None:
            with torch.no_grad(), torch.autocast(self.features.device.type, enabled=False):
                self._rows = prepare(self.features, "cosine", self.values.dtype, gallery=True)
        return self._rows

    @property
    def k(self) -> int:
        """Number of neighbors per image, itself included: as `build` was asked for, or all N if there are fewer."""
        return self.indices.shape[1]

    def __len__(self) -> int:
        """Return N, the images of the gallery."""
        return len(self.features)

    @classmethod
    def build(cls, gallery: Array, k: int) -> Self:
        """Build the graph of a gallery, in blocks; no (N, N) matrix is kept.

        Args:
            gallery: (N, d) floating point, N at least 1.
            k: neighbors per image, itself included, at least 1; more than N means all of them.

        Raises:
            ValueError: for a wrong shape, no row, ``k`` below 1, NaN or an infinity.
            TypeError: for anything but a floating-point matrix and an integer ``k``.
        """
        g = to_matrix("gallery", gallery)
        k = check_count("k", k)
        if not len(g):
            raise ValueError(f"gallery must hold at least one row, got shape {tuple(g.shape)}")
        check_finite("gallery", g)
        dtype = torch.promote_types(g.dtype, torch.float32)
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            return cls._of(g, prepare(g, "cosine", dtype, gallery=True), k)

    @classmethod
    def _of(cls, gallery: Tensor, rows: Rows, k: int) -> Self:
        values, indices = neighbors_within(rows, min(k, len(gallery)))
        return cls(gallery, indices, values.to(rows.proposal.dtype), k=k, rows=rows)

    def extend(self, gallery: Array) -> Self:
        """Return the graph of this gallery with ``gallery`` appended: the same as `build` for both, without a rebuild.

        It computes M (N + M) products instead of (N + M)²: the new images search all, and an old image takes in those
        that are nearer than its k-th neighbor. A graph of fewer than k images is built anew.

        Args:
            gallery: (M, d) of the dtype and on the device of ``features``. M may be 0.

        Returns:
            A new graph, with min(k, N + M) neighbors if `build` was asked for k. This one does not change.

        Raises:
            ValueError: for a wrong shape, another dtype or device, NaN or an infinity.
            TypeError: for anything but a floating-point matrix.
        """
        g = to_matrix("gallery", gallery, columns=self.features.shape[1])
        if g.device != self.features.device or g.dtype != self.features.dtype:
            kinds = f"{self.features.dtype} on {self.features.device}, got {g.dtype} on {g.device}"
            raise ValueError(f"gallery must be of the graph's dtype and on its device, {kinds}")
        check_finite("gallery", g)
        if not len(g):
            return type(self)(self.features, self.indices, self.values, k=self._wanted, rows=self._rows)
        if len(self) < self._wanted:
            return self.build(torch.cat([self.features, g]), self._wanted)
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            new = prepare(g, "cosine", self.values.dtype, gallery=True)
            features = torch.cat([self.features, g])
            same = self.rows.given is self.features and new.given is g  # not so for float64 of an extreme size
            given = features if same else torch.cat([self.rows.given, new.given])
            rows = Rows(given, *(torch.cat(pair) for pair in zip(self.rows[1:], new[1:], strict=True)))
            values, indices = _extended(rows, new, self.indices, self.values)
        return type(self)(features, indices, values, k=self._wanted, rows=rows)

    def csr(self, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the graph as a sparse (N, N) matrix of cosines, in compressed rows.

        Args:
            k: nearest neighbors kept, the image itself included. Default: all.

        Returns:
            ``indptr`` (N + 1,) int64, ``indices`` (N k,) int64 and ``values`` (N k,), for
            ``scipy.sparse.csr_array((values, indices, indptr))``. Row i is at ``indptr[i]:indptr[i + 1]``, nearest
            first, so its columns are not sorted. Views of the graph if ``k`` is not given.

        Raises:
            ValueError: if ``k`` is below 1 or above the graph's.
            TypeError: if ``k`` is no integer.
        """
        k = self.k if k is None else check_count("k", k)
        if k > self.k:
            raise ValueError(f"k must be at most the graph's {self.k}, got {k}")
        indptr = torch.arange(0, len(self) * k + 1, k, device=self.indices.device)
        return indptr, self.indices[:, :k].reshape(-1), self.values[:, :k].reshape(-1)

    def weighted_sum(self, x: ArrayT, weights: Array | None = None) -> ArrayT:
        """Compute Σ_j weights_ij · x[indices_ij]: the sparse (N, N) matrix of the weights times ``x``, in O(N m).

        Args:
            x: (N, m), the summands, one row per image.
            weights: (N, k') for the first k' neighbors of each image, itself included, k' at most k. Default: the
                cosines.

        Returns:
            (N, m) in float32, or in float64 if ``x`` or ``weights`` is. A NumPy array if ``x`` is one.

        Raises:
            ValueError: for a shape that does not fit the graph, or another device.
            TypeError: for anything but floating-point matrices.
        """
        given, w = to_matrix("x", x), self.values if weights is None else to_matrix("weights", weights)
        if len(given) != len(self):
            raise ValueError(f"x must have a row for each of the graph's {len(self)} images, got {tuple(given.shape)}")
        if len(w) != len(self) or not 1 <= w.shape[1] <= self.k:
            raise ValueError(f"weights must have shape ({len(self)}, 1 to {self.k}), got {tuple(w.shape)}")
        for name, tensor in (("x", given), ("weights", w)):
            if tensor.device != self.indices.device:
                raise ValueError(f"{name} must be on the graph's device, {self.indices.device}, got {tensor.device}")
        dtype = torch.promote_types(at_least_float32(given[:0]).dtype, w.dtype)
        index = self.indices[:, : w.shape[1]].contiguous()
        total = embedding_bag(index, given.to(dtype), per_sample_weights=w.to(dtype).contiguous(), mode="sum")
        return same_kind(total, x)

    def to(self, device: torch.device | str) -> Self:
        """Return the graph on ``device``; itself if it is there already."""
        if self.features.device == torch.empty(0, device=device).device:
            return self
        features = self.features.to(device)
        rows = self._rows
        if rows is not None:  # prepared anew where only one of the devices has float64
            same = has_float64(features.device) == rows.square.is_floating_point()
            rows = Rows(features, *(x.to(device) for x in rows[1:])) if same else None
        return type(self)(features, self.indices.to(device), self.values.to(device), k=self._wanted, rows=rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph and its features to ``path``, whole or not at all, with a checksum; nothing is pickled.

        Args:
            path: ends in .npz; an existing file is replaced.

        Raises:
            ValueError: for another ending.
            FileNotFoundError: if the folder does not exist.
            OSError: if the disk is full or not writable; an existing file is then untouched.
        """
        save_arrays(check_path("path", path), _KIND, _VERSION, self.to_arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the graph that `save` wrote; it is on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, of another kind or version, does not match its checksum, or holds no k-NN
                graph; the message names the file.
        """
        arrays, _ = load_arrays(check_path("path", path), _KIND, _VERSION)
        try:
            return cls.from_arrays(arrays)
        except ValueError as error:
            raise ValueError(f"path must hold a {_KIND}, got {str(path)!r}: {error}") from error

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of the graph, for a file that holds more than it; on the CPU they share its memory.

        Returns:
            "features" (N, d), with the bits of bfloat16 as int16, for NumPy has no such type; "indices" and "values"
            (N, k); "k" (), the neighbors that were asked for.
        """
        features = self.features.view(torch.int16) if self.features.dtype == torch.bfloat16 else self.features
        arrays = {"features": features, "indices": self.indices, "values": self.values}
        return {name: x.cpu().numpy() for name, x in arrays.items()} | {"k": np.array(self._wanted, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Return the graph of the arrays that `to_arrays` returned; it shares their memory.

        Raises:
            ValueError: if an array is missing or has a wrong shape or type, or if they are no k-NN graph: a value that
                is not finite, an index out of range, an image that is not its own first neighbor, neighbors that
                repeat or are out of order, or no cosine.
            TypeError: for anything but NumPy arrays.
        """
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
        missing = {"features", "indices", "values", "k"} - set(arrays)
        if missing:
            raise ValueError(f"arrays must hold {', '.join(sorted(missing))}, got {', '.join(sorted(arrays))}")
        for name in ("features", "indices", "values", "k"):
            if not isinstance(arrays[name], np.ndarray):
                raise TypeError(f"{name} must be a numpy.ndarray, got {type(arrays[name]).__name__}")
        x, k = arrays["features"], arrays["k"]
        if x.ndim != 2 or not len(x) or x.dtype not in (np.int16, np.float16, np.float32, np.float64):
            raise ValueError(f"features must be (N, d) floating point, got {x.dtype} {x.shape}")
        if k.shape != () or k.dtype != np.int64 or k < 1:
            raise ValueError(f"k must be an int64 of at least 1, got {k!r}")
        shape = len(x), min(int(k), len(x))
        for name, kind in (("indices", np.int64), ("values", np.float64 if x.dtype == np.float64 else np.float32)):
            found = arrays[name]
            if found.shape != shape or found.dtype != kind:
                raise ValueError(f"{name} must be {np.dtype(kind)} {shape}, got {found.dtype} {found.shape}")
        features, indices, values = (torch.from_numpy(arrays[name]) for name in ("features", "indices", "values"))
        if features.dtype == torch.int16:
            features = features.view(torch.bfloat16)
        check_finite("features", features)
        check_finite("values", values)
        if float(values.abs().max()) > 1 + 1e-6:
            raise ValueError(f"values must be cosines in [-1, 1], got {float(values.abs().max()):g}")
        lowest, highest = (int(x) for x in indices.aminmax())
        if lowest < 0 or highest >= len(x):
            raise ValueError(f"indices must be in [0, {len(x)}), got {lowest} to {highest}")
        if not torch.equal(indices[:, 0], torch.arange(len(x))) or not bool((values[:, 0] == 1).all()):
            raise ValueError("indices must name the image itself first, with value 1")
        for part in indices.split(max(1, _PAIRS // shape[1])):
            if bool((part.sort(dim=1).values.diff(dim=1) == 0).any()):
                raise ValueError("indices must name a neighbor once")
        if bool((values[:, 2:] > values[:, 1:-1]).any()):
            raise ValueError("values must descend")
        return cls(features, indices, values, k=int(k))


def _extended(rows: Rows, new: Rows, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and indices of the neighbors of all rows, from those of the old ones, at least k of them."""
    n, k = indices.shape
    total, device = len(rows.given), indices.device
    values, indices = (torch.cat([x, x.new_empty(total - n, k)]) for x in (values, indices))
    rounding = torch.finfo(values.dtype).eps  # of the values, which are compared with products below
    pending: list[tuple[Tensor, Tensor, Tensor]] = []
    for found in search(new, rows, k):
        itself = torch.arange(n + found.rows.start, n + found.rows.stop, device=device)
        part = slice(n + found.rows.start, n + found.rows.stop)
        indices[part], values[part] = _itself_first(itself, found.indices, to_float(found.scores, values.dtype))
        if k == 1:
            continue
        block = new.select(found.rows)
        error = found.error(block, rows).to(values.dtype)[:, None]
        near = found.product[:, :n] >= values[:n, -1] - rounding - error
        column, row = near.nonzero().T  # new images one by one, so that the new neighbors of a row are by index
        score = rescore(block, rows, column, row)
        rounded = to_float(score, values.dtype)
        nearer = rounded > values[row, -1]  # both are rounded: this settles all but equal ones
        alike = (rounded == values[row, -1]).nonzero().flatten()
        last, place = row[alike].unique(return_inverse=True)
        kth = rescore(rows, rows, last, indices[last, -1])
        nearer[alike] = score[alike] > kth[place]  # a tie is the old neighbor's
        pending.append((row[nearer], itself[column[nearer]], score[nearer]))
        if sum(len(entry[0]) for entry in pending) > _PAIRS:
            _take_in(rows, indices, values, pending)
    _take_in(rows, indices, values, pending)
    return values, indices


def _itself_first(itself: Tensor, indices: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return neighbors (b, k) and their cosines with the row itself moved to the front."""
    mine = indices == itself[:, None]
    mine[:, -1] |= ~mine.any(1)  # pushed out by k duplicates, or a zero row: it takes the last place
    indices = torch.where(mine, itself[:, None], indices)
    order = mine.byte().argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, order), scores.masked_fill(mine, 1).gather(1, order)


def _take_in(rows: Rows, indices: Tensor, values: Tensor, pending: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Merge new neighbors (row, index, cosine) into the lists of their rows, in place, and empty ``pending``."""
    if not pending:
        return
    row, index, score = (torch.cat(parts) for parts in zip(*pending, strict=True))
    pending.clear()
    k = indices.shape[1]
    changed, place = row.unique(return_inverse=True)
    if not len(changed):
        return
    old, own = indices[changed], to_scores(values[changed])
    # the values are rounded, which changes their order with new scores only if one of these rounds to the same value
    alike = (values[changed[place]] == to_float(score, values.dtype)[:, None]).any(1)
    again = place[alike].unique()
    which = changed[again].repeat_interleave(k)
    own[again] = rescore(rows, rows, which, old[again].flatten()).view(-1, k)
    own[:, 0] = infinity(own)  # the row itself
    old, own = old.flatten(), own.flatten()
    # old before new and new by index: stable sorts keep ties in that order
    row = torch.cat([torch.arange(len(changed), device=row.device).repeat_interleave(k), place])
    index, score = torch.cat([old, index]), torch.cat([own, score])
    best = best_per_row(score, row, len(changed), k)
    indices[changed] = index[best]
    values[changed] = to_float(score[best], values.dtype).index_fill(1, torch.zeros_like(best[0, :1]), 1)
