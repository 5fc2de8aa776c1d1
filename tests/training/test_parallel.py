"""Several processes: parameters stay equal in all of them, whatever the criterion has and whatever a process sees."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from processes import run_in_two
from vireid.losses import CRILoss, HCCLoss, MutualIdentityLoss

TWO = """
import itertools
import warnings
from torch.nn.parallel import DistributedDataParallel
from vireid.training import Recipe, build
from vireid.training.loop import Step
from vireid.training.recipe import make_optimizer

def spread(parameters):
    worst = 0.0
    for value in parameters:
        both = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(both, value.detach().contiguous())
        worst = max(worst, float((both[0] - both[1]).abs().max()))
    return worst

own = {"g2da": {"two_stream": False, "part_grid": (2, 1)}, "agw": {"two_stream": False, "transfer": "shared"}}
for method, one_sided in itertools.product(("cift", "saai", "g2da", "agw"), (False, True)):
    settings = own.get(method, {})
    step = Step(*build(method, 4, (32, 16), settings)).train()
    parallel, optimizer = DistributedDataParallel(step), make_optimizer(step, Recipe())
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        images = torch.rand(8, 3, 32, 16, generator=generator)
        modality = torch.zeros(8, dtype=torch.long) if one_sided and rank else torch.arange(8) % 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no loss is called outside
            warnings.filterwarnings("ignore", ".*compares the modalities")
            losses = parallel(images, torch.arange(8) // 2, modality)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    print(method, one_sided, spread(step.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_model_and_criterion_in_one_module_stay_equal_in_two_processes(tmp_path):
    """No parameter is left without a gradient, also where one process's batch holds one modality."""
    outputs = run_in_two(TWO, tmp_path, timeout=300)
    assert outputs[0] == outputs[1]
    lines = [line.split() for line in outputs[0].splitlines()]
    assert len(lines) == 8
    assert all(float(worst) == 0 for _, _, worst in lines)


def mutual(train: bool = True) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    batch = torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    return MutualIdentityLoss(3, 2).train(train), batch


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def test_a_criterion_whose_parameters_no_wrapper_averages_is_named_once(two_processes, monkeypatch):
    loss, batch = mutual()
    with torch.no_grad():
        loss(*batch)  # nothing is trained
    loss.eval()(*batch)
    loss.train()
    text = "MutualIdentityLoss has parameters and was called outside of DistributedDataParallel"
    with pytest.warns(UserWarning, match=text):
        loss(*batch)
    loss(*batch)

    other, _ = mutual()
    monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", nn.Sequential(nn.Linear(2, 2)))
    with pytest.warns(UserWarning, match=text):
        other(*batch)  # in the forward pass of a wrapper of something else


def test_nothing_is_said_where_gradients_are_averaged_or_there_are_none(two_processes, monkeypatch):
    loss, batch = mutual()
    with monkeypatch.context() as patch:
        patch.setattr(DistributedDataParallel, "_active_ddp_module", nn.Sequential(loss))
        loss(*batch)
    HCCLoss(margin=0.5)(*batch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_world_size", lambda: 1)
        mutual()[0](*batch)
    frozen, _ = mutual()
    frozen.requires_grad_(False)(*batch)


def test_cri_is_looked_at_too(two_processes):
    from vireid.nn import H2FT

    _, (x, labels, modality) = mutual()
    with pytest.warns(UserWarning, match="CRILoss has parameters"):
        CRILoss(3)(x, labels, modality, transfer=H2FT(3, k=2), classifier=nn.Linear(3, 2))
