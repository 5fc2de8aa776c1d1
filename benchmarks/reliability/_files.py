"""Makers of valid arguments: data sets, transforms, files, training and pictures; and the folder that they read."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vireid
from benchmarks.reliability.calls import call, method
from benchmarks.reliability.draw import Draw
from vireid import data, plots, training
from vireid.nn import GFT, H2FT

Made = tuple[Any, dict[str, Any]]
DRAWN: dict[str, Any] = {"images_per_camera": 2, "size": (32, 16)}
SIZE = (32, 16)
ROOTS = {"SYSUMM01Dataset": "sysu", "RegDBDataset": "regdb", "LLCMDataset": "llcm"}


def make_world(world: Path) -> None:
    """Write the files that the makers name: data sets, features, graphs, key points and a checkpoint."""
    from vireid import protocols, rerank
    from vireid.neighbors import NeighborGraph

    (world / "out").mkdir(parents=True)
    data.generate_synthetic(world / "sysu", layout="sysu", identities=8, **DRAWN)
    data.generate_synthetic(world / "regdb", layout="regdb", identities=8, **DRAWN)
    gallery = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    NeighborGraph.build(gallery, 5).save(world / "graph.npz")
    for made in (
        rerank.AIM(k1=3, k2=2),
        rerank.ECN(),
        rerank.GNN(),
        rerank.KReciprocal(),
        rerank.SIM(k1=3, k2=2),
        rerank.QueryExpansion(),
    ):
        made.fit(gallery).save(world / f"{type(made).__name__}.npz")
    rerank.GraphTransfer(H2FT(6, k=3, value=nn.Identity())).fit(gallery).save(world / "GraphTransfer.npz")
    about = np.arange(20)
    arrays = (about % 5, about % 2, 1 + about % 6)
    data.save_features(world / "features.npz", gallery, *arrays, names=[f"cam1/{i:04}.jpg" for i in about])
    trials = (dict.fromkeys(("rank1", "rank5", "rank10", "rank20", "mAP", "mINP"), 50.0),)
    row = protocols.ReportRow("infrared_to_visible", "backbone", "none", "query", trials, ((0.5, 1.0),))
    protocols.Report("RegDB", (row,)).save(world / "report.json")
    heatmaps = np.random.default_rng(0).random((13, 4, 2)).astype(np.float32)
    image = first_image(world)
    data.save_heatmaps(world / "heatmaps", image, heatmaps, root=world / "regdb")
    write_llcm(world / "llcm")
    recipe = training.Recipe(size=SIZE, epochs=0, batches=1, identities=2, per_modality=2)
    settings: dict[str, Any] = {"grid": (2, 1), "width": 8}
    known = training.settings_of("cift")
    settings = {name: x for name, x in settings.items() if name in known}
    built = training.build("cift", 4, SIZE, settings)
    found = training.open_dataset("regdb", "train", root=world / "regdb", size=SIZE)
    training.fit(*built, found, recipe=recipe, output=world / "run",
                 settings={"method": "cift", "dataset": "regdb", **settings})  # fmt: skip


def write_llcm(root: Path) -> None:
    """Write a data set in LLCM's layout: two identities to train with and two to test."""
    from PIL import Image

    (root / "idx").mkdir(parents=True)
    for kind, camera in (("vis", 4), ("nir", 5)):
        lines = []
        for identity in (1, 2, 3, 4):
            name = f"{identity:04d}/{identity:04d}_c0{camera}_s1_f{identity}_{kind}.jpg"
            name = f"{kind}/{name}" if identity < 3 else f"test_{kind}/cam{camera}/{name}"
            (root / name).parent.mkdir(parents=True)
            Image.new("RGB", (16, 32), (identity * 20, 99, 9)).save(root / name)
            lines += [f"{name} {identity - 1}\n"] if identity < 3 else []
        (root / "idx" / f"train_{kind}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text("3,4")


@functools.cache
def first_image(world: Path) -> Path:
    """Return an image of the RegDB layout."""
    return min((world / "regdb" / "Visible").rglob("*.bmp"), default=min((world / "regdb" / "Visible").rglob("*.*")))


# -- data ----------------------------------------------------------------------------------------------------------

for name, folder in ROOTS.items():

    def dataset(d: Draw, world: Path, name: str = name, folder: str = folder) -> Made:
        """Draw the settings of a reader."""
        given = {
            "root": world / folder,
            "split": d.option("train", "test"),
            "size": SIZE,
            "cache": d.option(True, False),
        }
        return getattr(data, name), given | {"modality": d.option(None, 0, 1)}

    call(f"data.{name}", weight=0.4)(dataset)
    method("data", name, "preload", dataset, lambda d, m, w: {"progress": False}, weight=0.05)


def images_of(d: Draw) -> dict[str, Any]:
    """Draw images in [0, 1] and their modality."""
    modality = d.modality(d.count(0, 5))
    return {"images": d.floats(len(modality), 3, 12, 8, kind="uniform"), "modality": modality}


def exchange(d: Draw, world: Path) -> Made:
    """Draw the settings of the exchange."""
    return data.ChannelExchange, {"visible": d.share(), "infrared": d.share()}


call("data.ChannelExchange", weight=0.5)(exchange)
method("data", "ChannelExchange", "forward", exchange, lambda d, m, w: images_of(d), comparable=False, weight=0.5)


@call("data.channel_exchange", comparable=False)
def exchange_function(d: Draw, world: Path) -> Made:
    """Draw images to exchange channels of."""
    return data.channel_exchange, images_of(d) | {"visible": d.share(), "infrared": d.share()}


@call("data.normalize")
def normalize(d: Draw, world: Path) -> Made:
    """Draw images to normalize."""
    return data.normalize, {"images": images_of(d)["images"], "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


def evaluation_transform(d: Draw, world: Path) -> Made:
    """Draw the settings of a transform."""
    return data.EvalTransform, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}


call("data.EvalTransform", weight=0.5)(evaluation_transform)
method(
    *("data", "EvalTransform", "forward", evaluation_transform),
    lambda d, m, w: images_of(d),
    weight=0.5,
    free=("modality",),
)


def augmentation(d: Draw, world: Path) -> Made:
    """Draw the settings of an augmentation."""
    given = {"size": (12, 8), "padding": d.count(0, 2), "flip": d.share(), "erasing": d.share(), "grayscale": d.share()}
    given |= {"erasing_area": (0.05, 0.3), "erasing_aspect": d.share(0.1, 1), "exchange_visible": d.share()}
    return data.TrainAugmentation, given | {"exchange_infrared": d.share(), "second_view": d.option(True, False)}


call("data.TrainAugmentation", weight=0.3)(augmentation)
method("data", "TrainAugmentation", "rows", augmentation, lambda d, m, w: {"modality": d.modality(4)}, weight=0.1)
method("data", "TrainAugmentation", "forward", augmentation, lambda d, m, w: images_of(d), comparable=False, weight=0.3)


def sampler(d: Draw, world: Path) -> Made:
    """Draw the settings of a sampler."""
    modality = d.modality(24)
    labels = d.labels(modality, 4)
    given = {"labels": d.array(labels), "modality": d.array(modality), "identities": d.count(1, 4)}
    given |= {"per_modality": d.count(1, 3), "batches": d.option(None, 3), "seed": d.count(0, 9)}
    return data.CrossModalIdentitySampler, given


call("data.CrossModalIdentitySampler")(sampler)
method("data", "CrossModalIdentitySampler", "set_epoch", sampler, lambda d, m, w: {"epoch": d.count(0, 9)}, weight=0.3)


method("data", "CrossModalIdentitySampler", "state_dict", sampler, lambda d, m, w: {}, weight=0.1)
method(
    "data", "CrossModalIdentitySampler", "load_state_dict", sampler, lambda d, m, w: {"state": {"epoch": 2}}, weight=0.2
)


@call("modality", weight=0.5, free=("visible", "infrared"))
def codes(d: Draw, world: Path) -> Made:
    """Draw codes of another system."""
    return vireid.modality, {"x": d.array(d.modality(d.count(0, 5)) + 1), "visible": 1, "infrared": 2}


def features(d: Draw) -> dict[str, Any]:
    """Draw the content of a feature file."""
    n = d.count(1, 6)
    given = {
        "features": d.array(d.floats(n, 4)),
        "ids": d.array(d.integers(4, n)),
        "modality": d.array(d.integers(2, n)),
    }
    given |= {"cameras": d.array(d.integers(6, n)), "image_numbers": d.option(None, d.array(d.integers(9, n)))}
    return given | {"names": [f"cam1/{i:04}.jpg" for i in range(n)], "metadata": {"a": "b"}}


def features_object(d: Draw, world: Path) -> Made:
    """Draw the content of a feature file as an object."""
    d.numpy, d.dtype = True, torch.float32
    return data.Features, features(d)


call("data.Features", weight=0.2, holder=True)(features_object)
for name in ("numbers", "places"):
    method("data", "Features", name, features_object, lambda d, m, w: {}, weight=0.1)


@call("data.save_features", weight=0.5)
def save_features(d: Draw, world: Path) -> Made:
    """Draw features to save."""
    return data.save_features, {"path": world / "out" / d.option("f.npz", "f.safetensors"), **features(d)}


@call("data.load_features", weight=0.5)
def load_features(d: Draw, world: Path) -> Made:
    """Name a feature file."""
    return data.load_features, {"path": world / "features.npz"}


def keypoints(d: Draw) -> dict[str, Any]:
    """Draw the key points of some images."""
    n = d.count(1, 3)
    points = d.rng.random((n, 13, 3)).astype(np.float32)
    return {"paths": [f"a/{i}.jpg" for i in range(n)], "keypoints": points, "sizes": np.full((n, 2), 16)}


def keypoints_object(d: Draw, world: Path) -> Made:
    """Draw key points as an object."""
    return data.Keypoints, keypoints(d)


@call("data.save_keypoints", weight=0.5, free=("sizes",))  # whole numbers may be floating point
def save_keypoints(d: Draw, world: Path) -> Made:
    """Draw key points to save."""
    return data.save_keypoints, {"path": world / "out" / "k.npz", **keypoints(d)}


@call("data.load_keypoints", weight=0.3)
def load_keypoints(d: Draw, world: Path) -> Made:
    """Name a file of key points."""
    return data.load_keypoints, {"path": world / "regdb" / "keypoints.npz"}


@call("data.save_heatmaps", weight=0.5)
def save_heatmaps(d: Draw, world: Path) -> Made:
    """Draw heatmaps to save."""
    maps = d.array(d.floats(13, 4, 2, kind="uniform"))
    return data.save_heatmaps, {"folder": world / "out" / "h", "image": first_image(world), "heatmaps": maps,
                                "root": world / "regdb", "source": {"model": "a"}}  # fmt: skip


@call("data.load_heatmaps", weight=0.3)
def load_heatmaps(d: Draw, world: Path) -> Made:
    """Name heatmaps."""
    return data.load_heatmaps, {"folder": world / "heatmaps", "image": first_image(world), "root": world / "regdb"}


@call("data.HeatmapFolder", weight=0.3)
def heatmap_folder(d: Draw, world: Path) -> Made:
    """Name a folder of heatmaps."""
    return data.HeatmapFolder, {"folder": world / "heatmaps", "paths": [first_image(world)], "root": world / "regdb",
                                "keep": d.option(True, False)}  # fmt: skip


def moves(d: Draw) -> dict[str, Any]:
    """Draw crops and flips of three images."""
    corner = torch.from_numpy(d.rng.integers(-2, 3, (3, 2)))
    return {"corner": d.laid(corner), "size": (12, 8), "flipped": torch.from_numpy(d.rng.random(3) < 0.5)}


@call("data.move_heatmaps", "data.move_keypoints")
def move(d: Draw, world: Path, name: str) -> Made:
    """Draw key points or heatmaps to move."""
    if name == "move_keypoints":
        return data.move_keypoints, {"keypoints": d.floats(3, 13, 3, kind="uniform"), **moves(d)}
    return data.move_heatmaps, {"heatmaps": d.floats(3, 13, 6, 4, kind="uniform"), "image_size": (12, 8), **moves(d)}


@call("data.generate_synthetic", weight=0.01, comparable=False)
def synthetic(d: Draw, world: Path) -> Made:
    """Draw the settings of drawn people."""
    given = {"layout": d.option("sysu", "regdb"), "identities": 4, "images_per_camera": 2, "size": (32, 16)}
    return data.generate_synthetic, {
        "root": world / "out" / f"drawn{d.count(0, 10**9)}",
        **given,
        "seed": d.count(0, 9),
    }


# -- training ------------------------------------------------------------------------------------------------------


def recipe(d: Draw, world: Path) -> Made:
    """Draw a recipe."""
    given: dict[str, Any] = {"size": SIZE, "epochs": d.count(0, 2), "identities": 2, "per_modality": 2, "batches": 1}
    given |= {"optimizer": d.option("adamw", "adam", "sgd"), "lr": d.share(0.001, 0.1), "momentum": d.share(0, 0.99)}
    given |= {
        "weight_decay": d.share(0, 0.1),
        "schedule": d.option("cosine", "steps", "constant"),
        "gamma": d.share(0.1),
    }
    given |= {
        "gamma": d.share(0.1),
        "warmup": d.share(0, 0.5),
        "padding": d.option(None, 2),
        "flip": d.share(),
        "erasing": d.share(),
    }
    return training.Recipe, given | {"grayscale": d.share(), "seed": d.count(0, 9), "erasing_aspect": d.share(0.1, 0.9)}


call("training.Recipe")(recipe)
method("training", "Recipe", "factor", recipe, lambda d, m, w: {"step": 1, "total": 4}, weight=0.3)
method("training", "Recipe", "replace", recipe, lambda d, m, w: {"epochs": 2}, weight=0.3)
for name in ("augmentation", "to_dict"):
    method("training", "Recipe", name, recipe, lambda d, m, w: {}, weight=0.1)


@call("training.settings_of", weight=0.2)
def settings_of(d: Draw, world: Path) -> Made:
    """Draw a method's name."""
    return training.settings_of, {"method": d.option(*training.METHODS)}


@call("training.recipe_of", weight=0.2)
def recipe_of(d: Draw, world: Path) -> Made:
    """Draw a recipe's name."""
    return training.recipe_of, {"method": d.option(*training.METHODS), "name": d.option(*training.RECIPES)}


@call("training.build", weight=0.1, comparable=False)
def build(d: Draw, world: Path) -> Made:
    """Draw a method to build."""
    return training.build, {"method": d.option("cift", "saai"), "num_classes": 4, "size": SIZE, "settings": {}}


@functools.cache
def opened(world: Path) -> Any:
    """Open the training split of RegDB's layout."""
    return training.open_dataset("regdb", "test", root=world / "regdb", size=SIZE)


class Flat(nn.Module):
    """A model that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        """Return the means of the images' rows."""
        return images.mean(3).flatten(1) * self.weight


@call("training.extract_features", weight=0.1, comparable=False)
def extract(d: Draw, world: Path) -> Made:
    """Draw the settings of an extraction."""
    return training.extract_features, {"model": Flat(), "dataset": opened(world), "flip": d.option(True, False),
                                       "batch_size": d.count(1, 20), "workers": 0, "progress": False}  # fmt: skip


@call("training.evaluate", weight=0.05, comparable=False)
def evaluate(d: Draw, world: Path) -> Made:
    """Draw features to evaluate."""
    found = opened(world)
    return training.evaluate, {"dataset": found, "features": d.floats(len(found), 6), "ways": {"backbone": None}}


@call("training.write_results", weight=0.005, comparable=False)
def write_results(d: Draw, world: Path) -> Made:
    """Draw results to write."""
    found = opened(world)
    x = d.floats(len(found), 6).float()
    report = training.evaluate(found, x, {"backbone": None})
    return training.write_results, {"output": world / "out" / "results", "report": report, "dataset": found,
                                    "features": x, "settings": {"dataset": "regdb"}}  # fmt: skip


@call("training.ranking_ways", weight=0.2, comparable=False)
def ways(d: Draw, world: Path) -> Made:
    """Draw a model."""
    return training.ranking_ways, {"model": d.option(H2FT(6), GFT(6)), "rerank": None}


@call("training.open_dataset", weight=0.3)
def open_dataset(d: Draw, world: Path) -> Made:
    """Draw a data set to open."""
    return training.open_dataset, {"name": "regdb", "split": d.option("train", "test"), "root": world / "regdb",
                                   "size": SIZE, "trial": 1, "cache": d.option(True, False)}  # fmt: skip


@call("training.fit", weight=0.005, comparable=False)
def fit(d: Draw, world: Path) -> Made:
    """Draw a training without an epoch."""
    recipe = training.Recipe(size=SIZE, epochs=0, batches=1, identities=2, per_modality=2)
    model, criterion = training.build("cift", 4, SIZE)
    found = training.open_dataset("regdb", "train", root=world / "regdb", size=SIZE)
    return training.fit, {"model": model, "criterion": criterion, "dataset": found, "recipe": recipe}


@call("training.load_checkpoint", "training.load_model", "training.read_checkpoint", weight=0.1, comparable=False)
def checkpoint(d: Draw, world: Path, name: str) -> Made:
    """Name a checkpoint."""
    return getattr(training, name), {"path": world / "run" / "checkpoint.pt"}


# -- pictures ------------------------------------------------------------------------------------------------------


def pictures(d: Draw, *shape: int) -> Any:
    """Draw images of bytes or of shares."""
    x = torch.from_numpy(d.rng.random(shape))
    return d.array((x * 255).byte() if d.count(0, 1) else d.cast(x))


def points(d: Draw, *shape: int) -> Any:
    """Draw visible key points inside an image of 16 x 8."""
    x = torch.from_numpy(d.rng.random((*shape, 3))) * torch.tensor([8.0, 16.0, 0.0])
    x[..., 2] = 1
    return d.array(d.cast(x))


def picture(name: str, d: Draw) -> dict[str, Any]:
    """Draw the arguments of a picture."""
    pair = torch.tensor([0, 1])
    if name == "attention_maps":
        return {"images": pictures(d, 2, 3, 8, 4), "attention": d.array(d.floats(2, 3, 4, 2, kind="uniform"))}
    if name == "cmc_curves":
        return {"curves": {"a": d.array(d.floats(4, kind="uniform"))}, "max_rank": d.count(1, 4)}
    if name == "cost_matrices":
        return {"visible": d.array(d.floats(3, 5)), "infrared": d.array(d.floats(3, 5)),
                "plan": d.array(d.floats(3, 3, kind="plan")), "loss": d.option("abs", "square")}  # fmt: skip
    if name == "ranked_lists":
        return {"queries": pictures(d, 2, 3, 8, 4), "hits": pictures(d, 2, 3, 3, 8, 4),
                "correct": d.array(d.integers(2, 2, 3).bool()), "distance": d.array(d.floats(2, 3)),
                "modality": d.array(pair)}  # fmt: skip
    if name == "skeleton_graph":
        return {"images": pictures(d, 2, 3, 16, 8), "keypoints": points(d, 2, 13), "names": d.option(True, False)}
    if name == "transport_plan":
        return {"visible": pictures(d, 3, 16, 8), "infrared": pictures(d, 3, 16, 8), "kept": d.share(),
                "plan": d.array(d.floats(3, 3, kind="plan")), "points_visible": points(d, 2),
                "points_infrared": points(d, 2)}  # fmt: skip
    about = {"labels": d.array(torch.arange(24) // 8), "modality": d.array(torch.arange(24) % 2)}
    if name == "embedding_map":
        return {"points": d.array(d.floats(24, 2)), **about}
    return {"features": d.array(d.floats(24, 4)), **about, "perplexity": 5.0, "identities": 3, "seed": d.count(0, 9)}


for name in plots.__all__:

    def drawn(d: Draw, world: Path, name: str = name) -> Made:
        """Draw the arguments of a picture."""
        return getattr(plots, name), picture(name, d)

    call(f"plots.{name}", weight=0.03 if name == "tsne" else 0.06, comparable=False)(drawn)
