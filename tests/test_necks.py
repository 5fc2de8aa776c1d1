import pytest
import reference as ref
import torch
from torch import nn
from torch.testing import assert_close

from vireid.nn import BNNeck


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


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_gradients(rows):
    neck, x = BNNeck(4).double().train(), torch.randn(rows, 4).double().requires_grad_()
    neck(torch.randn(5, 4).double())
    assert torch.autograd.gradcheck(neck, (x,))


def test_input_is_not_modified_and_equal_rows_are_finite():
    x = torch.randn(1, 6).repeat(4, 1).requires_grad_()
    copy = x.detach().clone()
    BNNeck(6)(x).square().sum().backward()
    assert torch.equal(x, copy)
    assert torch.isfinite(x.grad).all()


def test_state_dict_round_trip():
    neck, again = BNNeck(6).train(), BNNeck(6)
    neck(torch.randn(7, 6))
    again.load_state_dict(neck.state_dict())
    x = torch.randn(3, 6)
    assert_close(again.eval()(x), neck.eval()(x), rtol=0, atol=0)


def test_bad_input():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        BNNeck(0)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 6\), got \(2, 5\)"):
        BNNeck(6)(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 6\), got \(2, 6, 1\)"):
        BNNeck(6)(torch.randn(2, 6, 1))
