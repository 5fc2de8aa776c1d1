"""The k-NN graph of a gallery: built once, saved, extended by new images, used by the re-rankers."""

import os
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from vireid._arrays import Array, to_matrix
from vireid._checks import check_count, check_finite
from vireid._store import load_arrays, save_arrays
from vireid.neighbors.search import Rows, neighbours_within, prepare

__all__ = ["NeighborGraph"]

_KIND, _VERSION = "vireid neighbor graph", 1


class NeighborGraph:
    """k nearest neighbours of every gallery image by cosine, the image itself first.

    Attributes:
        features: (N, d) as given.
        indices: (N, k) int64, neighbours by descending cosine, ties by index behind the image itself.
        values: (N, k) their cosines, float32 (float64 for float64 features); 1 for the image itself.
    """

    def __init__(self, features: Tensor, indices: Tensor, values: Tensor) -> None:
        self.features, self.indices, self.values = features, indices, values
        dtype = torch.promote_types(features.dtype, torch.float32)
        self.rows: Rows = prepare(features, "cosine", dtype, gallery=True)

    @property
    def k(self) -> int:
        """Neighbours of each image, itself included."""
        return self.indices.shape[1]

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def build(cls, gallery: Array, k: int) -> Self:
        """The graph of ``gallery`` (N, d); k larger than N means all of it."""
        g = to_matrix("gallery", gallery)
        check_count("k", k)
        if not len(g):
            raise ValueError(f"gallery must hold at least one row, got shape {tuple(g.shape)}")
        check_finite("gallery", g)
        dtype = torch.promote_types(g.dtype, torch.float32)
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            rows = prepare(g, "cosine", dtype, gallery=True)
            values, indices = neighbours_within(rows, min(k, len(g)))
            return cls(g, indices, values.to(dtype))

    def extend(self, gallery: Array) -> Self:
        """A graph of this gallery and ``gallery`` (M, d) behind it."""
        g = to_matrix("gallery", gallery, columns=self.features.shape[1])
        return self.build(torch.cat([self.features, g.to(self.features)]), self.k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph and its features to ``path`` (.npz), whole or not at all."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in ("features", "indices", "values")}
        save_arrays(Path(path), _KIND, _VERSION, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The graph that `save` wrote."""
        arrays, _ = load_arrays(Path(path), _KIND, _VERSION)
        return cls(*(torch.from_numpy(arrays[name]) for name in ("features", "indices", "values")))
