"""Errors of all pictures: the wrong argument, the expected value and the value given."""

import pytest
import torch

from pictures import draw, inputs, people, random
from vireid.nn.skeleton import PERSON_13, Skeleton

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

IMAGES = {
    "attention_maps": ("images", r"\(B, 3, H, W\)"),
    "skeleton_graph": ("images", r"\(B, 3, H, W\)"),
    "ranked_lists": ("queries", r"\(Q, 3, H, W\)"),
    "transport_plan": ("infrared", r"\(3, H, W\)"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_checked(name):
    argument, shape = IMAGES[name]
    good = inputs()[name][1][argument]
    for bad, error, message in (
        (good.int(), TypeError, "must be uint8 or floating point, got int32"),
        (good.narrow(-3, 0, 1), ValueError, f"must have shape {shape}, got"),
        (good[0], ValueError, f"must have shape {shape}, got"),
        (good.narrow(-1, 0, 0), ValueError, f"must have shape {shape}, not empty, got"),
        (good + 1.0, ValueError, r"must lie in \[0, 1\], not normalized, got"),
        (good * float("nan"), ValueError, r"must lie in \[0, 1\]"),
    ):
        with pytest.raises(error, match=f"{argument} {message}"):
            draw(name, **{argument: bad})


@pytest.mark.parametrize("name", ["attention_maps", "embedding_map", "ranked_lists", "skeleton_graph", "tsne"])
def test_modality_is_checked(name):
    count = 24 if name in ("embedding_map", "tsne") else 2
    with pytest.raises(ValueError, match=rf"modality must have shape \({count},\), got \(23,\)"):
        draw(name, modality=torch.ones(23))
    with pytest.raises(ValueError, match=r"modality must be 0 \(visible\) or 1 \(infrared\), got 2"):
        draw(name, modality=torch.full((count,), 2))


@pytest.mark.parametrize("name", ["cost_matrices", "transport_plan"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"plan": torch.ones(1, 3, 3)}, ValueError, r"plan must have shape \(n, m\), got \(1, 3, 3\)"),
        ({"plan": torch.ones(0, 3)}, ValueError, r"plan must have shape \(n, m\), not empty"),
        ({"plan": torch.ones(3, 3).int()}, TypeError, "plan must be floating point, got int32"),
        ({"plan": -torch.eye(3)}, ValueError, "plan must be finite and at least 0"),
        ({"plan": torch.eye(3) / 0}, ValueError, "plan must be finite and at least 0"),
        ({"plan": torch.zeros(3, 3)}, ValueError, "plan must carry some mass"),
        ({"names": ["a"]}, ValueError, "names must hold 3 names, one per node, got 1"),
        ({"names": list("abc"), "names_infrared": list("ab")}, ValueError, "names_infrared must hold 3 names"),
        ({"names_infrared": list("abc")}, ValueError, "names must be given where names_infrared are"),
    ],
)
def test_plans_and_names_are_checked(name, change, error, message):
    with pytest.raises(error, match=message):
        draw(name, **change)


