import copy
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from places import ROOT
from reference import saai
from vireid.losses import MutualIdentityLoss, mutual_identity_loss

TERMS = ("id", "specific", "mutual")


def batch(seed: int, size: int = 7, identities: int = 4, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, dim, generator=g, dtype=torch.double),
        torch.randint(identities, (size,), generator=g),
        torch.randint(2, (size,), generator=g),
    )


def classifiers(seed: int, identities: int = 4, dim: int = 5) -> list[Tensor]:
    """shared, specific, averaged: far enough from 0 that every softmax is far from uniform."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(identities, dim), (2, identities, dim), (2, identities, dim)]
    return [torch.randn(shape, generator=g, dtype=torch.double) for shape in shapes]


def trained(seed: int = 0, **options) -> MutualIdentityLoss:
    """A loss in double whose classifiers and averages are as unlike as after some training."""
    loss = MutualIdentityLoss(5, 4, **options).double()
    with torch.no_grad():
        for own, value in zip((loss.shared, loss.specific, loss.averaged), classifiers(seed), strict=True):
            own.copy_(value)
    return loss


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 8),
    identities=st.integers(1, 4),
    weights=st.sampled_from([(1.0, 1.0, 1.0), (2.0, 0.5, 2.0), (0.5, 0.0, 0.3)]),
    means=st.sampled_from(["modality", "batch"]),
)
def test_value_and_gradients_equal_the_loop(device, seed, size, identities, weights, means):
    x, labels, modality = batch(seed, size, identities)
    tensors = [x, *classifiers(seed, identities)]
    ours = [t.clone().to(device).requires_grad_() for t in tensors]
    theirs = [t.clone().requires_grad_() for t in tensors]
    options = dict(zip(("shared_weight", "specific_weight", "mutual_weight"), weights, strict=True)) | {"means": means}
    out = mutual_identity_loss(ours[0], labels.to(device), modality.to(device), *ours[1:], **options)
    terms = saai.mutual_identity(theirs[0], labels, modality, *theirs[1:], means)
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    assert_close(out.cpu(), expected.detach(), rtol=1e-10, atol=1e-12)
    out.backward()
    expected.backward()
    for mine, reference in zip(ours[:3], theirs[:3], strict=True):
        assert_close(mine.grad.cpu(), reference.grad, rtol=1e-8, atol=1e-11)
    assert ours[3].grad is None


def test_by_hand():
    """One visible image (1), two identities: every classifier's logits are its two weights."""
    x, labels, modality = torch.ones(1, 1), torch.tensor([0]), torch.tensor([0])
    shared, log3 = torch.zeros(2, 1), math.log(3)
    specific = torch.tensor([[[log3], [0.0]], [[7.0], [-7.0]]])  # visible: 3/4, 1/4; the infrared one is not used
    averaged = torch.tensor([[[5.0], [-5.0]], [[0.0], [0.0]]])  # infrared: 1/2, 1/2; the visible one is not used
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    terms = math.log(2), math.log(4 / 3), divergence
    out = mutual_identity_loss(x, labels, modality, shared, specific, averaged)
    assert_close(out, torch.tensor(sum(terms)))
    out = mutual_identity_loss(x, labels, modality, shared, specific, averaged, specific_weight=2.0, mutual_weight=3.0)
    assert_close(out, torch.tensor(terms[0] + 2 * terms[1] + 3 * terms[2]))
    # an infrared image uses the other two
    swapped = mutual_identity_loss(x, labels, 1 - modality, shared, specific.flip(0), averaged.flip(0))
    assert_close(swapped, torch.tensor(sum(terms)))


def test_the_modalities_have_a_mean_each():
    """Of three visible images and one infrared one, whose classifiers give 1/2 and 1/4 to the right identity."""
    x, modality = torch.ones(4, 1), torch.tensor([0, 0, 1, 0])
    specific = torch.tensor([[[0.0], [0.0]], [[0.0], [math.log(3)]]])
    given = x, torch.zeros(4).long(), modality, torch.zeros(2, 1), specific, specific
    options = {"shared_weight": 0, "mutual_weight": 0}
    assert_close(mutual_identity_loss(*given, **options), torch.tensor(math.log(2) + math.log(4)))
    per_batch = mutual_identity_loss(*given, **options, means="batch")
    assert_close(per_batch, torch.tensor((3 * math.log(2) + math.log(4)) / 4))
    balanced = x, torch.zeros(4).long(), torch.tensor([0, 1, 1, 0]), *given[3:]
    twice = mutual_identity_loss(*balanced, **options)
    assert_close(twice, 2 * mutual_identity_loss(*balanced, **options, means="batch"))
    one = (x[:2], torch.zeros(2).long(), torch.zeros(2).long(), *given[3:])
    assert_close(mutual_identity_loss(*one, **options), torch.tensor(math.log(2)))


