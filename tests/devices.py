"""A stand-in for devices without float64."""

from torch import Tensor, float64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoFloat64(TorchDispatchMode):
    """Refuses every operation that takes or returns a float64 tensor, as Apple's devices do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) and x.dtype == float64 for x in tree_leaves((args, kwargs, out))):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return out
