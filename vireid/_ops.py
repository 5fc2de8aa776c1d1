"""Small tensor operations shared by the components. Safe at zero, in half precision and for empty groups."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import check_labels, check_tensor, values_are_free

# integers of a type's size, the bits of its exponent, and a power of two that takes its smallest numbers into range
_BITS = {
    torch.float32: (torch.int32, 0x7F800000, 2.0**64),
    torch.float64: (torch.int64, 0x7FF0000000000000, 2.0**512),
}


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged in float64: sums over many terms lose too much in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalize_rows(x: Tensor) -> Tensor:
    """Scale the rows of ``x`` (…, d) to length 1, whatever their length; a zero row stays zero.

    The largest entry is scaled to 1 first: then no square overflows or vanishes, a nonzero row is at least 1 long, and
    with a lower bound of 1 the gradient of a zero row is no larger than the incoming one.
    """
    return F.normalize(scale_to_1(x), dim=-1, eps=1.0)


def scale_to_1(x: Tensor) -> Tensor:
    """Scale the rows of ``x`` (…, d) to a largest magnitude of 1; a zero row stays zero."""
    largest = largest_entries(x.detach())
    return x / torch.where(largest > 0, largest, 1)


def has_float64(device: torch.device) -> bool:
    """Return whether ``device`` computes in float64: Apple's does not. The empty tensor costs no memory and no wait."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def scale_rows(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Scale the rows of ``x`` (N, d) exactly, by powers of two, to a largest magnitude in [1, 2); zero rows stay."""
    integers, exponent, far = _BITS[x.dtype]
    largest = largest_entries(x)
    low = largest < 1 / far
    if bool(low.any()):  # also denormal numbers, whose bits have no exponent
        x = torch.where(low, x * far, x)
        largest = torch.where(low, largest * far, largest)
    power = (largest.view(integers) & exponent).view(x.dtype)
    return torch.div(x, torch.where(power > 0, power, 1), out=out)


def largest_entries(x: Tensor) -> Tensor:
    """Return the largest magnitude (…, 1) of each row of ``x`` (…, d), 0 without entries."""
    return torch.maximum(x.amax(-1, True), -x.amin(-1, True)) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)


