"""Contract of every loss, as a module and as a function."""

import inspect
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reference import agw, cift, g2da, saai
from vireid import losses
from vireid._checks import values_are_free
from vireid.losses import _common
from vireid.nn import H2FT

DIM, CLASSES = 5, 6


@dataclass(frozen=True)
class Case:
    """A loss, settings to try it with, and its plain loop."""

    name: str
    options: tuple[dict[str, Any], ...]
    loop: Callable[..., Tensor | None]  # (module, x, labels, modality) -> the value, None where there is no loop
    row: tuple[int, ...] = (DIM,)
    first: tuple[str, str] = ("x", r"\(B, d\)")  # name and shape of the first argument
    sizes: tuple[int, ...] = ()
    given: Callable[[nn.Module, Tensor], tuple[tuple[Any, ...], dict[str, Any]]] = lambda module, x: ((), {})
    uses: tuple[str, ...] = ("labels", "modality")
    symmetric: bool = True  # in the modalities
    exact: bool = True  # float32 rows are computed in float32 even under autocast, and half-precision rows too
    smooth: tuple[tuple[str, Any], ...] = ()  # settings under which the gradient is that of the value

    @property
    def kind(self) -> type[nn.Module]:
        return getattr(losses, self.name)

    @property
    def form(self) -> Callable[..., Tensor]:
        """The function, which has the same name in snake case."""
        return getattr(losses, next(n for n in losses.__all__ if n.replace("_", "") == self.name.lower()))

    def make(self, options: dict[str, Any], dtype: torch.dtype = torch.double) -> nn.Module:
        """In evaluation mode, with random parameters and buffers, as after some training."""
        module = self.kind(*self.sizes, **options).to(dtype).eval()
        g = torch.Generator().manual_seed(3)
        for state in module.state_dict().values():
            state.copy_(torch.randn(state.shape, generator=g))
        return module

    def function(self, module: nn.Module, *batch: Tensor, **keywords: Any) -> Tensor:
        """The function with the module's settings and state, in place of the module."""
        more, named = self.given(module, batch[0])
        options = {p: getattr(module, p) for p in keyword_only(self.kind) if p in keyword_only(self.form)}
        return self.form(*batch, *more, **named, **options, **keywords)

    def keywords(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Arguments that are no tensors of the batch."""
        if self.name != "CRILoss":
            return {}
        g = torch.Generator().manual_seed(4)
        transfer, classifier = H2FT(DIM, k=3), nn.Linear(DIM, CLASSES, bias=False)
        for weight in (transfer.value.weight, transfer.value.running_var, classifier.weight):
            weight.data.copy_(torch.rand(weight.shape, generator=g) + 0.5)
        return {"transfer": transfer.to(device, dtype).eval(), "classifier": classifier.to(device, dtype)}

    def rows(self, size: int, seed: int = 0) -> Tensor:
        return torch.randn(size, *self.row, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def keyword_only(of: Any) -> list[str]:
    return [name for name, p in inspect.signature(of).parameters.items() if p.kind is p.KEYWORD_ONLY]


def grid(**choices: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


def attributes(*names: str) -> Callable[[nn.Module], dict[str, Any]]:
    return lambda module: {name: getattr(module, name) for name in names}


def identity_loop(module: nn.Module, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor | None:
    if len(x) and x.abs().max() > 100:
        return None  # in the loop, too, a probability underflows
    weights = (w.detach().double().cpu() for w in (module.shared, module.specific, module.averaged))
    one, two, three = saai.mutual_identity(x, labels, modality, *weights, module.means)
    return module.shared_weight * one + module.specific_weight * two + module.mutual_weight * three


def cri_distribution(module: nn.Module, x: Any) -> dict[str, Any]:
    """X_mu and X_sigma of the features, or zeros where these are wrong."""
    sizes = isinstance(x, Tensor) and x.is_floating_point() and x.shape[1:] == (DIM,)
    return dict(zip(("X_mu", "X_sigma"), module.distribution(x if sizes else torch.zeros(1, DIM)), strict=True))


def transport_loop(module: nn.Module, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor | None:
    if module.solver == "entropic":
        return None
    return g2da.graph_transport(
        x, labels, modality, phi=module.phi, loss=module.loss, which=module.pairs, average=module.average
    )


def hcc_loop(module: nn.Module, x: Tensor, labels: Tensor, modality: Tensor) -> Tensor | None:
    if module.distance == "kl" and len(x) and x.abs().max() > 100:
        return None  # the loop's logarithm of a probability that underflows
    return cift.hcc(x, labels, modality, **attributes(*keyword_only(losses.HCCLoss))(module))


CASES = [
    Case(
        "AffinityInferenceLoss",
        ({}, *grid(k1=(3,), k2=(2,), variant=("paper", "released"), amend=(True, False))),
        lambda m, *b: saai.affinity_inference(*b, **attributes("k1", "k2", "variant", "temperature", "amend")(m)),
    ),
    Case(
        "CRILoss",
        (*grid(samples=(1, 2), detach_values=(False, True)), {"intervention": "predicted"}),
        lambda *_: None,
        sizes=(DIM,),
        first=("x", r"\(B, 5\)"),
        given=lambda m, x: ((), cri_distribution(m, x)),
        exact=False,
        smooth=(("detach_values", False),),
    ),
    Case(
        "CenterSeparationLoss",
        ({}, {"rho1": 0.0, "rho2": 2.0}, {"rho1": 0.2, "normalize": True}),
        lambda m, x, y, _: saai.center_separation(x, y, **attributes("rho1", "rho2", "normalize")(m)),
        uses=("labels",),
    ),
    Case(
        "CrossModalityTripletLoss",
        ({}, {"margin": 2.0}, {"normalize": True}),
        lambda m, *b: g2da.triplet(*b, margin=m.margin, normalize=m.normalize),
    ),
    Case(
        "GraphOTLoss",
        (
            {"restarts": 2},
            {"loss": "square", "phi": 0.3, "restarts": 2},
            {"pairs": "one_to_one", "average": "images", "restarts": 2},
            {"solver": "entropic"},
        ),
        transport_loop,
        row=(3, 4),
        first=("nodes", r"\(B, K\+1, d\)"),
        symmetric=False,  # the solver's starts are not
        smooth=(("solver", "exact"),),
    ),
    Case(
        "HCCLoss",
        (
            *grid(centers=("shared", "cross"), negatives=("mean", "sum")),
            {"normalize": False},
            {"distance": "kl"},
            {"distance": "kl", "centers": "cross", "negatives": "sum"},
            {"distance": "kl", "kl_direction": "from_center"},
            {"distance": "kl", "kl_direction": "from_center", "kl_center": "logits"},
            {"margin": 1.5},
        ),
        hcc_loop,
    ),
    Case(
        "HeteroCenterLoss",
        grid(normalize=(True, False), reduction=("sum", "mean")),
        lambda m, *b: agw.hetero_center(*b, **attributes("normalize", "reduction")(m)),
    ),
    Case(
        "HeteroCenterTripletLoss",
        ({}, {"margin": 2.0}, {"normalize": True}),
        lambda m, *b: agw.hetero_center_triplet(*b, **attributes("margin", "normalize")(m)),
    ),
    Case(
        "MutualIdentityLoss",
        ({}, {"shared_weight": 2.0, "specific_weight": 0.5, "mutual_weight": 2.0, "means": "batch"}),
        identity_loop,
        sizes=(DIM, CLASSES),
        first=("x", r"\(B, 5\)"),
        given=lambda m, x: ((m.shared, m.specific, m.averaged), {}),
        exact=False,
        smooth=(("mutual_weight", 0.0),),  # its target depends on the features and has no gradient by intent
    ),
    Case(
        "PartContrastiveLoss",
        ({}, {"epsilon": 4.0, "average": "images"}, {"normalize": True}),
        lambda m, *b: g2da.part_contrastive(*b, **attributes("epsilon", "normalize", "average")(m)),
        row=(3, 4),
        first=("nodes", r"\(B, K\+1, d\)"),
    ),
    Case(
        "PartDiversityLoss",
        ({}, {"maps": "logits"}),
        lambda m, x, *_: saai.part_diversity(x, m.maps),
        row=(3, 4),
        first=("attention", r"\(B, p, n\)"),
        uses=(),
    ),
    Case(
        "WeightedRegularizedTripletLoss",
        ({}, {"normalize": True}),
        lambda m, x, y, _: agw.weighted_triplet(x, y, m.normalize),
        uses=("labels",),
    ),
]
NAMED = {case.name: case for case in CASES}
SETTINGS = [pytest.param(case, o, id=f"{case.name}-{o}") for case in CASES for o in case.options]
every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_setting = pytest.mark.parametrize(("case", "options"), SETTINGS)


def batch(case: Case, seed: int = 0, size: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Any identities in any modality in any order: some have one image, some one modality."""
    g = torch.Generator().manual_seed(seed)
    return case.rows(size, seed), torch.randint(3, (size,), generator=g), torch.randint(2, (size,), generator=g)


def seeded(call: Callable[..., Tensor], *batch: Tensor, **keywords: Any) -> Tensor:
    torch.manual_seed(7)
    return call(*batch, **keywords)


def test_every_loss_is_here():
    assert [case.name for case in CASES] == [n for n in losses.__all__ if n.endswith("Loss")]


@every_loss
def test_it_is_called_with_features_labels_and_modality(case):
    for form in (case.kind.forward, case.form):
        parameters = [p for p in inspect.signature(form).parameters.values() if p.name != "self"]
        assert [p.name for p in parameters[:3]] == [case.first[0], "labels", "modality"]
        others = {p.name for p in parameters[3:] if p.kind is not p.KEYWORD_ONLY}
        assert others == ({"shared", "specific", "averaged"} if "averaged" in others else set())


@every_setting
def test_the_module_is_the_function_and_shows_its_options(case, options):
    module, inputs, keywords = case.make(options), batch(case), case.keywords(torch.double)
    out = seeded(module, *inputs, **keywords)
    assert out.shape == ()
    assert out.abs() > 1e-3  # there are pairs to compare
    assert torch.equal(seeded(module, *inputs, **keywords), out)
    assert torch.equal(seeded(case.function, module, *inputs, **keywords), out)
    for name in keyword_only(case.kind):
        assert f"{name}={getattr(module, name)!r}" in repr(module)
        default = {"distance": options["distance"]} if "distance" in options else {}
        assert getattr(module, name) == options.get(name, getattr(case.make(default), name))


@pytest.mark.parametrize("seed", range(2))
@every_setting
def test_batch_order_and_names_are_irrelevant(case, options, seed, monkeypatch):
    module, (x, labels, modality), keywords = case.make(options), batch(case, seed), case.keywords(torch.double)
    order, noise = torch.randperm(9), torch.randn(9, DIM, dtype=torch.double)
    ours, other = x.clone().requires_grad_(), x[order].requires_grad_()
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)  # each image keeps the draw of CRI
    out = module(ours, labels, modality, **keywords)
    out.backward()
    if options.get("pairs") != "one_to_one":  # which takes the images in their order
        monkeypatch.setattr(torch, "randn", lambda *_, **__: noise[order])
        permuted = module(other, labels[order], modality[order], **keywords)
        permuted.backward()
        assert_close(permuted, out)
        assert_close(other.grad, ours.grad[order])
    if not case.sizes:  # no classifier whose columns the labels name
        renamed = module(x, 1000 - labels.int(), (1 - modality if case.symmetric else modality).to(torch.uint8))
        assert_close(renamed, out.detach())


