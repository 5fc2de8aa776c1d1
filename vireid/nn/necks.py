"""Batch-normalization necks: the layer between a pooled feature and a classifier (Luo et al., CVPRW 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_number, check_positive, check_tensor
from vireid._ops import at_least_float32


class BNNeck(nn.BatchNorm1d):
    """Batch normalization with a learnable scale and the shift frozen at 0; also CIFT's ``v(·)`` (Eq. 2).

    A training batch of 0 or 1 rows has no variance: it is normalized by the running statistics and leaves them as
    they are (our choice; ``torch.nn.BatchNorm1d`` raises instead).

    Args:
        dim: feature size d.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.

    Shape:
        (B, d) -> (B, d), any floating dtype.

    Raises:
        ValueError: if the input is not (B, d).
        TypeError: if the input is not a floating-point tensor.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        check_count("dim", dim)
        super().__init__(dim, eps=eps, momentum=momentum)
        self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the rows of ``x`` (B, d) per feature."""
        check_tensor("x", x, "B d", d=self.num_features)
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class DualBNNeck(nn.Module):
    """One `BNNeck` per modality, the "dual-branch BNNeck" of SAAI (§3.2).

        y_i = γ_m (x_i - μ_m) / √(σ²_m + eps),   m the modality of row i, μ_m and σ²_m over the rows of m

    The scale γ_m is learned, the shift is frozen at 0. The rows may be in any order. A modality with 0 or 1 rows in a
    training batch has no variance: it is normalized by its running statistics and leaves them as they are (our choice,
    as in `BNNeck`).

    Args:
        dim: feature size d.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics, in [0, 1].

    Attributes:
        weight: (2, d) parameter γ; row 0 is the visible modality, row 1 the infrared one, here as below.
        running_mean: (2, d) buffer.
        running_var: (2, d) buffer, unbiased.
        num_batches_tracked: (2,) buffer, the batches that the running statistics have seen.

    Raises:
        ValueError: if an argument is out of its range.
        TypeError: if an argument is not a number.
    """

    weight: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_count("dim", dim)
        check_positive("eps", eps)
        check_number("momentum", momentum)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.dim, self.eps, self.momentum = dim, eps, momentum
        self.weight = nn.Parameter(torch.ones(2, dim))
        self.register_buffer("running_mean", torch.zeros(2, dim))
        self.register_buffer("running_var", torch.ones(2, dim))
        self.register_buffer("num_batches_tracked", torch.zeros(2, dtype=torch.long))

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"{self.dim}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """Normalize each row per feature, by its modality.

        Args:
            x: (B, d) features, any floating dtype.
            modality: (B,) integers, 0 visible, 1 infrared. A row with any other value becomes NaN and enters no
                statistics: raising an error would mean reading the values, which stalls a GPU. A row of ``x`` that is
                not finite spoils the training statistics of its own modality.

        Returns:
            (B, d) in the dtype of ``x``; statistics are computed in at least float32.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if ``x`` is not floating point or ``modality`` does not hold integers.
        """
        check_tensor("x", x, "B d", d=self.dim)
        check_tensor("modality", modality, "B", kind="integer", B=x.shape[0])  # `len` would fix B in an export
        visible, infrared = modality == VISIBLE, modality == INFRARED
        branch = torch.where(visible, 0, torch.where(infrared, 1, 2))  # the row's place in a table of statistics
        count = torch.stack([visible, infrared]).sum(1, keepdim=True)
        training = self.training and x.shape[0] > 0  # the gradient of `_sums` does not take an empty batch
        with torch.autocast(x.device.type, enabled=False):
            rows = at_least_float32(x)
            mean, var = self.running_mean.to(rows.dtype), self.running_var.to(rows.dtype)
            if training:
                mean = torch.where(count > 1, _sums(rows, branch) / count.clamp_min(1), mean)
            centered = rows - _of_rows(mean, branch)
            if training:
                var = torch.where(count > 1, _sums(centered.square(), branch) / count.clamp_min(1), var)
                self._track(mean, var, count)
            scale = self.weight.to(rows.dtype) * (var + self.eps).rsqrt()
            return (centered * _of_rows(scale, branch, torch.nan)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics of each modality that has more than one row."""
        dtype = self.running_mean.dtype
        rate = self.momentum * (count > 1).to(dtype)
        self.num_batches_tracked += (count > 1)[:, 0]
        self.running_mean.lerp_(mean.to(dtype), rate)
        self.running_var.lerp_((var * count / (count - 1).clamp_min(1)).to(dtype), rate)


def _of_rows(table: Tensor, branch: Tensor, neither: float = 0.0) -> Tensor:
    """Return the row of a ``table`` (2, d) for each of ``branch`` (B,): (B, d), ``neither`` where it is of no modality.

    As an embedding, whose gradient is summed in a fixed order on every device.
    """
    return F.embedding(branch, F.pad(table, (0, 0, 0, 1), value=neither))


def _sums(rows: Tensor, branch: Tensor) -> Tensor:
    """Return the sums (2, d) of the ``rows`` (B, d) of each modality, in a fixed order on every device.

    As the gradient of an embedding: no shape depends on data, and unlike that of a product with a mask, its own
    gradient is in full precision where backward runs under autocast.
    """
    return torch.ops.aten.embedding_dense_backward(rows, branch, 3, -1, False)[:2]
