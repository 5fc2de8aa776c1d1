"""What the training scripts share: their options, the loop with its checkpoints, and the evaluation at its end."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import common
from vireid.data import CrossModalIdentitySampler, KeypointSample, TrainAugmentation
from vireid.losses import GraphOTLoss
from vireid.nn import DualBNNeck, keypoint_pooling, part_grid

# What a checkpoint keeps of every method: the options that decide what is trained, and how.
SETTINGS = (
    "dataset trial ablation backbone weights size epochs batches identities per_modality optimizer lr backbone_lr "
    "weight_decay schedule milestones seed"
).split()

# Of CIFT's feature transfer, which may also stand on SAAI's features.
TRANSFER_SETTINGS = "k tau_hom tau_het samples detach_values".split()

# Of G2DA's alignment of parts, which may be added to any method.
ALIGNMENT_SETTINGS = "alignment part_grid".split()


class Method(NamedTuple):
    """What a training script adds to what is here.

    Attributes:
        name: the script is ``train_<name>.py``; checkpoints keep the name.
        settings: names of the options that checkpoints keep.
        build_model: (config, number of identities) -> (model, criterion), from the plain values of a checkpoint.
        distances: (model, arguments) -> the ways in which the model ranks, as `common.evaluate` takes them.
    """

    name: str
    settings: Sequence[str]
    build_model: Callable[[dict[str, Any], int], tuple[nn.Module, nn.Module]]
    distances: Callable[[nn.Module, argparse.Namespace], Mapping[str, common.Distance | None]]


def add_backbone_options(group: Any) -> None:
    """Options that say which backbone is trained."""
    group.add_argument("--backbone", choices=["small", "torchvision", "timm"], default="small")
    group.add_argument("--weights", help="of the ResNet-50: imagenet, or a local file")


def add_transfer_options(group: Any) -> None:
    """Options of CIFT's feature transfer and of its intervention."""
    group.add_argument("--k", type=int, default=4, help="neighbours of the graph, the image itself included")
    group.add_argument("--tau-hom", type=float, default=0.4)
    group.add_argument("--tau-het", type=float, default=0.2, help="also GFT's only temperature")
    group.add_argument("--samples", type=int, default=1, help="draws of CRI's counterfactual")
    group.add_argument("--detach-values", action="store_true", help="CRI trains the affinities only")


def add_alignment_options(parser: argparse.ArgumentParser) -> None:
    """Options of G2DA's alignment loss beside the method's own."""
    group = parser.add_argument_group("G2DA's alignment")
    group.add_argument("--alignment", type=float, metavar="W", help="add D_ot between parts of a person's images")
    group.add_argument("--part-grid", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="those parts (default: 4 3)")