def degenerate(case: Case, half: torch.dtype | None) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Batches that lack something; in half precision only those whose numbers are hard."""
    x = case.rows(6)
    zeros, pairs, alternate = torch.zeros(6).long(), torch.arange(6) // 2, torch.arange(6) % 2
    hard = {
        "one identity": (x, zeros, alternate),
        "one image": (x[:1], zeros[:1], zeros[:1]),
        "one image over and over": (x[[0] * 6], pairs, alternate),
        "every image twice": (x[pairs], pairs, alternate),
        "a zero row": (torch.cat([0 * x[:1], x[1:]]), pairs, alternate),
        "zero rows": (0 * x, pairs, alternate),
        "large rows": (1e3 * x, pairs, alternate),
        "small rows": (1e-4 * x, pairs, alternate),
    }
    if half is not None:
        return hard
    lacking = {
        "one image per identity": (x, torch.arange(6), alternate),
        "visible images only": (x, pairs, zeros),
        "infrared images only": (x, pairs, zeros + 1),
        "identities in one modality": (x, pairs, torch.tensor([0, 0, 1, 1, 0, 1])),
        "one visible image": (x, pairs, (torch.arange(6) > 0).long()),
        "two images": (x[:2], zeros[:2], alternate[:2]),
    }
    if case.name != "CRILoss":  # whose cross-entropy is a mean over the rows
        lacking["an empty batch"] = (x[:0], zeros[:0], zeros[:0])
    return hard | lacking


EXPECTED: dict[tuple[str, str, str], Tensor | None] = {}  # the loops' values, the same at every precision


@pytest.mark.filterwarnings("ignore:.*compares the modalities")
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@every_setting
def test_degenerate_batches_are_finite_and_right(case, options, half, device):
    module, keywords = case.make(options, torch.float32).to(device), case.keywords(torch.float32, device)
    for name, (rows, labels, modality) in degenerate(case, half).items():
        x = rows.float().to(device).requires_grad_()
        inputs = x, labels.to(device), modality.to(device)
        with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            out = seeded(module, *inputs, **keywords)
            in_half = seeded(module, x.to(half), *inputs[1:], **keywords) if half else out
        out.backward()
        for tensor in (out, in_half, x.grad, *(p.grad for p in module.parameters() if p.grad is not None)):
            assert tensor.isfinite().all(), name
        assert out.dtype == in_half.dtype == torch.float32, name
        key = (case.name, str(options), name)
        if key not in EXPECTED:
            EXPECTED[key] = case.loop(module, rows.float().double(), labels, modality)
        expected = EXPECTED[key]
        if expected is not None:
            tolerance = 1e-4 if half is None or case.exact else 5e-2
            assert_close(
                out.cpu().double(), expected, rtol=tolerance, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
            if expected == 0 and "rows" not in name and "over" not in name and "twice" not in name:
                assert out == 0, name
                assert not x.grad.any(), name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.name != "CRILoss"], ids=lambda case: case.name)
def test_half_precision_rows_are_computed_in_float32(case, half):
    """CRI has them under autocast only, as its transfer's layers do."""
    x, labels, modality = batch(case, size=12)
    rows = (0.3 * x).to(half).requires_grad_()
    out = case.make({}, torch.float32)(rows, labels, modality)
    out.backward()
    assert out.dtype == torch.float32
    assert rows.grad.dtype == half
    assert rows.grad.isfinite().all()
    assert_close(out.double(), case.make({})(rows.detach().double(), labels, modality), rtol=1e-5, atol=1e-6)