MAPS = random(2, 3, 4, 2)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("attention_maps", {"attention": MAPS.long()}, TypeError, "attention must be floating point, got int64"),
        (
            "attention_maps",
            {"attention": MAPS[:1]},
            ValueError,
            r"attention must have shape \(2, p, h, w\), got \(1, 3",
        ),
        ("attention_maps", {"attention": MAPS[:, :0]}, ValueError, r"attention must have shape \(2, p, h, w\)"),
        ("attention_maps", {"attention": MAPS.flatten(2)}, ValueError, r"size must be given .* got \(2, 3, 8\)"),
        ("attention_maps", {"attention": MAPS.flatten(2), "size": (3, 2)}, ValueError, r"\(2, p, 6\), got \(2, 3, 8\)"),
        ("attention_maps", {"size": (4, 2)}, ValueError, r"shape \(2, p, 8\), got \(2, 3, 4, 2\)"),
        ("attention_maps", {"attention": MAPS.flatten(2), "size": (0, 8)}, ValueError, r"size\[0\] must be at least 1"),
        ("attention_maps", {"attention": MAPS / 0}, ValueError, "attention must be finite"),
        ("attention_maps", {"names": ["a", "b"]}, ValueError, "names must hold 3 names, one per prototype, got 2"),
        ("attention_maps", {"combined": "sum"}, ValueError, "combined must be one of 'max', 'mean', got 'sum'"),
        ("attention_maps", {"scale": "row"}, ValueError, "scale must be one of 'common', 'map', got 'row'"),
        ("attention_maps", {"scale": (1,)}, ValueError, r"scale must be 'common', 'map' or \(low, high\), got \(1,\)"),
        ("attention_maps", {"scale": (1, 1)}, ValueError, "scale must rise from low to high"),
        ("attention_maps", {"scale": (0, float("inf"))}, ValueError, "scale must rise .* both at most 1e30"),
        ("attention_maps", {"scale": (0, "1")}, TypeError, "scale must be a number"),
        ("cmc_curves", {"curves": [0.5]}, TypeError, "curves must be a mapping of names to curves, got list"),
        ("skeleton_graph", {"skeleton": True}, TypeError, "skeleton must be a Skeleton, got bool"),
        ("cmc_curves", {"curves": {}}, ValueError, "curves must hold at least one curve, got none"),
        ("cmc_curves", {"curves": {"a": random(2, 2)}}, ValueError, r"curves\['a'\] must have shape \(R,\), got"),
        ("cmc_curves", {"curves": {"a": random(0)}}, ValueError, r"curves\['a'\] must have shape \(R,\), not empty"),
        ("cmc_curves", {"curves": {"a": torch.tensor([50.0, 60.0])}}, ValueError, r"in \[0, 1\], got 50.0 to 60.0"),
        ("cmc_curves", {"curves": {"a": torch.tensor([float("nan")])}}, ValueError, r"must lie in \[0, 1\]"),
        ("cmc_curves", {"max_rank": 0}, ValueError, "max_rank must be at least 1, got 0"),
        ("cost_matrices", {"visible": torch.ones(3)}, ValueError, r"visible must have shape \(3, d\), got \(3,\)"),
        ("cost_matrices", {"visible": random(4, 5)}, ValueError, r"visible must have shape \(3, d\), got \(4, 5\)"),
        ("cost_matrices", {"infrared": random(3, 6)}, ValueError, r"infrared must have shape \(3, 5\), got \(3, 6\)"),
        (
            "cost_matrices",
            {"infrared": torch.ones(3, 5).int()},
            TypeError,
            "infrared must be floating point, got int32",
        ),
        ("cost_matrices", {"infrared": random(3, 5) / 0}, ValueError, "infrared must be finite"),
        ("cost_matrices", {"loss": "cube"}, ValueError, "loss must be one of 'abs', 'square', got 'cube'"),
        ("cost_matrices", {"limits": 2}, ValueError, r"limits must be \(low, high\), got 2"),
        ("cost_matrices", {"limits": (2, 2)}, ValueError, "limits must rise from low to high"),
        ("cost_matrices", {"limits": (0, float("inf"))}, ValueError, "both at most 1e30 in magnitude"),
        ("cost_matrices", {"limits": (0, 1e31)}, ValueError, "both at most 1e30 in magnitude"),
        ("cost_matrices", {"limits": (0, "2")}, TypeError, "limits must be a number"),
        ("embedding_map", {"points": {}}, ValueError, "points must hold at least one panel, got none"),
        ("embedding_map", {"points": random(24, 3)}, ValueError, r"points must have shape \(24, 2\), got \(24, 3\)"),
        ("embedding_map", {"points": {"a": random(3, 2)}}, ValueError, r"points\['a'\] must have shape \(24, 2\), got"),
        ("embedding_map", {"points": random(24, 2) / 0}, ValueError, "points must be finite"),
        ("embedding_map", {"labels": torch.ones(4, 1)}, ValueError, r"labels must have shape \(N,\), got \(4, 1\)"),
        ("embedding_map", {"labels": torch.ones(0)}, ValueError, r"labels must have shape \(N,\), not empty"),
        ("ranked_lists", {"correct": torch.ones(2, 3)}, TypeError, "correct must be bool, got float32"),
        ("ranked_lists", {"hits": random(2, 3, 3, 8, 5)}, ValueError, r"hits must have shape \(2, R, 3, 8, 4\), got"),
        ("ranked_lists", {"hits": random(2, 0, 3, 8, 4)}, ValueError, r"hits must .* \(2, R, 3, 8, 4\), not empty"),
        ("ranked_lists", {"correct": random(2, 4) > 0}, ValueError, r"correct must have shape \(2, 3\), got \(2, 4\)"),
        ("ranked_lists", {"distance": torch.ones(2, 4)}, ValueError, r"distance must have shape \(2, 3\)"),
        (
            "skeleton_graph",
            {"keypoints": people(3)},
            ValueError,
            r"keypoints must .*\(2, 13, 2\) or \(2, 13, 3\), got \(3",
        ),
        ("skeleton_graph", {"keypoints": people(2, nodes=17)}, ValueError, r"got \(2, 17, 3\)"),
        ("skeleton_graph", {"keypoints": people(2) > 1}, TypeError, "keypoints must hold real numbers, got bool"),
        ("skeleton_graph", {"skeleton": Skeleton(PERSON_13.names, ((0, 13),))}, ValueError, r"0 to 12, got \(0, 13\)"),
        ("skeleton_graph", {"columns": 0}, ValueError, "columns must be at least 1, got 0"),
        (
            "transport_plan",
            {"points_visible": people(1, nodes=4)[0]},
            ValueError,
            r"points_visible must .* k <= 3 nodes",
        ),
        ("transport_plan", {"points_infrared": people(1, nodes=2)}, ValueError, r"points_infrared must .* \(1, 2, 3\)"),
        (
            "transport_plan",
            {"points_infrared": random(2, 4)},
            ValueError,
            r"points_infrared must .*\(2, 2\) or \(2, 3\)",
        ),
        ("transport_plan", {"kept": 1.5}, ValueError, "kept must be at least 0 and at most 1, got 1.5"),
        ("transport_plan", {"kept": "all"}, TypeError, "kept must be a number"),
        ("tsne", {"features": torch.ones(24, 16).long()}, TypeError, "features must be floating point"),
        ("tsne", {"features": {"a": torch.rand(24)}}, ValueError, r"features\['a'\] must have shape \(N, d\)"),
        ("tsne", {"features": torch.rand(23, 4)}, ValueError, r"features must .*\(24, d\) with d >= 2, got \(23, 4\)"),
        ("tsne", {"features": torch.rand(24, 1)}, ValueError, "d >= 2"),
        ("tsne", {"features": torch.rand(24, 4) / 0}, ValueError, "features must be finite"),
        ("tsne", {"features": torch.ones(24, 4)}, ValueError, "features must differ between images"),
        ("tsne", {"features": {}}, ValueError, "at least one panel"),
        ("tsne", {"labels": torch.ones(24)}, TypeError, "labels must hold integers, got float32"),
        ("tsne", {"labels": torch.ones(24, 1).long()}, ValueError, r"labels must have shape \(N,\), got \(24, 1\)"),
        ("tsne", {"identities": 0}, ValueError, "identities must be at least 1"),
        ("tsne", {"perplexity": 24}, ValueError, "perplexity must be below the number of images shown, 24, got 24"),
        ("tsne", {"perplexity": 9, "identities": 1}, ValueError, "images shown, 8, got 9"),
        ("tsne", {"perplexity": 0}, ValueError, "perplexity must be above 0"),
        ("tsne", {"seed": -1}, ValueError, "seed must be at least 0"),
        ("tsne", {"seed": 2**32}, ValueError, "seed must be at most 4294967295, got 4294967296"),
    ],
)
def test_bad_arguments_are_named(name, change, error, message):
    with pytest.raises(error, match=message):
        draw(name, **change)