def test_no_divergence_and_no_gradient_of_it_where_both_agree():
    x, labels, modality = batch(0)
    shared, specific, _ = classifiers(0)
    specific = specific[:1].expand(2, -1, -1).clone().requires_grad_()
    given = x, labels, modality, shared, specific, specific.detach()
    out = mutual_identity_loss(*given, specific_weight=0)
    without = mutual_identity_loss(*given, specific_weight=0, mutual_weight=0)
    assert_close(out, without)
    out.backward()
    assert_close(specific.grad, torch.zeros_like(specific))


def test_the_module_equals_the_function_and_names_its_terms():
    x, labels, modality = batch(1)
    loss = trained(specific_weight=0.5, mutual_weight=2.0).eval()
    weights = loss.shared, loss.specific, loss.averaged
    terms = loss.terms(x, labels, modality)
    assert tuple(terms) == TERMS
    expected = saai.mutual_identity(x, labels, modality, *weights)
    for name, value, weight in zip(TERMS, expected, (1.0, 0.5, 2.0), strict=True):
        assert_close(terms[name], weight * value)
    out = loss(x, labels, modality)
    assert_close(out, sum(terms.values()))
    stated = mutual_identity_loss(x, labels, modality, *weights, specific_weight=0.5, mutual_weight=2.0)
    assert torch.equal(out, stated)
    assert_close(loss.logits(x), x @ loss.shared.T)


def test_classifiers_start_near_zero_and_the_averages_as_their_equals():
    loss = MutualIdentityLoss(64, 50)
    weights = loss.shared_weight, loss.specific_weight, loss.mutual_weight
    assert (loss.rate, loss.means, weights) == (0.2, "modality", (1.0, 1.0, 1.0))
    assert dict(loss.named_parameters()).keys() == {"shared", "specific"}
    assert dict(loss.named_buffers()).keys() == {"averaged"}
    assert loss.shared.shape == (50, 64)
    assert torch.equal(loss.averaged, loss.specific)
    assert loss.averaged.data_ptr() != loss.specific.data_ptr()
    for weight in (loss.shared, *loss.specific):
        assert 0.0009 < weight.std() < 0.0011
        assert weight.mean().abs() < 0.0001
    assert not torch.equal(loss.specific[0], loss.specific[1])
    assert "rate=0.2" in repr(loss)


def test_each_training_call_moves_the_averages_before_it_uses_them():
    x, labels, modality = batch(2)
    loss = trained(rate=0.3)
    expected, specific = loss.averaged.clone(), loss.specific.detach().clone()
    for gradients in (True, False, True):
        expected = torch.tensor(0.7).double() * expected + 0.3 * specific
        with torch.set_grad_enabled(gradients):
            out = loss(x, labels, modality)
        assert_close(loss.averaged, expected)
        assert_close(out, mutual_identity_loss(x, labels, modality, loss.shared, loss.specific, expected))
    assert torch.equal(loss.specific, specific)
    moved = loss.averaged.clone()
    loss.eval()(x, labels, modality)
    assert torch.equal(loss.averaged, moved)
    loss.train().terms(x, labels, modality)
    assert_close(loss.averaged, 0.7 * moved + 0.3 * specific)
    moved = loss.averaged.clone()
    with pytest.raises(ValueError, match="labels"):
        loss(x, labels[:2], modality)
    assert torch.equal(loss.averaged, moved)


def test_a_later_call_does_not_break_the_backward_pass_of_an_earlier_one():
    (x, labels, modality), loss = batch(3), trained()
    first = loss(x, labels, modality)
    (first + loss(x, labels, modality)).backward()
    assert loss.specific.grad.abs().sum() > 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, 9))
def test_the_modalities_are_symmetric(seed, size):
    (x, labels, modality), (shared, specific, averaged) = batch(seed, size), classifiers(seed)
    out = mutual_identity_loss(x, labels, modality, shared, specific, averaged)
    swapped = mutual_identity_loss(x, labels, 1 - modality, shared, specific.flip(0), averaged.flip(0))
    assert_close(swapped, out)


