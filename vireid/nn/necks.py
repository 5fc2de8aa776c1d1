"""Batch-normalization necks: the layer between a pooled feature and a classifier (Luo et al., CVPRW 2019)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count, check_fraction, check_modality, check_positive, check_tensor
from vireid._ops import at_least_float32
from vireid.nn._functions import SumOverProcesses


class _Neck(nn.Module):
    """Scale and running statistics of a batch normalization, or of several as rows of the tensors.

    A neck is no batch normalization by its type: `torch.nn.SyncBatchNorm.convert_sync_batchnorm` would replace it by a
    layer of another kind. It has one without tensors as a child, and reads there what such tools of PyTorch change: its
    type, momentum and mode. If they reset its statistics, those of the neck are reset.
    """

    standin: nn.BatchNorm1d | nn.SyncBatchNorm
    weight: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, eps: float, momentum: float, *several: int) -> None:
        super().__init__()
        self.dim, self.eps = check_count("dim", dim), check_positive("eps", eps)
        momentum = check_fraction("momentum", momentum)
        self.standin = nn.BatchNorm1d(1, momentum=momentum, affine=False, track_running_stats=False)
        self.standin.__dict__["reset_running_stats"] = self.reset_running_stats
        self.weight = nn.Parameter(torch.ones(*several, self.dim))
        self.register_buffer("running_mean", torch.zeros(*several, self.dim))
        self.register_buffer("running_var", torch.ones(*several, self.dim))
        self.register_buffer("num_batches_tracked", torch.zeros(several, dtype=torch.long))

    @property
    def momentum(self) -> float | None:
        """Weight of a batch in the running statistics; None: they are the mean of all batches."""
        return self.standin.momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self.standin.momentum = value

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def __repr__(self) -> str:
        """Return the settings, without the stand-in."""
        return f"{self._get_name()}({self.dim}, eps={self.eps}, momentum={self.momentum})"

    def _processes(self) -> ProcessGroup | None:
        """Return the processes whose rows are one batch, if there are others than this one."""
        if isinstance(self.standin, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
            group = self.standin.process_group or dist.group.WORLD
            return group if dist.get_world_size(group) > 1 else None
        return None

    def _normalize(self, x: Tensor, branch: Tensor, count: Tensor) -> Tensor:
        """Normalize the rows of ``x`` (B, d), each by the m-th statistics of its ``branch`` (B,), in that order.

        Args:
            x: (B, d) rows.
            branch: (B,) int64, 0 … M - 1, or M: the row becomes NaN and enters no statistics.
            count: (M, 1) rows of each branch.
        """
        training, length = self.training and self.standin.training, x.shape[0]
        group = self._processes() if training else None
        if training and length == 0:  # a row of no branch: `_sums` needs one, and other processes wait, in backward too
            x, branch = F.pad(x, (0, 0, 0, 1)), branch.new_full((1,), count.shape[0])
        tables = self.weight, self.running_mean, self.running_var, self.num_batches_tracked
        weight, *running = tables if self.weight.ndim == 2 else [table[None] for table in tables]
        with torch.autocast(x.device.type, enabled=False):
            rows = at_least_float32(x)
            mean, var = running[0].to(rows.dtype), running[1].to(rows.dtype)
            if training:
                sums = _sums(rows, branch, count.shape[0])
                if group is not None:
                    sums = SumOverProcesses.apply(torch.cat([sums, count.to(sums.dtype)], 1), group)
                    sums, count = sums[:, :-1], sums.detach()[:, -1:].round().long()
                mean = torch.where(count > 1, sums / count.clamp_min(1), mean)
            centered = rows - _of_rows(mean, branch)
            if training:
                squares = _sums(centered.square(), branch, count.shape[0])
                if group is not None:
                    squares = SumOverProcesses.apply(squares, group)
                var = torch.where(count > 1, squares / count.clamp_min(1), var)
                self._track(running, mean.detach(), var.detach(), count)  # an export drops `no_grad`
            scale = weight.to(rows.dtype) * (var + self.eps).rsqrt()
            out = (centered * _of_rows(scale, branch, torch.nan)).to(x.dtype)
            return out if length else out[:0]

    @torch.no_grad()
    def _track(self, running: list[Tensor], mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics of each branch that has more than one row."""
        running_mean, running_var, batches = running
        seen, dtype, momentum = count > 1, running_mean.dtype, self.momentum
        batches += seen[:, 0]
        rate = seen.to(dtype) * (1 / batches.clamp_min(1)[:, None] if momentum is None else momentum)
        running_mean.lerp_(mean.to(dtype), rate)
        running_var.lerp_((var * count / (count - 1).clamp_min(1)).to(dtype), rate)


