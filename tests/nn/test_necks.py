import copy
import os
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reference import cift as ref
from vireid.nn.necks import BNNeck, DualBNNeck


def parts(neck: nn.Module) -> dict[str, torch.Tensor]:
    return {name.rsplit(".", 1)[-1]: t.clone() for name, t in neck.state_dict().items()}


def test_it_learns_a_scale_and_no_shift(device):
    neck = BNNeck(6).to(device).train()
    learned = [p for p in neck.parameters() if p.requires_grad]
    assert [p.shape for p in learned] == [(6,)]
    optimizer = torch.optim.SGD(neck.parameters(), lr=1.0)
    (neck(torch.randn(5, 6, device=device)) * torch.randn(5, 6, device=device)).sum().backward()
    optimizer.step()
    assert not torch.equal(learned[0].cpu(), torch.ones(6))
    zero = neck.eval()(parts(neck)["running_mean"][None])
    assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-6)  # the mean image stays at the origin


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 8])
def test_it_equals_the_loop(rows, training, device):
    neck = BNNeck(6).double()
    neck.train()(torch.randn(9, 6).double() * 2 + 1)
    with torch.no_grad():
        next(neck.parameters()).uniform_(0.5, 1.5)
    neck.to(device).train(training)
    before, x = parts(neck), torch.randn(rows, 6).double()
    out = neck(x.to(device)).cpu()
    running = {name: t.cpu() for name, t in before.items() if name in ("weight", "running_mean", "running_var")}
    assert_close(out, ref.batch_norm(x, **running, training=training), rtol=0, atol=1e-9)
    after = parts(neck)
    if training and rows > 1:  # momentum 0.1, unbiased variance, as torch does
        assert_close(after["running_mean"].cpu(), 0.9 * running["running_mean"] + 0.1 * x.mean(0))
        assert_close(after["running_var"].cpu(), 0.9 * running["running_var"] + 0.1 * x.var(0))
    else:
        assert_close(after, before, rtol=0, atol=0)


# -- DualBNNeck ----------------------------------------------------------------------------------------------------

MIXED = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0]
DUAL_STATE = ["num_batches_tracked", "running_mean", "running_var", "weight"]
BATCHES = [MIXED, [0, 0, 1], [1, 0], [0, 1, 1, 1], [0] * 4, [1] * 3, [0], [1], []]


def two_norms(neck: DualBNNeck) -> list[nn.BatchNorm1d]:
    """PyTorch's own layer for each modality, with the weights and the statistics of ``neck``."""
    norms = []
    for m in range(2):
        norm = nn.BatchNorm1d(neck.dim, eps=neck.eps, momentum=neck.momentum).to(neck.weight.dtype)
        norm.load_state_dict({name: t[m] for name, t in neck.state_dict().items()} | {"bias": norm.bias.detach()})
        norms.append(norm.train(neck.training))
    return norms


def on_split_rows(norms: list[nn.BatchNorm1d], x: Tensor, modality: Tensor) -> Tensor:
    """Each modality's rows through its own layer, in evaluation mode where there are fewer than two."""
    out = [torch.empty(0)] * len(x)
    for m, norm in enumerate(norms):
        index = [i for i, kind in enumerate(modality.tolist()) if kind == m]
        training = norm.training
        norm.train(training and len(index) > 1)
        for i, row in zip(index, norm(x[index]) if index else [], strict=True):
            out[i] = row
        norm.train(training)
    return torch.stack(out) if out else x.clone()


def dual(dim: int = 6, **options) -> DualBNNeck:
    """A neck that has seen batches: its scales differ, and so do its statistics."""
    neck = DualBNNeck(dim, **options).double().train()
    modality = torch.tensor(MIXED)
    neck(torch.randn(10, dim).double() * 2 + 1 + 3 * modality[:, None], modality)
    with torch.no_grad():
        neck.weight.uniform_(0.5, 1.5)
    return neck


def statistics(norms: list[nn.BatchNorm1d]) -> dict[str, Tensor]:
    return {name: torch.stack([norm.state_dict()[name] for norm in norms]) for name in DUAL_STATE}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kinds", BATCHES, ids=lambda kinds: "".join(map(str, kinds)) or "empty")
