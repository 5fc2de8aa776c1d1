"""G2DA wired: the graph recomputed pixel by pixel, the losses by plain loops and from Eq. 13."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from reference import g2da as g2da_loops
from vireid import INFRARED, VISIBLE
from vireid.losses import CRILoss
from vireid.models import G2DA, G2DACriterion
from vireid.nn import (
    H2FT,
    PERSON_13,
    MessageFusionAttention,
    SharedFeatureTransfer,
    TwoStream,
    part_grid,
    skeleton_adjacency,
)

CHANNELS, IDENTITIES, CHAIN = 4, 3, skeleton_adjacency([(0, 1), (1, 2)], 3)


def batch(visible: int = 4, infrared: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in float64, labels and modality, in random order, and heatmaps of three key points; some have none."""
    size = visible + infrared
    kind = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)[torch.randperm(size)]
    heatmaps = torch.rand(size, 3, 6, 4, dtype=torch.double)
    heatmaps[: size // 2, 1] = 0
    return torch.randn(size, 3, 8, 6, dtype=torch.double), torch.arange(size) % IDENTITIES, kind, heatmaps


def g2da(*, two_stream: bool = True, **options) -> G2DA:
    """In float64, with parameters large enough for every one of them to be seen; maps of 3 x 2."""
    stem, trunk = nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, CHANNELS, 1)
    backbone = TwoStream(stem, trunk, infrared_stem=nn.Conv2d(3, 5, 3, stride=2), out_channels=CHANNELS)
    options = {"adjacency": CHAIN, "heads": 2, "threshold": 0.5} | options
    if not two_stream:
        options["dim"] = CHANNELS * math.prod(options.get("grid") or (1, 1))
    model = G2DA(backbone if two_stream else nn.Sequential(stem, trunk), IDENTITIES, **options).double()
    for part in [model.neck, *([] if model.attention is None else [model.attention.norm, model.aggregation.norm])]:
        nn.init.uniform_(part.weight, 0.0, 1.0)
        nn.init.normal_(part.running_mean)
    if model.aggregation is not None:
        nn.init.normal_(model.attention.project.weight)
        nn.init.normal_(model.aggregation.weight)
        nn.init.normal_(model.aggregation.norm.bias)
        nn.init.normal_(model.graph_classifier.weight)
    nn.init.normal_(model.classifier.weight)
    return model


def state(norm: nn.Module) -> dict[str, Tensor]:
    return {name: norm.state_dict()[name].clone() for name in ("weight", "running_mean", "running_var")}