class BNNeck(_Neck):
    """Batch normalization with a learnable scale and the shift frozen at 0; also CIFT's ``v(·)`` (Eq. 2).

    A training batch of 0 or 1 rows has no variance: it is normalized by the running statistics and leaves them as
    they are (our choice; ``torch.nn.BatchNorm1d`` raises instead).

    The statistics are those of this process's batch. After `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, which
    leaves the neck in its place, they are those of all processes' rows together, on any device; then every process
    must call it in every step of training, and backward as well.

    Args:
        dim: feature size d.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics, in [0, 1].

    Shape:
        (B, d) -> (B, d), any floating dtype, which the output has; statistics are computed in at least float32, whose
        squares hold rows up to 1e19.

    Attributes:
        weight: (d,) parameter, the scale.
        bias: (d,) parameter, the shift, without gradient.
        running_mean: (d,) buffer.
        running_var: (d,) buffer, unbiased.
        num_batches_tracked: buffer, the batches that the running statistics have seen.

    Raises:
        ValueError: if the input is not (B, d), or an argument is out of its range.
        TypeError: if the input is not a floating-point tensor, or an argument is not a number.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(dim, eps, momentum)
        self.num_features = self.dim
        self.bias = nn.Parameter(torch.zeros(self.dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the rows of ``x`` (B, d) per feature."""
        check_tensor("x", x, "B d", d=self.dim)
        training, dtype = self.training and self.standin.training, self.weight.dtype
        fits = x.dtype == dtype or (x.itemsize == 2 and dtype == torch.float32)  # for PyTorch's own function
        if not fits or (training and self._processes() is not None):
            branch = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
            return self._normalize(x, branch, branch.new_full((1, 1), x.shape[0])) + self.bias.to(x.dtype)
        rate = 0.0
        if training := training and bool(x.shape[0] > 1):  # `bool`: an export needs it here
            batches, momentum = self.num_batches_tracked.add_(1), self.momentum
            rate = 1 / float(batches) if momentum is None else momentum
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, rate, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take old files without a counter, as `torch.nn.BatchNorm1d` does."""
        state_dict.setdefault(f"{prefix}num_batches_tracked", torch.tensor(0))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DualBNNeck(_Neck):
    """One `BNNeck` per modality, the "dual-branch BNNeck" of SAAI (§3.2).

        y_i = γ_m (x_i - μ_m) / √(σ²_m + eps),   m the modality of row i, μ_m and σ²_m over the rows of m

    The scale γ_m is learned, the shift is frozen at 0. The rows may be in any order. A modality with 0 or 1 rows in a
    training batch has no variance: it is normalized by its running statistics and leaves them as they are (our choice,
    as in `BNNeck`, which also says what becomes of it under `torch.nn.SyncBatchNorm.convert_sync_batchnorm`).

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

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(dim, eps, momentum, 2)

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """Normalize each row per feature, by its modality.

        Args:
            x: (B, d) features, any floating dtype.
            modality: (B,) integers, 0 visible, 1 infrared. Any other value raises an error on the CPU; elsewhere
                reading the values would stall the device, and the row becomes NaN and enters no statistics. A row of
                ``x`` that is not finite spoils the training statistics of its own modality.

        Returns:
            (B, d) in the dtype of ``x``; statistics are computed in at least float32, whose squares hold rows up to
            1e19.

        Raises:
            ValueError: if a shape is wrong, or a modality, as above.
            TypeError: if ``x`` is not floating point or ``modality`` does not hold integers.
        """
        check_tensor("x", x, "B d", d=self.dim)
        check_tensor("modality", modality, "B", kind="integer", B=x.shape[0])  # `len` would fix B in an export
        check_modality("modality", modality)
        visible, infrared = modality == VISIBLE, modality == INFRARED
        branch = torch.where(visible, 0, torch.where(infrared, 1, 2))  # the row's place in a table of statistics
        count = torch.stack([visible, infrared]).sum(1, keepdim=True)
        return self._normalize(x, branch, count)


def _of_rows(table: Tensor, branch: Tensor, neither: float = 0.0) -> Tensor:
    """Return the row of a ``table`` (M, d) for each of ``branch`` (B,): (B, d), ``neither`` for row M.

    As an embedding, whose gradient is summed in a fixed order on every device.
    """
    return F.embedding(branch, F.pad(table, (0, 0, 0, 1), value=neither))


def _sums(rows: Tensor, branch: Tensor, branches: int) -> Tensor:
    """Return the sums (M, d) of the ``rows`` (B, d) of each branch, in a fixed order on every device.

    As the gradient of an embedding: no shape depends on data, and unlike that of a product with a mask, its own
    gradient is in full precision where backward runs under autocast.
    """
    return torch.ops.aten.embedding_dense_backward(rows, branch, branches + 1, -1, False)[:branches]