def test_dual_equals_two_layers_on_split_rows(kinds, training, device):
    neck = dual().train(training)
    norms = two_norms(neck)
    neck.to(device)
    modality = torch.tensor(kinds, dtype=torch.long)
    x = torch.randn(len(kinds), 6).double() * 2 + 1 - 4 * modality[:, None]
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    out, expected = neck(ours, modality.to(device)), on_split_rows(norms, theirs, modality)
    assert_close(out.cpu(), expected, rtol=0, atol=1e-9)
    assert_close({k: t.cpu() for k, t in neck.state_dict().items()}, statistics(norms), rtol=0, atol=1e-9)
    grad = torch.randn(x.shape).double()
    out.backward(grad.to(device))
    expected.backward(grad) if kinds else None
    assert_close(ours.grad.cpu(), theirs.grad if kinds else x, rtol=0, atol=1e-9)
    for m, norm in enumerate(norms):
        wanted = torch.zeros(6).double() if norm.weight.grad is None else norm.weight.grad
        assert_close(neck.weight.grad[m].cpu(), wanted, rtol=0, atol=1e-9)


def test_dual_learns_as_two_layers_do_over_many_steps(device):
    """Batches of any composition and order, one optimizer each: weights and statistics agree."""
    neck = DualBNNeck(6, eps=1e-3, momentum=0.3).double()
    norms = two_norms(neck)
    neck.to(device)
    ours = torch.optim.SGD(neck.parameters(), lr=0.1)
    theirs = torch.optim.SGD([norm.weight for norm in norms], lr=0.1)
    for step in range(2 * len(BATCHES)):
        modality = torch.tensor(BATCHES[step % len(BATCHES)], dtype=torch.long)
        modality = modality[torch.randperm(len(modality))]
        x, grad = torch.randn(len(modality), 6).double() * (1 + step) + step, torch.randn(len(modality), 6).double()
        ours.zero_grad(set_to_none=False)
        theirs.zero_grad(set_to_none=False)
        neck(x.to(device), modality.to(device)).backward(grad.to(device))
        if len(x):
            on_split_rows(norms, x, modality).backward(grad)
        ours.step()
        theirs.step()
        assert_close({k: t.cpu() for k, t in neck.state_dict().items()}, statistics(norms), rtol=1e-9, atol=1e-9)
    assert neck.num_batches_tracked.tolist() == [6, 6]


@pytest.mark.parametrize("kinds", [[0, 1, 1, 0], [0, 1, 1], [1, 1, 1], [0]])
def test_dual_has_both_derivatives(kinds):
    """A gradient penalty needs the second; the statistics of a single row are the running ones."""
    neck, kind = dual(3), torch.tensor(kinds)
    x, weight = torch.randn(len(kinds), 3).double().requires_grad_(), neck.weight.detach().clone().requires_grad_()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        state = {name: t.clone() for name, t in neck.named_buffers()} | {"weight": weight}
        return torch.func.functional_call(neck, state, (x, kind))

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))


def test_dual_two_batches_before_one_backward():
    """The second batch moves the running statistics; the gradient of the first, with a single row, stays right."""
    neck, modality = dual(), torch.tensor([0, 1, 1, 1])
    norms = two_norms(neck)
    first, second = torch.randn(2, 4, 6).double().unbind()
    x, z = first.clone().requires_grad_(), first.clone().requires_grad_()
    weights = torch.randn(4, 6).double()
    ours, expected = neck(x, modality), on_split_rows(norms, z, modality)
    neck(second, 1 - modality)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(x.grad, z.grad, rtol=0, atol=1e-9)


