"""Baseline and CIFT wired: outputs recomputed from their parts, losses from the plain loops of the specification."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from vireid import INFRARED, VISIBLE
from vireid.losses import CRILoss
from vireid.models import CIFT, Baseline, BaselineCriterion, BaselineOutput, CIFTCriterion
from vireid.nn import GFT, H2FT

DIM, IDENTITIES = 6, 5
TRANSFERS = {
    "h2ft": lambda: H2FT(DIM, k=3),
    "gft": lambda: GFT(DIM, k=3),
    "gft on groups": lambda: GFT(DIM, k=3, unbalanced=True),
}


def batch(visible: int = 5, infrared: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images in float64, labels and modality, in random order."""
    size = visible + infrared
    kind = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)[torch.randperm(size)]
    return torch.randn(size, 3, 8, 6, dtype=torch.double), torch.arange(size) % IDENTITIES, kind


def cift(name: str = "h2ft") -> CIFT:
    """In float64, with logits large enough for the losses between them to differ."""
    backbone = nn.Sequential(nn.Conv2d(3, DIM, 3, stride=2), nn.BatchNorm2d(DIM), nn.ReLU())
    model = CIFT(backbone, IDENTITIES, dim=DIM, transfer=TRANSFERS[name]()).double()
    for classifier in (model.baseline.classifier, model.graph_classifier):
        nn.init.normal_(classifier.weight)
    for neck in (model.baseline.neck, model.transfer.value):
        nn.init.uniform_(neck.get_parameter("weight"), 0.5, 2.0)
    return model


def make_cri(**options) -> CRILoss:
    cri = CRILoss(DIM, **options).double()
    nn.init.normal_(cri.X_mu)
    nn.init.normal_(cri.X_rho)
    return cri


def neck_state(neck: nn.Module) -> dict[str, Tensor]:
    return {name: neck.state_dict()[name].clone() for name in ("weight", "running_mean", "running_var")}


def transferred(name: str, keys: Tensor, values: Tensor, modality: Tensor) -> tuple[Tensor, dict[int, list[Tensor]]]:
    """Query rows (B, d), and the gallery rows of each image, by the loops."""
    if name == "h2ft":
        query, gallery, _, _ = ref.h2ft(keys, values, modality, k=3, tau_hom=0.4, tau_het=0.2)
        return query, {i: [row] for i, row in enumerate(gallery)}
    if name == "gft":
        rows, _ = ref.gft(keys, values, k=3, tau=0.2)
        return rows, {i: [row] for i, row in enumerate(rows)}
    query, listed = ref.gft_groups(keys, values, modality, k=3, tau=0.2)
    return query, {g: [row for _, h, row in listed if h == g] for g in range(len(keys))}


def mean(terms: list[Tensor]) -> Tensor:
    return sum(terms) / len(terms)


def cross_entropy(rows: Tensor, labels: Tensor) -> Tensor:
    return mean([ref.cross_entropy(row, int(label)) for row, label in zip(rows, labels, strict=True)])


def hcc(x: Tensor, labels: Tensor, margin: float, distance: str, modality: Tensor | None = None, **options) -> Tensor:
    options = {"centers": "shared", "negatives": "mean"} | options
    return ref.hcc(x, labels, modality, margin=margin, distance=distance, normalize=True, **options)


@pytest.mark.parametrize("training", [True, False])
def test_baseline_is_pooled_backbone_neck_and_classifier(training, device):
    images, _, modality = batch()
    model = Baseline(nn.Conv2d(3, DIM, 3), IDENTITIES).double().to(device).train(training)
    assert model.dim == DIM  # the convolution's own out_channels
    state = {name: value.cpu() for name, value in neck_state(model.neck).items()}
    output = model(images.to(device), modality.to(device))
    maps = model.backbone(images.to(device)).cpu()
    pooled = torch.stack([mean([m[:, i, j] for i in range(m.shape[1]) for j in range(m.shape[2])]) for m in maps])
    features = ref.batch_norm(pooled, **state, training=training)
    assert_close(output.pooled.cpu(), pooled)
    assert_close(output.features.cpu(), features)
    assert_close(output.logits.cpu(), torch.stack([model.classifier.weight.cpu() @ row for row in features]))


