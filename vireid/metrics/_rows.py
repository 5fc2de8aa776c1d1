"""Rows of the streaming metrics as bytes (n, w), which hold any dtype and are gathered over processes alike."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def stack_rows(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack parts (n, w) of one w; those without rows may have another. It is (0, 0) on ``device`` without any row."""
    parts = [part for part in parts if len(part)]
    if len({part.shape[1] for part in parts}) > 1:
        raise ValueError("features must have one dimension and dtype in all updates and processes, got several")
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0] if parts else torch.empty(0, 0).byte().to(device)


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Gather ``rows`` (n, w) of all processes, in their order; n may differ, and w if n is 0."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [rows]
    # NCCL sends only from GPUs, and the rows of a process without queries may still be on the CPU.
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    mine = torch.tensor(rows.shape, device=device)
    sizes = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, mine)
    shapes = [(int(n), int(width)) for n, width in sizes]
    padded = torch.zeros(*map(max, zip(*shapes, strict=True)), dtype=torch.uint8, device=device)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded)
    return [part[:n, :width].to(rows.device) for part, (n, width) in zip(parts, shapes, strict=True)]
