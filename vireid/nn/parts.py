"""Parts of a person found without labels: pooling by learned prototypes (SAAI, Fang et al., ICCV 2023), Eq. 1-3."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_count, check_size

__all__ = ["PrototypePooling"]


class _Pool(torch.autograd.Function):
    """P Tᵀ + a bias, the mean of T under its sigmoid and the plain mean, for T given as pixels (B, c, n).

    The derivative is written out because all three have one with respect to T, a tensor of the map's size: taken as one
    product it is written once, where autograd writes three and adds them.
    """

    @staticmethod
    def forward(pixels: Tensor, prototypes: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        images = pixels.shape[0]
        # Expanded by hand: `matmul` would copy the map to fold the batch into its rows.
        similarity = torch.baddbmm(bias.expand(images, -1, -1), prototypes.expand(images, -1, -1), pixels)
        weights = F.pad(similarity.sigmoid(), (0, 0, 0, 1), value=1.0)
        # 1/n inside the product: a sum over the pixels may be more than half precision can hold.
        pooled = torch.baddbmm(pixels.new_zeros(()), weights, pixels.mT, beta=0, alpha=1 / pixels.shape[2])
        return similarity, pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:2], output[0])

    @staticmethod
    def backward(ctx: Any, grad_similarity: Tensor, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        pixels, prototypes, similarity = ctx.saved_tensors
        with torch.autocast(pixels.device.type, enabled=False):
            attention, grad_pooled = similarity.sigmoid(), grad_pooled / pixels.shape[2]
            grad_logits = grad_similarity + torch.bmm(grad_pooled[:, :-1], pixels) * attention * (1 - attention)
            grad_pixels = None
            if ctx.needs_input_grad[0]:
                left = torch.cat([grad_pooled, prototypes.expand(pixels.shape[0], -1, -1)], 1)  # (B, 2p + 1, c)
                right = torch.cat([F.pad(attention, (0, 0, 0, 1), value=1.0), grad_logits], 1)
                grad_pixels = torch.bmm(left.mT, right)
            return grad_pixels, torch.bmm(grad_logits, pixels.mT).sum(0), grad_logits.sum(0)


class PrototypePooling(nn.Module):
    """Pool a feature map into one feature for each of p learned prototypes (SAAI's "SAFL", Eq. 1-2).

        S = sigmoid(P (T + E)ᵀ)          attention, Eq. 1
        part_i = (1/n) Σ_j S_ij T_j      Eq. 2

    T (n, c) are the pixels of a feature map, n = h·w of them, row by row; P (p, c) the prototypes and E (n, c) a
    position embedding, both learned and shared by the two modalities. T + E is never formed: the products with T and
    with E are taken apart and summed. Eq. 3, the parts and the mean of the map, is what `pool` returns. Any (h, w) is
    served; an export is for one.

    Args:
        channels: c of the feature map.
        parts: p, the number of prototypes.
        size: (h, w) that the position embedding is made for. For another one it is resized bicubically.
        position_in_values: pool T + E in place of T. The paper's text can be read either way; False (ours) is what the
            authors' released model does.

    Attributes:
        prototypes: (p, c) parameter P, drawn from N(0, 1/c) (ours): entries of the map around 1 give logits around 1.
        position: (c, h, w) parameter E, drawn from N(0, 0.02²) (ours), small beside the features.

    Raises:
        ValueError: if an argument is below 1 or ``size`` does not hold two numbers.
        TypeError: if one is not an integer.
    """

    def __init__(
        self, channels: int, *, parts: int = 7, size: Sequence[int] = (18, 9), position_in_values: bool = False
    ) -> None:
        super().__init__()
        check_count("channels", channels)
        check_count("parts", parts)
        check_size("size", size)
        self.position_in_values = position_in_values
        self.prototypes = nn.Parameter(torch.randn(parts, channels) / channels**0.5)
        self.position = nn.Parameter(torch.randn(channels, *size) * 0.02)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        (parts, channels), size = self.prototypes.shape, tuple(self.position.shape[1:])
        return f"{channels}, parts={parts}, size={size}, position_in_values={self.position_in_values}"

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of each image and where it looked for them.

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
        """The parts and the global feature (Eq. 3) with the logits behind them, all from one operation.

        As `similarity`, `aggregate` and the map's mean in turn, but the map's gradient is written once, not once for
        each of them: in training that is most of the time.

        Args:
            feature_map: (B, c, h, w), any h and w.

        Returns:
            similarity: (B, p, h·w), as `similarity` makes it.
            pooled: (B, p + 1, c), the parts and, last, the mean of the map's pixels.

        Raises:
            ValueError: if ``feature_map`` is not (B, c, h, w) with at least one pixel.
            TypeError: if it is not a floating-point tensor.
        """
        pixels, prototypes, position = self._operands(feature_map)
        with torch.autocast(pixels.device.type, enabled=False):
            similarity, pooled = _Pool.apply(pixels, prototypes, position)
            if self.position_in_values:
                values = self._resized(self.position, feature_map).T.to(pixels.dtype)
                weights = F.pad(similarity.sigmoid(), (0, 0, 0, 1))  # none of it in the global feature
                pooled = torch.baddbmm(
                    pooled, weights, values.expand(pixels.shape[0], -1, -1), alpha=1 / pixels.shape[2]
                )
        return similarity, pooled

    def similarity(self, feature_map: Tensor) -> Tensor:
        """The logits P (T + E)ᵀ (B, p, h·w) of Eq. 1, before the sigmoid, for a ``feature_map`` (B, c, h, w)."""
        pixels, prototypes, position = self._operands(feature_map)
        images = pixels.shape[0]  # `len` would fix B in an export
        with torch.autocast(pixels.device.type, enabled=False):
            # Expanded by hand: `matmul` would copy the map to fold the batch into its rows.
            return torch.baddbmm(position.expand(images, -1, -1), prototypes.expand(images, -1, -1), pixels)

    def aggregate(self, feature_map: Tensor, attention: Tensor) -> Tensor:
        """The parts (B, p, c) of Eq. 2, for a ``feature_map`` (B, c, h, w) and its ``attention`` (B, p, h·w).

        Raises:
            ValueError: if ``attention`` does not fit the map and the prototypes.
        """
        pixels, prototypes, _ = self._operands(feature_map)
        expected = (pixels.shape[0], len(prototypes), pixels.shape[2])
        if not isinstance(attention, Tensor):
            raise TypeError(f"attention must be a torch.Tensor, got {type(attention).__name__}")
        if attention.shape != expected:
            raise ValueError(f"attention must have shape (B, p, h·w) = {expected}, got {tuple(attention.shape)}")
        with torch.autocast(pixels.device.type, enabled=False):
            # Divided before the sum, which may be more than half precision can hold.
            weights = attention.to(pixels.dtype) / pixels.shape[2]
            parts = torch.bmm(weights, pixels.mT)
            if self.position_in_values:
                parts = parts + weights @ self._resized(self.position, feature_map).T.to(pixels.dtype)
        return parts

    def _operands(self, feature_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T (B, c, h·w), P (p, c) and P Eᵀ (p, h·w) in the type to compute in: autocast's, or else the map's own."""
        self._check_map(feature_map)
        device, dtype = feature_map.device.type, feature_map.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            # Resizing is linear: P Eᵀ is resized in place of E, p channels in place of c.
            logits = (self.prototypes @ self.position.flatten(1)).view(-1, *self.position.shape[1:])
            position = self._resized(logits, feature_map).to(dtype)
        return feature_map.flatten(2).to(dtype), self.prototypes.to(dtype), position

    def _resized(self, grid: Tensor, feature_map: Tensor) -> Tensor:
        """``grid`` (m, h', w') for the size of ``feature_map`` (m, h·w)."""
        if grid.shape[1:] != feature_map.shape[2:]:
            grid = F.interpolate(grid[None], feature_map.shape[2:], mode="bicubic", align_corners=False)[0]
        return grid.flatten(1)

    def _check_map(self, x: Any) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"feature_map must be a torch.Tensor, got {type(x).__name__}")
        channels = self.prototypes.shape[1]
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            expected = f"(B, {channels}, h, w) and a pixel at least"
            raise ValueError(f"feature_map must have shape {expected}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"feature_map must be floating point, got {x.dtype}")
