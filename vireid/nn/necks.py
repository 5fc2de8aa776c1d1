"""Batch-normalisation necks: the layer between a pooled feature and a classifier (Luo et al., CVPRW 2019)."""

from torch import Tensor, nn

from vireid._checks import check_count, check_matrix


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