@every_setting
def test_inputs_are_not_modified(case, options):
    x, labels, modality = inputs = batch(case)
    copies = [t.clone() for t in inputs]
    module, keywords = case.make(options), case.keywords(torch.double)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seeded(module, x.requires_grad_(), labels, modality, **keywords).backward()
    for now, then in zip(inputs, copies, strict=True):
        assert torch.equal(now, then)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


SMOOTH = {f"{c.name}-{o | dict(c.smooth)}": (c, o | dict(c.smooth)) for c in CASES for o in c.options}


@pytest.mark.parametrize(("case", "options"), SMOOTH.values(), ids=SMOOTH)
def test_gradcheck(case, options):
    labels, modality = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 0, 1])
    module, keywords = case.make(options), case.keywords(torch.double)
    parameters = dict(module.named_parameters())

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(1)
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, (x, labels, modality), keywords)

    assert torch.autograd.gradcheck(loss, (case.rows(5, 1).requires_grad_(), *parameters.values()), fast_mode=True)


@every_loss
def test_bad_input_is_named(case):
    module, (x, labels, modality), keywords = case.make({}), batch(case, size=4), case.keywords(torch.double)
    name, shape = case.first
    calls = [
        (ValueError, rf"{name} must have shape {shape}, got \(4,\)", (x.flatten(1)[:, 0], labels, modality)),
        (TypeError, rf"{name} must be floating point, got torch\.int64", (x.long(), labels, modality)),
        (TypeError, rf"{name} must be a torch\.Tensor, got list", (x.tolist(), labels, modality)),
    ]
    for place, argument in enumerate(("labels", "modality"), 1):
        for error, text, value in (
            (ValueError, r"must have shape \(4,\), got \(3,\)", labels[:3]),
            (ValueError, r"must have shape \(4,\), got \(4, 1\)", labels[:, None]),
            (TypeError, r"must hold integers, got torch\.float64", labels.double()),
            (TypeError, r"must hold integers, got torch\.bool", labels > 0),
            (TypeError, r"must be a torch\.Tensor, got list", labels.tolist()),
        ):
            if argument in case.uses:
                wrong = [x, labels, modality]
                wrong[place] = value
                calls.append((error, f"{argument} {text}", wrong))
    if len(case.row) == 2:
        axes = "p and n" if name == "attention" else r"K\+1 and d"
        for empty, size in ((x[:, :0], r"\(4, 0, 4\)"), (x[:, :, :0], r"\(4, 3, 0\)")):
            calls.append(
                (ValueError, rf"{name} must have {axes} of at least 1, got shape {size}", (empty, labels, modality))
            )
    for error, text, inputs in calls:
        for form in (module, lambda *b, **k: case.function(module, *b, **k)):
            with pytest.raises(error, match=text):
                form(*inputs, **keywords)


