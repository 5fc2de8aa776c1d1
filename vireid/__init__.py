"""Independent components for visible-infrared person re-identification (VI-ReID).

Import a part from its own module: ``from vireid.nn import H2FT``. Reading images, training and plotting live behind the
extras ``train`` and ``plots``; what they need is imported where it is used.
"""

__version__ = "0.1.0"

VISIBLE = 0
"""Modality of an image taken by a visible-light camera."""

INFRARED = 1
"""Modality of an image taken by an infrared (or thermal) camera."""

__all__ = ["INFRARED", "VISIBLE", "__version__"]
