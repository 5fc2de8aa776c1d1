"""Instruments that several tests read."""

import tracemalloc
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Records the most elements that a tensor's memory holds while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor) and t.layout == torch.strided:
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
            elif isinstance(t, Tensor):
                self.elements = max(self.elements, t._nnz())
        return out


class Sizes(TorchDispatchMode):
    """Notes the size of every tensor that an operation makes: its elements, or the entries of a sparse one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.sparse = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(x, Tensor):
                continue
            if x.layout == torch.strided:
                self.seen.add(x.numel())
            else:
                self.sparse.add(x._nnz())
        return result


@contextmanager
def memory_below(most):
    """Assert that Python takes less than ``most`` bytes at any moment of the block, whether it raises or not."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