def repeated_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows of ``x`` (N, d) in the direction of an earlier one, and return their indices and the first one's.

    Directions are equal if the rows divided by their largest magnitudes are. It reads the rows once: only those whose
    bits have equal sums, with fixed random weights, are compared, each with the first one of its sum.
    """

    def bits(rows: Tensor) -> Tensor:
        scaled = scale_to_1(at_least_float32(rows))
        return scaled.add_(0).view(_BITS[scaled.dtype][0])  # -0 is 0

    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**31), 2**31, x.shape[1:], generator=generator).to(x.device, bits(x[:0]).dtype)
    step = max(1, 2 ** (18 if x.device.type == "cpu" else 25) // max(1, x.shape[1]))  # fits a cache, or fills a GPU
    sums = torch.cat([(bits(part) * weights).sum(1) for part in x.split(step)])
    group, count = sums.unique(return_inverse=True, return_counts=True)[1:]
    left, again, first = (count[group] > 1).nonzero().flatten(), [], []
    while len(left):  # a second time for the few whose sums are equal by chance
        heads = torch.full_like(count, len(x)).scatter_reduce_(0, group[left], left, "amin")[group[left]]
        pairs = zip(left.split(step), heads.split(step), strict=True)
        same = torch.cat([(bits(x[one]) == bits(x[other])).all(1) for one, other in pairs])
        found = same & (left != heads)
        again.append(left[found])
        first.append(heads[found])
        left = left[~same]
    return torch.cat([left, *again]), torch.cat([left, *first])


def equalize_columns(block: Tensor, repeated: tuple[Tensor, Tensor]) -> Tensor:
    """Give the columns of ``block`` (b, N) that `repeated_rows` found the values of the first ones, in place.

    A matrix product may differ in the last bits between equal rows: with their place in the matrix.
    """
    again, first = repeated
    if len(again):
        block[:, again] = block[:, first]
    return block


def rounding(dim: int, dtype: torch.dtype) -> float:
    """Return the bound on the error of a product of two rows of length 1: below it, a cosine counts as 0."""
    return (dim + 16) * torch.finfo(dtype).eps / 2


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Compute the distances (…, a, b) of rows of ``x`` (…, a, d) and ``y`` (…, b, d), with gradient 0 at distance 0.

    The matrix product is avoided: its cancellation exceeds the distance of rows that nearly coincide.
    """
    return _of_any_size(partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist"), x, y)


def norms(x: Tensor) -> Tensor:
    """Compute the lengths (N,) of the rows of ``x`` (N, d), with gradient 0 at length 0, as `euclidean` does."""
    return _of_any_size(partial(torch.linalg.vector_norm, dim=1), x)


def _of_any_size(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute lengths; again, with the tensors brought `into_range`, if the largest is tiny or infinite."""
    length = compute(*tensors)
    if not values_are_free(length) or not length.numel() or 1e-12 < length.detach().amax().item() < math.inf:
        return length  # it has fewer numbers to read than the tensors
    scale = into_range(*tensors)
    return length if scale == 1 else compute(*(x * scale for x in tensors)) / scale


def into_range(*tensors: Tensor, dtype: torch.dtype | None = None, wait: bool = False) -> float:
    """Return a power of two that takes the largest magnitude to where sums of squares neither overflow nor vanish.

    1 if it is there, not finite or 0, and, without ``wait``, wherever reading it would cost: not `values_are_free`.
    Then rows have to be about 1e-19 to 1e19 long in float32, and 1e-150 to 1e150 in float64. ``dtype`` is that of the
    sums, if another.
    """
    if not (wait or values_are_free(tensors[0])):
        return 1.0
    ends = [end for x in tensors if x.numel() for end in x.detach().aminmax()]
    largest = max((abs(end.item()) for end in ends), default=0.0)
    most, bits = math.frexp(torch.finfo(dtype or tensors[0].dtype).max)[1], math.frexp(largest)[1]
    if not 0 < largest < math.inf or -most * 5 // 16 <= bits <= most * 7 // 16 - 1:
        return 1.0
    return 2.0 ** (most * 7 // 16 - 1 - bits if bits > 0 else min(-bits, most - 2))


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross-entropy of ``logits`` (N, C) and ``labels`` (N,), 0 … C - 1, in at least float32."""
    check_tensor("logits", logits, "N C")
    check_tensor("labels", labels, "N", kind="integer", N=logits.shape[0])
    check_labels("labels", labels, logits.shape[1])  # PyTorch ignores -100
    return F.cross_entropy(at_least_float32(logits), labels.long(), label_smoothing=label_smoothing)


def masked_mean(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Average ``x`` where ``mask`` is True; 0 if it never is. NaN elsewhere is ignored."""
    return torch.where(mask, x, 0).sum(dim) / mask.sum(dim).clamp_min(1)


def evaluated(module: nn.Module) -> nn.Module:
    """Return ``module`` in evaluation mode: itself if it is, else a copy that shares its tensors and leaves it alone.

    So threads may evaluate a module while it is trained. Modules and the lists, dicts, partials and methods that they
    hold are new, and lead to the copies; all else is shared. What a forward pass assigns to an attribute stays in the
    copy. A part that `torch.compile` has wrapped runs as it would without.
    """
    parts = list(module.modules())
    if not any(part.training for part in parts):
        return module
    copies: dict[int, Any] = dict.fromkeys(map(id, parts))

    def copied(value: Any) -> Any:
        if isinstance(value, nn.Module) and id(value) in copies:
            return copies[id(value)] or copied_module(value)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, copied(value.__self__))
        if type(value) is partial:
            return partial(copied(value.func), *map(copied, value.args), **copied(value.keywords))
        if type(value) in (list, tuple):
            return type(value)(map(copied, value))
        if type(value) in (dict, OrderedDict):
            return type(value)((key, copied(item)) for key, item in value.items())
        return value

    def copied_module(part: nn.Module) -> Any:
        if isinstance(part, torch.jit.ScriptModule):
            copies[id(part)] = copy.deepcopy(part).eval()
        elif "_orig_mod" in part._modules:  # compiled code is bound to the original
            copies[id(part)] = copied(part._modules["_orig_mod"])
        else:
            twin = copies[id(part)] = object.__new__(type(part))
            twin.__dict__.update({name: copied(value) for name, value in part.__dict__.copy().items()})
            twin.__dict__.update(training=False, _compiled_call_impl=None)
        return copies[id(part)]

    return copied(module)