USES_MODALITY = [case for case in CASES if "modality" in case.uses]
CROSS = [
    *((case, {}) for case in USES_MODALITY if case.name not in ("HCCLoss", "MutualIdentityLoss")),
    (NAMED["HCCLoss"], {"centers": "cross"}),
]
cross_modality = pytest.mark.parametrize(("case", "options"), CROSS, ids=lambda value: getattr(value, "name", ""))


@pytest.fixture
def waiting(monkeypatch):
    """Make the CPU pass for a device whose values cannot be read without a wait."""
    for name in [name for name in sys.modules if name.startswith("vireid.")]:
        if hasattr(sys.modules[name], "values_are_free"):
            monkeypatch.setattr(sys.modules[name], "values_are_free", lambda _: False)


@pytest.mark.parametrize("case", USES_MODALITY, ids=lambda case: case.name)
def test_codes_of_another_system_are_an_error(case):
    module, (x, labels, modality), keywords = case.make({}), batch(case, size=6), case.keywords(torch.double)
    for codes, got in ((modality + 1, 2), (modality * 2 - 1, -1), (labels * 7, r"\d+")):
        text = rf"modality must be 0 \(visible\) or 1 \(infrared\), got {got}; labels come before modality, and vireid"
        for form in (module, module, lambda *b, **k: case.function(module, *b, **k)):
            with pytest.raises(ValueError, match=text):
                form(x, labels, codes, **keywords)


