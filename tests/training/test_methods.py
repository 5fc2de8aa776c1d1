"""Methods by name: every setting builds what it says, and the ways in which their models rank."""

import math

import pytest
import torch
from torch.testing import assert_close

from vireid.models import CIFT, AlignedCriterion, Baseline
from vireid.nn import GFT, H2FT, NonLocal, SharedFeatureTransfer, TwoStream
from vireid.rerank import AIM, aim
from vireid.training import METHODS, RECIPES, build, ranking_ways, recipe_of, settings_of
from vireid.training.methods import agw, saai
from vireid.training.methods.cift import CIFT_ROWS

BASE = {"ce", "hcc_features", "hcc_logits", "total"}
GRAPH = {"graph_ce", "graph_hcc"}
IDENTITY = {"id", "specific", "mutual", "total"}
SAAI = IDENTITY | {"part_diversity", "center_separation"}
G2DA_BASE = {"ce", "triplet", "total"}
G2DA = G2DA_BASE | {"transport", "contrastive", "graph"}
GRID = {"part_grid": (2, 2)}
LENGTHS = ("normalize_nodes", "normalize_triplet")


def losses_of(method, **settings):
    """Model, criterion and losses of a batch of random images; the total is the sum and can be trained."""
    torch.manual_seed(0)
    model, criterion = build(method, 3, (32, 16), settings)
    torch.manual_seed(1)
    labels, modality = torch.arange(8) % 3, torch.tensor([0, 1] * 4)
    losses = criterion(model(torch.rand(8, 3, 32, 16), modality), labels, modality)
    assert_close(losses["total"], sum(loss for name, loss in losses.items() if name != "total"))
    losses["total"].backward()
    return model, criterion, {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("row", list(CIFT_ROWS))
def test_every_row_of_cifts_ablation(row):
    model, criterion, losses = losses_of("cift", ablation=row)
    own = {"baseline": set(), "cri": GRAPH | {"tie"}, "shared": {"graph_ce", "graph_triplet"}}.get(row, GRAPH)
    assert set(losses) == BASE | own
    assert bool(criterion.state_dict()) == (row == "cri")
    if row == "baseline":
        assert type(model) is Baseline
        return
    assert type(model) is CIFT
    assert type(model.transfer) is {"gft": GFT, "ubs": GFT, "shared": SharedFeatureTransfer}.get(row, H2FT)
    assert getattr(model.transfer, "unbalanced", False) == (row == "ubs")


def test_settings_of_the_transfer_reach_it():
    settings = {"k": 3, "tau_hom": 0.6, "tau_het": 0.5, "samples": 2, "detach_values": True}
    settings["intervention"] = "predicted"
    for method, more in (("cift", {}), ("saai", {"transfer": True}), ("g2da", {"transfer": True, **GRID})):
        model, criterion, _ = losses_of(method, **settings, **more)
        cri = criterion.cri
        assert (model.transfer.k, model.transfer.tau_hom, model.transfer.tau_het) == (3, 0.6, 0.5)
        assert (cri.samples, cri.detach_values, cri.intervention) == (2, True, "predicted")
    for transferred in ("values", "features"):
        model = losses_of("cift", ablation="gft", transferred=transferred)[0]
        assert model.transfer.transferred == transferred
    assert losses_of("cift", ablation="gft", tau_het=0.5)[0].transfer.tau == 0.5


@pytest.mark.parametrize("row", ["baseline", "cri"])
def test_readings_of_hcc_reach_it(row):
    settings = {"metric_features": "neck", "centers": "cross", "negatives": "sum", "kl_direction": "from_center"}
    settings |= {"kl_center": "logits", "label_smoothing": 0.1}
    _, criterion, found = losses_of("cift", ablation=row, **settings)
    terms = criterion if row == "baseline" else criterion.backbone_terms
    assert (terms.metric_features, terms.label_smoothing) == ("neck", 0.1)
    for hcc in (terms.feature_hcc, terms.logit_hcc):
        assert (hcc.centers, hcc.negatives) == ("cross", "sum")
    assert (terms.logit_hcc.kl_direction, terms.logit_hcc.kl_center) == ("from_center", "logits")
    plain = losses_of("cift", ablation=row)[2]
    for name in settings:  # each changes a loss
        one = losses_of("cift", ablation=row, **{name: settings[name]})[2]
        assert any(one[loss] != plain[loss] for loss in plain), name
    assert found.keys() == plain.keys()


def test_readings_of_saai_reach_its_losses():
    settings = {
        "maps": "logits",
        "identity_means": "batch",
        "shared_weight": 2,
        "specific_weight": 3,
        "mutual_weight": 5,
    }
    plain, changed = losses_of("saai")[2], losses_of("saai", **settings | {"identity_means": "modality"})[2]
    for name, factor in (("id", 2), ("specific", 3), ("mutual", 5)):
        assert_close(changed[name], factor * plain[name])
    assert changed["part_diversity"] != plain["part_diversity"]
    _, criterion, batch = losses_of("saai", identity_means="batch")
    assert criterion.identity.means == "batch"
    assert_close(batch["specific"], plain["specific"] / 2)  # as many images of each modality


@pytest.mark.parametrize(
    ("settings", "losses", "parts"),
    [
        ({"ablation": "baseline"}, IDENTITY, 0),
        ({"ablation": "baseline", "affinity_loss": 1, "transfer": True}, IDENTITY | GRAPH | {"affinity", "tie"}, 0),
        ({}, SAAI, 7),
        ({"parts": 3, "position_in_values": True}, SAAI, 3),
        ({"parts": 0}, SAAI - {"part_diversity"}, 0),
        ({"part_diversity": 0}, SAAI - {"part_diversity"}, 7),
        ({"center_separation": 0}, SAAI - {"center_separation"}, 7),
        ({"affinity_loss": 0.5}, SAAI | {"affinity"}, 7),
        ({"affinity_loss": 0.5, "amend": False}, SAAI | {"affinity"}, 7),
        ({"transfer": True}, SAAI | GRAPH | {"tie"}, 7),
    ],
)
def test_every_switch_of_saai(settings, losses, parts):
    model, criterion, found = losses_of("saai", **settings)
    assert set(found) == losses
    cells = model.backbone.grid[0] * model.backbone.grid[1]
    assert model.dim == model.backbone.out_channels * (parts + cells)
    assert type(model.neck).__name__ == ("BNNeck" if "ablation" in settings else "DualBNNeck")
    if parts:
        assert model.pooling.prototypes.shape == (parts, model.backbone.out_channels)
        assert model.pooling.position.shape[1:] == model.backbone.grid
        assert model.pooling.position_in_values == ("position_in_values" in settings)
    assert (criterion.affinity is not None) == ("affinity" in losses)
    assert criterion.affinity is None or criterion.affinity.amend == ("amend" not in settings)
    assert set(ranking_ways(model)) == ({"backbone", "transferred"} if "transfer" in settings else {"backbone"})


def test_weights_multiply_their_losses():
    one = losses_of("saai", part_diversity=1, center_separation=1, affinity_loss=1)[2]
    more = losses_of("saai", part_diversity=2, center_separation=3, affinity_loss=5)[2]
    for name, factor in (("part_diversity", 2), ("center_separation", 3), ("affinity", 5), ("id", 1)):
        assert_close(more[name], factor * one[name], rtol=1e-4, atol=0)
        assert one[name] != 0


def test_a_backbone_without_a_grid_has_six_parts_in_the_baseline_and_none_beside_prototypes(monkeypatch):
    def backbone(*_):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4))
        net.out_channels = 4
        return net

    monkeypatch.setattr(saai, "build_backbone", backbone)
    for ablation, given, stripes, dim in (
        ("baseline", None, 6, 4 * 6),
        ("baseline", True, 6, 4 * 7),
        ("saai", False, 0, 4 * 7),
        ("saai", None, 0, 4 * 8),
    ):
        settings = {"ablation": ablation, "global_feature": given, "transfer": True}
        model, _ = build("saai", 3, (32, 20), settings)
        assert (model.grid, model.stripes, model.dim, model.transfer.dim) == ((1, 1), stripes, dim, dim)
        assert model.backbone.training
        assert int(model.backbone[1].num_batches_tracked) == 0  # looking for the map's size leaves no trace
    assert model.pooling.position.shape == (4, 16, 10)