def test_dual_variance_survives_a_mean_that_is_far_away(device):
    """Features around 10,000 with a deviation of 1: a difference of squares would have no digit left in float32."""
    neck, modality = DualBNNeck(64).to(device), torch.arange(2, device=device).repeat(32)
    noise = torch.randn(64, 64, device=device).double()
    expected = neck(noise, modality)
    out = neck((noise + 1e4).float(), modality)
    assert_close(out.double(), expected, rtol=0, atol=5e-3)  # float32 has steps of 0.001 there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_dual_in_half_precision(dtype, training, device):
    neck = dual().float().to(device).train(training)
    exact, whole = copy.deepcopy(neck).double(), copy.deepcopy(neck).to(dtype)
    modality = torch.tensor(MIXED, device=device)
    x = (torch.randn(10, 6, device=device) + 1).to(dtype).requires_grad_()
    z = x.detach().double().requires_grad_()
    grad = torch.randn(10, 6, device=device).to(dtype)
    expected = exact(z, modality)
    expected.backward(grad.double())
    with torch.autocast(device.type, dtype=dtype):
        out = neck(x, modality)
        out.backward(grad)  # inside, where products would be taken in half precision
    close = {"rtol": torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
    assert out.dtype == x.grad.dtype == dtype
    assert_close(out.double(), expected, **close)
    assert_close(x.grad.double(), z.grad, **close)
    assert_close(neck.running_var.double(), exact.running_var, rtol=1e-6, atol=1e-6)
    assert_close(neck.weight.grad.double(), exact.weight.grad, rtol=1e-5, atol=1e-5)
    with torch.autocast(device.type, dtype=dtype):  # float32 features stay float32, as in BatchNorm1d
        assert neck(x.detach().float(), modality).dtype == torch.float32
    whole_out = whole(x, modality)
    assert whole_out.dtype == dtype
    assert_close(whole_out.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)  # its weights are rounded
    assert whole.running_var.dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_dual_a_row_of_neither_modality_is_nan_and_changes_no_other(training, device):
    kinds = torch.tensor([0, 2, 1, 0, -1, 1, 255, 0, 0, 1], device=device)
    neck, known = dual().to(device).train(training), (kinds == 0) | (kinds == 1)
    alone, x = copy.deepcopy(neck), torch.randn(10, 6, device=device).double()
    out = neck(x, kinds)
    assert out[~known].isnan().all()
    assert_close(out[known], alone(x[known], kinds[known]), rtol=0, atol=1e-12)
    assert_close(neck.state_dict(), alone.state_dict(), rtol=0, atol=1e-12)


def test_dual_a_row_that_is_not_finite_spoils_its_own_modality_only(device):
    neck, kinds = dual().to(device), torch.tensor(MIXED, device=device)
    expected, x = copy.deepcopy(neck), torch.randn(10, 6, device=device).double()
    wanted = expected(x, kinds)[kinds == 0]
    x[1] = torch.nan  # infrared
    assert_close(neck(x, kinds)[kinds == 0], wanted, rtol=0, atol=1e-12)
    assert_close(neck.running_var[0], expected.running_var[0], rtol=0, atol=1e-12)


def test_dual_learns_a_scale_only_and_keeps_four_tensors():
    neck = DualBNNeck(6)
    assert sorted(neck.state_dict()) == DUAL_STATE
    assert [name for name, _ in neck.named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BNNeck(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: DualBNNeck(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: DualBNNeck(6, eps=0), ValueError, "eps must be above 0 and finite, got 0"),
        (lambda: DualBNNeck(6, momentum=1.5), ValueError, r"momentum must lie in \[0, 1\], got 1\.5"),
        (lambda: DualBNNeck(6, momentum=None), TypeError, "momentum must be a number, got None"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_dual_takes_any_integers(dtype):
    x, modality, neck = torch.randn(10, 6).double(), torch.tensor(MIXED), dual()
    assert torch.equal(neck(x, modality.to(dtype)), neck(x, modality))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="compile: there is no C++ compiler"
)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kinds", [MIXED, [0, 1, 1], [2, 0, 0, -1]])
def test_dual_compile(kinds, training, device):
    neck = dual().to(device).train(training)
    compiled = torch.compile(copy.deepcopy(neck), fullgraph=True, dynamic=False)
    x, modality = torch.randn(len(kinds), 6, device=device).double(), torch.tensor(kinds, device=device)
    z, x, weights = x.clone().requires_grad_(), x.requires_grad_(), torch.randn(len(kinds), 6, device=device).double()
    out, expected = compiled(x, modality), neck(z, modality)
    assert_close(out, expected, rtol=0, atol=1e-9, equal_nan=True)
    assert_close(dict(compiled._orig_mod.named_buffers()), dict(neck.named_buffers()), rtol=0, atol=1e-9)
    (out.nan_to_num() * weights).sum().backward()
    (expected.nan_to_num() * weights).sum().backward()
    assert_close(x.grad, z.grad, rtol=0, atol=1e-9, equal_nan=True)
    assert_close(compiled._orig_mod.weight.grad, neck.weight.grad, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.filterwarnings("ignore")
def test_dual_in_training_exports_with_any_batch():
    neck = dual()
    batch = torch.export.Dim("batch")
    example = torch.randn(5, 6).double(), torch.tensor([0, 1, 0, 1, 1])
    program = torch.export.export(neck, example, dynamic_shapes=({0: batch}, {0: batch}))
    exported = program.module()
    for kinds in (MIXED, [1, 0, 1, 1], [0, 0]):  # the exported layer has statistics of its own, which move as well
        x, modality = torch.randn(len(kinds), 6).double() + 2, torch.tensor(kinds)
        assert_close(exported(x, modality), neck(x, modality), rtol=0, atol=1e-12)
    assert_close(dict(exported.named_buffers()), dict(neck.named_buffers()), rtol=0, atol=1e-12)
