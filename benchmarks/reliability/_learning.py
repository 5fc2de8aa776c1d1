"""Makers of valid arguments: layers, losses, models and transport."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reliability.calls import call, method
from benchmarks.reliability.draw import Draw
from vireid import losses, models, ot
from vireid import nn as layers

DIM, CLASSES = 8, 4
Made = tuple[Any, dict[str, Any]]


def batch(d: Draw, *row: int) -> dict[str, Any]:
    """Draw rows, labels and modality of a batch."""
    modality = d.modality(d.count(4, 12))
    return {"x": d.floats(len(modality), *(row or (DIM,))), "labels": d.labels(modality, 3), "modality": modality}


def transfer(d: Draw) -> Any:
    """Draw a graph layer."""
    if d.count(0, 1):
        return d.module(layers.H2FT(DIM, k=d.count(1, 5)))
    return d.module(layers.GFT(DIM, k=d.count(1, 5), unbalanced=bool(d.count(0, 1))))


# -- losses --------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "affinity_inference_loss": lambda d: {
        "k1": d.count(1, 9), "k2": d.count(1, 3), "variant": d.option("paper", "released"),
        "temperature": d.share(0.1, 1), "amend": d.option(True, False),
    },
    "center_separation_loss": lambda d: {
        "rho1": d.share(0, 0.1), "rho2": d.share(0.2, 2), "normalize": d.option(True, False),
    },
    "cross_modality_triplet_loss": lambda d: {"margin": d.share(0.1), "normalize": d.option(True, False)},
    "graph_ot_loss": lambda d: {
        "phi": d.share(), "loss": d.option("abs", "square"), "solver": d.option("auto", "exact", "entropic"),
        "pairs": d.option("all", "one_to_one"), "iterations": d.count(10, 60), "restarts": d.count(0, 1),
        "average": d.option("pairs", "images"),
    },
    "hcc_loss": lambda d: {
        "margin": d.option(None, d.share()), "distance": d.option("euclidean", "kl"),
        "centers": d.option("shared", "cross"), "negatives": d.option("mean", "sum"),
        "normalize": d.option(True, False), "kl_direction": d.option("to_center", "from_center"),
        "kl_center": d.option("probabilities", "logits"),
    },
    "part_contrastive_loss": lambda d: {
        "epsilon": d.share(0.5, 3), "normalize": d.option(True, False), "average": d.option("pairs", "images"),
    },
    "hetero_center_loss": lambda d: {"normalize": d.option(True, False), "reduction": d.option("sum", "mean")},
    "hetero_center_triplet_loss": lambda d: {"margin": d.share(0.1), "normalize": d.option(True, False)},
    "part_diversity_loss": lambda d: {"maps": d.option("sigmoid", "logits")},
    "weighted_regularized_triplet_loss": lambda d: {"normalize": d.option(True, False)},
}  # fmt: skip
MODULES = {
    "affinity_inference_loss": "AffinityInferenceLoss", "center_separation_loss": "CenterSeparationLoss",
    "cross_modality_triplet_loss": "CrossModalityTripletLoss", "graph_ot_loss": "GraphOTLoss", "hcc_loss": "HCCLoss",
    "hetero_center_loss": "HeteroCenterLoss", "hetero_center_triplet_loss": "HeteroCenterTripletLoss",
    "part_contrastive_loss": "PartContrastiveLoss", "part_diversity_loss": "PartDiversityLoss",
    "weighted_regularized_triplet_loss": "WeightedRegularizedTripletLoss",
}  # fmt: skip


def loss_arguments(name: str, d: Draw) -> dict[str, Any]:
    """Draw the batch of a loss."""
    if name in ("graph_ot_loss", "part_contrastive_loss"):
        given = batch(d, 4, 5)
        given = {"nodes": given.pop("x"), **given}
        if d.count(0, 1):
            mask = torch.from_numpy(d.rng.random(given["nodes"].shape[:2]) < 0.8)
            mask[:, -1] = True
            given["mask"] = mask
        return given
    if name == "part_diversity_loss":
        given = batch(d, 3, 12)
        return {"attention": given["x"].sigmoid() if d.count(0, 1) else given["x"]}
    return batch(d)


def loss_batch(d: Draw, made: Any, world: Path, *, name: str) -> dict[str, Any]:
    """Draw the batch of a loss as a module."""
    return loss_arguments(name, d)


for name, kind in MODULES.items():

    def function(d: Draw, world: Path, name: str = name) -> Made:
        """Draw the arguments of a loss as a function."""
        return getattr(losses, name), loss_arguments(name, d) | OPTIONS[name](d)

    def module(d: Draw, world: Path, name: str = name, kind: str = kind) -> Made:
        """Draw the settings of a loss as a module."""
        return getattr(losses, kind), OPTIONS[name](d)

    slow: dict[str, Any] = {"weight": 0.3, "comparable": False} if name == "graph_ot_loss" else {}
    unused = name in ("center_separation_loss", "weighted_regularized_triplet_loss")
    slow |= {"free": ("modality",)} if unused else {}
    call(f"losses.{name}", **slow)(function)
    call(f"losses.{kind}")(module)
    method("losses", kind, "forward", module, functools.partial(loss_batch, name=name), **slow)


@call("losses.affinity_inference_scores")
def scores(d: Draw, world: Path) -> Made:
    """Draw a batch without labels."""
    given, options = batch(d), OPTIONS["affinity_inference_loss"](d)
    del given["labels"], options["temperature"]
    return losses.affinity_inference_scores, given | options


def cri_settings(d: Draw, world: Path) -> Made:
    """Draw the settings of CRI."""
    more = {"detach_values": d.option(True, False), "intervention": d.option("free", "predicted")}
    return losses.CRILoss, {"dim": DIM, "samples": d.count(1, 2), **more}


def cri_keywords(d: Draw) -> dict[str, Any]:
    """Draw what CRI shares with the model."""
    return {"transfer": transfer(d), "classifier": d.module(nn.Linear(DIM, CLASSES, bias=False))}


call("losses.CRILoss", weight=0.5)(cri_settings)
method("losses", "CRILoss", "forward", cri_settings, lambda d, m, w: batch(d) | cri_keywords(d), comparable=False)
method("losses", "CRILoss", "distribution", cri_settings, lambda d, m, w: {"x": d.floats(d.count(0, 6), DIM)})


@call("losses.cri_loss", comparable=False)
def cri(d: Draw, world: Path) -> Made:
    """Draw a batch, a transfer and a classifier."""
    more = {"X_mu": d.floats(DIM), "X_sigma": d.floats(DIM, kind="uniform"), "samples": d.count(1, 2)}
    return losses.cri_loss, batch(d) | cri_keywords(d) | more


def mutual_of_type(d: Draw, world: Path) -> Made:
    """Draw a mutual identity loss with random parameters."""
    function, given = mutual(d, world)
    return lambda: d.module(function(**given)), {}


def mutual(d: Draw, world: Path) -> Made:
    """Draw the settings of the mutual identity loss."""
    more = {"rate": d.share(0.1, 1), "means": d.option("modality", "batch"), "shared_weight": d.share()}
    more |= {"specific_weight": d.share(), "mutual_weight": d.share()}
    return losses.MutualIdentityLoss, {"dim": DIM, "num_classes": CLASSES, **more}


call("losses.MutualIdentityLoss")(mutual)
for name in ("forward", "terms"):
    method("losses", "MutualIdentityLoss", name, mutual_of_type, lambda d, m, w: batch(d), comparable=False)
method("losses", "MutualIdentityLoss", "logits", mutual_of_type, lambda d, m, w: {"x": d.floats(d.count(0, 6), DIM)},
       comparable=False)  # fmt: skip


@call("losses.mutual_identity_loss")
def mutual_function(d: Draw, world: Path) -> Made:
    """Draw a batch and the classifiers."""
    weights = {"shared": d.floats(CLASSES, DIM, scale=0.3), "specific": d.floats(2, CLASSES, DIM, scale=0.3)}
    weights |= {"averaged": d.floats(2, CLASSES, DIM, scale=0.3)}
    return losses.mutual_identity_loss, batch(d) | weights | {"mutual_weight": d.share(), "specific_weight": d.share()}


@call("losses.query_gallery_cross_entropy", "losses.query_gallery_hcc_loss", weight=0.6, free=("modality",))
def query_gallery(d: Draw, world: Path, name: str) -> Made:
    """Draw logits of queries and of half of them as gallery."""
    given = batch(d, CLASSES)
    index = torch.arange(0, len(given["labels"]), 2)
    more = {"query": given.pop("x"), "gallery": d.floats(len(index), CLASSES), "gallery_index": index}
    hcc = {"margin": d.option(None, d.share()), "kl_center": d.option("probabilities", "logits")}
    hcc |= {"kl_direction": d.option("to_center", "from_center"), "negatives": d.option("mean", "sum")}
    options = hcc if name == "query_gallery_hcc_loss" else {"label_smoothing": d.share()}
    return getattr(losses, name), given | more | options


# -- transport -----------------------------------------------------------------------------------------------------


@call("ot.graph_ot", comparable=False)
def graph_ot(d: Draw, world: Path) -> Made:
    """Draw two sets of nodes."""
    b, n = d.count(1, 3), d.count(1, 5)
    m = d.option(n, d.count(1, 5))
    given: dict[str, Any] = {"x": d.floats(b, n, 4), "y": d.floats(b, m, 4), "phi": d.share()}
    given |= {"loss": d.option("abs", "square"), "solver": d.option("auto", "exact", "entropic")}
    if d.count(0, 2) == 0:
        given |= {"weights_x": d.floats(b, n, kind="uniform"), "weights_y": d.floats(b, m, kind="uniform")}
    if d.count(0, 2) == 0:
        given |= {"mask_x": torch.ones(b, n, dtype=torch.bool), "mask_y": torch.ones(b, m, dtype=torch.bool)}
    return ot.graph_ot, given | {"iterations": d.count(5, 50), "restarts": d.count(0, 1), "tolerance": 1e-4}


# -- layers --------------------------------------------------------------------------------------------------------


def images(d: Draw, *grid: int) -> Tensor:
    """Draw maps of two channels."""
    return d.floats(d.count(2, 5), *grid)


LAYERS: dict[str, Any] = {
    "H2FT": lambda d: {"dim": DIM, "k": d.count(1, 6), "tau_hom": d.share(0.1, 1), "tau_het": d.share(0.1, 1)},
    "GFT": lambda d: {
        "dim": DIM, "k": d.count(1, 6), "tau": d.share(0.1, 1), "unbalanced": d.option(True, False),
        "transferred": d.option("values", "features"),
    },
    "BNNeck": lambda d: {"dim": DIM, "eps": d.share(0.001, 0.1), "momentum": d.share(0.1, 1)},
    "DualBNNeck": lambda d: {"dim": DIM, "eps": d.share(0.001, 0.1), "momentum": d.share(0.1, 1)},
    "MessageFusionAttention": lambda d: {
        "dim": DIM, "heads": d.option(1, 2, 4), "adjacency": torch.ones(4, 4, dtype=torch.bool),
        "threshold": d.share(0, 0.6), "negative_slope": d.share(0.1, 0.5), "head_dim": d.option(None, 2, DIM),
        "magnitude": d.option(True, False),
    },
    "SharedFeatureTransfer": lambda d: {"dim": DIM, "k": d.count(1, 6), "activation": d.option("none", "relu")},
    "GeM": lambda d: {"p": d.share(1, 10), "trainable": d.option(True, False), "grid": d.option((1, 1), (3, 2))},
    "NonLocal": lambda d: {"channels": DIM},
    "PrototypePooling": lambda d: {
        "channels": DIM, "parts": d.count(1, 3), "size": (4, 2), "position_in_values": d.option(True, False),
    },
    "SkeletonAggregation": lambda d: {"dim": DIM, "nodes": 3},
    "SmallBackbone": lambda d: {"directions": 3, "grid": (3, 2), "width": 4, "depth": d.count(1, 2)},
}  # fmt: skip
for name in LAYERS:

    def layer(d: Draw, world: Path, name: str = name) -> Made:
        """Draw the settings of a layer."""
        return getattr(layers, name), LAYERS[name](d)

    def made(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a layer with random parameters."""
        return lambda: d.module(getattr(layers, name)(**LAYERS[name](d))), {}

    call(f"nn.{name}")(layer)
    if name in ("H2FT", "GFT", "SharedFeatureTransfer"):
        nm = lambda d, m, w: {"x": d.floats(len(kind := d.modality(d.count(2, 10))), DIM), "modality": kind}
        method("nn", name, "forward", made, nm)
        nm = lambda d, m, w: {"values": d.floats(len(kind := d.modality(d.count(2, 10))), DIM), "modality": kind}
        method("nn", name, "affinities", made, nm)
        pair = lambda d, m, w: {"query": d.floats(d.count(0, 4), DIM), "gallery": d.floats(d.count(1, 9), DIM)}
        method("nn", name, "distance", made, pair)
        method("nn", name, "transfer", made, pair)
        method("nn", name, "embed", made, lambda d, m, w: {"name": "query", "x": d.floats(d.count(0, 4), DIM)})

        def graph_of(d: Draw, m: Any, w: Path) -> dict[str, Any]:
            """Draw a gallery's graph."""
            from vireid.neighbors import NeighborGraph

            return {"graph": NeighborGraph.build(m.embed("gallery", d.floats(9, DIM)), 6)}

        def made_of_values(d: Draw, world: Path, name: str = name) -> Made:
            """Draw a layer that transfers v(x), of which a graph is made."""
            given = {key: value for key, value in LAYERS[name](d).items() if key != "transferred"}
            return lambda: d.module(getattr(layers, name)(**given)), {}

        method("nn", name, "prepare_gallery", made_of_values, graph_of, weight=0.3)
    elif name == "BNNeck":
        method("nn", name, "forward", made, lambda d, m, w: {"x": d.floats(d.count(1, 6), DIM)})
    elif name == "DualBNNeck":
        nm = lambda d, m, w: {"x": d.floats(len(kind := d.modality(d.count(1, 6))), DIM), "modality": kind}
        method("nn", name, "forward", made, nm)
    elif name == "MessageFusionAttention":
        nodes = lambda d, m, w: {"nodes": d.floats(d.count(2, 5), 4, DIM)}
        method("nn", name, "forward", made, nodes)
        method("nn", name, "attention", made, nodes)
        method("nn", name, "kept", made, lambda d, m, w: {}, weight=0.1)
        method("nn", name, "scales", made, lambda d, m, w: {}, weight=0.1)
    elif name in ("GeM", "NonLocal"):
        maps = lambda d, m, w: {"feature_map": d.floats(d.count(1, 4), DIM, d.count(1, 5), d.count(2, 3))}
        method("nn", name, "forward", made, maps)
    elif name == "PrototypePooling":
        maps = lambda d, m, w: {"feature_map": d.floats(d.count(1, 4), DIM, d.count(1, 5), d.count(1, 3))}
        method("nn", name, "forward", made, maps)
        method("nn", name, "pool", made, maps)
    elif name == "SkeletonAggregation":
        rows = lambda d, m, w: {"pooled": (x := d.floats(d.count(1, 5), DIM)), "nodes": d.floats(len(x), 3, DIM)}
        method("nn", name, "forward", made, rows)


