"""Independent components for visible-infrared person re-identification (VI-ReID).

Sub-packages load on first use: ``vireid.nn.H2FT`` works after ``import vireid``. Reading images, training and plotting
need the extras ``train`` and ``plots``, whose packages are imported where they are used.
"""

import importlib
from collections.abc import Collection, Sequence
from numbers import Real
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__version__ = "0.2.0"

VISIBLE = 0
"""Modality of an image taken by a visible-light camera."""

INFRARED = 1
"""Modality of an image taken by an infrared (or thermal) camera."""

__all__ = ["INFRARED", "VISIBLE", "__version__", "modality"]

Code: TypeAlias = int | str
Codes: TypeAlias = Code | Collection[Code]

_PACKAGES = (
    *("cli", "data", "losses", "metrics", "models", "neighbors", "nn", "ot", "plots", "protocols", "rerank"),
    "training",
)


@overload
def modality(x: "Tensor", visible: Codes = 1, infrared: Codes = 2) -> "Tensor": ...
@overload
def modality(x: "np.ndarray[Any, Any]", visible: Codes = 1, infrared: Codes = 2) -> "np.ndarray[Any, Any]": ...
@overload
def modality(x: Sequence[Code], visible: Codes = 1, infrared: Codes = 2) -> list[int]: ...
def modality(x: object, visible: Codes = 1, infrared: Codes = 2) -> object:
    """Convert the codes of another system to those of this library, `VISIBLE` = 0 and `INFRARED` = 1.

    The defaults are the codes of AGW and its descendants. Convert once, where labels are read: codes of a tensor on a
    GPU are copied to the CPU.

    Args:
        x: tensor, array or sequence of codes, numbers or str, of any shape.
        visible: code of visible images, or several, such as a data set's cameras.
        infrared: code or codes of infrared images.

    Returns:
        int64 tensor on the device of ``x``, int64 array, or list of int, as ``x`` is.

    Raises:
        ValueError: if ``x`` holds other codes, which are listed, or if a code stands for both modalities.
        TypeError: if ``x`` is no tensor, array or sequence.

    Example:
        >>> import torch, vireid
        >>> vireid.modality(["rgb", "ir", "rgb"], visible="rgb", infrared="ir")
        [0, 1, 0]
        >>> vireid.modality(torch.tensor([1, 2, 3, 6]), visible=(1, 2, 4, 5), infrared=(3, 6))  # cameras of SYSU-MM01
        tensor([0, 0, 1, 1])
    """
    import numpy as np
    import torch

    from vireid._checks import check_tensor

    if isinstance(x, str | bytes) or not isinstance(x, torch.Tensor | np.ndarray | Sequence):
        raise TypeError(f"x must be a torch.Tensor, a numpy.ndarray or a sequence of codes, got {type(x).__name__}")
    if isinstance(x, torch.Tensor):
        check_tensor("x", x, " ".join(["N"] * x.ndim), kind="any")
    of_0, of_1 = _codes("visible", visible), _codes("infrared", infrared)
    if any(code in of_1 for code in of_0):
        raise ValueError(f"visible and infrared must be different codes, got {visible!r} and {infrared!r}")
    codes = np.array(x if isinstance(x, Sequence) else x.tolist(), dtype=object)
    if others := list(dict.fromkeys(repr(code) for code in codes.flat if code not in [*of_0, *of_1])):
        got = ", ".join([*others[:9], *["…"] * (len(others) > 9)])
        raise ValueError(f"x must hold visible={visible!r} or infrared={infrared!r} only, got {got} as well")
    result = np.array([code in of_1 for code in codes.flat], dtype=np.int64)
    if isinstance(x, Sequence):
        return result.reshape(codes.shape).tolist()
    return result.reshape(x.shape) if isinstance(x, np.ndarray) else torch.from_numpy(result).view(x.shape).to(x.device)


def _codes(name: str, code: object) -> list[object]:
    code = getattr(code, "tolist", lambda: code)()
    if not isinstance(code, str | Real | Collection):
        raise TypeError(f"{name} must be a number, a str or several of them, got {code!r}")
    return [code] if isinstance(code, str | Real) else [*code]


def __getattr__(name: str) -> ModuleType:
    if name in _PACKAGES:
        return importlib.import_module(f"vireid.{name}")
    raise AttributeError(f"module 'vireid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
