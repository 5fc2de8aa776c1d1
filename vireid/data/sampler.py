"""Batches of P identities × (K visible + K infrared) images, drawn reproducibly from one seed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.distributed
from einops import rearrange
from torch import Tensor
from torch.utils.data import Sampler

from vireid._checks import check_count, check_modality, check_tensor, to_tensor


class CrossModalIdentitySampler(Sampler[list[int]]):
    """Batch sampler of P identities × (K visible + K infrared) images; pass it as ``DataLoader(batch_sampler=…)``.

    A batch lists a visible and an infrared image of each of its P identities, and this K times: (K, P, 2). So a part of
    consecutive images, as `torch.nn.DataParallel` gives each device or as gradients are accumulated over, holds both
    modalities in equal numbers and as many identities as it can (our choice); a loss that needs more images of an
    identity in a part needs a larger K. Read the modality of an image from ``modality``, never from its place.

    The P identities of a batch differ from each other. Within one epoch

    - every identity comes once, in random order, before any comes again (then in a new random order);
    - an identity's images of one modality are walked in a random order, drawn anew each epoch, and start over only when
      all were taken. So a batch repeats an image only where the identity has fewer than K, and only as often as needed.

    An identity without an image of one of the modalities is left out.

    **Epochs.** The order depends only on ``seed`` and the number of the epoch, and each iteration draws the next epoch:
    0, 1, …. To resume, call `set_epoch`, or load a `state_dict`: it names the epoch after the last one whose first
    batch was drawn, however far the workers of a loader read ahead. To go on within an epoch, set it and skip the
    batches that were trained. Lightning and Fabric announce their own count of epochs to ``sampler``: it is followed,
    but an epoch that was set or loaded since the last iteration goes before it, and their count goes on from there.

    **Processes.** All ranks compute the same global order, and rank r takes its batches r, r + replicas, …: no batch
    comes twice, and all ranks have as many. By default ranks are those of ``torch.distributed``, once it is
    initialized. Nothing may share out the batches again: Lightning and Fabric need ``use_distributed_sampler=False``
    (with True they stop with an error that says so), and where a framework does share out whole batches, such as
    Accelerate, pass ``rank=0, replicas=1``.

    Args:
        labels: (N,) integer identities; tensor, array or sequence.
        modality: (N,) integer, 0 visible, 1 infrared.
        identities: P, the identities in a batch; 8 as in CIFT and AGW.
        per_modality: K, the images of an identity in each modality; 4 as in CIFT and AGW.
        batches: batches per epoch *on each rank*. By default the images of the larger modality, divided by P·K and by
            ``replicas`` and rounded up: each of them is seen about once.
        seed: of the sampler's own generator; neither NumPy's nor PyTorch's global state is used.
        rank: this process, 0 … replicas - 1. Goes with ``replicas``.
        replicas: number of processes.

    Attributes:
        left_out: the identities that lack a modality, sorted.
        sampler: what Lightning and Fabric announce an epoch to.

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
        rank: int | None = None,
        replicas: int | None = None,
    ) -> None:
        label, mode = _integers("labels", labels), _integers("modality", modality)
        if len(label) != len(mode):
            raise ValueError(f"modality must have one entry per label, {len(label)}, got {len(mode)}")
        check_modality("modality", torch.from_numpy(mode))
        self.identities = check_count("identities", identities)
        self.per_modality = check_count("per_modality", per_modality)
        self.seed = check_count("seed", seed, minimum=0)
        if (rank is None) != (replicas is None):
            raise ValueError(f"rank and replicas go together, got rank={rank} and replicas={replicas}")
        share = None if rank is None else (check_count("rank", rank, minimum=0), check_count("replicas", replicas))
        if share and share[0] >= share[1]:
            raise ValueError(f"rank must be below replicas = {replicas}, got {rank}")
        self._share = share
        self._batches = None if batches is None else check_count("batches", batches)

        ids, index = np.unique(label, return_inverse=True)
        counts = np.stack([np.bincount(index[mode == m], minlength=len(ids)) for m in range(2)])
        complete = counts.min(0) > 0
        if complete.sum() < self.identities:
            most = f"{complete.sum()}, the number with images of both modalities (of {len(ids)} in all)"
            raise ValueError(f"identities must be at most {most}, got {identities}")
        self.left_out: np.ndarray = ids[~complete]
        self._counts = counts[:, complete].ravel()  # group = modality * C + identity
        self._starts = np.cumsum(self._counts) - self._counts
        self._images = np.flatnonzero(complete[index])
        position = np.cumsum(complete) - 1
        self._groups = mode[self._images] * complete.sum() + position[index[self._images]]
        self._larger = int(counts[:, complete].sum(1).max())
        self.sampler = _Epochs()

    @property
    def rank(self) -> int:
        """This process."""
        return (self._share or _this_process())[0]

    @property
    def replicas(self) -> int:
        """Number of processes."""
        return (self._share or _this_process())[1]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; the same number gives the same batches."""
        self.sampler.choose(check_count("epoch", epoch, minimum=0))

    def state_dict(self) -> dict[str, int]:
        """Return ``{"epoch": …}``, the epoch that the next iteration draws."""
        return {"epoch": self.sampler.coming}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Choose the epoch of a `state_dict`."""
        epoch = state.get("epoch") if isinstance(state, Mapping) else None
        self.sampler.choose(check_count("state['epoch']", epoch, minimum=0))

    def __len__(self) -> int:
        """Return the number of batches per epoch on this rank."""
        share = self.identities * self.per_modality * self.replicas
        return -(-self._larger // share) if self._batches is None else self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the next epoch's batches of this rank, each a list of 2·P·K indices."""
        # A generator: a loader with workers asks for two iterators, and uses one.
        rng = np.random.default_rng([self.seed, self.sampler.begin()])
        rank, replicas = self.rank, self.replicas
        classes = len(self._counts) // 2
        drawn = _identity_order(rng, classes, self.identities, len(self) * replicas).ravel()

        # The n-th appearance of an identity takes the n-th K of its images, modulo their number: consecutive places
        # modulo n differ as long as K <= n, and nothing comes again before all were taken.
        order = np.argsort(drawn, kind="stable")
        times = np.bincount(drawn, minlength=classes)
        appearance = np.empty_like(drawn)
        appearance[order] = np.arange(len(drawn)) - np.repeat(np.cumsum(times) - times, times)

        images = self._images[np.lexsort((rng.random(len(self._images)), self._groups))]  # shuffled within its group
        group = np.stack([drawn, drawn + classes])[:, :, None]  # visible, infrared
        place = appearance[:, None] * self.per_modality + np.arange(self.per_modality)
        chosen = images[self._starts[group] + place % self._counts[group]]
        for batch in rearrange(chosen, "m (b p) k -> b (k p m)", p=self.identities)[rank::replicas]:
            yield batch.tolist()


class _Epochs:
    """Number of the epoch that comes next: chosen by the user, announced by a framework, or one after the last."""

    def __init__(self) -> None:
        self.coming = 0
        self._chosen = False
        self._ahead = 0  # of the framework's count

    def choose(self, epoch: int) -> None:
        self.coming, self._chosen = epoch, True

    def set_epoch(self, epoch: int) -> None:
        """Take a framework's count, which the chosen epoch only shifts."""
        if self._chosen:
            self._ahead = self.coming - epoch
        self.coming = max(epoch + self._ahead, 0)

    def begin(self) -> int:
        self.coming, self._chosen = self.coming + 1, False
        return self.coming - 1


def _this_process() -> tuple[int, int]:
    """Return rank and number of processes of ``torch.distributed``: (0, 1) where it is not in use."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


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
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        values = array if array.size else array.astype(np.int64)  # NumPy makes an empty list floating point
    x = to_tensor(name, values)
    check_tensor(name, x, "N", kind="integer")
    return x.cpu().long().numpy()
