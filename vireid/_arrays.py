"""NumPy in, NumPy out: what ranking accepts is turned into tensors here, and its answers back."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vireid._checks import check_finite, check_integers, check_matrix

Array: TypeAlias = Tensor | np.ndarray[Any, Any]


def to_tensor(name: str, x: Any) -> Tensor:
    """``x`` as a tensor without gradient; a NumPy array shares its memory where PyTorch can do that."""
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}")
    if x.dtype.kind in "iu":
        x = x.astype(np.int64)
    elif x.dtype.kind != "f":
        raise TypeError(f"{name} must hold numbers, got {x.dtype}")
    elif not (x.flags.writeable and x.flags.c_contiguous and x.dtype.isnative):
        x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(x)


def to_matrix(name: str, x: Any, *, columns: int | None = None) -> Tensor:
    """``x`` as a floating-point tensor (N, d)."""
    x = to_tensor(name, x)
    check_matrix(name, x, columns=columns)
    return x


def check_pair(query: Any, gallery: Any) -> tuple[Tensor, Tensor]:
    """``query`` (Nq, d) and ``gallery`` (Ng, d), Ng at least 1, as finite tensors on one device."""
    q = to_matrix("query", query)
    g = to_matrix("gallery", gallery, columns=q.shape[1])
    if not len(g):
        raise ValueError(f"gallery must hold at least one row, got shape {tuple(g.shape)}")
    if q.device != g.device:
        raise ValueError(f"query and gallery must be on one device, got {q.device} and {g.device}")
    check_finite("query", q)
    check_finite("gallery", g)
    return q, g


def to_integers(name: str, x: Any, length: int, device: torch.device) -> Tensor:
    """``x`` as an int64 tensor (``length``,) on ``device``."""
    x = to_tensor(name, x)
    check_integers(name, x, length)
    return x.to(device, torch.int64)


def same_kind(x: Tensor, given: Any) -> Any:
    """``x`` as a NumPy array if ``given`` is one, else as it is."""
    return x.cpu().numpy() if isinstance(given, np.ndarray) else x