def backbone(d: Draw, *, plain: bool = False) -> nn.Module:
    """Make a backbone with maps of 3 x 2."""
    stem, trunk = nn.Conv2d(3, 4, 3, stride=2), nn.Sequential(nn.Tanh(), nn.Conv2d(4, 6, 1))
    if plain or d.count(0, 1):
        net: nn.Module = nn.Sequential(stem, trunk)
        net.out_channels = 6  # type: ignore[assignment]
        return net
    return layers.TwoStream(stem, trunk, infrared_stem=nn.Conv2d(3, 4, 3, stride=2), out_channels=6)


@call("nn.TwoStream", weight=0.5)
def two_stream(d: Draw, world: Path) -> Made:
    """Draw stem and trunk."""
    return layers.TwoStream, {"stem": nn.Conv2d(3, 4, 3, stride=2), "trunk": nn.Conv2d(4, 6, 1), "out_channels": 6}


def picture_batch(d: Draw) -> dict[str, Any]:
    """Draw images and their modality."""
    modality = d.modality(d.count(4, 8))
    return {"images": d.floats(len(modality), 3, 8, 6, scale=1.0), "modality": modality}


def two_stream_of_type(d: Draw, world: Path) -> Made:
    """Draw a network with random parameters."""
    function, given = two_stream(d, world)
    return lambda: d.module(function(**given)), {}


