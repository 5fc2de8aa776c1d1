"""Check arguments, once at each public function. A message names the argument, what it must be and what came.

Shapes, types and options are read everywhere, which is free. Values would stall a GPU: the codes of modalities and
labels are read where `values_are_free`, and `check_finite` is called where features enter ranking. Ranking also accepts
NumPy arrays and answers with them: `to_tensor`, `same_kind`. Checks of a number return it as Python's own.
"""

import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

Array: TypeAlias = Tensor | np.ndarray[Any, Any]
ArrayT = TypeVar("ArrayT", bound=Array)

_MAX_SIDE = 2**31 - 1  # of an image
_KINDS = {"float": "be floating point", "integer": "hold integers", "bool": "be bool", "any": "hold real numbers"}


def check_tensor(
    name: str,
    x: object,
    shape: str,
    *,
    kind: Literal["float", "integer", "bool", "any"] = "float",
    like: Tensor | None = None,
    **sizes: int,
) -> None:
    """Raise unless ``x`` is a tensor of ``shape``, written in the letters of the docstrings.

    Args:
        name: of the argument, for the message.
        x: the argument.
        shape: one word per axis: a number ("3"), or a name ("B", "K+1") whose size is free unless ``sizes`` has it.
            Axes named h, w, H and W must not be empty.
        kind: kind of its dtype; none is complex.
        like: another argument, whose device it must be on.
        sizes: sizes that are known, by the axis' name.

    Raises:
        TypeError: if it is not a tensor, or of another kind.
        ValueError: if its shape or device differs; the message has the known sizes in place of their names.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested or x.is_quantized or (x.is_floating_point() and x.itemsize < 2):
        form = f"{x.dtype}, {'nested' if x.is_nested else str(x.layout).removeprefix('torch.')}"
        raise TypeError(f"{name} must be dense and, if floating point, of 16 bits or more, got {form}")
    axes = [str(sizes.get(axis, axis)) for axis in shape.split()]
    fits = x.ndim == len(axes) and all(not a.isdigit() or n == int(a) for a, n in zip(axes, x.shape, strict=True))
    empty = fits and any(axis in "hwHW" and size == 0 for axis, size in zip(axes, x.shape, strict=True))
    if empty or not fits:
        expected = f"({', '.join(axes)}{',' * (len(axes) == 1)}){' with at least one pixel' * empty}"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
    found = "bool" if x.dtype == torch.bool else "float" if x.is_floating_point() else "integer"
    if x.is_complex() or kind not in (found, "any"):
        raise TypeError(f"{name} must {_KINDS[kind]}, got {x.dtype}")
    if like is None:
        check_values(name, x)
    elif x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the other arguments, got {x.device}")


def check_module(name: str, module: object, kind: type[nn.Module] = nn.Module) -> None:
    """Raise unless ``module`` is a `torch.nn.Module` of this ``kind``, or a wrapper of one (`torch.compile`)."""
    if not isinstance(module, nn.Module) or not any(isinstance(part, kind) for part in module.modules()):
        wanted = "torch.nn.Module" if kind is nn.Module else kind.__name__
        raise TypeError(f"{name} must be a {wanted}, got {type(module).__name__}")


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Raise, if an import in the block fails, an ImportError that says what the extra of this ``name`` is for."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install 'vireid[{name}]'") from error


def values_are_free(x: Tensor) -> bool:
    """Return whether reading values of ``x`` costs nothing: on the CPU, outside of torch.compile and torch.export."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Raise unless ``labels`` (…,) are 0 … ``num_classes`` - 1; read only where `values_are_free`."""
    if labels.numel() and values_are_free(labels):
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} must be 0 to {num_classes - 1}, got {low if low < 0 else high}")


def check_modality(name: str, modality: Tensor, *, wait: bool = False) -> None:
    """Raise unless ``modality`` (…,) is 0 (visible) or 1 (infrared); read where `values_are_free`, or with ``wait``."""
    if modality.numel() and (wait or values_are_free(modality)):
        low, high = (int(x) for x in modality.aminmax())
        if low < 0 or high > 1:
            hint = "labels come before modality, and vireid.modality(x, visible=…, infrared=…) converts other codes"
            raise ValueError(f"{name} must be 0 (visible) or 1 (infrared), got {low if low < 0 else high}; {hint}")


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return ``value`` as an int; raise unless it is Python's or NumPy's integer from ``minimum`` to ``maximum``."""
    if isinstance(value, bool | np.ndarray | np.bool_ | Tensor) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if index(value) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if maximum is not None and index(value) > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return index(value)


def check_size(name: str, size: object, *, minimum: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return ``size`` as (H, W), two ints; raise unless they are integers of at least ``minimum``."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise ValueError(f"{name} must be (H, W), got {size!r}")
    sides = (check_count(f"{name}[{i}]", size[i], minimum=minimum[i], maximum=_MAX_SIDE) for i in range(2))
    return tuple(sides)  # type: ignore[return-value]


def check_number(name: str, value: object) -> float:
    """Return ``value`` as a float; raise unless it is a real number, which a bool is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number within float64, got an integer beyond") from None


