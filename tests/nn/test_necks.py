import copy
import os
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from processes import run_in_two
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


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_rows_of_another_precision(dtypes, training, device):
    rows, own = dtypes
    neck = BNNeck(6).to(device, own).train(training)
    exact, x = copy.deepcopy(neck).double(), torch.randn(5, 6, device=device, dtype=rows, requires_grad=True)
    z = x.detach().double().requires_grad_()
    out, expected = neck(x), exact(z)
    assert out.dtype == rows
    close = {"rtol": 0, "atol": 4 * torch.finfo(rows).eps}
    assert_close(out.double(), expected, **close)
    (out * x.detach()).sum().backward()
    (expected * z.detach()).sum().backward()
    assert_close(x.grad.double(), z.grad, rtol=0, atol=40 * torch.finfo(rows).eps)
    assert_close(neck.running_var.double(), exact.running_var, rtol=torch.finfo(own).eps, atol=0)


def test_old_files_without_a_counter_load():
    state = {name: value for name, value in BNNeck(6).state_dict().items() if name != "num_batches_tracked"}
    model = nn.ModuleDict({"neck": BNNeck(6)})
    model.load_state_dict({f"neck.{name}": value for name, value in state.items()})
    assert list(model["neck"].state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


# -- Tools of PyTorch and several processes ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [BNNeck, DualBNNeck])
def test_conversion_to_synchronized_statistics_leaves_a_neck_that_works(make):
    """In one process nothing changes; in two, see below."""
    neck, kinds = make(6).double(), torch.tensor([0, 1, 1])
    expected = copy.deepcopy(neck)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(neck))
    assert net[0] is neck
    assert sorted(neck.state_dict()) == sorted(expected.state_dict())
    assert [name for name, p in neck.named_parameters() if p.requires_grad] == ["weight"]
    for rows in (1, 3):
        x = torch.randn(rows, 6).double()
        both = (x,) if make is BNNeck else (x, kinds[:rows])
        assert torch.equal(neck(*both), expected(*both))
    assert_close(neck.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert repr(neck) == repr(expected) == f"{make.__name__}(6, eps=1e-05, momentum=0.1)"


def test_tools_that_change_batch_normalizations_by_their_type_change_necks():
    """Averages of weights need new statistics; schedules set the momentum; layers are frozen by their mode."""
    necks, norms = nn.ModuleList([BNNeck(6), DualBNNeck(6)]), nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)])

    class Both(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = parts

        def forward(self, x):
            kinds = (torch.zeros(len(x), dtype=torch.long),)
            return [part(x, *kinds[: isinstance(part, DualBNNeck)]) for part in self.parts]

    batches = [torch.randn(4, 6) + i for i in range(3)]
    for parts in (necks, norms):
        Both(parts)(batches[0])
        torch.optim.swa_utils.update_bn(batches, Both(parts))
        for part in parts.modules():
            if isinstance(part, _BatchNorm):
                part.momentum = 0.5
        Both(parts)(batches[0])
        for part in parts.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        Both(parts)(batches[1])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        expected = getattr(norms[0], name)
        assert_close(getattr(necks[0], name), expected)
        assert_close(getattr(necks[1], name)[0], expected)
    assert_close(Both(necks)(batches[2]), Both(norms)(batches[2]))
    assert (necks[0].momentum, necks[1].momentum) == (0.5, 0.5)


PROCESS = """
from torch import nn
from vireid.nn import BNNeck, DualBNNeck

steps = []
for make in (BNNeck, DualBNNeck):
    neck = nn.SyncBatchNorm.convert_sync_batchnorm(make(4).double())
    for x, modality, grad, cut in torch.load(folder + "/cases.pt"):
        mine = slice(0, cut) if rank == 0 else slice(cut, None)
        neck.zero_grad()
        rows = x[mine].clone().requires_grad_()
        out = neck(*(rows, modality[mine])[: neck.weight.ndim])
        out.backward(grad[mine])
        dist.all_reduce(neck.weight.grad)
        found = {"out": out.detach(), "x": rows.grad, "weight": neck.weight.grad, **dict(neck.named_buffers())}
        steps.append({name: value.clone() for name, value in found.items()})
    if rank == 0:
        neck.eval()(*(x, modality)[: neck.weight.ndim])  # waits for nobody
torch.save(steps, f"{folder}/{rank}.pt")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_have_the_statistics_of_one(tmp_path):
    """Outputs, gradients and running statistics, whatever the shares: one row, one modality, none at all."""
    kinds = [[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1], [0, 1], [0, 0, 1, 0], [1]]
    batches = [(torch.randn(len(k), 4).double() + 2 * i, torch.tensor(k)) for i, k in enumerate(kinds)]
    cases = [(*batch, torch.randn_like(batch[0]), cut) for batch, cut in zip(batches, [4, 3, 1, 0, 1], strict=True)]
    torch.save(cases, tmp_path / "cases.pt")
    run_in_two(PROCESS, tmp_path)
    steps = iter(zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True))
    for make in (BNNeck, DualBNNeck):
        neck = make(4).double()
        for x, modality, grad, _ in cases:
            first, second = next(steps)
            neck.zero_grad()
            rows = x.clone().requires_grad_()
            out = neck(*(rows, modality)[: neck.weight.ndim])
            out.backward(grad)
            joined = {name: torch.cat([first.pop(name), second.pop(name)]) for name in ("out", "x")}
            expected = {"weight": neck.weight.grad, **dict(neck.named_buffers())}
            assert_close(joined, {"out": out.detach(), "x": rows.grad}, rtol=0, atol=1e-12)
            assert_close(first, expected, rtol=0, atol=1e-12)
            assert_close(second, expected, rtol=0, atol=1e-12)


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


def dual(dim: int = 6) -> DualBNNeck:
    """A neck that has seen batches: its scales differ, and so do its statistics."""
    neck = DualBNNeck(dim, eps=1e-3, momentum=0.3).double().train()
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


def test_dual_names_a_wrong_modality_where_reading_it_is_free():
    with pytest.raises(ValueError, match=r"modality must be 0 .visible. or 1 .infrared., got 2; .*vireid.modality"):
        dual()(torch.randn(2, 6).double(), torch.tensor([1, 2]))


@pytest.mark.parametrize("training", [True, False])
def test_dual_a_row_of_neither_modality_is_nan_and_changes_no_other(training, device, monkeypatch):
    monkeypatch.setattr("vireid._checks.values_are_free", lambda x: False)  # as on a GPU
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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BNNeck(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: BNNeck(6, eps=float("nan")), ValueError, "eps must be above 0 and finite, got nan"),
        (lambda: BNNeck(6, momentum=float("nan")), ValueError, "momentum must be at least 0 and at most 1, got nan"),
        (lambda: BNNeck(6, momentum="3"), TypeError, "momentum must be a number, got '3'"),
        (lambda: DualBNNeck(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: DualBNNeck(6, eps=0), ValueError, "eps must be above 0 and finite, got 0"),
        (lambda: DualBNNeck(6, momentum=1.5), ValueError, "momentum must be at least 0 and at most 1, got 1.5"),
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
def test_dual_compile(kinds, training, device, monkeypatch):
    monkeypatch.setattr("vireid._checks.values_are_free", lambda x: False)
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
    assert not any(buffer.requires_grad for buffer in exported.buffers())