method("nn", "TwoStream", "forward", two_stream_of_type, lambda d, m, w: picture_batch(d))
method("nn", "TwoStream", "stream", two_stream, lambda d, m, w: {"modality": d.count(0, 1)}, weight=0.3)


@call("nn.TwoStream.from_sequential", weight=0.3)
def from_sequential(d: Draw, world: Path) -> Made:
    """Draw a network to split."""
    return layers.TwoStream.from_sequential, {"net": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()), "shared_from": "1"}


@call("nn.insert_non_local", weight=0.3)
def non_local(d: Draw, world: Path) -> Made:
    """Draw a network with a stage."""
    return layers.insert_non_local, {"net": layers.SmallBackbone(), "blocks": {"refinements": d.count(1, 2)},
                                     "size": d.option((64, 64), (32, 16))}  # fmt: skip


@call("nn.TwoStream.from_resnet", "nn.backbone", "nn.resnet50", weight=0.02)
def resnet(d: Draw, world: Path, name: str) -> Made:
    """Draw a ResNet's settings."""
    if name == "resnet50":
        return layers.resnet50, {"source": "torchvision", "weights": None, "last_stride": d.option(1, 2)}
    if name == "backbone":
        network = d.option("resnet18", "timm/resnet18", "torchvision/vit_b_16")
        return layers.backbone, {"name": network, "weights": None, "last_stride": d.option(1, 2)}
    net = nn.Sequential()
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        net.add_module(name, nn.Identity())
    return layers.TwoStream.from_resnet, {"net": net, "shared_from": d.option("layer1", "layer2")}


