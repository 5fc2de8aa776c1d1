"""Random batches for the tests of the losses."""

import torch
from torch import Tensor


def any_batch(
    seed: int, size: int, ids: int = 3, dim: int = 5, dtype: torch.dtype = torch.double
) -> tuple[Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order: some have one image, some one modality."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dim, generator=g, dtype=dtype)
    return x, torch.randint(ids, (size,), generator=g) * 7 + 3, torch.randint(2, (size,), generator=g)
