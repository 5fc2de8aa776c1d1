"""The recipes beside the sentences of the papers that print them."""

import dataclasses
import re

import pytest

from tests.places import SHARED
from vireid.rerank import AIM_SETTINGS
from vireid.training import RECIPES, Recipe, build, settings_of

FILES = {"cift": "cift.txt", "saai": "saai.md", "g2da": "g2da.txt"}

# Sentence -> the fields that it prints; method's settings below "settings".
PRINTED = {
    "cift": {
        "Each person image is resized to commonly used 288 × 144 resolution": {"size": (288, 144)},
        "random cropping, random horizontal flipping and random erasing [48] for data augmentation": {
            "crop": True, "flip": 0.5, "erasing": 0.5, "grayscale": 0.0, "exchange": "none", "second_view": False,
        },
        "The k in the near neighbor chosen function is set to 4": {"settings": {"k": 4}},
        "τhom and τhet in Eq. 3 are set to 0.4 and 0.2": {"settings": {"tau_hom": 0.4, "tau_het": 0.2}},
        "trained for 120 epochs with the SGD optimizer": {"epochs": 120, "optimizer": "sgd"},
        "decays by a factor of 10 at the 60th and 100th epochs": {
            "schedule": "steps", "gamma": 0.1, "milestones": (60 / 120, 100 / 120),
        },
        "32 visible and 32 infrared images from 8 identities": {"identities": 8},
        "each identity consists of 4 visible and 4 infrared images": {"per_modality": 4},
        "ResNet-50 [8] pre-trained on ImageNet": {"settings": {"backbone": "resnet50", "weights": "imagenet"}},
    },
    "saai": {
        "a consistent dimension of $288 \\times 144$": {"size": (288, 144)},
        "random cropping, random erasing, random horizontal flipping, and random grayscale": {
            "crop": True, "erasing": 0.5, "flip": 0.5, "grayscale": 3 / 11, "exchange": "none", "second_view": False,
        },
        "we randomly sample 16 identities and each identity contains 8 images": {"identities": 16, "per_modality": 4},
        "optimized by Adam with a linear warmup strategy": {"optimizer": "adam"},
        "The initial learning rate is set to $3.5 \\times 10^{-4}$": {"lr": 3.5e-4, "lr_shares": {}},
        "decreased by factors of 0.1 and 0.01 at 80 and 120 epochs": {
            "schedule": "steps", "gamma": 0.1, "milestones": (80 / 160, 120 / 160),
        },
        "spans a total of 160 epochs": {"epochs": 160},
        "in Eq. (11) is set to 0.5": {"settings": {"part_diversity": 0.5, "center_separation": 1.0}},
        "The number of learnable prototypes p is set to 7": {"settings": {"parts": 7}},
        "We employ the ResNet-50 [11] as the backbone": {"settings": {"backbone": "resnet50", "weights": "imagenet"}},
        "are set to 4/1 under the single-shot setting and 20/6 under the multi-shot setting": {"rerank": "aim"},
    },
    "g2da": {
        "firstly resized to 288 × 144": {"size": (288, 144)},
        "Random cropping with zeropadding and horizontal flipping are adopted": {
            "crop": True, "flip": 0.5, "erasing": 0.0, "grayscale": 0.0, "exchange": "none", "second_view": False,
        },
        "comprises 4 RGB and 4 IR images, for a total of 8 identities": {"identities": 8, "per_modality": 4},
        "We set the learning rate as 0.1 for both datasets": {"lr": 0.1, "lr_shares": {}, "warmup": 0.0},
        "decayed by 0.1 at 30-th epoch and 0.01 at 50-th epoch": {
            "schedule": "steps", "gamma": 0.1, "milestones": (30 / 80, 50 / 80),
        },
        "trained with total 80 epochs": {"epochs": 80},
        "stochastic gradient descent (SGD), where momentum parameter is set to 0.9": {
            "optimizer": "sgd", "momentum": 0.9, "nesterov": False,
        },
        "ε in contrastive loss to 2.0 and θ in channel exchange to 0.02, the hyper-parameter φ in Eq. (7) to 0.5": {
            "settings": {"epsilon": 2.0, "threshold": 0.02, "phi": 0.5},
        },
        "λb = λo = λg = 1, and λc = 0.1": {
            "settings": {"base": 1.0, "transport": 1.0, "graph": 1.0, "contrastive": 0.1},
        },
        "the number of attention heads L is set to 4": {},  # the default, below
        "different in the first block, while deep convolutional blocks are shared": {"settings": {"two_stream": True}},
        "a two-stream CNN network with ResNet50 backbone": {"settings": {"backbone": "resnet50"}},
        "the parameters pre-trained on ImageNet [86]": {"settings": {"weights": "imagenet"}},
    },
}  # fmt: skip