@pytest.mark.parametrize("kind", [Baseline, CIFT])
def test_a_grid_stacks_the_means_of_the_maps_cells(kind):
    images, _, modality = batch()
    net = nn.Conv2d(3, 4, 3).double()
    model = kind(net, IDENTITIES, grid=(3, 2)).double().eval()
    baseline = model if kind is Baseline else model.baseline
    nn.init.normal_(baseline.neck.running_mean)
    assert baseline.dim == 4 * 3 * 2
    maps = net(images)  # 6 x 4: cells of 2 x 2
    cells = [
        torch.stack([maps[:, c, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)]).mean(0)
        for c in range(4)
        for i in range(3)
        for j in range(2)
    ]
    pooled = torch.stack(cells, 1)
    expected = ref.batch_norm(pooled, **neck_state(baseline.neck), training=False)
    assert_close(model(images, modality).features, expected)
    net.grid = (3, 2)  # a backbone may bring its own
    assert kind(net, IDENTITIES).double()(images, modality).features.shape == (9, 24)
    assert kind(net, IDENTITIES, grid=(1, 1)).double()(images, modality).features.shape == (9, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(TRANSFERS))
def test_cift_is_the_baseline_then_transfer_then_the_second_classifier(name, training):
    model = cift(name)
    images, _, modality = batch()
    model.train()(batch()[0] + 1, modality)  # running statistics that are not the initial ones
    model.train(training)
    state = neck_state(model.transfer.value)
    output = model(images, modality)
    features = output.features
    values = ref.batch_norm(features, **state, training=training)
    query, gallery = transferred(name, values, values, modality)
    weight = model.graph_classifier.weight
    assert_close(output.logits, features @ model.baseline.classifier.weight.T)
    assert_close(output.transfer.query, query)
    assert_close(output.query_logits, torch.stack([weight @ row for row in query]))
    assert_close(output.gallery_logits, output.transfer.gallery @ weight.T)
    index = output.transfer.gallery_index
    for image, rows in gallery.items():
        ours = output.transfer.gallery[index == image]
        assert len(ours) == len(rows)
        for row in rows:  # each once, in any order
            assert any(torch.allclose(row, other, rtol=1e-9, atol=1e-9) for other in ours)


@pytest.mark.parametrize("cri", [None, "one draw", "three draws"])
@pytest.mark.parametrize("name", list(TRANSFERS))
def test_total_is_the_sum_of_the_specification(name, cri):
    model = cift(name).train()
    images, labels, modality = batch()
    intervention = make_cri(samples=3 if cri == "three draws" else 1) if cri else None
    criterion = CIFTCriterion(model, cri=intervention)
    state = neck_state(model.transfer.value)
    output = model(images, modality)

    values = ref.batch_norm(output.features, **state, training=True)
    query, gallery = transferred(name, values, values, modality)
    weight = model.graph_classifier.weight
    flat = [(image, row) for image, rows in gallery.items() for row in rows]
    owner = torch.tensor([image for image, _ in flat])
    # An image counts once as gallery image in HCC: the mean of its logits where it has several rows.
    graph_rows = torch.cat([query, torch.stack([mean(rows) for rows in gallery.values()])]) @ weight.T
    query_logits, gallery_logits = query @ weight.T, torch.stack([row for _, row in flat]) @ weight.T
    expected = {
        "ce": cross_entropy(output.logits, labels),
        "hcc_features": hcc(output.pooled, labels, 0.6, "euclidean"),
        "hcc_logits": hcc(output.logits, labels, 6.0, "kl"),
        "graph_ce": (cross_entropy(query_logits, labels) + cross_entropy(gallery_logits, labels[owner])) / 2,
        "graph_hcc": hcc(graph_rows, labels.repeat(2), 6.0, "kl"),
    }
    if intervention is not None:
        torch.manual_seed(3)
        draws = [torch.randn(len(images), DIM, dtype=torch.double) for _ in range(intervention.samples)]
        sigma = torch.log(1 + torch.exp(intervention.X_rho))
        of_query, of_gallery = [], []
        for z in draws:
            keys = ref.batch_norm(sigma * z + intervention.X_mu, **neck_state(model.transfer.value), training=False)
            rows_q, rows_g = transferred(name, keys, values, modality)
            of_query.append([weight @ row for row in rows_q])
            of_gallery.append([weight @ row for rows in rows_g.values() for row in rows])
        effects = (
            ref.total_indirect_effect(list(query_logits), of_query, labels.tolist()),
            ref.total_indirect_effect(list(gallery_logits), of_gallery, labels[owner].tolist()),
        )
        expected["tie"] = sum(effects) / 2

    torch.manual_seed(3)
    losses = criterion(output, labels, modality)
    assert losses.keys() == {*expected, "total"}
    for term, value in expected.items():
        assert_close(losses[term], value, msg=lambda text, term=term: f"{term}: {text}")
    assert_close(losses["total"], sum(expected.values()))


