"""Independent components for visible-infrared person re-identification (VI-ReID).

Sub-packages load on first use: ``vireid.nn.H2FT`` works after ``import vireid``. Reading images, training and plotting
need the extras ``train`` and ``plots``, whose packages are imported where they are used.
"""

import importlib
from types import ModuleType

__version__ = "0.2.0"

VISIBLE = 0
"""Modality of an image taken by a visible-light camera."""

INFRARED = 1
"""Modality of an image taken by an infrared (or thermal) camera."""

__all__ = ["INFRARED", "VISIBLE", "__version__"]

_PACKAGES = (
    *("cli", "data", "losses", "metrics", "models", "neighbors", "nn", "ot", "plots", "protocols", "rerank"),
    "training",
)


def __getattr__(name: str) -> ModuleType:
    if name in _PACKAGES:
        return importlib.import_module(f"vireid.{name}")
    raise AttributeError(f"module 'vireid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PACKAGES])
