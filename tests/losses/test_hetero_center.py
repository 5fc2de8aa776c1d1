import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from batches import any_batch
from reference import agw
from vireid.losses import hetero_center_loss, hetero_center_triplet_loss

# On a line: identity 0 at 0 and 2 (visible) and 4 (infrared), identity 1 at 7 (visible) and 6 (infrared), 2 only at 9.
X = torch.tensor([[0.0], [4.0], [7.0], [2.0], [6.0], [9.0]])
LABELS, MODALITY = torch.tensor([0, 0, 1, 0, 1, 2]), torch.tensor([0, 1, 0, 0, 1, 0])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 12),
    ids=st.integers(1, 5),
    normalize=st.booleans(),
    reduction=st.sampled_from(["sum", "mean"]),
    margin=st.sampled_from([0.3, 2.0]),
)
def test_they_equal_the_loops(device, seed, size, ids, normalize, reduction, margin):
    batch = any_batch(seed, size, ids)
    ours = [t.to(device) for t in batch]
    out = hetero_center_loss(*ours, normalize=normalize, reduction=reduction).cpu()
    assert_close(out, agw.hetero_center(*batch, normalize, reduction), rtol=1e-10, atol=1e-12)
    out = hetero_center_triplet_loss(*ours, margin=margin, normalize=normalize).cpu()
    assert_close(out, agw.hetero_center_triplet(*batch, margin, normalize), rtol=1e-10, atol=1e-12)


def test_by_hand():
    # the centers are 1 and 4, 7 and 6, and 9
    assert hetero_center_loss(X, LABELS, MODALITY, normalize=False) == 3**2 + 1**2
    assert hetero_center_loss(X, LABELS, MODALITY, normalize=False, reduction="mean") == (3**2 + 1**2) / 2
    # nearest other center: 5 and 2 away, 2 and 2 away; identity 2 has no positive
    terms = [0, 0.3 + 3 - 2, 0, 0]
    assert_close(hetero_center_triplet_loss(X, LABELS, MODALITY), torch.tensor(sum(terms) / 4))
    # on a sorted batch the published code's halves are the modalities; the order does not matter here
    order = torch.tensor([0, 3, 2, 5, 1, 4])
    assert hetero_center_loss(X[order], LABELS[order], MODALITY[order], normalize=False) == 10


@pytest.mark.filterwarnings("ignore:.*compares the modalities")
def test_identities_of_one_modality_drop_out():
    assert hetero_center_loss(X, torch.arange(6), MODALITY) == 0
    assert hetero_center_triplet_loss(X, torch.arange(6), MODALITY) == 0
    assert hetero_center_triplet_loss(X, 0 * LABELS, MODALITY) == 0  # no negative