# What the papers leave open, and our values.
OPEN = {
    "cift": {
        "lr": 0.1, "lr_shares": {"backbone": 0.1}, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "warmup": 10 / 120, "padding": 10, "min_batches": 1,
        "rerank": "none", "settings": {},
    },
    "saai": {
        "weight_decay": 5e-4, "warmup": 10 / 160, "padding": 10, "min_batches": 1, "momentum": 0.9, "nesterov": True,
        "settings": {"normalize_centers": False},  # Eq. 5 scales no rows
    },
    "g2da": {
        "weight_decay": 5e-4, "padding": 10, "min_batches": 1, "rerank": "none",
        "settings": {"normalize_nodes": False, "normalize_triplet": False},  # neither is mentioned
    },
}  # fmt: skip

OURS = {"name", "batches", "erasing_area", "erasing_aspect", "exchange_visible", "exchange_infrared", "flip_test"}
OURS |= {"seed", "precision"}


@pytest.mark.parametrize("name", list(PRINTED))
def test_a_recipe_has_the_values_of_its_paper_in_every_field(name):
    recipe = RECIPES[name]
    values = {"settings": {}}
    for given in (*PRINTED[name].values(), OPEN[name]):
        assert not (values.keys() & given.keys()) - {"settings"}  # each is printed once, or open
        values |= given | {"settings": values["settings"] | given.get("settings", {})}
    assert values.keys() | OURS == {field.name for field in dataclasses.fields(Recipe)}
    assert recipe.to_dict() == Recipe(name=name).to_dict() | values
    assert values["settings"].keys() <= settings_of(name).keys()


@pytest.mark.parametrize("name", list(PRINTED))
def test_the_sentences_stand_in_the_paper(name):
    path = SHARED / "papers" / FILES[name]
    if not path.is_file():
        pytest.skip("needs ../shared/papers")
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    assert [sentence for sentence in PRINTED[name] if sentence not in text] == []


def test_what_the_recipes_do_not_say_is_the_papers_too(standins):
    """Margins, heads, and AIM's k1 and k2: SAAI, Sec. 4.1."""
    _, cift = build("cift", 4, (64, 32))
    assert cift.backbone_terms.feature_hcc.margin == 0.6  # "ρEu = 0.6 and ρKL = 6"
    assert cift.backbone_terms.logit_hcc.margin == 6
    assert settings_of("cift")["last_stride"] == 1  # "We change the stride of the last convolutional layer […] to 1"
    _, saai = build("saai", 4, (64, 32))
    separation = saai.center_separation
    assert (separation.rho1, separation.rho2) == (0.01, 0.7)
    model, g2da = build("g2da", 4, (64, 32), {"part_grid": (2, 2), "backbone": "resnet50"})
    assert model.attention.heads == 4  # "the number of attention heads L is set to 4"
    assert g2da.triplet.margin == 0.3  # "the margin parameter ρ in triplet loss to 0.3"
    assert AIM_SETTINGS["sysu_single_shot"] == {"k1": 4, "k2": 1}
    assert AIM_SETTINGS["sysu_multi_shot"] == {"k1": 20, "k2": 6}
    assert AIM_SETTINGS["regdb"] == {"k1": 8, "k2": 2}


def test_agws_recipe_is_that_of_its_code():
    agw = {"size": (288, 144), "epochs": 80, "identities": 8, "per_modality": 4, "optimizer": "sgd", "lr": 0.1}
    agw |= {"lr_shares": {"backbone": 0.1}, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "padding": 10}
    agw |= {
        "schedule": "steps",
        "milestones": (20 / 80, 50 / 80),
        "gamma": 0.1,
        "warmup": 10 / 80,
        "name": "agw",
        "min_batches": 1,
    }
    agw |= {"erasing": 0.0, "exchange": "none", "settings": {"backbone": "resnet50", "weights": "imagenet"}}
    assert RECIPES["agw"] == Recipe(**agw)
