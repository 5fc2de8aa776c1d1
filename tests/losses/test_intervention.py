import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from vireid import INFRARED, VISIBLE
from vireid.losses import CRILoss, cri_loss
from vireid.nn import GFT, H2FT

TRANSFERS = {
    "h2ft": lambda k=3, **options: H2FT(6, k=k, **options),
    "gft": lambda k=3, **options: GFT(6, k=k, **options),
    "gft on groups": lambda k=3, **options: GFT(6, k=k, unbalanced=True, **options),
    "gft of features": lambda k=3, **options: GFT(6, k=k, transferred="features", **options),
}


class Case:
    """A batch of five identities, a classifier, and a transfer whose neck has seen other data."""

    def __init__(self, name: str, *, visible: int = 5, infrared: int = 4, device: torch.device | str = "cpu"):
        g = torch.Generator().manual_seed(0)
        size = visible + infrared
        self.name = name
        self.x = torch.randn(size, 6, generator=g, dtype=torch.double).to(device)
        self.labels = torch.randint(5, (size,), generator=g).to(device)
        kind = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)
        self.modality = kind[torch.randperm(size, generator=g)].to(device)
        self.classifier = nn.Linear(6, 5, bias=False).double().to(device)
        self.transfer = TRANSFERS[name]().double().to(device).train()
        self.transfer(
            3 * torch.randn(20, 6, generator=g, dtype=torch.double).to(device) + 1, kind.repeat(20)[:20].to(device)
        )

    def loss(self, cri: CRILoss, x: Tensor | None = None, output=None) -> Tensor:
        x = self.x if x is None else x
        return cri(x, self.labels, self.modality, transfer=self.transfer, classifier=self.classifier, output=output)


def randomized(cri: CRILoss) -> CRILoss:
    cri = cri.double()
    with torch.no_grad():
        for parameter in cri.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return cri


def features(
    name: str, keys: Tensor, values: Tensor, modality: Tensor
) -> tuple[list[Tensor], list[tuple[int, Tensor]]]:
    """Query rows in order, gallery rows with their image, by the loops."""
    if name == "h2ft":
        f_q, f_g, _, _ = ref.h2ft(keys, values, modality, k=3, tau_hom=0.4, tau_het=0.2)
        return list(f_q), list(enumerate(f_g))
    if name in ("gft", "gft of features"):
        out, _ = ref.gft(keys, values, k=3, tau=0.2)
        return list(out), list(enumerate(out))
    f_q, f_g = ref.gft_groups(keys, values, modality, k=3, tau=0.2)
    return list(f_q), [(g, f) for _, g, f in f_g]


def loop(case: Case, cri: CRILoss, draws: list[Tensor], x: Tensor, training: bool) -> Tensor:
    """Eq. 5-6 with the given Z. v of X* has the running statistics that v of X left."""
    neck = case.transfer.value.state_dict()
    neck = {name: neck[name].cpu() for name in ("weight", "running_mean", "running_var")}
    weight, labels, modality = case.classifier.weight.detach().cpu(), case.labels.tolist(), case.modality.cpu()
    if cri.intervention == "free":
        mu, rho = cri.X_mu.detach().cpu(), cri.X_rho.detach().cpu()
    else:  # row by row
        maps, shifts = cri.predict.weight.detach().cpu(), cri.predict.bias.detach().cpu()
        predicted = torch.stack([torch.stack([m @ row + s for m, s in zip(maps, shifts, strict=True)]) for row in x])
        mu, rho = predicted[:, :6], predicted[:, 6:]
    sigma = torch.log(1 + torch.exp(rho))
    v = ref.batch_norm(x, **neck, training=training)
    values = x if case.name == "gft of features" else v
    q, g = features(case.name, v, values, modality)
    counter_q, counter_g = [], []
    for z in draws:
        keys = ref.batch_norm(sigma * z + mu, **neck, training=False)
        rows_q, rows_g = features(case.name, keys, values, modality)
        counter_q.append([weight @ f for f in rows_q])
        counter_g.append([weight @ f for _, f in rows_g])
    query = ref.total_indirect_effect([weight @ f for f in q], counter_q, labels)
    gallery = ref.total_indirect_effect([weight @ f for _, f in g], counter_g, [labels[i] for i, _ in g])
    return (query + gallery) / 2


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"intervention": "predicted", "samples": 2}], ids=str)
@pytest.mark.parametrize("name", TRANSFERS)
def test_it_equals_the_loop_with_the_same_draws(name, options, training):
    case, cri = Case(name), randomized(CRILoss(6, **options))
    case.transfer.train(training)
    ours, theirs = case.x.clone().requires_grad_(), case.x.clone().requires_grad_()
    torch.manual_seed(7)
    out = case.loss(cri, ours)
    torch.manual_seed(7)
    draws = [torch.randn(case.x.shape, dtype=torch.double) for _ in range(cri.samples)]
    expected = loop(case, cri, draws, theirs, training)
    assert_close(out, expected, rtol=0, atol=1e-9)
    out.backward()
    expected.backward()
    assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFERS)