def step(loss: MutualIdentityLoss, optimizer: torch.optim.Optimizer, seed: int) -> float:
    optimizer.zero_grad()
    out = loss(*batch(seed))
    out.backward()
    optimizer.step()
    return out.item()


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    loss = trained()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5, momentum=0.9)
    for seed in range(3):
        step(loss, optimizer, seed)
    torch.save({"loss": loss.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    assert loss.state_dict().keys() == {"shared", "specific", "averaged"}
    assert not torch.equal(loss.averaged, loss.specific)
    expected = [step(loss, optimizer, seed) for seed in range(3, 6)]

    resumed = MutualIdentityLoss(5, 4).double()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(saved["loss"])
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.5, momentum=0.9)
    optimizer.load_state_dict(saved["optimizer"])
    assert [step(resumed, optimizer, seed) for seed in range(3, 6)] == expected
    assert torch.equal(resumed.averaged, loss.averaged)
    assert torch.equal(copy.deepcopy(loss).averaged, loss.averaged)


PROCESS = """
import inspect
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from vireid.losses import MutualIdentityLoss

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
options = inspect.signature(DistributedDataParallel).parameters
option = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
for broadcast in (True, False):
    # With the older option buffers that are not sent at every call are not sent at the start either.
    torch.manual_seed(0 if option == "broadcast_buffers" and not broadcast else rank)
    loss = MutualIdentityLoss(5, 4, means="batch").double()
    parallel = DistributedDataParallel(loss, **{option: broadcast})
    start = {name: value.clone() for name, value in loss.state_dict().items()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.5, momentum=0.9)
    for x, labels, modality in torch.load(folder + "/batches.pt"):
        mine = slice(rank, None, 2)
        optimizer.zero_grad()
        parallel(x[mine], labels[mine], modality[mine]).backward()
        optimizer.step()
    torch.save({"start": start, "end": loss.state_dict()}, f"{folder}/{broadcast}{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # gloo's threads still release tensors, which aborts an interpreter that is being taken down
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_have_the_averages_of_one(tmp_path):
    """Also where one process's share of a batch holds one modality."""
    batches = [batch(seed, size=8) for seed in range(5)]
    batches[2] = (*batches[2][:2], torch.tensor([0, 1] * 4))
    torch.save(batches, tmp_path / "batches.pt")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", PROCESS]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], **options) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    for broadcast in (True, False):
        first, second = (torch.load(tmp_path / f"{broadcast}{rank}.pt") for rank in range(2))
        single = MutualIdentityLoss(5, 4, means="batch").double()
        single.load_state_dict(first["start"])
        optimizer = torch.optim.SGD(single.parameters(), lr=0.5, momentum=0.9)
        for whole in batches:
            optimizer.zero_grad()
            single(*whole).backward()
            optimizer.step()
        for name, value in single.state_dict().items():
            assert torch.equal(first["end"][name], second["end"][name])
            assert_close(first["end"][name], value, rtol=1e-9, atol=1e-12)
            assert (value - first["start"][name]).abs().max() > 0.01


def test_bad_input_of_the_classifiers_is_named():
    (x, labels, modality), loss = batch(8), trained()
    given = dict(zip(("shared", "specific", "averaged"), classifiers(8), strict=True))

    def function(**change):
        return mutual_identity_loss(x, labels, modality, **given | change)

    shared, fewer = given["shared"], given["averaged"][:, :3]
    narrow = {name: weights[..., :4] for name, weights in given.items()}
    for error, message, call in (
        (ValueError, r"x must have shape \(B, 5\), got \(5,\)", lambda: loss.logits(x[0])),
        (ValueError, r"x must have shape \(B, 4\), got \(7, 5\)", lambda: function(**narrow)),
        (ValueError, r"shared must have shape \(C, d\), got \(5,\)", lambda: function(shared=shared[0])),
        (ValueError, r"specific must have shape \(2, 4, 5\), got \(4, 5\)", lambda: function(specific=shared)),
        (ValueError, r"averaged must have shape \(2, 4, 5\), got \(2, 3, 5\)", lambda: function(averaged=fewer)),
        (TypeError, r"averaged must be a torch\.Tensor, got NoneType", lambda: function(averaged=None)),
        (ValueError, r"dim must be at least 1, got 0", lambda: MutualIdentityLoss(0, 4)),
        (ValueError, r"num_classes must be at least 1, got 0", lambda: MutualIdentityLoss(5, 0)),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("kind", [0, 1])
def test_the_classifier_of_an_absent_modality_learns_nothing(kind):
    (x, labels, modality), loss = batch(5), trained()
    loss(x, labels, torch.full_like(modality, kind)).backward()
    assert loss.specific.grad[kind].any()
    assert not loss.specific.grad[1 - kind].any()


def test_half_precision_classifiers_give_terms_in_float32():
    loss = MutualIdentityLoss(5, 4).half().eval()
    x, labels, modality = batch(0, size=8)
    terms = loss.terms(x.half(), labels, modality)
    assert {term.dtype for term in terms.values()} == {torch.float32}