@pytest.mark.parametrize(
    ("settings", "losses"),
    [
        ({"ablation": "baseline"}, G2DA_BASE),
        ({"ablation": "ot"}, G2DA_BASE | {"transport"}),
        ({"ablation": "cl"}, G2DA_BASE | {"transport", "contrastive"}),
        ({"ablation": "graph"}, G2DA),
        ({}, G2DA),
        ({"transport": 0}, G2DA - {"transport"}),
        ({"contrastive": 0, "graph": 0}, G2DA - {"contrastive", "graph"}),
        ({"base": 0}, G2DA - {"ce", "triplet"}),
        ({"heads": 5, "threshold": 2, "two_stream": False} | dict.fromkeys(LENGTHS, False), G2DA),
        ({"phi": 0.25, "structure": "square", "pairs": "one_to_one", "epsilon": 1.5}, G2DA),
        ({"head_dim": 4, "magnitude": False, "average": "images"}, G2DA),
        ({"fusion_sparsity": 1e-4}, G2DA | {"fusion_sparsity"}),
        ({"transfer": True}, G2DA | GRAPH | {"tie"}),
        ({"ablation": "baseline", "transfer": True}, G2DA_BASE | GRAPH | {"tie"}),
    ],
)
def test_every_switch_of_g2da(settings, losses):
    model, criterion, found = losses_of("g2da", **GRID, **settings)
    assert set(found) == losses
    graph = settings.get("ablation", "g2da") in ("graph", "g2da")
    assert (model.attention is not None) == graph
    assert isinstance(model.backbone, TwoStream) == settings.get("two_stream", True)
    assert model.normalize_nodes == criterion.contrastive.normalize == settings.get("normalize_nodes", True)
    assert criterion.triplet.normalize == settings.get("normalize_triplet", True)
    if graph:
        threshold = -math.inf if settings.get("ablation") == "graph" else settings.get("threshold", 0.02)
        assert (model.attention.heads, model.attention.threshold) == (settings.get("heads", 3), threshold)
    if "phi" in settings:
        transport = criterion.transport
        assert (transport.phi, transport.loss, transport.pairs) == (0.25, "square", "one_to_one")
        assert criterion.contrastive.epsilon == 1.5
    if "head_dim" in settings:
        assert (model.attention.head_dim, model.attention.magnitude) == (4, False)
        assert criterion.transport.average == criterion.contrastive.average == "images"
    ways = ["graph" if graph else "backbone", *["transferred"] * ("transfer" in settings)]
    assert list(ranking_ways(model)) == ways