@pytest.mark.parametrize("case", USES_MODALITY, ids=lambda case: case.name)
def test_a_module_looks_once_at_the_codes_where_that_waits(case, waiting, monkeypatch):
    looks, check = [], _common.check_modality

    def look(name: str, modality: Tensor, *, wait: bool = False) -> None:
        looks.append(wait)
        check(name, modality, wait=wait)

    monkeypatch.setattr(_common, "check_modality", look)
    module, (x, labels, modality), keywords = case.make({}), batch(case, size=6), case.keywords(torch.double)
    for _ in range(2):  # a wrong batch is not a look
        with pytest.raises(ValueError, match=r"modality must be 0 \(visible\) or 1 \(infrared\), got 2"):
            module(x, labels, modality + 1, **keywords)
    module(x, labels, modality, **keywords)
    assert sum(looks) == 3
    module(x, labels, modality, **keywords)
    assert sum(looks) == 3


@cross_modality
def test_a_batch_of_one_modality_is_named_once(case, options):
    (x, labels, modality), keywords = batch(case), case.keywords(torch.double)
    for kind, name in enumerate(("visible", "infrared")):
        module = case.make(options)
        text = f"{case.name} compares the modalities, but in this batch every image is {name}: nothing is learned"
        with pytest.warns(UserWarning, match=f"{text} .*; vireid.data.CrossModalIdentitySampler draws"):
            out = module(x, labels, torch.full_like(modality, kind), **keywords)
        assert out == 0 or case.name == "CRILoss"
        module(x, labels, torch.full_like(modality, kind), **keywords)  # no second warning
    case.function(module, x, labels, 0 * modality, **keywords)


