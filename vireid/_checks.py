"""Checks of arguments, made once at each public function. A message names the argument, what it must be, what came.

Only shapes, types and options are looked at here: that is free. Values are read (which stalls a GPU) by
`check_finite` alone, where features enter ranking.
"""

from collections.abc import Collection, Sequence
from numbers import Real
from operator import index
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn


def check_matrix(name: str, x: Any, *, columns: int | None = None) -> None:
    """Raise unless ``x`` is a floating-point tensor of shape (N, d), with d = ``columns`` where that is given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim != 2 or (columns is not None and x.shape[1] != columns):
        expected = f"(N, {columns})" if columns is not None else "(N, d)"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def check_integers(name: str, x: Any, length: int) -> None:
    """Raise unless ``x`` is an integer tensor of shape (``length``,)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), one entry a row, got {tuple(x.shape)}")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {x.dtype}")


def check_mask(name: str, mask: Any, like: Tensor) -> None:
    """Raise unless ``mask`` is a bool tensor (B, n) on the device of ``like`` (B, n, …)."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.shape != like.shape[:2]:
        raise ValueError(f"{name} must have shape {tuple(like.shape[:2])}, got {tuple(mask.shape)}")
    if mask.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {mask.device}")


def check_module(name: str, module: Any) -> None:
    """Raise unless ``module`` is a `torch.nn.Module`."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")


def check_count(name: str, value: Any, *, minimum: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    value = index(value)  # a NumPy integer counts as one
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_size(name: str, size: Any, *, minimum: tuple[int, int] = (1, 1)) -> None:
    """Raise unless ``size`` is (H, W), integers of at least ``minimum``."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"{name} must be (H, W), got {size!r}")
    for i in range(2):
        check_count(f"{name}[{i}]", size[i], minimum=minimum[i])


def check_positive(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above zero."""
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def check_number(name: str, value: Any) -> None:
    """Raise unless ``value`` is a real number, which a bool is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number of at least zero."""
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_option(name: str, value: Any, options: Collection[Any]) -> None:
    """Raise unless ``value`` is one of ``options``."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_finite(name: str, x: Tensor) -> None:
    """Raise if ``x`` (N, …) holds NaN or an infinity; the message counts the rows and names the first."""
    # The extremes carry any NaN or infinity, and are found without a temporary, many times faster than `isfinite`.
    if x.numel() and not torch.stack(x.aminmax()).isfinite().all():
        rows = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten()
        count = f"{len(rows)} of {len(x)} rows, first in row {int(rows[0])}"
        raise ValueError(f"{name} must be finite, got NaN or an infinity in {count}")
