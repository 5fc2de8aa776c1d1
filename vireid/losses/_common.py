"""Shared parts of the losses: their base class, the check of labels and modality, and means of groups of rows."""

import warnings
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vireid._checks import check_modality, check_tensor, values_are_free


class Loss(nn.Module):
    """Base class of the losses: every keyword-only argument of the constructor is an attribute of that name."""

    _names: tuple[str, ...] = ()
    _needs: Literal["", "pair", "positive", "triplet"] = ""  # pairs of the two modalities without which it cannot learn
    _looked = False
    _placed = False

    def __init_subclass__(cls) -> None:
        """Note the options of a loss; classes derived from one inherit them."""
        super().__init_subclass__()
        if Loss in cls.__bases__:
            cls._names = tuple(cls.__init__.__kwdefaults__ or ())

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _compute(self, loss: Callable[..., Tensor], x: Tensor, labels: Tensor, modality: Tensor, **more: Any) -> Tensor:
        """Compute the function ``loss`` with the options, and look at the batch."""
        value = loss(x, labels, modality, **more, **self._options())
        self._look(labels, modality)
        return value

    def _look(self, labels: Tensor, modality: Tensor) -> None:
        """Look at the values of the first batch on any device, which a GPU waits for once, but not while compiling.

        Wrong codes are an error. A batch without a pair to compare, which one of many processes may have, is a warning.
        """
        if torch.compiler.is_compiling():
            return
        self._look_around()
        if self._looked or not len(modality) or (modality.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        check_modality("modality", modality, wait=True)
        self._looked = True
        if not self._needs:
            return
        across, same = modality[:, None] != modality, labels[:, None] == labels
        positive, negative = (across & same).any(1), (across & ~same).any(1)
        if {"pair": across, "positive": positive, "triplet": positive & negative}[self._needs].any():
            return
        found = f"every image is {('visible', 'infrared')[int(modality[0])]}"
        if across.any():
            also = " and one of another" if self._needs == "triplet" else ""
            found = f"no image has, in the other modality, one of its own identity{also}"
        text = f"{type(self).__name__} compares the modalities, but in this batch {found}: nothing is learned from it"
        warnings.warn(f"{text}; vireid.data.CrossModalIdentitySampler draws batches with both", stacklevel=6)

    def _look_around(self) -> None:
        """Warn once if several processes train parameters of this loss outside of DistributedDataParallel."""
        if self._placed or not (dist.is_available() and dist.is_initialized()):
            return
        own = [p for p in self.parameters() if p.requires_grad and not hasattr(p, "device_mesh")]  # not of FSDP
        if not (own and self.training and torch.is_grad_enabled() and dist.get_world_size() > 1):
            return
        self._placed = True
        around = getattr(DistributedDataParallel, "_active_ddp_module", self)  # PyTorch's own; without it, no warning
        if around is None or all(part is not self for part in around.modules()):
            text = f"{type(self).__name__} has parameters and was called outside of DistributedDataParallel"
            cure = "put model and criterion into one module and wrap that, as vireid.training.fit does"
            warnings.warn(f"{text}, so that each process trains its own; {cure}", stacklevel=7)

    def extra_repr(self) -> str:
        """Show the options in ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())


def check_rows(length: int, *, optional: Collection[str] = (), **integers: Any) -> None:
    """Raise unless each of ``integers`` is an integer tensor (B,) or, if ``optional``, None; B is the ``length``."""
    for name, value in integers.items():
        if value is None and name in optional:
            continue
        check_tensor(name, value, "B", kind="integer", B=length)
        if name == "modality":
            check_modality(name, value)


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


class Groups(NamedTuple):
    """Groups of rows of a batch. On the CPU there are as many as differ; elsewhere one per row, of equal shape always.

    Attributes:
        first: (M,) first row of each group.
        member: (M, B), 1 where a row belongs to the group, else 0; no group is empty.
        real: (M,) bool, False for the repetition of a group by a further row of it.
        own: (B,) first row of each row's group.
    """

    first: Tensor
    member: Tensor
    real: Tensor
    own: Tensor

    def means(self, rows: Tensor) -> Tensor:
        """Average the ``rows`` (B, d) of each group, as (M, d)."""
        return self.member @ rows / self.member.sum(1, keepdim=True)


def membership(*keys: Tensor, dtype: torch.dtype) -> Groups:
    """Group rows that agree in all ``keys``, one or more (B,); ``dtype`` is that of the members."""
    same = torch.stack([key[:, None] == key for key in keys]).all(0)
    first = place = torch.arange(len(same), device=same.device)
    own = same.to(torch.uint8).argmax(1) if len(same) else place
    real = own == place
    if values_are_free(own):  # where a nonzero stalls nothing, fewer groups are faster
        first = real.nonzero().flatten()
        same, real = same[first], real[first]
    return Groups(first, same.to(dtype), real, own)
