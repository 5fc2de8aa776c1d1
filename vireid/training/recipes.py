"""The recipes by name: how the papers train, as far as they print it."""

from vireid.training.recipe import Recipe

_WEIGHTS = {"backbone": "resnet50", "weights": "imagenet"}

RECIPES = {
    # Trains the small backbone on two CPU cores.
    "small": Recipe(),
    # Li et al., ECCV 2022, Sec. 5.2.
    "cift": Recipe(
        name="cift",
        size=(288, 144),
        epochs=120,
        identities=8,
        per_modality=4,
        min_batches=1,
        optimizer="sgd",
        lr=0.1,  # not given: AGW's, as are momentum, weight decay and the backbone's share
        lr_shares={"backbone": 0.1},
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="steps",
        milestones=(60 / 120, 100 / 120),
        gamma=0.1,
        warmup=10 / 120,  # "warm-up scheme": AGW's 10 epochs
        padding=10,  # not given: AGW's
        flip=0.5,  # probabilities not given: the usual ones
        erasing=0.5,
        exchange="none",
        settings=_WEIGHTS | {"k": 4, "tau_hom": 0.4, "tau_het": 0.2},
    ),
    # Fang et al., ICCV 2023, Sec. 4.1.
    "saai": Recipe(
        name="saai",
        size=(288, 144),
        epochs=160,
        identities=16,
        per_modality=4,  # "each identity contains 8 images": as many of each modality
        min_batches=1,
        optimizer="adam",
        lr=3.5e-4,
        weight_decay=5e-4,  # not given
        schedule="steps",
        milestones=(80 / 160, 120 / 160),
        gamma=0.1,  # "factors of 0.1 and 0.01": of the initial rate
        warmup=10 / 160,  # "linear warmup": length not given
        padding=10,  # not given
        flip=0.5,  # probabilities not given
        erasing=0.5,
        grayscale=3 / 11,  # not given: that of the channel copy in the code that SAAI's is built on
        exchange="none",
        settings=_WEIGHTS | {"parts": 7, "part_diversity": 0.5, "center_separation": 1.0, "normalize_centers": False},
        rerank="aim",
    ),
    # Wan et al., G2DA, Sec. IV-A.
    "g2da": Recipe(
        name="g2da",
        size=(288, 144),
        epochs=80,
        identities=8,
        per_modality=4,
        min_batches=1,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,  # not given
        schedule="steps",
        milestones=(30 / 80, 50 / 80),
        gamma=0.1,
        warmup=0.0,
        padding=10,  # not given
        flip=0.5,  # not given
        erasing=0.0,
        exchange="none",
        # and the default heads: 4 of a ResNet-50's features
        settings=_WEIGHTS
        | {"two_stream": True, "threshold": 0.02, "epsilon": 2.0, "phi": 0.5}
        | {"base": 1.0, "transport": 1.0, "graph": 1.0, "contrastive": 0.1}
        | {"normalize_nodes": False, "normalize_triplet": False},
    ),
    # Ye et al., TPAMI 2021, and the authors' code.
    "agw": Recipe(
        name="agw",
        size=(288, 144),
        epochs=80,
        identities=8,
        per_modality=4,
        min_batches=1,
        optimizer="sgd",
        lr=0.1,
        lr_shares={"backbone": 0.1},
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="steps",
        milestones=(20 / 80, 50 / 80),
        gamma=0.1,
        warmup=10 / 80,
        padding=10,
        flip=0.5,
        erasing=0.0,
        exchange="none",
        settings=_WEIGHTS,
    ),
}
"""Recipes by name. "small" trains the small backbone on two CPU cores; the others are the papers'.

A value that its paper leaves open is commented so; probabilities, padding and weight decay are then those of AGW's
code, which these papers build on (our choice).
"""