@pytest.mark.parametrize(("case", "options"), [c for c in CROSS if c[0].name not in ("CRILoss", "PartContrastiveLoss")])
def test_a_batch_without_a_pair_is_named(case, options):
    x, labels, modality = case.rows(6), torch.arange(6), torch.arange(6) % 2
    with pytest.warns(UserWarning, match="no image has, in the other modality, one of its own identity"):
        assert case.make(options)(x, labels, modality) == 0
    shared = case.make(options)
    assert shared(x, labels // 2, modality) != 0


@pytest.mark.parametrize("seed", range(2))
@every_setting
def test_values_and_gradients_do_not_depend_on_the_device(case, options, seed, waiting):
    """Where a wait costs, shapes do not depend on the data."""
    (x, labels, modality), keywords = batch(case, seed), case.keywords(torch.double)
    module, x = case.make(options), x.requires_grad_()
    torch.manual_seed(7)
    out = module(x, labels, modality, **keywords)
    expected = case.loop(module, x.detach(), labels, modality)
    if expected is not None:
        assert_close(out.detach(), expected, rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(out, x)
    with pytest.MonkeyPatch.context() as free:
        for name in ("_common", "parts"):
            free.setattr(getattr(losses, name), "values_are_free", values_are_free)
        again = seeded(module, x, labels, modality, **keywords)
    assert_close(out, again)
    assert_close(torch.autograd.grad(again, x)[0], grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double], ids=str)
@pytest.mark.parametrize(
    "name",
    ["CenterSeparationLoss", "CrossModalityTripletLoss", "HCCLoss", "HeteroCenterTripletLoss", "PartDiversityLoss"],
)
def test_distances_far_from_1_are_right_on_the_cpu(name, dtype):
    """A loss of distances is homogeneous: it is scaled by a power of two where features and margins are."""
    case = NAMED[name]
    x, labels, modality = batch(case)
    margins = {"CenterSeparationLoss": ("rho1", "rho2"), "PartDiversityLoss": ()}.get(name, ("margin",))
    options = {"HCCLoss": {"normalize": False}, "PartDiversityLoss": {"maps": "logits"}}.get(name, {})
    near = x.to(dtype, copy=True).requires_grad_()
    expected = case.make(options | dict.fromkeys(margins, 2.0), dtype)(near, labels, modality)
    expected.backward()
    for power in (-90, 66, 100) if dtype == torch.float32 else (-900, 520, 900):
        far = (x.to(dtype) * 2.0**power).requires_grad_()
        out = case.make(options | dict.fromkeys(margins, 2.0 ** (power + 1)), dtype)(far, labels, modality)
        out.backward()
        assert_close(out * 2.0**-power, expected)
        assert_close(far.grad, near.grad)


@pytest.mark.parametrize("case", [case for case in CASES if "modality" not in case.uses], ids=lambda case: case.name)
def test_arguments_that_are_not_used_are_checked_too(case):
    x, labels, modality = batch(case, size=4)
    for wrong in (modality.double(), modality[:3], modality.tolist(), modality + 1):
        with pytest.raises((TypeError, ValueError), match="modality must "):
            case.make({})(x, labels, wrong)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"transfer": nn.Linear(5, 5)}, r"transfer must be a FeatureTransfer, got Linear"),
        ({"classifier": 3}, r"classifier must be a torch\.nn\.Module, got int"),
        ({"output": "x"}, r"output must be a vireid\.nn\.H2FTOutput, got str"),
    ],
)
def test_other_arguments_of_cri_are_named(change, text):
    case = NAMED["CRILoss"]
    with pytest.raises(TypeError, match=text):
        case.make({})(*batch(case), **(case.keywords(torch.double) | change))


@pytest.mark.parametrize("label", [-100, 6, 2**62])
@pytest.mark.parametrize("name", ["CRILoss", "MutualIdentityLoss"])
def test_labels_that_a_classifier_lacks_are_an_error(name, label):
    x, labels, modality = batch(NAMED[name], size=4)
    labels[2] = label
    with pytest.raises(ValueError, match=f"labels must be 0 to 5, got {label}"):
        NAMED[name].make({})(x, labels, modality, **NAMED[name].keywords(torch.double))


@pytest.mark.parametrize("form", [losses.query_gallery_cross_entropy, losses.query_gallery_hcc_loss])
def test_losses_of_a_classifier_refuse_labels_and_indices_out_of_range(form):
    logits, labels, index = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    assert form(logits, labels, gallery=logits, gallery_index=index.to(torch.int8)).isfinite()
    for change, error, text in (
        ({"labels": labels - 100}, ValueError, "labels must be 0 to 2, got -100"),
        ({"labels": labels + 0.9}, TypeError, "labels must hold integers"),
        ({"gallery_index": index + 1}, ValueError, "gallery_index must be 0 to 3, got 4"),
        ({"modality": index}, ValueError, "modality must be 0"),
    ):
        with pytest.raises(error, match=text):
            form(**({"query": logits, "labels": labels, "gallery": logits, "gallery_index": index} | change))