@call("nn.Skeleton", weight=0.4)
def skeleton(d: Draw, world: Path) -> Made:
    """Draw a skeleton."""
    return layers.Skeleton, {"names": ("head", "left_hip", "right_hip"), "bones": ((0, 1), (0, 2))}


for name in ("adjacency", "mirror"):
    method("nn", "Skeleton", name, skeleton, lambda d, m, w: {}, weight=0.1)


@call("nn.skeleton_adjacency", weight=0.5)
def adjacency(d: Draw, world: Path) -> Made:
    """Draw edges."""
    nodes = d.count(2, 5)
    return layers.skeleton_adjacency, {"edges": [(0, 1)], "nodes": nodes, "self_loops": d.option(True, False)}


@call("nn.part_grid", weight=0.5)
def part_grid(d: Draw, world: Path) -> Made:
    """Draw a grid."""
    return layers.part_grid, {"rows": d.count(1, 4), "columns": d.count(1, 3)}


@call("nn.gaussian_heatmaps")
def gaussian(d: Draw, world: Path) -> Made:
    """Draw key points."""
    points = d.cast(d.floats(d.count(0, 3), 4, 3, kind="uniform") * 8)
    return layers.gaussian_heatmaps, {"keypoints": points, "size": (6, 4), "image_size": (12, 8),
                                      "sigma": d.share(0.5, 3)}  # fmt: skip


