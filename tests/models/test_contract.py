"""Contract of every model and its criterion."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vireid import INFRARED, VISIBLE, models
from vireid.losses import AffinityInferenceLoss, CRILoss
from vireid.models import (
    AGW,
    CIFT,
    G2DA,
    SAAI,
    AGWCriterion,
    AlignedCriterion,
    Baseline,
    BaselineCriterion,
    CIFTCriterion,
    G2DACriterion,
    SAAICriterion,
)
from vireid.nn import GFT, H2FT, SharedFeatureTransfer, TwoStream, part_grid
from vireid.rerank import AIM, aim

CHANNELS, CLASSES = 6, 5
PARTS, ADJACENCY = part_grid(2, 1)


def backbone(two_stream: bool = False) -> nn.Module:
    """Maps of 3 x 2; without a batch norm, which would refuse a batch of one image."""
    stem, trunk = nn.Conv2d(3, 4, 3, stride=2), nn.Sequential(nn.Tanh(), nn.Conv2d(4, CHANNELS, 1))
    if two_stream:
        return TwoStream(stem, trunk, infrared_stem=nn.Conv2d(3, 4, 3, stride=2), out_channels=CHANNELS)
    net = nn.Sequential(stem, trunk)
    net.out_channels = CHANNELS
    return net


@dataclass(frozen=True)
class Case:
    """A model and its criterion, made from a backbone and from the model."""

    name: str
    model: Callable[[nn.Module], nn.Module]
    criterion: Callable[[nn.Module], nn.Module]
    terms: str

    def make(self, *, two_stream: bool = False) -> tuple[nn.Module, nn.Module]:
        """In float64, with parameters large enough for every one of them to be seen in the loss."""
        model = self.model(backbone(two_stream)).double()
        criterion = self.criterion(model).double()
        for module in (*model.modules(), *criterion.modules()):
            for name, weight in module.named_parameters(recurse=False):
                if "classifier" in name or isinstance(module, nn.Linear) or name in ("shared", "specific", "weight"):
                    nn.init.uniform_(weight, 0.5, 1.5) if weight.ndim == 1 else nn.init.normal_(weight)
        return model, criterion


def cift(transfer: Callable[[], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    return lambda net: CIFT(net, CLASSES, transfer=transfer())


def with_cri(model: CIFT) -> CIFTCriterion:
    return CIFTCriterion(model, cri=CRILoss(CHANNELS))


def saai(net: nn.Module) -> SAAI:
    return SAAI(net, CLASSES, parts=2, size=(3, 2), transfer=H2FT(3 * CHANNELS, k=3))


def saai_criterion(model: SAAI) -> SAAICriterion:
    return SAAICriterion(model, affinity=AffinityInferenceLoss(k1=3), cri=CRILoss(model.dim))


def g2da(graph: bool, **options) -> Callable[[nn.Module], nn.Module]:
    options |= {"parts": PARTS, "adjacency": ADJACENCY, "heads": 2, "threshold": 1.0, "graph": graph}
    return lambda net: G2DA(net, CLASSES, **options)


BASE, GRAPH = "ce hcc_features hcc_logits", "graph_ce graph_hcc tie"
SAAI_TERMS = "id specific mutual part_diversity center_separation affinity"
CASES = [
    Case("Baseline", lambda net: Baseline(net, CLASSES), lambda _: BaselineCriterion(), BASE),
    Case("CIFT", cift(lambda: H2FT(CHANNELS, k=3)), with_cri, f"{BASE} {GRAPH}"),
    Case("CIFT, GFT", cift(lambda: GFT(CHANNELS, k=3)), with_cri, f"{BASE} {GRAPH}"),
    Case("CIFT, groups", cift(lambda: GFT(CHANNELS, k=3, unbalanced=True)), with_cri, f"{BASE} {GRAPH}"),
    Case("SAAI", saai, saai_criterion, f"{SAAI_TERMS} {GRAPH}"),
    Case("G2DA", g2da(True), lambda _: G2DACriterion(), "ce triplet transport contrastive graph"),
    Case("G2DA, no graph", g2da(False), lambda _: G2DACriterion(), "ce triplet transport contrastive"),
    Case(
        "CIFT, shared",
        cift(lambda: SharedFeatureTransfer(CHANNELS, k=3)),
        CIFTCriterion,
        f"{BASE} graph_ce graph_triplet",
    ),
    Case(
        "AGW, shared",
        lambda net: AGW(net, CLASSES, transfer=SharedFeatureTransfer(CHANNELS, k=3)),
        AGWCriterion,
        "ce triplet graph_ce graph_triplet",
    ),
    Case("AGW", lambda net: AGW(net, CLASSES), AGWCriterion, "ce triplet"),
    Case(
        "AGW, HC under CIFT",
        lambda net: AGW(net, CLASSES, pooling="avg", stripes=3, part_dim=4, transfer=H2FT(12, k=3)),
        lambda model: AGWCriterion(
            model, triplet=0.0, hetero_center=0.5, metric_features="neck", cri=CRILoss(model.dim)
        ),
        f"ce hetero_center {GRAPH}",
    ),
    Case(
        "AGW, HCT",
        lambda net: AGW(net, CLASSES, stripes=2, part_dim=5, relu=True),
        lambda model: AGWCriterion(
            model, triplet=0.0, hetero_center_triplet=1.0, metric_features="neck", label_smoothing=0.1
        ),
        "ce hetero_center_triplet",
    ),
    Case(
        "SAAI, aligned",
        lambda net: SAAI(net, CLASSES, parts=2, size=(3, 2)),
        lambda model: AlignedCriterion(SAAICriterion(model), weight=0.5, grid=(2, 1)),
        "id specific mutual part_diversity center_separation transport",
    ),
    Case(
        "CIFT, other readings",
        cift(lambda: GFT(CHANNELS, k=3, transferred="features")),
        lambda model: CIFTCriterion(
            model,
            cri=CRILoss(CHANNELS, intervention="predicted"),
            metric_features="neck",
            centers="cross",
            negatives="sum",
            kl_direction="from_center",
            kl_center="logits",
            label_smoothing=0.1,
        ),
        f"{BASE} {GRAPH}",
    ),
    Case(
        "SAAI, other readings",
        lambda net: SAAI(
            net,
            CLASSES,
            parts=2,
            size=(3, 2),
            stripes=3,
            global_feature=False,
            transfer=SharedFeatureTransfer(5 * CHANNELS, k=3),
        ),
        lambda model: SAAICriterion(model, maps="logits", identity_means="batch", shared_weight=0.5),
        "id specific mutual part_diversity center_separation graph_ce graph_triplet",
    ),
    Case(
        "CIFT on SAAI, aligned",
        saai,
        lambda model: AlignedCriterion(saai_criterion(model)),
        f"{SAAI_TERMS} {GRAPH} transport",
    ),
    Case(
        "CIFT on G2DA, other readings",
        lambda net: G2DA(
            net,
            CLASSES,
            parts=PARTS,
            adjacency=ADJACENCY,
            heads=2,
            head_dim=CHANNELS,
            magnitude=False,
            threshold=1.0,
            transfer=H2FT(CHANNELS, k=3),
        ),
        lambda model: AlignedCriterion(
            G2DACriterion(model, cri=CRILoss(CHANNELS), fusion_sparsity=0.01, average="images")
        ),
        f"ce triplet transport contrastive graph fusion_sparsity {GRAPH}",
    ),
    Case(
        "G2DA, no graph, shared",
        g2da(False, transfer=SharedFeatureTransfer(CHANNELS, k=3)),
        lambda model: G2DACriterion(model, label_smoothing=0.1),
        "ce triplet transport contrastive graph_ce graph_triplet",
    ),
]
every_model = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def batch(visible: int = 5, infrared: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images in float64, labels and modality, in random order."""
    size = visible + infrared
    kind = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)[torch.randperm(size)]
    return torch.randn(size, 3, 8, 6, dtype=torch.double), torch.arange(size) % 4, kind