OPTIONS = [pytest.param(case, name, id=f"{case.name}-{name}") for case in CASES for name in keyword_only(case.kind)]
CHOICES = {
    "average": "'pairs', 'images'",
    "centers": "'shared', 'cross'",
    "distance": "'euclidean', 'kl'",
    "intervention": "'free', 'predicted'",
    "kl_center": "'probabilities', 'logits'",
    "kl_direction": "'to_center', 'from_center'",
    "loss": "'abs', 'square'",
    "maps": "'sigmoid', 'logits'",
    "means": "'modality', 'batch'",
    "negatives": "'mean', 'sum'",
    "pairs": "'all', 'one_to_one'",
    "reduction": "'sum', 'mean'",
    "solver": "'auto', 'exact', 'entropic'",
    "variant": "'paper', 'released'",
}
MAY_BE_0 = {"rho1", "rho2", "shared_weight", "specific_weight", "mutual_weight", "phi", "restarts"}


@pytest.mark.parametrize(("case", "name"), OPTIONS)
def test_every_option_is_checked_and_may_be_numpys(case, name):
    module, inputs, keywords = case.make({}), batch(case, size=4), case.keywords(torch.double)
    default = getattr(module, name)
    hostile: list[Any] = [[1], np.array([1]), np.array("a"), torch.ones(2), 1j, object(), math.nan, -1]
    if isinstance(default, str):
        text, hostile = f"must be one of {CHOICES[name]}, got", [*hostile, None, 1, "", ["abs"]]
    elif isinstance(default, bool):
        text, hostile = "must be one of True, False, got", [*hostile, None, 0, 1, "False", np.True_]
    else:
        text, hostile = "must be (a number|an integer|above 0|at least)", [*hostile, math.inf, "1", True]
        hostile += [] if name in MAY_BE_0 else [0]
        given = np.int64(default) if type(default) is int else np.float32(default)
        assert getattr(case.kind(*case.sizes, **{name: given}), name) == pytest.approx(default)
    for value in hostile:
        with pytest.raises((TypeError, ValueError), match=f"{name} {text}"):
            case.kind(*case.sizes, **{name: value})
        if name in keyword_only(case.form):
            setattr(module, name, value)
            with pytest.raises((TypeError, ValueError), match=f"{name} {text}"):
                case.function(module, *inputs, **keywords)


COMPILED = [(case, o, backend) for case in CASES for o in case.options for backend in ("eager", "aot_eager")]
FAST = [(case, case.options[-1], "eager") for case in CASES if case.name in ("GraphOTLoss", "HCCLoss")]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("case", "options", "backend"),
    [pytest.param(*c, id=f"{c[0].name}-{c[1]}-{c[2]}", marks=[] if c in FAST else pytest.mark.slow) for c in COMPILED],
)
def test_it_compiles_in_one_piece(case, options, backend):
    torch.compiler.reset()
    module, keywords = case.make(options), case.keywords(torch.double)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for seed in range(2):  # the second batch has other groups and pairs, and is not compiled again
        x, labels, modality = batch(case, seed, size=8)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected = seeded(module, theirs, labels, modality, **keywords)  # first: einops then knows the type
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            out = seeded(compiled, ours, labels, modality, **keywords)
        assert_close(out, expected)
        out.backward()
        expected.backward()
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("case", [NAMED["GraphOTLoss"], NAMED["PartContrastiveLoss"]], ids=lambda case: case.name)
def test_a_bad_mask_is_named(case):
    module, inputs = case.make({}), batch(case, size=4)
    for mask, error, text in (
        ([True], TypeError, r"mask must be a torch\.Tensor, got list"),
        (torch.ones(4, 3), TypeError, r"mask must be bool, got torch\.float32"),
        (torch.ones(4, 3, 2) > 0, ValueError, r"mask must have shape \(4, 3\), got \(4, 3, 2\)"),
        (torch.ones(3, 3) > 0, ValueError, r"mask must have shape \(4, 3\), got \(3, 3\)"),
        (torch.ones(4, 3, device="meta") > 0, ValueError, "mask must be on cpu like the other arguments, got meta"),
    ):
        for form in (module, lambda *b, **k: case.function(module, *b, **k)):
            with pytest.raises(error, match=text):
                form(*inputs, mask=mask)
