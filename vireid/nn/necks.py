"""Batch-normalisation necks: the layer between a pooled feature and a classifier (Luo et al., CVPRW 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_integers, check_matrix, check_number, check_positive
from vireid._ops import at_least_float32

__all__ = ["BNNeck", "DualBNNeck"]


class BNNeck(nn.BatchNorm1d):
    """Batch normalisation with a learnable scale and the shift frozen at 0; also CIFT's ``v(·)`` (Eq. 2).

    A training batch of 0 or 1 rows has no variance: it is normalised by the running statistics and leaves them as
    they are (ours; ``torch.nn.BatchNorm1d`` raises instead).

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
        """Normalise the rows of ``x`` (B, d) per feature."""
        check_matrix("x", x, columns=self.num_features)
        if self.training and len(x) < 2:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


class DualBNNeck(nn.Module):
    """A `BNNeck` for each modality, the "dual-branch BNNeck" of SAAI.

    Each row is normalised with the statistics of the rows of its own modality, and gets that modality's learnable
    scale. The shift is frozen at 0. Any order of the rows. A modality with 0 or 1 rows in a training batch has no
    variance: it is normalised by its running statistics and leaves them as they are (ours, as in `BNNeck`).

    Args:
        dim: feature size d.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics, in [0, 1].

    Attributes:
        weight: (2, d) parameter, the scale; row 0 is the visible modality, row 1 the infrared one, here as below.
        running_mean: (2, d) buffer.
        running_var: (2, d) buffer, unbiased.
        num_batches_tracked: (2,) buffer, the batches that the running statistics have seen.

    Raises:
        ValueError: if an argument is out of its range.
        TypeError: if one is not a number.
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
        """What `print` shows of the layer."""
        return f"{self.dim}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """Normalise each row per feature, by its modality.

        Args:
            x: (B, d) features, any floating dtype.
            modality: (B,) integers, 0 visible, 1 infrared. A row with any other value comes out as NaN and counts in no
                statistics: to raise an error would take reading the values, which stalls a GPU. A row of ``x`` that is
                not finite spoils the training statistics of both modalities.

        Returns:
            (B, d) in the dtype of ``x``; statistics are computed in at least float32.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if ``x`` is not floating point or ``modality`` holds no integers.
        """
        check_matrix("x", x, columns=self.dim)
        check_integers("modality", modality, x.shape[0])  # `len` would fix B in an export
        visible, infrared = modality == VISIBLE, modality == INFRARED
        branch = torch.where(visible, 0, torch.where(infrared, 1, 2))  # the row's place in a table of statistics
        if not self.training:
            rows = at_least_float32(x)
            mean, var = self.running_mean.to(rows.dtype), self.running_var.to(rows.dtype)
            scale = self.weight * (var + self.eps).rsqrt()
            return ((rows - _of_rows(mean, branch)) * _of_rows(scale, branch, torch.nan)).to(x.dtype)
        member = torch.stack([visible, infrared])
        normalize = _dual_batch_norm if torch.compiler.is_compiling() else _DualBatchNorm.apply
        out, mean, var = normalize(x, self.weight, self.running_mean, self.running_var, member, branch, self.eps)
        with torch.no_grad():
            count, dtype = member.sum(1, keepdim=True), self.running_mean.dtype
            self.num_batches_tracked += (count > 1)[:, 0]
            rate = self.momentum * (count > 1).to(dtype)
            self.running_mean.lerp_(mean.to(dtype), rate)
            self.running_var.lerp_((var * count / (count - 1).clamp_min(1)).to(dtype), rate)
        return out


def _of_rows(table: Tensor, branch: Tensor, neither: float = 0.0) -> Tensor:
    """What a ``table`` (2, d) of the modalities holds for each row: (B, d), ``neither`` for a row that is of none."""
    return F.pad(table, (0, 0, 0, 1), value=neither).index_select(0, branch)


def _dual_batch_norm(
    x: Tensor,
    weight: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    member: Tensor,
    branch: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows normalised by the statistics of their modality's rows, and those statistics.

    Sums over the rows of a modality are products with its mask ``member`` (2, B): no shape depends on data, and the
    order of a sum is always the same.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = at_least_float32(x)
        count = member.sum(1, keepdim=True)
        member, divisor = member.to(rows.dtype), count.clamp_min(1)
        mean = torch.where(count > 1, member @ rows / divisor, running_mean.to(rows.dtype))
        centred = rows - _of_rows(mean, branch)
        var = torch.where(count > 1, member @ centred.square() / divisor, running_var.to(rows.dtype))
        scale = weight.to(rows.dtype) * (var + eps).rsqrt()
        return (centred * _of_rows(scale, branch, torch.nan)).to(x.dtype), mean, var


class _DualBatchNorm(torch.autograd.Function):
    """`_dual_batch_norm` with its derivative written out.

    What autograd derives is as right, takes a third longer and keeps three more matrices of the size of x. A compiler
    is given the plain function: it fuses either.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _dual_batch_norm(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, weight, _, _, member, branch, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, weight, mean, var, member, branch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, member, branch = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: that of the plain function
            needed = [t for t, need in zip((x, weight), ctx.needs_input_grad[:2], strict=True) if need]
            again = _dual_batch_norm(x, weight, mean, var, member, branch, ctx.eps)[0]
            second = iter(torch.autograd.grad(again, needed, grad, create_graph=True))
            return *(next(second) if need else None for need in ctx.needs_input_grad[:2]), None, None, None, None, None
        with torch.autocast(x.device.type, enabled=False):
            rows, grad = at_least_float32(x), at_least_float32(grad)
            count = member.sum(1, keepdim=True)
            member = member.to(rows.dtype)
            share = (count > 1).to(rows.dtype) / count.clamp_min(1)  # a row's in a mean; none in running statistics
            inverse = (var + ctx.eps).rsqrt()
            centred = rows - _of_rows(mean, branch)
            slope = member @ (grad * centred)
            centred *= _of_rows(inverse.square() * slope * share, branch)  # through the variance
            centred += _of_rows(member @ grad * share, branch)  # through the mean
            grad_x = (grad - centred).mul_(_of_rows(weight.to(rows.dtype) * inverse, branch, torch.nan))
            return grad_x.to(x.dtype), (slope * inverse).to(weight.dtype), None, None, None, None, None
