"""Independent components for visible-infrared person re-identification (VI-ReID).

Importing ``vireid`` loads PyTorch and NumPy only. Reading images, training and plotting live behind the extras
``train`` and ``plots`` and are imported where they are used.
"""

__version__ = "0.1.0"

VISIBLE = 0
"""Modality of an image taken by a visible-light camera."""

INFRARED = 1
"""Modality of an image taken by an infrared (or thermal) camera."""

__all__ = ["INFRARED", "VISIBLE", "__version__"]