@pytest.mark.parametrize(
    ("settings", "losses", "stripes"),
    [
        ({}, {"triplet"}, 1),
        ({"ablation": "hc"}, {"hetero_center"}, 6),
        ({"ablation": "hct"}, {"hetero_center_triplet"}, 6),
        ({"ablation": "hct", "stripes": 3, "part_dim": 8, "two_stream": False}, {"hetero_center_triplet"}, 3),
        ({"transfer": "h2ft", "non_local": False}, {"triplet", "tie"} | GRAPH, 1),
        ({"ablation": "hc", "transfer": "gft", "non_local": True}, {"hetero_center"} | GRAPH, 6),
        ({"transfer": "shared"}, {"triplet", "graph_ce", "graph_triplet"}, 1),
    ],
)
def test_every_switch_of_agw(settings, losses, stripes):
    model, criterion, found = losses_of("agw", **settings)
    assert set(found) == {"ce", "total"} | losses
    assert (model.stripes, model.pooling) == (stripes, None)  # the small backbone's cells are averaged
    assert (model.reduction is not None) == model.relu == ("part_dim" in settings)
    assert isinstance(model.backbone, TwoStream) == settings.get("two_stream", True)
    attention = [m for m in model.modules() if isinstance(m, NonLocal)]
    assert bool(attention) == settings.get("non_local", settings.get("ablation", "agw") == "agw")
    assert (criterion.cri is not None) == ("tie" in losses)
    assert set(ranking_ways(model)) == {"backbone"} | ({"transferred"} if "transfer" in settings else set())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm", "convnext_tiny", "vit_b_16", "swin_tiny"])
def test_every_method_takes_every_backbone(method, name, standins):
    settings = {"backbone": name, "last_stride": 2 if name == "swin_tiny" else 1}
    two_stream, split = method in ("g2da", "agw"), not name.startswith("vit")
    if method == "g2da":
        settings["part_grid"] = (2, 2)
    if two_stream and not split:
        with pytest.raises(ValueError, match="two_stream must be False with a backbone that is no chain of layers"):
            build(method, 3, (64, 32), settings)
        settings["two_stream"] = False
    model, criterion = build(method, 3, (64, 32), settings)
    assert any(isinstance(part, TwoStream) for part in model.modules()) == (two_stream and split)
    labels, modality = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    output = model(torch.rand(6, 3, 64, 32), modality)
    assert output.features.isfinite().all()
    criterion(output, labels, modality)["total"].backward()