@call("nn.keypoint_pooling")
def pooling(d: Draw, world: Path) -> Made:
    """Draw maps and heatmaps."""
    b = d.count(1, 3)
    heatmaps = d.floats(b, 4, d.option(4, 8), d.option(2, 4), kind="uniform")
    return layers.keypoint_pooling, {"feature_map": d.floats(b, DIM, 4, 2), "heatmaps": heatmaps,
                                     "grid": d.option((1, 1), (2, 1))}  # fmt: skip


@call("nn.merge_coco_heatmaps", "nn.merge_coco_keypoints", "nn.present_keypoints")
def heatmaps(d: Draw, world: Path, name: str) -> Made:
    """Draw COCO's key points."""
    b = d.count(1, 3)
    if name == "merge_coco_keypoints":
        return layers.merge_coco_keypoints, {"keypoints": d.floats(b, 17, 3, kind="uniform")}
    maps = d.floats(b, 17, 4, 3, kind="uniform")
    if name == "merge_coco_heatmaps":
        return layers.merge_coco_heatmaps, {"heatmaps": maps}
    return layers.present_keypoints, {"heatmaps": maps, "threshold": d.share(0, 0.9)}


# -- models --------------------------------------------------------------------------------------------------------

PLAIN_ADJACENCY = layers.part_grid(2, 1)
MODELS: dict[str, Any] = {
    "Baseline": lambda d: {"grid": d.option(None, (1, 1), (2, 1))},
    "CIFT": lambda d: {},
    "AGW": lambda d: {
        "pooling": d.option("gem", "avg"), "p": d.share(1, 4), "stripes": d.count(1, 3), "relu": d.option(True, False),
        "part_dim": d.option(None, 4), "trainable_p": d.option(True, False),
    },
    "SAAI": lambda d: {
        "parts": d.count(1, 3), "size": (3, 2), "dual_neck": d.option(True, False), "stripes": d.count(0, 2),
        "global_feature": d.option(True, False),
    },
    "G2DA": lambda d: {
        "parts": PLAIN_ADJACENCY[0], "adjacency": PLAIN_ADJACENCY[1], "heads": d.option(1, 2), "threshold": 0.0,
        "graph": d.option(True, False), "normalize_nodes": d.option(True, False),
    },
}  # fmt: skip