def losses_of(made: tuple[nn.Module, nn.Module], images: Tensor, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
    model, criterion = made
    output = model(images, modality)
    torch.manual_seed(5)
    return criterion(output, labels, modality)


def flat(output: Any, prefix: str = "") -> dict[str, Any]:
    """Names and tensors of an output and of the outputs in it."""
    found: dict[str, Any] = {}
    for name, value in output._asdict().items():
        found |= flat(value, f"{prefix}{name}.") if hasattr(value, "_asdict") else {prefix + name: value}
    return found


@every_model
@pytest.mark.parametrize("two_stream", [False, True])
def test_outputs_are_named_alike_in_training_and_evaluation_and_the_total_is_the_sum(case, two_stream):
    model, criterion = made = case.make(two_stream=two_stream)
    images, labels, modality = batch()
    outputs = [flat(model.train(mode)(images, modality)) for mode in (True, False)]
    assert outputs[0].keys() == outputs[1].keys()
    for name, value in outputs[0].items():
        assert (value is None) == (outputs[1][name] is None), name
        if value is not None:
            assert value.shape == outputs[1][name].shape, name
    assert outputs[0]["features"].shape == (9, model.dim if hasattr(model, "dim") else CHANNELS)
    losses = losses_of(made, images, labels, modality)
    assert losses.keys() == {*case.terms.split(), "total"}
    assert_close(losses["total"], sum(value for name, value in losses.items() if name != "total"))
    if two_stream:  # both stems are used
        swapped = model(images, 1 - modality).features
        assert not torch.allclose(swapped, model(images, modality).features)
    assert not {id(p) for p in criterion.parameters()} & {id(p) for p in model.parameters()}


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_batch_order_does_not_matter(case, training, monkeypatch):
    model, criterion = case.make()
    images, labels, modality = batch()
    order, noise = torch.randperm(9), torch.randn(9, 3 * CHANNELS, dtype=torch.double)
    found = []
    for rows in (torch.arange(9), order):
        monkeypatch.setattr(torch, "randn", lambda size, rows=rows, **_: noise[rows, : size[1]])  # CRI's draws
        m, c = copy.deepcopy((model, criterion))  # together: a criterion may share the model's layers
        output = m.train(training)(images[rows], modality[rows])
        found.append(c.train(training)(output, labels[rows], modality[rows]))
    assert_close(found[1], found[0])


@every_model
def test_every_trained_parameter_receives_a_gradient_and_inputs_are_not_changed(case):
    made, inputs = case.make(), batch(6, 6)
    copies = [x.clone() for x in inputs]
    losses_of(made, *inputs)["total"].backward()
    for part in made:
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                # A bias before a batch norm and a score within a softmax may have no effect: rounding is left.
                assert name.endswith("bias") or "score" in name or parameter.grad.abs().max() > 1e-8, name
    for now, before in zip(inputs, copies, strict=True):
        assert torch.equal(now, before)


@pytest.mark.filterwarnings("ignore:.*compares the modalities")
@pytest.mark.parametrize("counts", [(6, 0), (0, 6), (1, 1), (1, 0), (0, 1), (7, 1)])
@every_model
def test_tiny_and_one_sided_batches_give_finite_losses_and_gradients(case, counts):
    made = case.make()
    losses = losses_of(made, *batch(*counts))
    losses["total"].backward()
    for name, value in losses.items():
        assert value.isfinite(), name
    for part in made:
        assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_model
def test_autocast_losses_are_near_full_precision_and_gradients_finite(case, dtype, device):
    images, labels, modality = (x.to(device) for x in batch(8, 8))
    model, criterion = made = tuple(part.float().to(device) for part in case.make())
    exact = losses_of(copy.deepcopy(made), images.float(), labels, modality)
    with torch.autocast(device.type, dtype=dtype):
        losses = losses_of(made, images.float(), labels, modality)
    losses["total"].backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
        if name in ("ce", "hcc_features", "hcc_logits", "id", "specific", "triplet", "part_diversity", "contrastive"):
            assert_close(value, exact[name], rtol=0.05, atol=0.05)  # the graphs' neighbors may differ at near-ties
    assert all(p.grad is None or p.grad.isfinite().all() for p in (*model.parameters(), *criterion.parameters()))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("CIFT", "SAAI", "G2DA", "AGW, HCT")], ids=lambda c: c.name
)
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_features_are_exported_with_any_batch(case):
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = case.make()[0].eval()

        def forward(self, images: Tensor, modality: Tensor) -> Tensor:
            return self.model(images, modality).features

    net, rows = Features(), torch.export.Dim("rows", min=2, max=512)
    images, _, modality = batch()
    exported = torch.export.export(net, (images, modality), dynamic_shapes=({0: rows}, {0: rows})).module()
    for counts in ((1, 1), (1, 2), (3, 3), (10, 7)):
        images, _, modality = batch(*counts)
        assert_close(exported(images, modality), net(images, modality))


