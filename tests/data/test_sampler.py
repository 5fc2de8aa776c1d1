"""The batch sampler: every rule of its docstring, its seed and its ranks."""

import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from vireid.data.sampler import CrossModalIdentitySampler


def make(counts, order=0):
    """Labels and modality of a set in which identity 10 + 3 i has counts[i] = (visible, infrared) images."""
    rows = [(10 + 3 * i, m) for i, pair in enumerate(counts) for m, n in enumerate(pair) for _ in range(n)]
    random.Random(order).shuffle(rows)
    labels, modality = zip(*rows, strict=True)
    return np.array(labels), np.array(modality)


def check_walk(sequence, size):
    """In every stretch of the sequence that starts at a multiple of ``size`` each element comes at most once."""
    for start in range(0, len(sequence), size):
        stretch = sequence[start : start + size]
        assert len(set(stretch)) == len(stretch)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=3, max_size=9),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_batches_follow_every_rule_of_the_docstring(counts, identities, per_modality, replicas, batches, epoch):
    labels, modality = make(counts)
    options = {"identities": identities, "per_modality": per_modality, "seed": 3}
    per_rank = []
    for rank in range(replicas):
        sampler = CrossModalIdentitySampler(labels, modality, batches=batches, rank=rank, replicas=replicas, **options)
        sampler.set_epoch(epoch)
        per_rank.append(list(sampler))
        assert len(per_rank[-1]) == len(sampler) == batches
    in_order = [batch for group in zip(*per_rank, strict=True) for batch in group]

    share = identities * per_modality
    sequence = []
    walks = {}
    for batch in in_order:
        assert all(type(index) is int for index in batch)
        assert modality[batch].tolist() == [0, 1] * share
        blocks = labels[batch].reshape(per_modality, identities, 2)
        assert (blocks == blocks[:1, :, :1]).all()  # the same identity over its K images and in both modalities
        sequence += blocks[0, :, 0].tolist()
        assert len(set(blocks[0, :, 0])) == identities
        for index in batch:
            walks.setdefault((labels[index], modality[index]), []).append(index)
        for (label, m), times in Counter(zip(labels[batch], modality[batch], strict=True)).items():
            n = ((labels == label) & (modality == m)).sum()
            repeats = Counter(i for i in batch if labels[i] == label and modality[i] == m)
            assert len(repeats) == min(n, times)  # repeats only where there are fewer than K
            assert max(repeats.values()) == -(-times // n)  # and only as often as needed
    check_walk(sequence, len(counts))
    for (label, m), walk in walks.items():
        check_walk(walk, ((labels == label) & (modality == m)).sum())

    # All ranks share the order of a single process.
    single = CrossModalIdentitySampler(labels, modality, batches=batches * replicas, **options)
    single.set_epoch(epoch)
    assert list(single) == in_order


@pytest.mark.parametrize(
    ("identities", "per_modality", "parts"),
    [*((8, 4, n) for n in (2, 3, 4, 8)), *((6, 2, n) for n in (2, 3, 4, 6)), (5, 3, 2), (4, 1, 2)],
)
def test_parts_of_a_batch_hold_several_identities_in_both_modalities(identities, per_modality, parts):
    """As `torch.nn.DataParallel` scatters a batch, and as gradients are accumulated over its chunks."""
    labels, modality = (torch.tensor(x) for x in make([(5, 6)] * 9))
    sampler = CrossModalIdentitySampler(labels, modality, identities=identities, per_modality=per_modality, batches=3)
    for batch in sampler:
        for part in torch.tensor(batch).chunk(parts):
            visible, infrared = (set(labels[part[modality[part] == m]].tolist()) for m in range(2))
            assert len(visible & infrared) >= min(identities, len(part) // 2 - len(part) % 2) >= 2
            assert abs(int((modality[part] * 2 - 1).sum())) <= len(part) % 2


def test_default_epoch_sees_every_image_of_the_larger_modality_once():
    labels, modality = make([(8, 3)] * 6)
    sampler = CrossModalIdentitySampler(labels, modality, identities=3, per_modality=4)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 48 // 12
    seen = Counter(index for batch in batches for index in batch)
    assert all(seen[i] == 1 for i in np.flatnonzero(modality == 0))
    assert {seen[i] for i in np.flatnonzero(modality == 1)} == {2, 3}


@pytest.mark.parametrize(("replicas", "expected"), [(1, 5), (2, 3), (4, 2)])
def test_default_length_rounds_up_and_is_shared_by_the_ranks(replicas, expected):
    labels, modality = make([(3, 9)] * 6)  # 54 infrared images, 12 per batch
    lengths = [
        len(CrossModalIdentitySampler(labels, modality, identities=3, per_modality=4, rank=r, replicas=replicas))
        for r in range(replicas)
    ]
    assert lengths == [expected] * replicas


def test_seed_and_epoch_decide_and_global_generators_do_not():
    labels, modality = make([(5, 6)] * 9)

    def draw(seed, epoch):
        sampler = CrossModalIdentitySampler(labels, modality, identities=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = draw(0, 0)
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    np.random.seed(1)  # noqa: NPY002
    assert draw(0, 0) == first
    assert draw(0, 1) != first
    assert draw(1, 0) != first
    assert draw(0, 1) != draw(1, 0)


def test_walks_of_images_are_shuffled_anew_each_epoch():
    labels, modality = make([(6, 6)] * 2)
    sampler = CrossModalIdentitySampler(labels, modality, identities=2, per_modality=6, batches=1)
    walks = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        (batch,) = sampler
        walks |= {tuple(batch[start::4]) for start in range(4)}
    assert len(walks) > 70  # of 80, each one of 4 × 6! orders


def epochs(count, **options):
    """The batches of the first epochs of `small`, each set by its number."""
    sampler, found = small(**options), []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    assert len({str(batches) for batches in found}) == count
    return found


def small(**options):
    return CrossModalIdentitySampler(*make([(5, 6)] * 9), **{"identities": 4, "per_modality": 2} | options)


def loader_of(sampler, **options):
    return DataLoader(range(99), batch_sampler=sampler, **options)


def read(loader):
    return [batch.tolist() for batch in loader]


def test_each_iteration_draws_the_next_epoch():
    sampler, drawn = small(), epochs(5)
    assert [list(sampler) for _ in range(3)] == drawn[:3]
    sampler.set_epoch(1)
    iter(sampler)  # one that is not used draws nothing, nor does the length
    len(sampler)
    assert [list(sampler), list(sampler)] == drawn[1:3]
    one, other = iter(sampler), iter(sampler)  # two at once are two epochs
    pairs = list(zip(one, other, strict=True))
    assert [[batch for batch, _ in pairs], [batch for _, batch in pairs]] == drawn[3:]


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_a_loader_with_or_without_workers_goes_through_the_epochs(options):
    sampler, drawn = small(), epochs(4)
    loader = loader_of(sampler, **options)
    assert [read(loader) for _ in range(2)] == drawn[:2]
    batches = iter(loader)
    first = [next(batches).tolist()]
    state = sampler.state_dict()  # within the third epoch, of which workers have read ahead
    assert state == {"epoch": 3}
    assert first + [batch.tolist() for batch in batches] == drawn[2]
    again = pickle.loads(pickle.dumps(sampler))
    resumed = small()
    resumed.load_state_dict(state)
    assert list(sampler) == list(again) == list(resumed) == drawn[3]


def test_a_state_without_an_epoch_is_named():
    with pytest.raises(TypeError, match=re.escape("state['epoch'] must be an integer, got None")):
        small().load_state_dict({})
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        small().set_epoch(-1)


def test_frameworks_announce_epochs_and_the_users_choice_goes_before():
    """Lightning and Fabric call ``set_epoch`` of ``loader.batch_sampler.sampler`` before an epoch."""
    pytest.importorskip("lightning_fabric")
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.data import _set_sampler_epoch

    drawn, fabric = epochs(8), Fabric(accelerator="cpu", devices=1)
    assert [read(loader) for loader in [fabric.setup_dataloaders(loader_of(small()))] * 3] == drawn[:3]

    sampler = small()
    _set_sampler_epoch(loader_of(sampler), 5)  # Lightning in a resumed run
    assert list(sampler) == drawn[5]
    _set_sampler_epoch(loader_of(sampler), 2)
    assert list(sampler) == drawn[2]

    sampler = small()
    loader = fabric.setup_dataloaders(loader_of(sampler))
    for epoch in (3, 6):  # Fabric counts 0, 1
        sampler.set_epoch(epoch)
        assert read(loader) == drawn[epoch]
    assert read(loader) == drawn[7]

    sampler.load_state_dict({"epoch": 4})
    loader = fabric.setup_dataloaders(loader_of(sampler))  # a new one counts from 0
    assert [read(loader), read(loader)] == drawn[4:6]
    sampler.set_epoch(0)
    _set_sampler_epoch(loader_of(sampler), 3)
    assert list(sampler) == drawn[0]
    _set_sampler_epoch(loader_of(sampler), 1)  # a count that starts again
    assert list(sampler) == drawn[0]


def test_sharing_out_by_fabric_is_refused_with_what_to_do():
    pytest.importorskip("lightning_fabric")
    from lightning_fabric.utilities.data import _update_dataloader

    shares = DistributedSampler(range(99), num_replicas=2, rank=0)
    with pytest.raises(TypeError, match=r"set.*use_distributed_sampler=False"):
        _update_dataloader(loader_of(small()), shares)


def test_ranks_are_those_of_torch_distributed_from_its_start_on(monkeypatch):
    sampler, (drawn,) = small(), epochs(1, batches=6)
    given = small(batches=6, rank=0, replicas=1)
    assert (len(sampler), sampler.rank, sampler.replicas) == (7, 0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert (len(sampler), sampler.rank, sampler.replicas) == (3, 1, 3)
    assert list(small(batches=2)) == drawn[1::3]
    assert list(given) == drawn


def test_identities_and_images_are_drawn_evenly_and_company_changes():
    labels, modality = make([(4, 4)] * 6)
    sampler = CrossModalIdentitySampler(labels, modality, identities=2, per_modality=1, batches=600)
    batches = list(sampler)
    seen = Counter(index for batch in batches for index in batch)
    assert set(seen.values()) == {50}
    pairs = Counter(frozenset(labels[batch].tolist()) for batch in batches)
    assert len(pairs) == 15  # every pair of identities meets, about 40 times
    assert min(pairs.values()) > 15


def test_identities_without_one_modality_are_left_out():
    labels, modality = make([(2, 2), (3, 0), (2, 1), (0, 4), (1, 1)])
    sampler = CrossModalIdentitySampler(labels, modality, identities=3, per_modality=2, batches=4)
    assert sampler.left_out.tolist() == [13, 19]
    assert {label for batch in sampler for label in labels[batch]} == {10, 16, 22}
    with pytest.raises(ValueError, match=r"identities must be at most 3.*\(of 5 in all\), got 4"):
        CrossModalIdentitySampler(labels, modality, identities=4)


def test_takes_tensors_and_lists():
    labels, modality = make([(3, 3)] * 4)
    wanted = list(CrossModalIdentitySampler(labels, modality, identities=2))
    for convert in (torch.tensor, list):
        assert list(CrossModalIdentitySampler(convert(labels), convert(modality), identities=2)) == wanted


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"identities": 0}, ValueError, "identities must be at least 1, got 0"),
        ({"per_modality": 2.0}, TypeError, "per_modality must be an integer, got 2.0"),
        ({"rank": 2, "replicas": 2}, ValueError, "rank must be below replicas = 2, got 2"),
        ({"rank": 1}, ValueError, "rank and replicas go together, got rank=1 and replicas=None"),
        ({"modality": [0, 1]}, ValueError, "modality must have one entry per label, 12, got 2"),
        ({"modality": [0, 1, 2] * 4}, ValueError, "modality must be 0 (visible) or 1 (infrared), got 2; labels"),
        ({"labels": np.zeros(12)}, TypeError, "labels must hold integers, got torch.float64"),
        ({"labels": np.zeros((12, 1), int)}, ValueError, "labels must have shape (N,), got (12, 1)"),
        ({"labels": torch.zeros(12)}, TypeError, "labels must hold integers, got torch.float32"),
        ({"modality": torch.ones(12, dtype=int).to_sparse()}, TypeError, "modality must be dense"),
        ({"modality": torch.ones(12, dtype=int, device="meta")}, TypeError, "modality must hold values"),
        ({"labels": [], "modality": []}, ValueError, "identities must be at most 0"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    labels, modality = make([(3, 3)] * 2)
    arguments = {"labels": labels, "modality": modality, "identities": 2} | change
    with pytest.raises(error, match=re.escape(text)):
        CrossModalIdentitySampler(**arguments)