def add_training_options(parser: argparse.ArgumentParser, output: Path) -> None:
    """Options of the training, with the defaults of the embedded example; ``output`` is --output's."""
    group = parser.add_argument_group("training")
    group.add_argument("--size", type=int, nargs=2, default=[64, 32], metavar=("H", "W"))
    group.add_argument("--epochs", type=int, default=20, help="0: evaluate the model as it is built")
    group.add_argument("--batches", type=int, help="batches an epoch (default: every image about once, at least 64)")
    group.add_argument("--identities", type=int, default=8, help="P, identities in a batch")
    group.add_argument("--per-modality", type=int, default=4, help="K, images of an identity and modality in a batch")
    group.add_argument("--optimizer", choices=["adamw", "adam", "sgd"], default="adamw")
    group.add_argument("--lr", type=float, default=1e-3)
    group.add_argument("--backbone-lr", type=float, default=1.0, help="the backbone's share of --lr; 0.1 in AGW")
    group.add_argument("--weight-decay", type=float, default=5e-4)
    group.add_argument("--schedule", choices=["cosine", "steps"], default="cosine", help="steps: x0.1 at 1/2 and 5/6")
    group.add_argument(
        "--milestones", type=share, nargs="+", metavar="SHARE", help="of the training, where --schedule steps falls"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--accelerator", default="auto", help="Lightning Fabric's: cpu, cuda, mps, auto")
    group.add_argument("--devices", type=int, default=1, help="processes, one a device")
    group.add_argument("--precision", default="32-true", help="Lightning Fabric's: 32-true, bf16-mixed, 16-mixed …")
    group.add_argument("--output", type=Path, default=output)
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, not anew")


def share(text: str) -> str:
    """A share of the training such as 1/2 or 0.75, in lowest terms."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1 such as 3/4, got {text!r}")
    return str(value)


class Step(nn.Module):
    """Model and criterion as one module, so that data parallelism sees every parameter in one forward pass."""

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(
        self, images: Tensor, labels: Tensor, modality: Tensor, heatmaps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named losses of a batch; ``heatmaps`` where the data have key points."""
        output = self.model(images, modality) if heatmaps is None else self.model(images, modality, heatmaps)
        losses: dict[str, Tensor] = self.criterion(output, labels, modality)
        return losses


class Aligned(nn.Module):
    """A criterion and G2DA's alignment of the parts of the backbone's map (ours).

    Args:
        criterion: takes an output that has a ``feature_map``.
        weight: of D_ot.
        grid: (rows, columns) of the parts; the mean of the whole map is a node too.
    """

    parts: Tensor

    def __init__(self, criterion: nn.Module, *, weight: float, grid: Sequence[int]) -> None:
        super().__init__()
        self.criterion, self.weight, self.transport = criterion, weight, GraphOTLoss()
        self.register_buffer("parts", part_grid(*grid)[0], persistent=False)

    def forward(self, output: Any, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """The criterion's losses and ``"transport"``, in the sum ``"total"``."""
        losses: dict[str, Tensor] = self.criterion(output, labels, modality)
        maps = output.feature_map
        local = keypoint_pooling(maps, self.parts.expand(len(maps), -1, -1, -1))
        nodes = torch.cat([local, maps.mean((2, 3))[:, None]], 1)
        aligned = self.weight * self.transport(nodes, labels, modality)
        return losses | {"transport": aligned, "total": losses["total"] + aligned}


def with_alignment(criterion: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """The criterion, with G2DA's alignment where a checkpoint's settings ask for it."""
    weight, grid = config.get("alignment"), config.get("part_grid")
    if weight is None and grid is not None:
        raise ValueError("--part-grid goes with --alignment, which was not given")
    if weight is None:
        return criterion
    if not weight > 0:
        raise ValueError(f"--alignment must be above 0, got {weight}")
    return Aligned(criterion, weight=weight, grid=grid or (4, 3))


def learning_rate(step: int, total: int, warmup: int, schedule: str, milestones: Sequence[str] | None = None) -> float:
    """Factor on the learning rate: linear warm-up, then cosine to 0 or a tenth at each milestone (CIFT's if None)."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "steps":
        return 0.1 ** sum(step >= total * Fraction(milestone) for milestone in milestones or ("1/2", "5/6"))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def learning_share(name: str, arguments: argparse.Namespace) -> float:
    """A parameter's share of the learning rate, by its name in `Step`."""
    if "backbone." in name:
        return float(arguments.backbone_lr)
    if name.startswith(("model.attention.", "model.aggregation.")):
        return float(arguments.graph_lr)
    return 1.0


def build_optimizer(step: Step, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW; norms and biases without weight decay, some parts at a share of the learning rate."""
    dual = {id(part.weight) for part in step.modules() if isinstance(part, DualBNNeck)}  # a norm of two rows
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            lr = arguments.lr * learning_share(name, arguments)
            decay = arguments.weight_decay if parameter.ndim > 1 and id(parameter) not in dual else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    listed = [
        {"params": parameters, "lr": lr, "full_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    if arguments.optimizer == "sgd":
        return torch.optim.SGD(listed, lr=arguments.lr, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if arguments.optimizer == "adam" else torch.optim.AdamW
    return kind(listed, lr=arguments.lr)


def build_sampler(dataset: common.Dataset, arguments: argparse.Namespace, fabric: Fabric) -> CrossModalIdentitySampler:
    """Batches of P identities; an epoch sees every image about once, and has 64 batches at least."""
    sampler = partial(
        CrossModalIdentitySampler,
        dataset.labels,
        dataset.modality,
        identities=arguments.identities,
        per_modality=arguments.per_modality,
        seed=arguments.seed,
        rank=fabric.global_rank,
        replicas=fabric.world_size,
    )
    if arguments.batches is not None:
        return sampler(batches=arguments.batches)
    return sampler(batches=max(len(sampler()), 64 // fabric.world_size))


def train(arguments: argparse.Namespace, fabric: Fabric, method: Method) -> nn.Module:
    """Train, or go on training; returns the model in evaluation mode."""
    for name in ("epochs", "seed", "backbone_lr", "graph_lr"):
        value = getattr(arguments, name, 0)
        if not value >= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {value}")
    if arguments.milestones is not None and arguments.schedule != "steps":
        raise ValueError(f"--milestones goes with --schedule steps, not with {arguments.schedule}")
    size = (arguments.size[0], arguments.size[1])
    with fabric.rank_zero_first():  # the first process draws synthetic data, the others find them there
        dataset = common.open_dataset(arguments, "train", size)
    config = {key: value for key, value in vars(arguments).items() if key in method.settings and value is not None}
    config["images"] = len(dataset)  # says that it is the same data, wherever they lie
    if getattr(arguments, "keypoints", None) is not None:
        config["keypoints"] = common.digest_keypoints(arguments.keypoints)
    config["method"] = method.name
    checkpoint = arguments.output / "checkpoint.pt"
    state = common.resumable(checkpoint, config, resume=arguments.resume)

    fabric.seed_everything(arguments.seed, verbose=False)
    model, criterion = method.build_model(config, dataset.num_classes)
    step = Step(model, criterion)
    optimizer = build_optimizer(step, arguments)
    start = 0
    if state is not None:
        model.load_state_dict(state["model"])
        criterion.load_state_dict(state["criterion"])
        start = state["epoch"]
    wrapped, optimizer = fabric.setup(step, optimizer)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])

    sampler = build_sampler(dataset, arguments, fabric)
    loader = fabric.setup_dataloaders(
        DataLoader(dataset, batch_sampler=sampler, num_workers=arguments.workers), use_distributed_sampler=False
    )

    def save(epoch: int) -> None:
        state = {"model": model, "criterion": criterion, "optimizer": optimizer}
        if fabric.is_global_zero:
            common.save_checkpoint(
                checkpoint,
                {name: part.state_dict() for name, part in state.items()}
                | {"config": config, "identities": dataset.num_classes, "epoch": epoch},
            )
        fabric.barrier()

    augment = TrainAugmentation(size, padding=max(2, size[0] // 16))
    total, warmup = arguments.epochs * len(sampler), max(1, arguments.epochs * len(sampler) // 12)
    epochs = tqdm(range(start, arguments.epochs), desc=arguments.ablation, disable=not fabric.is_global_zero)
    for epoch in epochs:
        # Seeded anew each epoch, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(arguments.seed + 10_007 * (epoch * fabric.world_size + fabric.global_rank + 1))
        sampler.set_epoch(epoch)
        wrapped.train()
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(loader):
            factor = learning_rate(
                epoch * len(sampler) + number, total, warmup, arguments.schedule, arguments.milestones
            )
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["full_lr"] * factor
            if isinstance(batch, KeypointSample):
                images, keypoints = augment(batch.image, batch.modality, batch.keypoints)
                heatmaps = common.draw_heatmaps(keypoints, size)
                losses = wrapped(images, batch.label, batch.modality, heatmaps)
            else:
                losses = wrapped(augment(batch.image, batch.modality), batch.label, batch.modality)
            optimizer.zero_grad()
            fabric.backward(losses["total"])
            optimizer.step()
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach()
        means = {name: float(value) / len(sampler) for name, value in sums.items()}
        finite = all(bool(x.isfinite().all()) for x in step.state_dict().values() if x.is_floating_point())
        if not math.isfinite(means["total"]) or not finite:  # before the last good checkpoint is lost
            shown = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
            what = f"the loss or a parameter is not finite in epoch {epoch + 1}"
            raise RuntimeError(f"{what} ({shown}): nothing of it was saved")
        epochs.set_postfix({name: f"{value:.2f}" for name, value in means.items()})
        fabric.log_dict({f"loss/{name}": value for name, value in means.items()}, step=epoch)
        fabric.log("learning_rate", arguments.lr * factor, step=epoch)
        save(epoch + 1)
    if arguments.epochs == 0 and state is None:  # what the model is worth before training
        save(0)
    return model.float().eval()  # also where --precision trained it in another type: so will evaluate.py read it


def run(arguments: argparse.Namespace, method: Method) -> None:
    """Train, evaluate with the exact protocol, and write what was found."""
    arguments.output.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is named at once
    logger = TensorBoardLogger(arguments.output, name="", version="logs")
    fabric = Fabric(
        accelerator=arguments.accelerator, devices=arguments.devices, precision=arguments.precision, loggers=logger
    )
    fabric.launch()
    if getattr(arguments, "keypoints", None) is not None:  # those that a test image lacks are named now
        with fabric.rank_zero_first():
            common.open_dataset(arguments, "test", (arguments.size[0], arguments.size[1]))
    model = train(arguments, fabric, method)
    if fabric.is_global_zero:
        test = common.open_dataset(arguments, "test", (arguments.size[0], arguments.size[1]))
        features = common.extract_features(model, test, workers=arguments.workers)
        ways = method.distances(model, arguments)
        report = common.evaluate(test, features, ways, arguments)
        trained_on = common.trained_on(vars(arguments))
        common.write_results(report, test, features, list(ways.values())[-1], arguments, trained_on)
