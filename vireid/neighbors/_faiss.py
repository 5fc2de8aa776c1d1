"""Access to faiss, imported on use: a flat search that proposes candidates, and the GPU's limits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vireid._checks import extra

GPU_MAX_K = 2048  # most neighbors of a search on the GPU (faiss's GPU_MAX_SELECTION_K)


def import_faiss(argument: str) -> Any:
    """Import faiss, or raise an ImportError that names the ``argument`` in need of it."""
    with extra("faiss", f"{argument} needs faiss"):
        import faiss
    return faiss


def on_gpu(argument: str) -> Any:
    """Import faiss, with its GPU part, as `import_faiss`; it then takes tensors in place, on PyTorch's stream."""
    faiss = import_faiss(argument)
    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError(f"{argument} needs faiss for the GPU with tensors there: pip install 'vireid[gpu]'")
    import faiss.contrib.torch_utils  # makes faiss's functions take tensors

    return faiss


def flat_proposer(gallery: Tensor, m: int) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """Return a function for `search`: (b, d) -> values and indices (b, m) of the largest products.

    The gallery is searched in place, on the CPU or a GPU, without an index.

    Args:
        gallery: (N, d) float32, contiguous.
        m: candidates per query, at most N.

    Returns:
        None for more than 2,048 candidates on a GPU, which PyTorch can find, but not faiss.

    Raises:
        ImportError: if faiss is not installed, or only for the CPU and the gallery is on a GPU.
    """
    if gallery.device.type == "cpu":
        faiss, searched = import_faiss("backend='faiss'"), gallery.numpy()

        def propose(query: Tensor) -> tuple[Tensor, Tensor]:
            values, indices = faiss.knn(query.numpy(), searched, m, faiss.METRIC_INNER_PRODUCT)
            return torch.from_numpy(values), torch.from_numpy(indices)

        return propose

    faiss = on_gpu("backend='faiss'")
    if m > GPU_MAX_K:
        return None
    resources = faiss.StandardGpuResources()

    def propose_on_gpu(query: Tensor) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(gallery.device):
            options = {"metric": faiss.METRIC_INNER_PRODUCT, "device": gallery.device.index}
            values, indices = faiss.knn_gpu(resources, query.contiguous(), gallery, m, **options)
        return values, indices

    return propose_on_gpu