def check_positive(name: str, value: object) -> float:
    """Return ``value`` as a float; raise unless it is finite and above zero."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return number


def check_at_least_zero(name: str, value: object) -> float:
    """Return ``value`` as a float; raise unless it is finite and at least zero."""
    number = check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return number


def check_fraction(name: str, value: object, *, zero: bool = True) -> float:
    """Return ``value`` as a float; raise unless it is in [0, 1], or in (0, 1] without ``zero``."""
    number = check_number(name, value)
    if not (0 <= number <= 1 and (zero or number)):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and at most 1, got {value}")
    return number


def check_option(name: str, value: object, options: Collection[object]) -> None:
    """Raise unless ``value`` is one of ``options``."""
    alike = [x for x in options if isinstance(value, type(x)) and isinstance(value, bool) == isinstance(x, bool)]
    if value not in alike:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_flag(name: str, value: bool) -> bool:
    """Return ``value``; raise unless it is True or False."""
    check_option(name, value, (True, False))
    return value


def check_path(name: str, value: object) -> Path:
    """Return ``value`` as a path; raise unless it is a str, without a null character, or an `os.PathLike` of one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise TypeError(f"{name} must be a path, got {value!r}")
    if "\0" in text:
        raise ValueError(f"{name} must hold no null character, got {value!r}")
    return Path(text)


def check_values(name: str, x: Tensor) -> None:
    """Raise unless ``x`` holds values."""
    if x.is_meta:
        raise TypeError(f"{name} must hold values, got a tensor on the device meta")


def check_finite(name: str, x: Tensor) -> None:
    """Raise if ``x`` (N, …) holds NaN or an infinity; the message counts the rows and names the first."""
    check_values(name, x)
    # The extremes carry any NaN or infinity, and are found without a temporary, many times faster than `isfinite`.
    if x.numel() and not torch.stack(x.aminmax()).isfinite().all():
        rows = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten()
        count = f"{len(rows)} of {len(x)} rows, first in row {int(rows[0])}"
        raise ValueError(f"{name} must be finite, got NaN or an infinity in {count}")


def to_tensor(name: str, x: object) -> Tensor:
    """Return ``x`` as a tensor without gradient; a NumPy array shares its memory where PyTorch can do that."""
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy.ndarray, got {type(x).__name__}")
    if x.dtype.kind in "iu":
        if x.dtype == np.uint64 and x.size and x.max() >= 2**63:
            raise ValueError(f"{name} must be below 2**63, got {x.max()}")
        x = x.astype(np.int64)
    elif x.dtype.kind != "f" or x.itemsize > 8:
        raise TypeError(f"{name} must hold numbers{' of at most 64 bits' * (x.dtype.kind == 'f')}, got {x.dtype}")
    elif not (x.flags.writeable and x.flags.c_contiguous and x.dtype.isnative) or min(x.strides, default=0) < 0:
        x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(x)


def to_matrix(name: str, x: object, *, columns: int | None = None) -> Tensor:
    """Return ``x`` as a floating-point tensor (N, d), with d = ``columns`` where that is given."""
    x = to_tensor(name, x)
    check_tensor(name, x, f"N {'d' if columns is None else columns}", like=x)  # its device is compared later
    return x


def check_pair(query: object, gallery: object) -> tuple[Tensor, Tensor]:
    """Return ``query`` (Nq, d) and ``gallery`` (Ng, d), Ng at least 1, as finite tensors on one device."""
    q = to_matrix("query", query)
    g = to_matrix("gallery", gallery, columns=q.shape[1])
    if not len(g):
        raise ValueError(f"gallery must hold at least one row, got shape {tuple(g.shape)}")
    if q.device != g.device:
        raise ValueError(f"query and gallery must be on one device, got {q.device} and {g.device}")
    check_finite("query", q)
    check_finite("gallery", g)
    return q, g


def to_integers(name: str, x: object, length: int, device: torch.device) -> Tensor:
    """Return ``x`` as an int64 tensor (``length``,) on ``device``."""
    x = to_tensor(name, x)
    check_tensor(name, x, "N", kind="integer", N=length)
    if x.dtype == torch.uint64:
        to_tensor(name, x.cpu().numpy())  # raises for those that int64 has not
    return x.to(device, torch.int64)


def same_kind(x: Tensor, given: ArrayT) -> ArrayT:
    """Return ``x`` as a NumPy array if ``given`` is one, else unchanged."""
    return cast(ArrayT, x.cpu().numpy() if isinstance(given, np.ndarray) else x)
