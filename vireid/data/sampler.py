"""Batches of P identities × (K visible + K infrared) images, drawn reproducibly from one seed."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from vireid import INFRARED, VISIBLE
from vireid._checks import check_count

__all__ = ["CrossModalIdentitySampler"]


class CrossModalIdentitySampler(Sampler[list[int]]):
    """Batch sampler of P identities × (K visible + K infrared) images; pass it as ``DataLoader(batch_sampler=…)``.

    A batch lists the P·K visible images first, identity by identity, then the P·K infrared images with the identities
    in the same order. Its P identities differ from each other. Within one epoch

    - every identity comes once, in random order, before any comes again (then in a new random order);
    - an identity's images of one modality are walked in a random order, drawn anew each epoch, and start over only when
      all were taken. So a batch repeats an image only where the identity has fewer than K, and only as often as needed.

    An identity without an image of one of the modalities cannot fill its share and is left out (listed in
    ``left_out``). The order depends only on ``seed`` and the epoch: iterating an epoch twice gives the same batches,
    so call `set_epoch` before each.

    With ``replicas`` > 1 all ranks compute the same global order, and rank r takes its batches r, r + replicas, …: the
    number of batches is the same on every rank. (Tell the launcher not to wrap the sampler again: Lightning Fabric's
    ``use_distributed_sampler=False``.)

    Args:
        labels: (N,) integer identities; tensor, array or sequence.
        modality: (N,) integer, 0 visible, 1 infrared.
        identities: P, the identities in a batch; 8 as in CIFT and AGW.
        per_modality: K, the images of an identity in each modality; 4 as in CIFT and AGW.
        batches: batches per epoch *on each rank*. By default the images of the larger modality, divided by P·K and by
            ``replicas`` and rounded up: each of them is seen about once, exactly once if all identities have as
            many and the divisions leave no remainder.
        seed: of the sampler's own generator; neither NumPy's nor PyTorch's global state is used.
        rank: this process, 0 … replicas - 1.
        replicas: number of processes.

    Attributes:
        left_out: the identities that lack a modality, sorted.

    Raises:
        ValueError: if shapes or values do not fit, or if fewer than P identities have images of both modalities.
        TypeError: if labels, modality or a count is not integer.
    """

    def __init__(
        self,
        labels: Tensor | np.ndarray | Sequence[int],
        modality: Tensor | np.ndarray | Sequence[int],
        *,
        identities: int = 8,
        per_modality: int = 4,
        batches: int | None = None,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ) -> None:
        label, mode = _integers("labels", labels), _integers("modality", modality)
        if len(label) != len(mode):
            raise ValueError(f"modality must have one entry per label, {len(label)}, got {len(mode)}")
        if not np.isin(mode, (VISIBLE, INFRARED)).all():
            raise ValueError(f"modality must be 0 (visible) or 1 (infrared), got {np.unique(mode).tolist()}")
        check_count("identities", identities)
        check_count("per_modality", per_modality)
        check_count("seed", seed, minimum=0)
        check_count("replicas", replicas)
        check_count("rank", rank, minimum=0)
        if rank >= replicas:
            raise ValueError(f"rank must be below replicas = {replicas}, got {rank}")
        if batches is not None:
            check_count("batches", batches)

        ids, index = np.unique(label, return_inverse=True)
        counts = np.stack([np.bincount(index[mode == m], minlength=len(ids)) for m in (VISIBLE, INFRARED)])
        complete = counts.min(0) > 0
        if complete.sum() < identities:
            raise ValueError(
                f"identities must be at most {complete.sum()}, the number with images of both modalities "
                f"(of {len(ids)} in all), got {identities}"
            )
        self.left_out: np.ndarray = ids[~complete]
        self.identities, self.per_modality = identities, per_modality
        self.seed, self.rank, self.replicas = seed, rank, replicas
        self._counts = counts[:, complete].ravel()  # group = modality * C + identity
        self._starts = np.cumsum(self._counts) - self._counts
        self._images = np.flatnonzero(complete[index])
        position = np.cumsum(complete) - 1
        self._groups = mode[self._images] * complete.sum() + position[index[self._images]]
        share = identities * per_modality * replicas
        self._batches = batches if batches is not None else -(-int(counts[:, complete].sum(1).max()) // share)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; the same number gives the same batches."""
        check_count("epoch", epoch, minimum=0)
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the epoch's batches of this rank, each a list of 2·P·K indices."""
        rng = np.random.default_rng([self.seed, self._epoch])
        classes = len(self._counts) // 2
        drawn = _identity_order(rng, classes, self.identities, self._batches * self.replicas).ravel()

        # The n-th appearance of an identity takes the n-th K of its images, modulo their number: consecutive places
        # modulo n differ as long as K <= n, and nothing comes again before all were taken.
        order = np.argsort(drawn, kind="stable")
        times = np.bincount(drawn, minlength=classes)
        appearance = np.empty_like(drawn)
        appearance[order] = np.arange(len(drawn)) - np.repeat(np.cumsum(times) - times, times)

        images = self._images[np.lexsort((rng.random(len(self._images)), self._groups))]  # shuffled within its group
        group = np.stack([drawn, drawn + classes])[:, :, None]  # visible, infrared
        place = appearance[:, None] * self.per_modality + np.arange(self.per_modality)
        chosen = images[self._starts[group] + place % self._counts[group]]  # (2, batches * P, K)
        chosen = chosen.reshape(2, -1, self.identities * self.per_modality)[:, self.rank :: self.replicas]
        for visible, infrared in zip(*chosen, strict=True):
            yield visible.tolist() + infrared.tolist()


def _identity_order(rng: np.random.Generator, classes: int, identities: int, batches: int) -> np.ndarray:
    """Return (batches, identities) class numbers: full walks of all classes in turn, no class twice in a batch."""
    length = batches * identities
    order = np.empty(0, dtype=np.int64)
    while len(order) < length:  # a turn is a whole walk over the identities
        walk = rng.permutation(classes)
        begun = len(order) % identities
        if begun:
            # This walk fills up a batch that the last one began: identities already in it must wait, so the first
            # places go to others, of which there are enough, since classes >= identities.
            first = np.flatnonzero(~np.isin(walk, order[-begun:]))[: identities - begun]
            walk = np.concatenate([walk[first], np.delete(walk, first)])
        order = np.concatenate([order, walk])
    return order[:length].reshape(batches, identities)


def _integers(name: str, values: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
    """Return ``values`` as an int64 array (N,)."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {array.shape}")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must hold integers, got {array.dtype}")
    return array.astype(np.int64)