def test_an_output_already_computed_is_used(name):
    case, cri = Case(name), randomized(CRILoss(6))
    again = copy.deepcopy(case)
    torch.manual_seed(7)
    computed = case.loss(cri)
    output = again.transfer(again.x, again.modality)
    before = state_of(again.transfer)
    torch.manual_seed(7)
    given = again.loss(cri, output=output)
    assert_close(given, computed, rtol=0, atol=1e-12)
    assert_close(again.transfer.state_dict(), before, rtol=0, atol=0)  # X* left no trace in the running statistics
    assert_close(case.transfer.state_dict(), before, rtol=0, atol=0)  # and x left one, once
    assert case.transfer.training
    assert all(m.training for m in case.transfer.modules())


@pytest.mark.parametrize("name", TRANSFERS)
def test_counterfactuals_leave_dropout_and_frozen_parts_as_they_are(name):
    value = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6)).double()
    case, cri = Case(name), randomized(CRILoss(6, samples=2))
    case.transfer = TRANSFERS[name](value=value).double().train()
    output = case.transfer(case.x, case.modality)
    value[2].eval()
    modes, before = [m.training for m in case.transfer.modules()], state_of(case.transfer)
    torch.manual_seed(3)
    first = case.loss(cri, output=output)
    torch.manual_seed(3)
    assert_close(case.loss(cri, output=output), first, rtol=0, atol=0)
    # v of X* runs in evaluation mode: it draws Z and no dropout mask from the generator
    torch.manual_seed(3)
    torch.randn(case.x.shape, dtype=torch.double)
    torch.randn(case.x.shape, dtype=torch.double)
    following = torch.rand(())
    torch.manual_seed(3)
    case.loss(cri, output=output)
    assert torch.equal(torch.rand(()), following)
    assert [m.training for m in case.transfer.modules()] == modes
    assert_close(case.transfer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("detach_values", [True, False])
@pytest.mark.parametrize("name", TRANSFERS)
def test_the_counterfactual_distribution_learns(name, detach_values):
    case, cri = Case(name), CRILoss(6, detach_values=detach_values).double()
    assert (cri.X_sigma > 0).all()
    assert_close(cri.X_sigma, nn.functional.softplus(cri.X_rho))
    assert {n: p.shape for n, p in cri.named_parameters()} == {"X_mu": (6,), "X_rho": (6,)}
    case.loss(cri).backward()
    for parameter in (cri.X_mu, cri.X_rho):
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 1e-8


def test_both_interventions_start_alike_and_the_predicted_one_learns_from_the_features():
    case = Case("h2ft")
    losses = []
    for intervention in ("free", "predicted"):
        torch.manual_seed(4)
        cri = CRILoss(6, intervention=intervention).double()
        case.transfer.eval()
        torch.manual_seed(5)
        losses.append(case.loss(cri))
        mu, sigma = cri.distribution(case.x)
        assert mu.shape == sigma.shape == ((6,) if intervention == "free" else (9, 6))
        assert_close(mu, torch.zeros_like(mu))
        assert_close(sigma, torch.ones_like(sigma), rtol=0, atol=1e-4)
    assert_close(losses[1], losses[0])
    losses[1].backward()
    assert {name for name, _ in cri.named_parameters()} == {"predict.weight", "predict.bias"}
    assert all(half.abs().sum() > 1e-8 for half in cri.predict.weight.grad.chunk(2))
    with pytest.raises(AttributeError, match="X_"):
        _ = cri.X_sigma


@pytest.mark.parametrize("name", TRANSFERS)
def test_samples_is_a_mean_over_draws(name):
    """The mean of n equal draws is one draw; of n different ones it is not."""
    case = Case(name)
    case.transfer.eval()
    one, four = CRILoss(6).double(), CRILoss(6, samples=4).double()
    torch.manual_seed(5)
    single = case.loss(one)
    torch.manual_seed(5)
    assert abs(case.loss(four) - single) > 1e-6
    for cri in (one, four):  # a distribution of one point: every draw is X_mu
        with torch.no_grad():
            cri.X_rho.fill_(-1e4)
            cri.X_mu.copy_(torch.ones(6))
    assert_close(case.loss(four), case.loss(one), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TRANSFERS)
def test_detach_values_lets_only_the_affinities_learn(name):
    def gradients(detach_values: bool, x: Tensor):
        case = Case(name)
        case.transfer.eval()
        cri = randomized(CRILoss(6, detach_values=detach_values))
        torch.manual_seed(2)
        out = case.loss(cri, x)
        x_grad = torch.autograd.grad(out, x, retain_graph=True)[0]
        classifier = torch.autograd.grad(out, case.classifier.weight, allow_unused=True)[0]
        return out.detach(), x_grad, classifier, case, cri

    x = Case(name).x.requires_grad_()
    torch.manual_seed(9)
    free, free_grad, free_classifier, _, _ = gradients(False, x)
    torch.manual_seed(9)
    held, held_grad, held_classifier, case, cri = gradients(True, x)
    assert_close(held, free, rtol=0, atol=1e-12)  # the same loss,
    assert free_classifier.abs().sum() > 1e-3
    assert held_classifier is None or not held_classifier.any()  # other gradients
    assert held_grad.abs().sum() > 1e-6
    assert (held_grad - free_grad).abs().max() > 1e-6

    # the remaining gradient is that through the affinities, as in the loop with fixed values
    state = case.transfer.value.state_dict()
    neck = {key: state[key] for key in ("weight", "running_mean", "running_var")}
    theirs = x.detach().clone().requires_grad_()
    v = ref.batch_norm(theirs, **neck, training=False)
    torch.manual_seed(2)
    draw = torch.randn(x.shape, dtype=torch.double)
    with torch.no_grad():
        keys = ref.batch_norm(cri.X_sigma * draw + cri.X_mu, **neck, training=False)
    weight, labels = case.classifier.weight.detach(), case.labels.tolist()
    values = (theirs if name == "gft of features" else v).detach()
    q, g = features(name, v, values, case.modality)
    cq, cg = features(name, keys, values, case.modality)
    query = ref.total_indirect_effect([weight @ f for f in q], [[weight @ f for f in cq]], labels)
    gallery = ref.total_indirect_effect(
        [weight @ f for _, f in g], [[weight @ f for _, f in cg]], [labels[i] for i, _ in g]
    )
    ((query + gallery) / 2).backward()
    assert_close(held_grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFERS)
def test_minimizing_it_raises_the_affinity_of_positives(name):
    """Values and classifier held, the classifier knows the identities: only a better graph lowers the loss."""
    g = torch.Generator().manual_seed(0)
    ids = torch.arange(4).repeat(4)
    modality = torch.tensor([VISIBLE, INFRARED]).repeat_interleave(8)
    prototypes = torch.eye(4, 6, dtype=torch.double)
    x = (prototypes[ids] + 0.45 * torch.randn(16, 6, generator=g, dtype=torch.double)).requires_grad_()
    classifier = nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        classifier.weight.copy_(4 * prototypes)
    transfer = TRANSFERS[name](k=5, value=nn.Identity()).double()
    cri = CRILoss(6, detach_values=True).double()
    positives = (ids[:, None] == ids) & ~torch.eye(16, dtype=torch.bool)

    def affinity() -> Tensor:
        out = transfer(x, modality)
        het, hom = out.affinity_het.detach(), out.affinity_hom.detach()
        return het[positives].mean() + hom[positives[out.gallery_index]].mean()

    before, start = affinity(), x.detach().clone()
    optimizer = torch.optim.SGD([x], lr=2.0)
    for _ in range(30):
        optimizer.zero_grad()
        cri(x, ids, modality, transfer=transfer, classifier=classifier).backward()
        optimizer.step()
    assert not torch.equal(x, start)
    assert affinity() > 1.05 * before


@pytest.mark.filterwarnings("ignore:.*compares the modalities")
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", TRANSFERS)
def test_no_nan(name, half, device):
    x = torch.randn(6, 6)
    pairs = torch.tensor([0, 0, 1, 1, 2, 2])
    for rows, modality in (
        (x, pairs % 2),
        (x[[0] * 6], pairs % 2),
        (x * 0, pairs % 2),
        (x, pairs * 0),
        (x[:1], pairs[:1]),
        (x[:2], torch.tensor([1, 0])),
        (x * 1e3, pairs % 2),
    ):
        transfer, cri, classifier = TRANSFERS[name](), CRILoss(6, samples=2), nn.Linear(6, 3, bias=False)
        for module in (transfer, cri, classifier):
            module.to(device)
        rows = rows.to(device).requires_grad_()
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            inputs = rows, pairs[: len(rows)].to(device), modality.to(device)
            out = cri(*inputs, transfer=transfer, classifier=classifier)
        out.backward()
        assert torch.isfinite(out)
        for p in (rows, *cri.parameters(), *classifier.parameters(), *transfer.parameters()):
            assert p.grad is None or torch.isfinite(p.grad).all()


def test_bad_sizes_are_named():
    case = Case("h2ft")
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        CRILoss(0)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 6\), got \(9, 5\)"):
        case.loss(CRILoss(6).double(), case.x[:, :5])
    graph = {"transfer": case.transfer, "classifier": case.classifier, "X_mu": torch.zeros(6)}
    with pytest.raises(ValueError, match=r"X_sigma must have shape \(6,\), got \(5,\)"):
        cri_loss(case.x, case.labels, case.modality, **graph, X_sigma=torch.ones(5))


@pytest.mark.parametrize("name", TRANSFERS)
@pytest.mark.parametrize("detach", [False, True])
def test_any_classifier_agrees_with_the_linear_one(name, detach, device):
    """The single product of a linear classifier equals classifying both terms, bias included."""
    case = Case(name, device=device)
    linear = nn.Linear(6, 5).double().to(device)
    cri = randomized(CRILoss(6, samples=3, detach_values=detach)).to(device)
    results = []
    for classifier in (linear, nn.Sequential(linear)):
        torch.manual_seed(3)
        x = case.x.clone().requires_grad_()
        loss = cri(x, case.labels, case.modality, transfer=copy.deepcopy(case.transfer), classifier=classifier)
        results.append((loss, *torch.autograd.grad(loss, [x, cri.X_mu, cri.X_rho])))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=0, atol=1e-12)