@pytest.mark.parametrize(("row", "shared"), [("agw", ["layer1"]), ("hct", ["layer2"]), ("hc", [])])
def test_agws_rows_of_a_resnet(row, shared, monkeypatch):
    """A network with ResNet's names, of six blocks in layer3."""

    def backbone(*_):
        net = torch.nn.Sequential()
        for name, blocks in (("conv1", 1), ("layer1", 3), ("layer2", 4), ("layer3", 6), ("layer4", 3)):
            net.add_module(name, torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(blocks))))
        net.out_channels, net.shared_from = 3, "layer1"
        return net

    monkeypatch.setattr(agw, "build_backbone", backbone)
    model, criterion = build("agw", 3, (32, 20), {"ablation": row, "backbone": "torchvision", "label_smoothing": 0.1})
    part = {"agw": 3, "hc": 512, "hct": 256}[row]
    assert (model.dim, model.stripes, model.relu) == (part * model.stripes, 1 if row == "agw" else 6, row == "hct")
    assert list(dict(model.backbone.trunk.named_children()))[:1] == shared
    assert sum(isinstance(m, NonLocal) for m in model.modules()) == (5 if row == "agw" else 0)
    assert (model.pooling is None) == (row == "hc")
    assert model.pooling is None or model.pooling.p.requires_grad == (row == "agw")
    assert criterion.label_smoothing == 0.1
    assert model(torch.rand(2, 3, 32, 20), torch.tensor([0, 1])).features.shape == (2, model.dim)


@pytest.mark.parametrize(
    ("method", "settings", "grid"),
    [
        ("agw", {"ablation": "hct"}, (4, 3)),
        ("cift", {"ablation": "baseline"}, (4, 3)),
        ("cift", {"part_grid": [3, 1]}, (3, 1)),
        ("saai", {"transfer": True}, (4, 3)),
        ("saai", {}, (4, 3)),
    ],
)
def test_alignment_adds_one_loss(method, settings, grid):
    plain = losses_of(method, **{name: value for name, value in settings.items() if name != "part_grid"})[2]
    _, criterion, found = losses_of(method, alignment=0.5, **settings)
    assert type(criterion) is AlignedCriterion
    assert set(found) == set(plain) | {"transport"}
    assert criterion.parts.shape[0] == grid[0] * grid[1]
    assert found["transport"] > 0


def test_alignment_is_the_weight_times_the_transport():
    one, half = (losses_of("cift", alignment=weight)[2]["transport"] for weight in (1, 0.5))
    assert_close(half, one / 2)


@pytest.mark.parametrize(
    ("method", "settings", "error", "text"),
    [
        ("cift", {"ablation": "best"}, ValueError, "ablation must be one of 'baseline', .*, got 'best'"),
        ("cift", {"k": 0}, ValueError, "k must be at least 1, got 0"),
        ("cift", {"tau_het": 0}, ValueError, "tau_het must be above 0"),
        ("cift", {"weights": "x.pth"}, ValueError, "weights must be 'none' with backbone 'small', got 'x.pth'"),
        ("cift", {"backbone": "keras/vgg"}, ValueError, "must be one of '', 'torchvision', 'timm', got 'keras'"),
        ("cift", {"last_stride": 2}, ValueError, "last_stride must be one of 1, got 2"),
        ("cift", {"parts": 3}, TypeError, "parts"),
        ("cift", {"alignment": 0}, ValueError, "alignment must be above 0 and finite, got 0"),
        ("saai", {"alignment": float("nan")}, ValueError, "alignment must be above 0 and finite, got nan"),
        ("saai", {"part_grid": (2, 2)}, ValueError, "part_grid goes with alignment"),
        ("saai", {"alignment": 1, "part_grid": (2, 0)}, ValueError, r"part_grid\[1\] must be at least 1, got 0"),
        ("saai", {"ablation": "cri"}, ValueError, "ablation must be one of 'baseline', 'saai', got 'cri'"),
        ("saai", {"parts": -1}, ValueError, "parts must be at least 0, got -1"),
        ("saai", {"part_diversity": -0.5}, ValueError, "part_diversity must be at least 0 and finite, got -0.5"),
        ("saai", {"center_separation": float("nan")}, ValueError, "center_separation must be at least 0"),
        ("saai", {"amend": False}, ValueError, "amend=False goes with affinity_loss, which is 0"),
        ("g2da", {"part_grid": (0, 2)}, ValueError, r"part_grid\[0\] must be at least 1, got 0"),
        ("g2da", {"phi": 2}, ValueError, "phi must be at least 0 and at most 1, got 2"),
        ("g2da", {"epsilon": 0}, ValueError, "epsilon must be"),
        ("g2da", {"transport": -1}, ValueError, "transport must be at least 0"),
        ("g2da", {"heads": 4}, ValueError, "dim must be a multiple of heads = 4, got 945"),
        ("agw", {"transfer": "aim"}, ValueError, "transfer must be one of 'none', .*, got 'aim'"),
        ("agw", {"non_local": 1}, ValueError, "non_local must be one of True, False, got 1"),
        ("other", {}, ValueError, "method must be one of 'cift', 'saai', 'g2da', 'agw', got 'other'"),
    ],
)
def test_wrong_settings_are_named(method, settings, error, text):
    with pytest.raises(error, match=text):
        build(method, 3, (32, 16), settings)


