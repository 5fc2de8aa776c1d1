"""Operations of the layers whose gradient is written out, where that is measured to pay (``benchmarks/speed``)."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup


class PrototypePool(torch.autograd.Function):
    """Attention logits and pooled features of pixels T (B, c, n) under prototypes P (p, c) and a bias (p, n).

        similarity = P T + bias,   pooled = (1/n) [sigmoid(similarity); 1] Tᵀ

    Both have a derivative with respect to T, a tensor of the map's size. As one product of (c, 2p + 1) and (2p + 1, n)
    it is written once, while autograd writes three of them and adds them up.
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


class SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over the processes of a group. Each one's gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return SumOverProcesses.apply(gradient, ctx.group), None