def criterion_of(d: Draw, name: str, model: nn.Module) -> tuple[Any, dict[str, Any]]:
    """Return a model's criterion and its settings."""
    readings = {
        "metric_features": d.option("pooled", "neck"), "centers": d.option("shared", "cross"),
        "negatives": d.option("mean", "sum"), "kl_direction": d.option("to_center", "from_center"),
        "kl_center": d.option("probabilities", "logits"), "label_smoothing": d.share(),
    }  # fmt: skip
    if name == "Baseline":
        return models.BaselineCriterion, readings
    if name == "G2DA":
        return models.G2DACriterion, {"model": model, "fusion_sparsity": d.share(), "margin": d.share(0.1),
                                      "average": d.option("pairs", "images"), "phi": d.share(),
                                      "loss": d.option("abs", "square"),
                                      "pairs": d.option("all", "one_to_one"), "contrastive": d.share(),
                                      "label_smoothing": d.share()}  # fmt: skip
    if name == "AGW":
        return models.AGWCriterion, {"model": model, "triplet": d.share(), "hetero_center": d.share(),
                                     "hetero_center_triplet": d.share(), "label_smoothing": d.share(0, 0.5),
                                     "metric_features": d.option("pooled", "neck")}  # fmt: skip
    if name == "SAAI":
        return models.SAAICriterion, {"model": model, "part_diversity": d.share(),
                                      "maps": d.option("sigmoid", "logits"),
                                      "identity_means": d.option("modality", "batch"), "affinity":
                                      d.option(None, losses.AffinityInferenceLoss(k1=3))}  # fmt: skip
    return models.CIFTCriterion, {"model": model, "cri": d.option(None, losses.CRILoss(6)), **readings}