def nodes_by_loops(maps: Tensor, heatmaps: Tensor, normalize: bool) -> Tensor:
    """Eq. 2 for maps of 3 x 2 under heatmaps of 6 x 4: a cell covers two by two pixels."""
    rows = []
    for image, heat in zip(maps, heatmaps, strict=True):
        own = []
        for each in heat:
            cells = [(i, j, each[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum() / 4) for i in range(3) for j in range(2)]
            node = sum(weight * image[:, i, j] for i, j, weight in cells) / 6
            length = (node @ node).sqrt()
            own.append(node * math.sqrt(len(node)) / length if normalize and length > 0 else node)
        rows.append(torch.stack(own))
    return torch.stack(rows)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("two_stream", [True, False])
def test_the_graph_by_loops(two_stream, training, normalize):
    images, _, modality, heatmaps = batch()
    model = g2da(two_stream=two_stream, normalize_nodes=normalize).train(training)
    neck, own, bias = state(model.neck), state(model.aggregation.norm), model.aggregation.norm.bias
    if two_stream:
        net, pairs = model.backbone, zip(images, modality.tolist(), strict=True)
        maps = torch.cat([net.trunk(net.stems[kind](image[None])) for image, kind in pairs])
    else:
        maps = model.backbone(images)
    before = {name: value.clone() for name, value in model.attention.norm.state_dict().items()}
    output = model(images, modality, heatmaps)
    pooled = torch.stack([sum(m[:, i, j] for i in range(3) for j in range(2)) / 6 for m in maps])
    whole = ref.batch_norm(pooled, **neck, training=training)
    nodes = torch.cat([nodes_by_loops(maps, heatmaps, False), whole[:, None]], 1)
    assert_close(output.nodes, nodes)
    nodes = torch.cat([nodes_by_loops(maps, heatmaps, normalize), whole[:, None]], 1)
    mask = torch.tensor([[*(bool(h.any()) for h in image), True] for image in heatmaps])
    assert_close(output.pooled, pooled)
    assert_close(output.logits, whole @ model.classifier.weight.T)
    assert output.mask.tolist() == mask.tolist()
    model.attention.norm.load_state_dict(before)
    messages = g2da_loops.message_fusion(model.attention, nodes, training, mask)
    assert not model.attention.kept().all()  # some channels are replaced
    graph = ref.batch_norm(pooled, **own, training=training) + bias
    graph = graph + sum(w * messages[:, i] for i, w in enumerate(model.aggregation.weight))
    assert_close(output.features, graph)
    assert_close(output.graph_logits, graph @ model.graph_classifier.weight.T)


def test_without_graph_the_features_are_those_of_the_neck():
    images, _, modality, heatmaps = batch()
    output = g2da(graph=False)(images, modality, heatmaps)
    assert output.graph_logits is None
    assert torch.equal(output.features, output.nodes[:, -1])
    assert output.nodes.shape == (7, 4, CHANNELS)


def test_stacked_cells_are_those_of_the_map_under_each_heatmap():
    """As with the small backbone: the features and the graph's nodes stack cells, the nodes to be aligned do not."""
    images, _, modality, heatmaps = batch()
    model = g2da(two_stream=False, grid=(3, 1)).eval()
    assert model.dim == 3 * CHANNELS
    given = []
    model.attention.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    maps, output = model.backbone(images), model(images, modality, heatmaps)
    cells = [(i, j) for i in range(3) for j in range(2)]
    heat = torch.stack([heatmaps[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i, j in cells], 2)
    for b in range(len(images)):
        for k in range(3):
            expected = [
                (heat[b, k, 2 * i] * maps[b, c, i, 0] + heat[b, k, 2 * i + 1] * maps[b, c, i, 1]) / 2
                for c in range(CHANNELS)
                for i in range(3)
            ]
            assert_close(given[0][b, k], torch.stack(expected))
    assert_close(output.pooled, torch.stack([maps[:, c, i].mean(1) for c in range(CHANNELS) for i in range(3)], 1))
    assert_close(given[0][:, -1], ref.batch_norm(output.pooled, **state(model.neck), training=False))
    assert_close(output.nodes[:, :-1], nodes_by_loops(maps, heatmaps, False))
    assert_close(output.nodes[:, -1], maps.mean((2, 3)))


def test_fixed_parts_stand_for_key_points():
    images, _, modality, _ = batch()
    parts, adjacency = part_grid(2, 2)
    model = g2da(adjacency=adjacency, parts=parts).eval()
    output = model(images, modality)
    expected = model(images, modality, parts.double().expand(len(images), -1, -1, -1))
    assert torch.equal(output.features, expected.features)
    assert output.mask.all()
    assert output.nodes.shape == (7, 5, CHANNELS)
    assert not any(name.endswith("parts") for name in model.state_dict())


def test_the_papers_graph_is_the_default():
    model = G2DA(nn.Conv2d(3, 8, 3), 2, dim=8)
    assert torch.equal(model.attention.adjacency, PERSON_13.adjacency())
    assert (model.attention.heads, model.attention.threshold) == (4, 0.02)
    assert len(model.aggregation.weight) == 14


def test_heads_are_fused_only_below_the_threshold():
    """Table III's "G" is -inf: every channel is its own."""
    images, _, modality, heatmaps = batch()
    fused = g2da(threshold=0.5).eval()
    plain = g2da(threshold=-math.inf).eval()
    plain.load_state_dict(fused.state_dict())
    nn.init.constant_(plain.attention.norm.weight, 0.4)
    nn.init.constant_(fused.attention.norm.weight, 0.4)
    assert plain.attention.kept().all()
    assert not fused.attention.kept().any()
    assert not torch.allclose(fused(images, modality, heatmaps).features, plain(images, modality, heatmaps).features)
    fused.attention.norm.weight.data.fill_(0.6)
    plain.attention.norm.weight.data.fill_(0.6)
    assert torch.equal(fused(images, modality, heatmaps).features, plain(images, modality, heatmaps).features)


def expected_losses(output, labels: Tensor, modality: Tensor, *, normalize: bool) -> dict[str, Tensor]:
    """Eq. 13's losses, each by loops; every pair of one person, of nodes that are all present."""
    size = len(labels)
    assert output.mask.all()
    assert g2da_loops.pairs(labels, modality)
    given = labels, modality
    return {
        "ce": sum(ref.cross_entropy(o, int(y)) for o, y in zip(output.logits, labels, strict=True)) / size,
        "triplet": g2da_loops.triplet(output.pooled, *given, normalize=normalize),
        "transport": g2da_loops.graph_transport(output.nodes, *given),
        "contrastive": g2da_loops.part_contrastive(output.nodes, *given, normalize=normalize),
        "graph": sum(ref.cross_entropy(o, int(y)) for o, y in zip(output.graph_logits, labels, strict=True)) / size,
    }


WEIGHTS = {"base": 0.7, "transport": 1.1, "contrastive": 0.3, "graph": 1.3}


@pytest.mark.parametrize("normalize", [False, True])
def test_the_criterion_by_loops(normalize):
    images, labels, modality, heatmaps = batch()
    heatmaps = heatmaps + 0.01  # every node present: its optimum is that of the permutations
    output = g2da()(images, modality, heatmaps)
    losses = G2DACriterion(**WEIGHTS, normalize_nodes=normalize, normalize_triplet=normalize)(output, labels, modality)
    expected = expected_losses(output, labels, modality, normalize=normalize)
    share = {"ce": 0.7, "triplet": 0.7, **{k: WEIGHTS[k] for k in ("transport", "contrastive", "graph")}}
    assert losses.keys() == {*expected, "total"}
    for name, value in expected.items():
        assert_close(losses[name], share[name] * value)
    assert_close(losses["total"], sum(share[name] * value for name, value in expected.items()))


def test_the_papers_weights_are_the_default():
    images, labels, modality, heatmaps = batch()
    output = g2da()(images, modality, heatmaps)
    default = G2DACriterion()(output, labels, modality)
    ones = G2DACriterion(base=1, transport=1, contrastive=1, graph=1)(output, labels, modality)
    for name, loss in ones.items():
        if name != "total":
            assert_close(default[name], loss * (0.1 if name == "contrastive" else 1.0))


def test_the_sparsity_of_the_fusion_and_the_average_by_loops():
    images, labels, modality, heatmaps = batch()
    model = g2da()
    output = model(images, modality, heatmaps + 0.01)
    criterion = G2DACriterion(fusion_sparsity=0.2, average="images")
    losses = criterion(output, labels, modality)
    gamma = model.attention.norm.weight
    assert_close(losses["fusion_sparsity"], 0.2 * sum(abs(scale) for scale in gamma))
    assert_close(
        losses["transport"],
        g2da_loops.graph_transport(output.nodes, labels, modality, average="images"),
        rtol=0,
        atol=1e-9,
    )
    assert_close(
        losses["contrastive"], 0.1 * g2da_loops.part_contrastive(output.nodes, labels, modality, average="images")
    )
    assert_close(losses["total"], sum(value for name, value in losses.items() if name != "total"))
    losses["fusion_sparsity"].backward()
    assert_close(gamma.grad, torch.full_like(gamma, 0.2))  # all are above 0
    assert "fusion_sparsity" not in G2DACriterion()(output, labels, modality)
    bare = g2da(graph=False)(images, modality, heatmaps)
    assert "fusion_sparsity" not in criterion(bare, labels, modality)


def test_label_smoothing_is_that_of_every_cross_entropy():
    images, labels, modality, heatmaps = batch()
    model = g2da(transfer=SharedFeatureTransfer(CHANNELS, k=3))
    output = model(images, modality, heatmaps)
    losses = G2DACriterion(model, label_smoothing=0.3)(output, labels, modality)
    smoothed = {"ce": output.logits, "graph": output.graph_logits, "graph_ce": output.query_logits}
    for name, logits in smoothed.items():
        assert_close(losses[name], F.cross_entropy(logits, labels, label_smoothing=0.3))
    assert "graph_triplet" in losses


@pytest.mark.parametrize("graph", [True, False])
def test_with_transfer_it_is_cift_on_g2das_features(graph):
    images, labels, modality, heatmaps = batch()
    model = g2da(graph=graph, transfer=H2FT(CHANNELS, k=3)).eval()
    nn.init.normal_(model.transfer_classifier.weight)
    cri = CRILoss(CHANNELS).double()
    output = model(images, modality, heatmaps)
    plain = g2da(graph=graph).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(plain(images, modality, heatmaps).features, output.features)
    torch.manual_seed(2)
    losses = G2DACriterion(model, cri=cri)(output, labels, modality)
    v = ref.batch_norm(output.features, **state(model.transfer.value), training=False)
    f_q, f_g, _, _ = ref.h2ft(v, v, modality, k=3, tau_hom=0.4, tau_het=0.2)
    weight = model.transfer_classifier.weight
    assert_close(output.query_logits, f_q @ weight.T)
    assert_close(output.gallery_logits, f_g @ weight.T)
    rows, twice = torch.cat([f_q, f_g]) @ weight.T, labels.repeat(2)
    entropy = sum(ref.cross_entropy(row, int(y)) for row, y in zip(rows, twice, strict=True)) / len(rows)
    options = {"margin": 6.0, "distance": "kl", "centers": "shared", "negatives": "mean", "normalize": True}
    assert_close(losses["graph_ce"], entropy)
    assert_close(losses["graph_hcc"], ref.hcc(rows, twice, **options))
    torch.manual_seed(2)
    tie = cri(output.features, labels, modality, transfer=model.transfer, classifier=model.transfer_classifier)
    assert_close(losses["tie"], tie)
    assert_close(losses["total"], sum(value for name, value in losses.items() if name != "total"))
    without = G2DACriterion()(output, labels, modality)
    assert without.keys() == losses.keys() - {"tie"}
    assert not {id(p) for p in G2DACriterion(model, cri=cri).parameters()} & {id(p) for p in model.parameters()}


def test_a_state_dict_of_a_model_without_transfer_has_the_names_it_always_had():
    names = {name.partition(".")[0] for name in g2da().state_dict()}
    assert names == {"backbone", "neck", "classifier", "attention", "aggregation", "graph_classifier"}
    assert g2da().state_dict().keys() < g2da(transfer=H2FT(CHANNELS)).state_dict().keys()
    inner = {name for name in g2da().attention.state_dict() if not name.startswith("norm.")}
    assert inner == {"project.weight", "score"}


@pytest.mark.parametrize("name", ["base", "transport", "contrastive", "graph"])
def test_a_weight_of_0_leaves_its_loss_out(name):
    images, labels, modality, heatmaps = batch()
    losses = G2DACriterion(**{name: 0.0})(g2da()(images, modality, heatmaps), labels, modality)
    names = {"ce", "triplet", "transport", "contrastive", "graph", "total"}
    assert losses.keys() == names - ({"ce", "triplet"} if name == "base" else {name})


def test_a_graph_weight_as_the_only_one_needs_a_graph():
    images, labels, modality, heatmaps = batch()
    output = g2da(graph=False)(images, modality, heatmaps)
    with pytest.raises(ValueError, match="no loss is left"):
        G2DACriterion(base=0, transport=0, contrastive=0)(output, labels, modality)


def test_phi_structure_and_pairs_reach_the_transport():
    images, labels, modality, heatmaps = batch()
    output = g2da()(images, modality, heatmaps + 0.01)
    values = {
        G2DACriterion(**options)(output, labels, modality)["transport"].item()
        for options in ({}, {"phi": 0.0}, {"phi": 1.0}, {"loss": "square"}, {"pairs": "one_to_one"})
    }
    assert len(values) == 5


def test_images_without_any_key_point():
    images, labels, modality, heatmaps = batch()
    model = g2da(normalize_nodes=True)
    output = model(images, modality, torch.zeros_like(heatmaps))
    assert output.mask.sum() == len(images)  # the global node
    total = G2DACriterion()(output, labels, modality)["total"]
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: g2da()(torch.randn(2, 3, 8, 6).double(), torch.tensor([0, 1])),
            "heatmaps must be .B, 3, h, w. for a model without parts, got None",
        ),
        (
            lambda: g2da()(torch.randn(2, 3, 8, 6).double(), torch.tensor([0, 1]), torch.rand(2, 13, 4, 4).double()),
            "heatmaps must have shape .2, 3, h, w., got .2, 13, 4, 4.",
        ),
        (lambda: g2da(parts=torch.rand(4, 2, 2)), "parts must have shape .3, H, W., got .4, 2, 2."),
        (lambda: g2da(heads=3), "dim must be a multiple of heads = 3, got 4"),
        (lambda: g2da(graph=False, head_dim=0), "head_dim must be at least 1, got 0"),
        (lambda: g2da(transfer=H2FT(5)), "transfer must be of size 4 as the features, got 5"),
        (lambda: G2DACriterion(cri=CRILoss(4)), "cri needs a model with a transfer, got one without"),
        (lambda: G2DACriterion(g2da(), cri=CRILoss(4)), "cri needs a model with a transfer, got one without"),
        (lambda: G2DACriterion(average="all"), "average must be one of 'pairs', 'images', got 'all'"),
        (lambda: G2DA(nn.Sequential(nn.Conv2d(3, 4, 3)), 2), "dim must be given"),
        (
            lambda: G2DA(nn.Conv2d(3, 4, 3), 2, dim=8)(
                torch.rand(2, 3, 8, 6), torch.tensor([0, 1]), torch.rand(2, 13, 4, 4)
            ),
            "backbone must return .B, 8, h, w., got .2, 4, 6, 4.",
        ),
        (lambda: G2DACriterion(phi=2.0), "phi must be at least 0 and at most 1"),
        (lambda: G2DACriterion(base=0, transport=0, contrastive=0, graph=0), "one weight at least must be above 0"),
    ],
)
def test_bad_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_parts_are_a_tensor():
    with pytest.raises(TypeError, match=r"parts must be a torch\.Tensor, got list"):
        g2da(parts=[[1.0]])


def test_the_attention_layer_is_the_librarys():
    assert isinstance(g2da().attention, MessageFusionAttention)
    assert g2da(graph=False).attention is None
