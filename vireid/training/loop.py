"""The training loop on Lightning Fabric: atomic checkpoints, exact resume, TensorBoard, several processes."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from vireid._checks import extra
from vireid.data import CrossModalIdentitySampler, KeypointSample
from vireid.training.checkpoint import resumable, save_checkpoint
from vireid.training.datasets import Dataset, draw_heatmaps, progress_bar
from vireid.training.recipe import Recipe, make_optimizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Step(nn.Module):
    """Model and criterion as one module, so that data parallelism sees every parameter in one forward pass."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(
        self, images: Tensor, labels: Tensor, modality: Tensor, heatmaps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the named losses of a batch; ``heatmaps`` if the data have key points."""
        output = self.model(images, modality) if heatmaps is None else self.model(images, modality, heatmaps)
        losses: dict[str, Tensor] = self.criterion(output, labels, modality)
        return losses


def launch(
    recipe: Recipe, *, output: str | Path | None = None, accelerator: str = "auto", devices: int = 1
) -> "Fabric":
    """Start the processes of a training run and seed PyTorch, NumPy and ``random`` in each with the recipe's seed.

    Call it before the model is built: what follows runs in every process, and the same seed gives the same model.

    Args:
        recipe: whose precision and seed hold.
        output: folder for TensorBoard's ``logs``; None writes none.
        accelerator: Lightning Fabric's: "cpu", "cuda", "mps" or "auto".
        devices: number of processes, one per device.

    Raises:
        ImportError: if Lightning Fabric or TensorBoard, of the extra ``train``, is not installed.
    """
    with extra("train", "training needs Lightning Fabric"):
        from lightning_fabric import Fabric
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        loggers = [] if output is None else [TensorBoardLogger(output, name="", version="logs")]
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)  # a folder that cannot be is named at once
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=recipe.precision, loggers=loggers)  # type: ignore[arg-type]  # a text that Fabric checks
    fabric.launch()
    fabric.seed_everything(recipe.seed, verbose=False)
    return fabric


def fit(
    model: nn.Module,
    criterion: nn.Module,
    dataset: Dataset,
    *,
    recipe: Recipe,
    fabric: "Fabric | None" = None,
    output: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, object] | None = None,
    workers: int = 0,
) -> nn.Module:
    """Train a model, or continue its training.

    Batches hold P identities × K images of each modality. Each epoch draws from PyTorch's global generator, which is
    seeded anew from the recipe's seed, the epoch and the process: a resumed run ends with the same bits as one that
    was not interrupted. Losses are means over each process's own batch, gradients means over the processes.

    Args:
        model: ``model(images, modality)``, of one's own too; with key points in the data
            ``model(images, modality, heatmaps)``. It is trained in place.
        criterion: ``criterion(output, labels, modality)`` -> dict of losses, of which "total" is minimized. Its
            parameters are trained too.
        dataset: of `vireid.data`, or any with its ``labels``, ``modality`` and samples.
        recipe: how to train.
        fabric: of `launch`, or another that was launched. Default: one process on whatever device there is.
        output: folder for ``checkpoint.pt``, written whole after each epoch, and, with the default ``fabric``, for
            TensorBoard's ``logs``. None keeps nothing.
        resume: go on from the checkpoint in ``output``. Everything but the number of epochs must be as it was.
        settings: plain values to keep in the checkpoint; they must be the same in a resumed run. `load_model` builds
            its model from "method" and the settings of `settings_of`.
        workers: processes that read images.

    Returns:
        The model in evaluation mode and single precision.

    Raises:
        ValueError: if a value is out of its range, the images are of another size than the recipe's, or the
            checkpoint in ``output`` is of other settings, which are named; it is not overwritten.
        FileNotFoundError: if there is nothing to resume.
        FloatingPointError: if a loss or a parameter is not finite after an epoch, of which nothing is saved.
        ImportError: if a package of the extra ``train`` is not installed.
    """
    if not hasattr(dataset, "labels"):
        raise TypeError(f"dataset must be one of vireid.data, or have its labels, got {type(dataset).__name__}")
    if getattr(dataset, "size", recipe.size) != recipe.size:
        raise ValueError(f"dataset must have images of the recipe's size {recipe.size}, got {dataset.size}")
    if resume and output is None:
        raise ValueError("output must name the folder of the checkpoint for resume=True, got None")
    augment = recipe.augmentation()
    fabric = launch(recipe, output=output) if fabric is None else fabric
    kept = {"recipe": recipe.to_dict(), "settings": dict(settings or {}), "images": len(dataset)}
    checkpoint = None if output is None else Path(output) / "checkpoint.pt"
    state = None if checkpoint is None else resumable(checkpoint, kept, resume=resume)

    step = Step(model, criterion)
    optimizer = make_optimizer(step, recipe)
    start = 0
    if state is not None:
        model.load_state_dict(state["model"])
        criterion.load_state_dict(state["criterion"])
        start = state["epoch"]
    wrapped, stepper = fabric.setup(step, optimizer)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    sampler = make_sampler(dataset, recipe, rank=fabric.global_rank, replicas=fabric.world_size)
    loader: Any = fabric.setup_dataloaders(
        DataLoader(dataset, batch_sampler=sampler, num_workers=workers),
        use_distributed_sampler=False,
        move_to_device=False,
    )
    total = recipe.epochs * len(sampler)
    scheduler = LambdaLR(optimizer, partial(recipe.factor, total=total), last_epoch=start * len(sampler) - 1)

    def save(epoch: int) -> None:
        if checkpoint is not None:
            parts = {"model": model, "criterion": criterion, "optimizer": stepper}
            counts = {"num_classes": int(np.asarray(dataset.labels).max()) + 1, "epoch": epoch}
            save_checkpoint(fabric, checkpoint, {**parts, **kept, **counts})

    epochs = progress_bar(range(start, recipe.epochs), "training", fabric.is_global_zero, unit="epoch")
    for epoch in epochs:
        torch.manual_seed(recipe.seed + 10_007 * (epoch * fabric.world_size + fabric.global_rank + 1))
        sampler.set_epoch(epoch)
        wrapped.train()
        sums: dict[str, Tensor] = {}
        for sample in loader:
            rows = augment.rows(sample.modality)  # before the transfer, so that nothing waits for a GPU
            batch, rows = fabric.to_device((sample, rows))
            inputs, targets = (batch.image, batch.modality), (batch.label[rows], batch.modality[rows])
            if isinstance(batch, KeypointSample):
                images, keypoints = augment(*inputs, batch.keypoints, rows=rows)
                losses = wrapped(images, *targets, draw_heatmaps(keypoints, recipe.size))
            else:
                losses = wrapped(augment(*inputs, rows=rows), *targets)
            stepper.zero_grad()
            fabric.backward(losses["total"])
            stepper.step()
            rate = recipe.lr * recipe.factor(scheduler.last_epoch, total)
            scheduler.step()
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach()
        means = {name: float(value) / len(sampler) for name, value in sums.items()}
        _check_finite(step, means, epoch)  # before the last good checkpoint is lost
        epochs.set_postfix({name: f"{value:.2f}" for name, value in means.items()})
        fabric.log_dict({f"loss/{name}": value for name, value in means.items()} | {"learning_rate": rate}, step=epoch)
        save(epoch + 1)
    if recipe.epochs == 0 and state is None:  # the model before training
        save(0)
    return model.float().eval()


def make_sampler(dataset: Dataset, recipe: Recipe, *, rank: int, replicas: int) -> CrossModalIdentitySampler:
    """Return the batches of one process."""
    make = partial(
        CrossModalIdentitySampler,
        dataset.labels,
        dataset.modality,
        identities=recipe.identities,
        per_modality=recipe.per_modality,
        seed=recipe.seed,
        rank=rank,
        replicas=replicas,
    )
    return make(batches=recipe.batches or max(len(make()), recipe.min_batches // replicas))


def _check_finite(step: nn.Module, means: Mapping[str, float], epoch: int) -> None:
    finite = all(bool(x.isfinite().all()) for x in step.state_dict().values() if x.is_floating_point())
    if not math.isfinite(means["total"]) or not finite:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        what = f"the loss or a parameter is not finite in epoch {epoch + 1}"
        raise FloatingPointError(f"{what} ({shown}): nothing of it was saved")
