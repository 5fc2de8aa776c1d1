"""Shared parts of the losses: their base class, the check of labels and modality, and means of groups of rows."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from vireid._checks import check_tensor


class Loss(nn.Module):
    """Base class of the losses: every keyword-only argument of the constructor is an attribute of that name."""

    _names: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        """Note the options of a loss; classes derived from one inherit them."""
        super().__init_subclass__()
        if Loss in cls.__bases__:
            parameters = signature(cls.__init__).parameters.values()
            cls._names = tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Show the options in ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())


def check_rows(length: int, **integers: Any) -> None:
    """Raise unless each of ``integers`` is an integer tensor (B,) with one entry per row of the batch."""
    for name, value in integers.items():
        check_tensor(name, value, "B", kind="integer", B=length)


def check_parts(name: str, x: Any, shape: str) -> None:
    """Raise unless ``x`` is a floating-point tensor of the three axes ``shape``, the last two not empty."""
    check_tensor(name, x, shape)
    if 0 in x.shape[1:]:
        _, parts, size = shape.split()
        raise ValueError(f"{name} must have {parts} and {size} of at least 1, got shape {tuple(x.shape)}")


def check_graphs(nodes: Any, labels: Any, modality: Any, mask: Any) -> None:
    """Raise unless these are the graphs (B, K+1, d) of a batch, its labels, modality and mask (B, K+1), if any."""
    check_parts("nodes", nodes, "B K+1 d")
    check_rows(len(nodes), labels=labels, modality=modality)
    if mask is not None:
        check_tensor("mask", mask, "B K+1", kind="bool", like=nodes, B=len(nodes), **{"K+1": nodes.shape[1]})


def membership(*keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Group rows that agree in all ``keys``.

    Args:
        keys: one or more integer tensors (B,), such as labels or labels and modality.
        dtype: of the members.

    Returns:
        (M, number of keys), the keys of each group, ascending; and (M, B), 1 where a row belongs to the group, else 0.
        No group is empty.
    """
    groups, index = torch.stack(keys, 1).unique(dim=0, return_inverse=True)
    return groups, (torch.arange(len(groups), device=index.device)[:, None] == index).to(dtype)


def group_means(member: Tensor, rows: Tensor) -> Tensor:
    """Average the ``rows`` (B, d) of each group of ``member`` (M, B), as (M, d)."""
    return member @ rows / member.sum(1, keepdim=True)
