"""Products of graph transport with their own gradient."""

from typing import Any

import torch
from torch import Tensor

_CACHE = 2**21  # bytes, about the cache of one CPU core


class NodeProducts(torch.autograd.Function):
    """Products x yᵀ, x xᵀ and y yᵀ of each pair of graphs, which can be differentiated twice.

    One product of all nodes of a pair with each other is faster than three small ones, and its gradient takes four
    products. Concatenating the nodes costs little if the copy stays in the cache, so that a CPU takes only as many
    pairs at a time as fit there.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B, n, m), (B, n, n) and (B, m, m) for x (B, n, d) and y (B, m, d)."""
        n, nodes = x.shape[1], x.shape[1] + y.shape[1]
        out = x.new_empty(len(x), nodes, nodes)
        size = max(1, len(x))
        if x.device.type == "cpu":
            size = max(1, _CACHE // (nodes * x.shape[2] * x.element_size()))
        buffer = x.new_empty(min(size, len(x)), nodes, x.shape[2])
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            z = buffer[: len(x[rows])]
            torch.cat([x[rows], y[rows]], dim=1, out=z)
            torch.bmm(z, z.mT, out=out[rows])
        return out[:, :n, n:].contiguous(), out[:, :n, :n].contiguous(), out[:, n:, n:].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the features."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, xy: Tensor, xx: Tensor, yy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients to x and y."""
        x, y = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            of_x = ((xx + xx.mT) @ x).baddbmm_(xy, y) if ctx.needs_input_grad[0] else None
            of_y = ((yy + yy.mT) @ y).baddbmm_(xy.mT, x) if ctx.needs_input_grad[1] else None
        return of_x, of_y