@every_model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_is_one_graph_with_the_same_gradients(case, pairs_of_any_number):
    torch._dynamo.reset()
    model, (images, _, modality) = case.make()[0], batch()
    found = []
    for call in (copy.deepcopy(model), torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")):
        out = {name: x for name, x in flat(call(images, modality)).items() if x is not None}
        sum(x.square().sum() for x in out.values() if x.requires_grad).backward()
        found.append([*out.values(), *(p.grad for p in call.parameters() if p.grad is not None), *call.buffers()])
    assert_close(*found)


def test_every_model_is_here():
    made = {type(case.make()[0]) for case in CASES}
    assert made == {getattr(models, name) for name in models.__all__ if hasattr(models, f"{name}Output")}


@every_model
def test_aim_ranks_by_every_models_features(case):
    training = pytest.importorskip("vireid.training", reason="needs the extra train")
    model, (images, _, modality) = case.make()[0].eval(), batch()
    with torch.no_grad():
        output = model(images, modality)
    ways = training.ranking_ways(model, {"AIM": AIM(k1=3, k2=2)})
    first = next(iter(ways))
    query, gallery = output.features[modality == INFRARED], output.features[modality == VISIBLE]
    for name in (first, "transferred")[: 1 + (getattr(output, "transfer", None) is not None)]:
        if name == "transferred" and not isinstance(model.transfer, H2FT):
            continue  # GFT's features depend on the query
        distance = ways[f"{name} + AIM"](query, gallery)
        rows = (query, gallery) if name == first else model.transfer.transfer(query, gallery)
        assert_close(distance, aim(*rows, k1=3, k2=2))


@every_model
def test_what_all_outputs_have_in_common_has_one_name(case):
    model, (images, _, modality) = case.make()[0].eval(), batch()
    output = model(images, modality)
    assert output.feature_map.shape == (9, CHANNELS, 3, 2)
    assert output.pooled.shape == output.features.shape
    if getattr(output, "transfer", None) is not None:
        assert output.query_logits.shape == (9, CLASSES)
        assert len(output.gallery_logits) == len(output.transfer.gallery_index)


@every_model
def test_state_dicts_restore_model_and_criterion(case):
    torch.manual_seed(0)
    made, inputs = case.make(), batch()
    losses_of(made, *inputs)  # running statistics and moving averages that are not the first ones
    torch.manual_seed(1)
    again = case.make()
    for part, other in zip(made, again, strict=True):
        other.load_state_dict(part.state_dict())
        part.eval(), other.eval()
    assert_close(losses_of(again, *inputs), losses_of(made, *inputs), rtol=0, atol=0)


@every_model
def test_labels_that_do_not_fit_are_named(case):
    model, criterion = case.make()
    images, labels, modality = batch()
    output = model(images, modality)
    with pytest.raises(ValueError, match=r"labels must have shape \(9,\), got \(8,\)"):
        criterion(output, labels[:-1], modality)
    with pytest.raises(TypeError, match=r"labels must hold integers, got torch\.float64"):
        criterion(output, labels.double(), modality)


@every_model
@pytest.mark.parametrize("two_stream", [False, True])
def test_codes_of_other_systems_are_refused_with_the_remedy(case, two_stream):
    """AGW's are 1 and 2."""
    model, criterion = case.make(two_stream=two_stream)
    images, labels, modality = batch()
    refused = pytest.raises(ValueError, match=r"modality must be 0 \(visible\) or 1 .*, got 2; .*vireid\.modality")
    output = model(images, modality)
    with refused:
        model(images, modality + 1)
    with refused:
        criterion(output, labels, modality + 1)


@every_model
@pytest.mark.parametrize("label", [-100, -1, CLASSES, 2**40])
def test_labels_out_of_range_are_refused(case, label):
    """PyTorch would ignore -100 silently."""
    model, criterion = case.make()
    images, labels, modality = batch()
    labels[3] = label
    output = model(images, modality)
    with pytest.raises(ValueError, match=f"labels must be 0 to {CLASSES - 1}, got {label}"):
        criterion(output, labels, modality)
