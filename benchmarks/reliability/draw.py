"""Random arguments, the same for the same seed: tensors and arrays of any type and layout, and their exact twins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "strided", "offset")


@dataclass
class Draw:
    """Draws arguments: floating-point values are of ``dtype``, or of float64 with the very same values.

    Args:
        rng: generator of all that is drawn.
        dtype: type whose values are drawn.
        layout: of the tensors in memory.
        numpy: ranking functions are given NumPy arrays.
        scale: of the features.
        exact: give float64 tensors of the same values.
    """

    rng: np.random.Generator
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    numpy: bool = False
    scale: float = 1.0
    exact: bool = False

    def count(self, low: int, high: int) -> int:
        """Draw an integer from ``low`` to ``high``."""
        return int(self.rng.integers(low, high + 1))

    def option(self, *options: Any) -> Any:
        """Draw one of ``options``."""
        return options[self.count(0, len(options) - 1)]

    def share(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a number of few digits between ``low`` and ``high``."""
        return round(low + (high - low) * float(self.rng.random()), 3)

    def floats(self, *shape: int, kind: str = "normal", scale: float | None = None) -> Tensor:
        """Draw normal, or, by ``kind``, uniform numbers (in (0, 1)) or a matrix of shares that sum to 1."""
        x = self.rng.normal(size=shape) if kind == "normal" else self.rng.uniform(0.05, 0.95, shape)
        if kind == "normal":
            x = x * (self.scale if scale is None else scale)
        if kind == "plan":
            x = x / max(x.sum(), 1e-9)
        return self.cast(torch.from_numpy(x))

    def cast(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to the type and laid out."""
        x = x.to(self.dtype)
        return self.laid(x.double() if self.exact else x)

    def laid(self, x: Tensor) -> Tensor:
        """Return ``x`` in the layout."""
        if self.layout == "transposed" and x.ndim > 1:
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if self.layout == "strided" and x.ndim:
            return torch.stack([x, x], -1).flatten(-2)[..., ::2]
        if self.layout == "offset" and x.ndim:
            return torch.cat([x[:1], x])[-len(x) :] if len(x) else x
        return x

    def array(self, x: Tensor) -> Any:
        """Return ``x`` as a NumPy array where those are drawn; NumPy has no bfloat16."""
        return x.numpy() if self.numpy and x.dtype != torch.bfloat16 else x

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers below ``high``."""
        return self.laid(torch.from_numpy(self.rng.integers(0, high, shape)))

    def modality(self, n: int) -> Tensor:
        """Draw the modality of ``n`` images, both where there are two."""
        return self.laid(torch.from_numpy((self.rng.permutation(n) + self.count(0, 1)) % 2))

    def labels(self, modality: Tensor, classes: int) -> Tensor:
        """Draw labels such that identities are of both modalities."""
        labels = torch.zeros(len(modality), dtype=torch.int64)
        for kind in (0, 1):
            rows = (modality == kind).nonzero().flatten()
            labels[rows] = torch.from_numpy(self.rng.permutation(len(rows)) % classes)
        return self.laid(labels)

    def module(self, module: nn.Module) -> nn.Module:
        """Return ``module`` with random parameters of the type, in training or evaluation mode."""
        for name, x in module.state_dict().items():
            if x.is_floating_point():
                drawn = self.rng.uniform(0.5, 1.5, x.shape) if x.ndim == 1 else self.rng.normal(size=x.shape) * 0.3
                low = 0.5 if "norm" in name or "var" in name else 0.0
                values = torch.as_tensor(drawn)  # a number for a parameter without axes
                x.copy_(values.clamp_min(low) if low else values)
        module = module.to(self.dtype)
        return (module.double() if self.exact else module).train(bool(self.count(0, 1)))