for name in MODELS:

    def settings(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a model's settings."""
        return getattr(models, name), {"backbone": backbone(d), "num_classes": CLASSES, **MODELS[name](d)}

    def model_of(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a model with random parameters."""
        function, given = settings(d, world, name)
        return lambda: d.module(function(**given)), {}

    def criterion(d: Draw, world: Path, name: str = name) -> Made:
        """Draw a criterion's settings."""
        model = model_of(d, world, name)[0]()
        return criterion_of(d, name, model)

    def criterion_call(d: Draw, world: Path, name: str = name, inner: str = "forward") -> Made:
        """Draw a criterion and a model's output."""
        model = model_of(d, world, name)[0]()
        function, given = criterion_of(d, name, model)
        given_images = picture_batch(d)
        output = model.train()(**given_images)
        labels = d.labels(given_images["modality"], CLASSES)
        module = d.module(function(**given))
        about = {"labels": labels, "modality": given_images["modality"]}
        if inner == "terms":
            return module.terms, {"features": output.features, "logits": output.logits, **about}
        return module, {"output": output, **about}

    call(f"models.{name}", weight=0.3)(settings)
    method("models", name, "forward", model_of, lambda d, m, w: picture_batch(d), weight=0.5)
    call(f"models.{name}Criterion", weight=0.3)(criterion)
    call(f"models.{name}Criterion.forward", weight=0.5, comparable=False)(criterion_call)
    if name != "CIFT":
        method(
            "models",
            name,
            "feature_map",
            model_of,
            lambda d, m, w: picture_batch(d) | {"channels": 6},
            weight=0.2,
            free=("channels",),
        )
        method("models", name, "feature_size", settings, lambda d, m, w: {"dim": None}, weight=0.05)
        method("models", name, "stack_cells", model_of, lambda d, m, w: {"maps": d.floats(2, 6, 3, 2)}, weight=0.2)


@call("models.BaselineCriterion.terms", weight=0.3)
def terms(d: Draw, world: Path) -> Made:
    """Draw features and logits."""
    given = batch(d)
    given = {"features": given.pop("x"), "logits": d.floats(len(given["labels"]), CLASSES), **given}
    return models.BaselineCriterion().terms, given


@call("models.graph_losses", weight=0.3, free=("modality",))
def graph_losses(d: Draw, world: Path) -> Made:
    """Draw the logits of a graph's classifier."""
    _, given = query_gallery(d, world, "query_gallery_hcc_loss")
    del given["margin"]
    return models.graph_losses, given | {"label_smoothing": d.share()}


@call("models.shared_losses", weight=0.3)
def shared_losses(d: Draw, world: Path) -> Made:
    """Draw transferred features and their logits."""
    given = batch(d)
    given = {"transferred": given.pop("x"), "logits": d.floats(len(given["labels"]), CLASSES), **given}
    return models.shared_losses, given | {"label_smoothing": d.share(0, 0.5)}


@call("models.AlignedCriterion", weight=0.3)
def aligned(d: Draw, world: Path) -> Made:
    """Draw a criterion to align."""
    return models.AlignedCriterion, {"criterion": models.BaselineCriterion(), "weight": d.share(0.1, 2), "grid": (2, 1)}


@call("models.AlignedCriterion.forward", weight=0.3, comparable=False)
def aligned_call(d: Draw, world: Path) -> Made:
    """Draw a baseline's output."""
    given = picture_batch(d)
    model = d.module(models.Baseline(backbone(d), CLASSES)).train()
    output = model(**given)
    function, settings = aligned(d, world)
    return d.module(function(**settings)), {"output": output, "labels": d.labels(given["modality"], CLASSES),
                                  "modality": given["modality"]}  # fmt: skip


@call("models.feature_size", weight=0.2)
def feature_size(d: Draw, world: Path) -> Made:
    """Draw a backbone."""
    return models.feature_size, {"backbone": backbone(d), "grid": d.option(None, (2, 1))}