def test_recipes_are_found_by_name():
    assert recipe_of("cift") is recipe_of("cift", "small") is RECIPES["small"]
    assert recipe_of("saai") == RECIPES["small"].replace(rerank="aim")
    assert recipe_of("saai", "cift") is RECIPES["cift"]
    assert recipe_of("g2da") is METHODS["g2da"].recipe
    with pytest.raises(ValueError, match=r"name must be one of 'small'.*, got 'large'"):
        recipe_of("cift", "large")
    with pytest.raises(ValueError, match=r"method must be one of 'cift'.*, got 'large'"):
        recipe_of("large")


def test_settings_of_a_recipe_are_those_that_the_method_has():
    given = {"k": 7, "parts": 3, "backbone": "timm"}
    recipe = RECIPES["small"].replace(settings=given)
    assert settings_of("cift", recipe) == settings_of("cift") | {"k": 7, "backbone": "timm"}
    assert settings_of("saai", recipe) == settings_of("saai") | given
    assert settings_of("g2da", RECIPES["small"]) == settings_of("g2da")
    for method in METHODS:
        own = RECIPES[method].settings
        assert own.keys() <= settings_of(method).keys()  # none of its own recipe's is left out


def test_settings_are_plain_and_build_what_no_setting_builds():
    for method in METHODS:
        settings = settings_of(method)
        assert all(isinstance(value, bool | int | float | str | None) for value in settings.values())
        torch.manual_seed(0)
        given = build(method, 3, (32, 16), settings)[0].state_dict()
        torch.manual_seed(0)
        default = build(method, 3, (32, 16))[0].state_dict()
        assert given.keys() == default.keys()
        assert all(torch.equal(given[name], default[name]) for name in given)


# -- The ways in which a model ranks ---------------------------------------------------------------------------------


def test_a_re_ranking_is_applied_to_the_features_and_to_transferred_ones():
    model, _ = build("cift", 3, (32, 16))
    model.eval()
    query, gallery = torch.randn(5, model.transfer.dim), torch.randn(7, model.transfer.dim)
    alone = torch.cat([model.transfer.transfer(row[None], gallery)[0] for row in query])
    moved = model.transfer.transfer(query[:1], gallery)[1]
    rerank = AIM(k1=3, k2=2)
    ways = ranking_ways(model, {"AIM": rerank})
    assert list(ways) == ["backbone", "backbone + AIM", "transferred", "transferred + AIM"]
    assert ways["backbone"] is None
    assert ways["backbone + AIM"] is rerank
    assert_close(ways["transferred"](query, gallery), model.transfer.distance(query, gallery))
    both = ways["transferred + AIM"]
    assert (both.uses, both.settings) == ("gallery", {"k1": 3, "k2": 2, "variant": "paper"})
    assert_close(both(query, gallery), aim(alone, moved, k1=3, k2=2), rtol=1e-4, atol=1e-5)


def test_gfts_transferred_features_depend_on_the_query_and_are_not_re_ranked():
    model, _ = build("cift", 3, (32, 16), {"ablation": "gft"})
    assert list(ranking_ways(model, {"AIM": AIM(k1=3, k2=2)})) == ["backbone", "backbone + AIM", "transferred"]