def smoothed(rows: Tensor, labels: Tensor, share: float) -> Tensor:
    """The cross-entropy with ``share`` of the target spread over all classes."""
    every = mean([mean([ref.cross_entropy(row, c) for c in range(rows.shape[1])]) for row in rows])
    return (1 - share) * cross_entropy(rows, labels) + share * every


READINGS = {
    "the default": {},
    "behind the neck": {"metric_features": "neck"},
    "other centers": {"centers": "cross", "negatives": "sum", "kl_direction": "from_center", "kl_center": "logits"},
    "smoothed": {"label_smoothing": 0.1},
}


@pytest.mark.parametrize("options", READINGS.values(), ids=READINGS)
def test_each_reading_of_the_backbones_and_the_graphs_losses(options):
    images, labels, modality = batch(6, 6)
    labels[:6] = labels[6:]
    model = cift()
    baseline, output = model.baseline(images, modality), model(images, modality)
    rows = baseline.features if "metric_features" in options else baseline.pooled
    of_hcc = {name: options[name] for name in ("centers", "negatives") if name in options}
    of_kl = of_hcc | {name: value for name, value in options.items() if name.startswith("kl")}
    share = options.get("label_smoothing", 0)
    losses = BaselineCriterion(**options)(baseline, labels, modality)
    expected = {
        "ce": smoothed(baseline.logits, labels, share),
        "hcc_features": hcc(rows, labels, 0.6, "euclidean", modality, **of_hcc),
        "hcc_logits": hcc(baseline.logits, labels, 6.0, "kl", modality, **of_kl),
    }
    assert_close(losses, expected | {"total": sum(expected.values())})
    both = torch.cat([output.query_logits, output.gallery_logits])
    expected |= {
        "graph_ce": smoothed(both, labels.repeat(2), share),
        "graph_hcc": hcc(both, labels.repeat(2), 6.0, "kl", modality.repeat(2), **of_kl),
    }
    losses = CIFTCriterion(model, **options)(output, labels, modality)
    for name in ("ce", "hcc_logits", "graph_ce", "graph_hcc"):
        assert_close(losses[name], expected[name], msg=name)


def test_pooled_features_that_are_missing_are_named():
    x, labels = torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="output must have pooled features for metric_features='pooled', got None"):
        BaselineCriterion()(BaselineOutput(x, x), labels, labels)
    assert BaselineCriterion(metric_features="neck")(BaselineOutput(x, x), labels, labels)["total"] > 0


def test_criterion_does_not_own_the_model():
    model = cift()
    criterion = CIFTCriterion(model, cri=make_cri())
    assert {name for name, _ in criterion.named_parameters()} == {"cri.X_mu", "cri.X_rho"}
    assert criterion.state_dict().keys() == {"cri.X_mu", "cri.X_rho"}
    assert not {id(p) for p in criterion.parameters()} & {id(p) for p in model.parameters()}
    assert not dict(CIFTCriterion(model).named_parameters())
    # Yet L_tie follows the model: what trains is what is supervised.
    images, labels, modality = batch()
    before = criterion(model(images, modality), labels, modality)["tie"]
    with torch.no_grad():
        model.graph_classifier.weight.mul_(3)
    assert abs(criterion(model(images, modality), labels, modality)["tie"] - before) > 0.05


def test_dim_overrides_out_channels_and_is_required_without_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, DIM, 3))
    with pytest.raises(ValueError, match="dim must be given for a backbone without the attribute out_channels"):
        Baseline(net, IDENTITIES)
    with pytest.raises(ValueError, match="dim must be given"):
        CIFT(net, IDENTITIES)
    net.out_channels = 4  # of the first layer: wrong, and what is given wins
    assert CIFT(net, IDENTITIES, dim=DIM).transfer.dim == DIM
    assert CIFT(nn.Conv2d(3, DIM, 3), IDENTITIES).transfer.dim == DIM


@pytest.mark.parametrize(
    ("shape", "got"), [((9, DIM), r"\(9, 6\)"), ((9, 4, 2, 2), r"\(9, 4, 2, 2\)"), ((9, 3, DIM), r"\(9, 3, 6\)")]
)
def test_a_backbone_that_returns_something_else_is_named(shape, got):
    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(shape)

    images, _, modality = batch()
    with pytest.raises(ValueError, match=rf"backbone must return \(B, 6, h, w\), got {got}"):
        Baseline(Wrong(), IDENTITIES, dim=DIM)(images, modality)


def test_modality_that_does_not_fit_is_named():
    images, _, modality = batch()
    model = cift()
    with pytest.raises(ValueError, match=r"modality must have shape \(9,\)"):
        model(images, modality[:-1])
    with pytest.raises(TypeError, match="modality must hold integers"):
        model(images, modality.double())
