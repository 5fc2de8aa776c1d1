"""Parts of a person found without labels: pooling by learned prototypes (SAAI, Fang et al., ICCV 2023), Eq. 1-3."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from vireid._checks import check_count, check_flag, check_size, check_tensor
from vireid.nn._functions import PrototypePool


class PrototypePooling(nn.Module):
    """Pool a feature map into one feature per learned prototype (SAAI's "SAFL", Eq. 1-2).

        S = sigmoid(P (T + E)ᵀ)          attention, Eq. 1
        part_i = (1/n) Σ_j S_ij T_j      Eq. 2

    T (n, c) are the n = h·w pixels of a feature map, row by row; P (p, c) the p prototypes and E (n, c) a position
    embedding, both learned and shared by the two modalities. T + E is never formed: the products with T and with E are
    taken separately and added. `pool` also returns the mean of the map, as in Eq. 3. Any (h, w) is accepted; an export
    is for one.

    Args:
        channels: c of the feature map.
        parts: p, the number of prototypes.
        size: (h, w) of the position embedding. It is resized bicubically for a map of another size.
        position_in_values: pool T + E in place of T. The paper's text can be read either way; False (our choice) is
            what the authors' released model does.

    Attributes:
        prototypes: (p, c) parameter P, drawn from N(0, 1/c) (our choice): a map with entries around 1 has logits around
            1.
        position: (c, h, w) parameter E, drawn from N(0, 0.02²) (our choice), small beside the features.

    Raises:
        ValueError: if an argument is below 1 or ``size`` does not hold two numbers.
        TypeError: if an argument is not an integer.
    """

    def __init__(
        self, channels: int, *, parts: int = 7, size: Sequence[int] = (18, 9), position_in_values: bool = False
    ) -> None:
        super().__init__()
        channels, parts, size = check_count("channels", channels), check_count("parts", parts), check_size("size", size)
        self.position_in_values = check_flag("position_in_values", position_in_values)
        self.prototypes = nn.Parameter(torch.randn(parts, channels) / channels**0.5)
        self.position = nn.Parameter(torch.randn(channels, *size) * 0.02)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        (parts, channels), size = self.prototypes.shape, tuple(self.position.shape[1:])
        return f"{channels}, parts={parts}, size={size}, position_in_values={self.position_in_values}"

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the parts of each image.

        Args:
            feature_map: (B, c, h, w), any h and w.

        Returns:
            parts: (B, p, c).
            attention: (B, p, h·w) in [0, 1], row by row of the map: ``attention.unflatten(2, (h, w))`` is a picture.

        Raises:
            ValueError: if ``feature_map`` is not (B, c, h, w) with at least one pixel.
            TypeError: if it is not a floating-point tensor.
        """
        similarity, pooled = self.pool(feature_map)
        return pooled[:, :-1], similarity.sigmoid()

    def pool(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the parts and the global feature (Eq. 3), and return the logits of the attention.

        In training this is faster than the parts and the map's mean one after the other, as the map's gradient is
        written only once. Argument and errors are those of `forward`; the result is in the dtype of the map, or in that
        of autocast.

        Returns:
            similarity: (B, p, h·w), the logits P (T + E)ᵀ of Eq. 1.
            pooled: (B, p + 1, c), the parts and, last, the mean of the map's pixels.
        """
        check_tensor("feature_map", feature_map, "B c h w", c=self.prototypes.shape[1])
        device, dtype, size = feature_map.device.type, feature_map.dtype, feature_map.shape[2:]
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            # Resizing is linear: P Eᵀ is resized in place of E, p channels in place of c.
            position = _resize(einsum(self.prototypes, self.position, "p c, c h w -> p h w"), size)
            pixels = rearrange(feature_map, "b c h w -> b c (h w)").to(dtype)
            similarity, pooled = PrototypePool.apply(pixels, self.prototypes.to(dtype), position.to(dtype))
            if self.position_in_values:
                weights = F.pad(similarity.sigmoid() / pixels.shape[2], (0, 0, 0, 1))  # 0 for the global feature
                values = _resize(self.position, size).to(dtype)
                pooled = pooled + einsum(weights, values, "b p n, c n -> b p c")
        return similarity, pooled


def _resize(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``grid`` (m, h', w') resized to ``size`` (h, w), as (m, h·w)."""
    if grid.shape[1:] != size:
        grid = F.interpolate(grid[None], size, mode="bicubic", align_corners=False)[0]
    return rearrange(grid, "m h w -> m (h w)")
