"""SAAI (Fang et al., ICCV 2023) as plain loops, written from the equations alone.

Slow on purpose. Everything takes and gives float64 tensors and is differentiable. Nothing here imports vireid.
"""

import torch
from torch import Tensor

# -- prototype pooling (Eq. 1-2) -----------------------------------------------------------------------------------


def prototype_pooling(
    feature_map: Tensor, prototypes: Tensor, position: Tensor, position_in_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixel by pixel: logits (B, p, n), attention (B, p, n), parts (B, p, c); ``position`` (c, h, w) fits the map."""
    images, _, h, w = feature_map.shape
    logits, attention, parts = [], [], []
    for b in range(images):
        for prototype in prototypes:
            total = 0
            for y in range(h):
                for x in range(w):
                    pixel, place = feature_map[b, :, y, x], position[:, y, x]
                    logits.append((prototype * (pixel + place)).sum())
                    attention.append(1 / (1 + torch.exp(-logits[-1])))
                    total = total + attention[-1] * (pixel + place if position_in_values else pixel)
            parts.append(total / (h * w))
    shape = (images, len(prototypes), h * w)
    return torch.stack(logits).view(shape), torch.stack(attention).view(shape), torch.stack(parts).view(*shape[:2], -1)
