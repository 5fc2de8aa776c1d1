from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vireid._checks import check_count, check_finite, check_positive
from vireid._files import written_whole
from vireid._ops import (
    at_least_float32,
    evaluated,
    masked_mean,
    normalize_rows,
    repeated_rows,
    scale_rows,
)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e19, 1e30])
def test_normalized_rows_do_not_depend_on_the_scale(scale):
    x = torch.randn(5, 7)
    assert_close(normalize_rows(x * scale), x / x.norm(dim=1, keepdim=True))


def test_normalizing_a_zero_row_keeps_it_and_its_gradient_moderate():
    x = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], requires_grad=True)
    y = normalize_rows(x)
    assert y.tolist() == [[0.0, 0.0, 0.0], [pytest.approx(0.6), 0.0, pytest.approx(0.8)]]
    y.sum().backward()
    assert x.grad[0].abs().max() <= 1


def test_normalizing_has_the_true_gradient():
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_rows, x)
    assert normalize_rows(torch.empty(0, 4)).shape == (0, 4)
    assert normalize_rows(torch.empty(2, 0)).shape == (2, 0)


def test_masked_mean_of_nothing_is_zero_and_keeps_nan_out():
    x = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3])
    mask = torch.tensor([[True, False, True], [False] * 3])
    assert masked_mean(x, mask, 1).tolist() == [2.0, 0.0]


class Net(nn.Module):
    """Its parts are reached by every way that a module may refer to another."""

    def __init__(self) -> None:
        super().__init__()
        self.weighted = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout()
        self.again = {"norms": [self.norm], "drop": (self.drop,)}
        self.tied = partial(self.norm)
        self.forward = self._forward  # as wrappers of other libraries do

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again["drop"][0](self.again["norms"][0](self.tied(self.norm(x))))
        return self.weighted(self.drop(x))


@pytest.mark.parametrize(
    "wrapped", [lambda net: net, nn.Sequential, nn.DataParallel, lambda net: nn.ModuleDict({"net": net})["net"]]
)
def test_an_evaluated_module_shares_its_tensors_and_leaves_the_module_alone(wrapped):
    net = wrapped(Net())
    x, state = torch.randn(4, 3), {name: t.clone() for name, t in net.state_dict().items()}
    twin, seen = evaluated(net), []
    net.register_forward_hook(lambda module, args, out: seen.append(out))
    found = evaluated(net)(x)
    assert len(seen) == 1  # hooks are called
    assert {id(p) for p in twin.parameters()} == {id(p) for p in net.parameters()}
    assert all(part.training for part in net.modules())
    assert not any(part.training for part in twin.modules())
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    assert_close(found, net.eval()(x), rtol=0, atol=0)
    assert evaluated(net) is net  # nothing to copy


def test_what_torch_has_compiled_is_evaluated_as_well():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    whole, inside = torch.compile(net, backend="eager"), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    inside.compile(backend="eager")
    x = torch.randn(4, 3)
    for part in (whole, inside):
        assert_close(evaluated(part)(x), x / (1 + 1e-5) ** 0.5)
        assert part.training


def test_precision_is_raised_never_lowered():
    kinds = {torch.half: torch.float, torch.bfloat16: torch.float, torch.float: torch.float, torch.double: torch.double}
    for given, expected in kinds.items():
        assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 17, 1002])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype, bad, place):
    x = torch.ones(59, 17, dtype=dtype)
    x.view(-1)[place] = bad
    with pytest.raises(ValueError, match=f"1 of 59 rows, first in row {place // 17}$"):
        check_finite("x", x)


def test_what_is_not_finite_is_counted_by_rows():
    x = torch.zeros(9, 4)
    check_finite("x", x)
    check_finite("x", torch.empty(0, 4))
    x[6, 1], x[8, 0] = torch.nan, -torch.inf
    with pytest.raises(ValueError, match="x must be finite, got NaN or an infinity in 2 of 9 rows, first in row 6"):
        check_finite("x", x)


def test_counts_and_positive_numbers():
    check_count("k", np.int64(3))
    check_positive("tau", np.float32(0.5))
    for value, error in ((True, TypeError), (2.0, TypeError), ("4", TypeError), (0, ValueError)):
        with pytest.raises(error, match="k must be"):
            check_count("k", value)
    for value, error in (("a", TypeError), (0.0, ValueError), (float("inf"), ValueError), (float("nan"), ValueError)):
        with pytest.raises(error, match="tau must be"):
            check_positive("tau", value)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("old")

    def fail() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_scaled_by_powers_of_two(dtype):
    info = torch.finfo(dtype)
    x = torch.randn(6, 5, dtype=dtype)
    for scale in (info.tiny * info.eps * 2**10, info.tiny, 1.0, info.max / 8):
        y = scale_rows(x * scale)
        assert ((y.abs().amax(1) >= 1) & (y.abs().amax(1) < 2)).all()
        power = torch.log2((x * scale).double().abs() / y.double().abs())
        assert torch.equal(power, power.round())
    assert torch.equal(scale_rows(torch.zeros(2, 3, dtype=dtype)), torch.zeros(2, 3, dtype=dtype))
    assert scale_rows(torch.empty(0, 4)).shape == (0, 4)
    assert scale_rows(torch.empty(2, 0)).shape == (2, 0)


def test_repeated_rows_are_found_whatever_their_scale():
    x = torch.randn(40, 6, dtype=torch.float64).half().double()
    x[[3, 17, 30]] = x[[0, 0, 0]] * torch.tensor([[1.0], [3.0], [2.0**-400]], dtype=torch.float64)
    x[[8, 21]] = 0.0
    x[21] = -x[21]
    x[25] = x[2].flip(0)  # the same numbers in another order are another row
    again, first = repeated_rows(x)
    assert (again.tolist(), first.tolist()) == ([3, 17, 21, 30], [0, 0, 8, 0])
    assert [r.tolist() for r in repeated_rows(x[:0])] == [[], []]
    assert [r.tolist() for r in repeated_rows(x[:3, :0])] == [[1, 2], [0, 0]]
