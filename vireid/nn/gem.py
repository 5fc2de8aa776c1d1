"""Generalized-mean pooling (Radenović et al., TPAMI 2019), the pooling of AGW and HCT."""

import math
from itertools import product

import torch
from torch import Tensor, nn

from vireid._checks import check_flag, check_number, check_positive, check_size, check_tensor
from vireid._ops import at_least_float32


class GeM(nn.Module):
    """Generalized-mean pooling: the average for p = 1, the maximum for p → ∞ (AGW §5, Ye et al., TPAMI 2021).

        f = ( 1/n Σ_j max(x_j, ε)^p )^(1/p),   over the n pixels of a cell

    It is computed from the logarithms, so that no power overflows or vanishes. Negative entries count as ε.

    Args:
        p: at least 1; 3 in AGW. It is one number for all channels (our choice).
        trainable: learn p (our choice), or keep it, as AGW's published code for visible-infrared images does. A p that
            is trained below 1 counts as 1 (our choice).
        grid: (rows, columns) of the cells, those of `torch.nn.AdaptiveAvgPool2d`; (6, 1) makes 6 horizontal stripes.
        eps: ε.

    Shape:
        (B, c, h, w) -> (B, c · rows · columns) in the dtype of the input, computed in at least float32.

    Attributes:
        p: () parameter.

    Raises:
        ValueError: if an argument is out of its range or the map is not (B, c, h, w).
        TypeError: if an argument is not a number, or the map is not floating point.
    """

    def __init__(
        self, p: float = 3.0, trainable: bool = True, *, grid: tuple[int, int] = (1, 1), eps: float = 1e-6
    ) -> None:
        super().__init__()
        p = check_number("p", p)
        if not 1 <= p < math.inf:
            raise ValueError(f"p must be at least 1 and finite, got {p}")
        self.grid, self.eps = check_size("grid", grid), check_positive("eps", eps)
        self.p = nn.Parameter(torch.tensor(p), requires_grad=check_flag("trainable", trainable))

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"p={self.p.item():g}, trainable={self.p.requires_grad}, grid={self.grid}"

    def forward(self, feature_map: Tensor) -> Tensor:
        """Pool each cell of ``feature_map`` (B, c, h, w)."""
        check_tensor("feature_map", feature_map, "B c h w")
        with torch.autocast(feature_map.device.type, enabled=False):
            log = at_least_float32(feature_map).clamp_min(self.eps).log()
            p = self.p.to(log.dtype).clamp_min(1)
            rows, columns = (_bounds(size, cells) for size, cells in zip(log.shape[2:], self.grid, strict=True))
            powers = p * log
            cells = [powers[:, :, top:bottom, left:right] for (top, bottom), (left, right) in product(rows, columns)]
            means = [cell.logsumexp((2, 3)) - math.log(cell.shape[2] * cell.shape[3]) for cell in cells]
            return (torch.stack(means, 2).flatten(1) / p).exp().to(feature_map.dtype)


def _bounds(size: int, cells: int) -> list[tuple[int, int]]:
    """Return first and one behind the last pixel of each cell along an axis, as PyTorch's adaptive pooling has them."""
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
