import copy
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from measuring import LargestTensor
from reference import cift as ref
from reference.cift import randomized, values_of
from vireid import INFRARED, VISIBLE
from vireid.neighbors import NeighborGraph
from vireid.nn import GFT, H2FT, BNNeck

EXACT = {"rtol": 0, "atol": 1e-9}
SEEDS = st.integers(0, 2**31 - 1)


def batch(
    seed: int, visible: int, infrared: int, dim: int = 6, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random features in a random row order."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(visible + infrared, dim, generator=g, dtype=torch.double)
    modality = torch.tensor([VISIBLE] * visible + [INFRARED] * infrared)
    return x.to(device), modality[torch.randperm(len(modality), generator=g)].to(device)


def sizes(largest: int = 5) -> st.SearchStrategy[tuple[int, int]]:
    """Images of each modality: balanced or not, only one modality, one row, two rows."""
    return st.tuples(st.integers(0, largest), st.integers(0, largest)).filter(any)


# -- H2FT, training ------------------------------------------------------------------------------------------------


@settings(max_examples=35)
@given(seed=SEEDS, size=sizes(), k=st.integers(1, 12), training=st.booleans(), repeated=st.booleans())
def test_h2ft_equals_the_loop_over_groups(device, seed, size, k, training, repeated):
    x, modality = batch(seed, *size, device=device)
    if repeated:
        copied = torch.randint(len(x), (len(x),), generator=torch.Generator().manual_seed(seed))
        # a batch of one repeated image has zero variance: normalizing leaves rounding errors only
        assume(not training or len(set(copied.tolist())) > 1 or len(x) == 1)
        x = x[copied.to(x.device)]
    module = randomized(H2FT(6, k=k, tau_hom=0.4, tau_het=0.2), seed).to(device).train(training)
    v = values_of(module, x)
    # two rows that a training batch normalizes are v and -v: every cosine is 1 or -1, nothing is near a tie
    f_q, f_g, a_het, a_hom = ref.h2ft(v, v, modality.cpu(), k=k, tau_hom=0.4, tau_het=0.2)
    out = module(x, modality)
    assert_close(out.values.cpu(), v, **EXACT)
    assert_close(out.query.cpu(), f_q, **EXACT)
    assert_close(out.gallery.cpu(), f_g, **EXACT)
    if not repeated:  # else which of several copies is a neighbor has no meaning
        assert_close(out.affinity_het.cpu(), a_het, **EXACT)
        assert_close(out.affinity_hom.cpu(), a_hom, **EXACT)
    assert out.gallery_index.tolist() == list(range(len(x)))


@pytest.mark.parametrize("training", [True, False])
def test_h2ft_gradients_equal_those_of_the_loop(training):
    x, modality = batch(3, 4, 3)
    module = randomized(H2FT(6, k=3)).train(training)
    weights = torch.randn(2, 7, 6, dtype=torch.double)
    ours = x.clone().requires_grad_()
    out = module(ours, modality)
    (out.query * weights[0] + out.gallery * weights[1]).sum().backward()
    loop = x.clone().requires_grad_()
    v = values_of(module, loop)
    f_q, f_g, _, _ = ref.h2ft(v, v, modality, k=3, tau_hom=0.4, tau_het=0.2)
    (f_q * weights[0] + f_g * weights[1]).sum().backward()
    assert_close(ours.grad, loop.grad, **EXACT)


@pytest.mark.parametrize("argument", ["k", "tau_hom", "tau_het"])
def test_each_hyper_parameter_matters_where_it_should(argument):
    x, modality = batch(5, 5, 5)
    options = {"k": 4, "tau_hom": 0.4, "tau_het": 0.2}
    before = randomized(H2FT(6, **options)).eval()(x, modality)
    after = randomized(H2FT(6, **options | {argument: 2 if argument == "k" else 0.7})).eval()(x, modality)
    assert torch.equal(before.query, after.query) == (argument == "tau_hom")
    assert torch.equal(before.gallery, after.gallery) == (argument == "tau_het")


def test_defaults_are_the_papers():
    x, modality = batch(5, 6, 6)
    module = H2FT(6).double()
    stated = H2FT(6, k=4, tau_hom=0.4, tau_het=0.2).double()
    assert_close(module(x, modality), stated(x, modality))
    # by hand: two rows of one modality are no neighbors across, and the query keeps only itself
    alone = module(x[:2], torch.tensor([0, 0]))
    assert_close(alone.affinity_het, torch.eye(2).double())
    assert_close(alone.query, alone.values)


def test_a_pair_by_hand():
    """Orthogonal unit vectors: cos = 0, so the weights are e^(1/tau) : 1."""
    module = H2FT(2, k=2, tau_hom=0.4, tau_het=0.2, value=nn.Identity()).double()
    x = torch.eye(2).double()
    het = torch.tensor([5.0]).double().exp()
    hom = torch.tensor([2.5]).double().exp()
    across = module(x, torch.tensor([VISIBLE, INFRARED]))
    assert_close(across.query, torch.stack([torch.cat([het, het / het]), torch.cat([het / het, het])]) / (het + 1))
    assert_close(across.gallery, x)
    within = module(x, torch.tensor([INFRARED, INFRARED]))
    assert_close(within.query, x)
    assert_close(within.gallery, torch.stack([torch.cat([hom, hom / hom]), torch.cat([hom / hom, hom])]) / (hom + 1))


@settings(max_examples=20)
@given(
    seed=SEEDS,
    size=sizes(),
    k=st.integers(1, 8),
    repeated=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_the_query_is_its_own_first_neighbor(seed, size, k, repeated, dtype):
    x, modality = batch(seed, *size)
    x = x[:1].repeat(len(x), 1) if repeated else x
    out = H2FT(6, k=k, value=nn.Identity())(x.to(dtype), modality)
    other = modality[:, None] != modality
    itself = torch.eye(len(x), dtype=torch.bool)
    for a, allowed in ((out.affinity_het, other | itself), (out.affinity_hom, ~other)):
        assert (a.diagonal() > 0).all()
        assert (a.diagonal() >= a.max(1).values - 1e-6).all()  # a repeated image ties, up to the rounding of its cosine
        assert_close(a.double().sum(1), torch.ones(len(x)).double(), rtol=0, atol=1e-2)
        assert not a[~allowed].any()
        assert ((a > 0).sum(1) == allowed.sum(1).clamp(max=k)).all()


def degenerate_batches() -> dict[str, tuple[Tensor, Tensor]]:
    x, modality = batch(0, 4, 4)
    with_zeros = x.clone()
    with_zeros[::3] = 0
    return {
        "one image repeated": (x[:1].repeat(8, 1), modality),
        "some images repeated": (x[[0, 0, 0, 1, 1, 2, 3, 3]], modality),
        "zero rows": (with_zeros, modality),
        "zeros only": (torch.zeros_like(x), modality),
        "one row": (x[:1], modality[:1]),
        "two rows": (x[:2], torch.tensor([0, 1])),
        "two equal rows": (x[[0, 0]], torch.tensor([0, 1])),
        "one modality": (x, torch.zeros_like(modality)),
        "tiny": (x * 1e-8, modality),
        "huge": (x * 1e4, modality),
        "opposite": (torch.cat([x[:4], -x[:4]]), modality),
    }


MODULES = {
    "h2ft": lambda dim=6, **options: H2FT(dim, **options),
    "gft": lambda dim=6, **options: GFT(dim, **options),
    "gft on groups": lambda dim=6, **options: GFT(dim, unbalanced=True, **options),
    "gft of features": lambda dim=6, **options: GFT(dim, transferred="features", **options),
}


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_no_nan_in_outputs_or_gradients(name, half, device):
    for x, modality in degenerate_batches().values():
        for options in ({"k": 4}, {"k": 100}, {"k": 1}, {"k": 4, "value": nn.Identity()}):
            for training in (True, False):
                module = MODULES[name](**options).to(device).train(training)
                rows = x.float().to(device).requires_grad_()
                with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
                    out = module(rows, modality.to(device))
                (out.query.float().square().sum() + out.gallery.float().square().sum() + out[2].sum()).backward()
                for t in (*out, rows.grad, *(p.grad for p in module.parameters())):
                    assert t is None or not t.is_floating_point() or torch.isfinite(t).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("name", MODULES)
def test_lower_precision_is_close_to_double(name, dtype, tolerance, device):
    """Ten directions, each seen by a visible and an infrared camera: no neighbor depends on the last bit."""
    g = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.double)).Q[:10].repeat(2, 1)
    x = x + 0.1 * torch.randn(x.shape, generator=g, dtype=torch.double)
    x, modality = x.to(dtype).double().to(device), torch.tensor([0] * 10 + [1] * 10, device=device)
    module = MODULES[name](16, k=2, value=nn.Identity())
    exact, rough = module(x, modality), module(x.to(dtype), modality)
    assert rough.query.dtype == dtype
    assert_close(rough.query.double(), exact.query, rtol=0, atol=tolerance)
    assert_close(rough.gallery.double(), exact.gallery, rtol=0, atol=tolerance)
    # under autocast the weights stay in float32 and so does the neck
    if dtype != torch.float32:
        with torch.autocast(device.type, dtype=dtype):
            mixed = module(x.float(), modality)
        assert_close(mixed.query.double(), exact.query, rtol=0, atol=tolerance)
        assert_close(mixed.gallery.double(), exact.gallery, rtol=0, atol=tolerance)


def test_only_the_scale_of_the_neck_is_learned():
    assert [p.shape for p in H2FT(6).parameters() if p.requires_grad] == [(6,)]


@pytest.mark.parametrize("name", MODULES)
def test_another_value_module_is_used(name):
    x, modality = batch(2, 3, 3)
    linear = nn.Linear(6, 6, bias=False).double()
    module = MODULES[name](value=linear).double()
    assert module.value is linear
    assert_close(module(x, modality).values, x if name == "gft of features" else x @ linear.weight.T)
    assert_close(module.embed("x", x), x @ linear.weight.T)


# -- Inference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=15)
@given(seed=SEEDS, nq=st.integers(1, 4), ng=st.integers(1, 8), k=st.integers(1, 11))
def test_inference_equals_the_loop_over_single_queries(device, name, seed, nq, ng, k):
    x, _ = batch(seed, nq, ng)
    tau = {"tau_hom": 0.3, "tau_het": 0.1} if name == "h2ft" else {"tau": 0.3}
    module = randomized(MODULES[name](k=k, **tau), seed).eval()
    v = values_of(module, x)
    own = {"summed": (x[:nq], x[nq:])} if name == "gft of features" else {}
    f_q, f_g, *_ = (ref.h2ft_transfer if name == "h2ft" else ref.gft_transfer)(v[:nq], v[nq:], k=k, **tau, **own)
    module, query, gallery = module.to(device), x[:nq].to(device), x[nq:].to(device)
    ours = module.transfer(query, gallery)
    assert_close(ours[0].cpu(), f_q, **EXACT)
    assert_close(ours[1].cpu(), f_g, **EXACT)
    assert_close(module.distance(query, gallery).cpu(), ref.cosine_distance(f_q, f_g), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_h2ft_transfer_does_not_depend_on_the_other_queries(dtype, device):
    """With more dimensions than images f_q tells its neighbors: they are the rows it is a combination of."""
    g = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(12, 64, generator=g).double(), torch.randn(40, 64, generator=g).double()
    module = H2FT(64, k=5, value=nn.Identity()).eval()
    _, _, expected = ref.h2ft_transfer(query, gallery, k=5, tau_hom=0.4, tau_het=0.2)

    def neighbors(rows: list[int], f_q: Tensor) -> list[set[int]]:
        found = []
        for i, f in zip(rows, f_q.double().cpu(), strict=True):
            basis = torch.cat([gallery, query[i : i + 1]])
            weights = torch.linalg.lstsq(basis.T, f[:, None]).solution[:-1, 0]
            found.append(set((weights > 1e-5).nonzero().flatten().tolist()))
        return found

    q, g = query.to(device, dtype), gallery.to(device, dtype)
    everyone, f_g = module.transfer(q, g)
    assert neighbors(list(range(12)), everyone) == expected
    for rows in ([3], [7, 2], [11, 0, 5, 5], torch.randperm(12).tolist(), [*range(12)] * 3):
        f_q, same = module.transfer(q[rows], g)
        assert torch.allclose(f_q, everyone[rows], rtol=0, atol=1e-6)
        assert torch.allclose(same, f_g, rtol=0, atol=1e-6)
        assert neighbors(rows, f_q) == [expected[i] for i in rows]
        assert torch.allclose(module.distance(q[rows], g), module.distance(q, g)[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_inference_ignores_and_keeps_the_mode_and_the_running_statistics(name):
    x, modality = batch(1, 4, 8)
    value = nn.Sequential(BNNeck(6), nn.Dropout(0.5), nn.BatchNorm1d(6))
    module = MODULES[name](value=value).double().train()
    module(x, modality)
    module.value[2].eval()  # a part the user holds fixed stays as it was
    before, given = {name: t.clone() for name, t in module.state_dict().items()}, x.clone()
    modes = [m.training for m in module.modules()]
    trained = module.transfer(x[:4], x[4:])
    distance = module.distance(x[:4], x[4:])
    assert [m.training for m in module.modules()] == modes
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    module.eval()
    assert_close(module.transfer(x[:4], x[4:]), trained, rtol=0, atol=0)
    assert_close(module.distance(x[:4], x[4:]), distance, rtol=0, atol=0)
    assert not any(t.requires_grad for t in (*trained, distance))
    assert torch.equal(x, given)
    assert module.transfer(x[:0], x)[0].shape == (0, 6)
    assert module.distance(x[:0], x).shape == (0, 12)


class Meeting(BNNeck):
    """A value module in which threads wait for each other, so that all are inside at once."""

    barrier: threading.Barrier

    def forward(self, x: Tensor) -> Tensor:
        self.barrier.wait(20)
        try:
            return super().forward(x)
        finally:
            self.barrier.wait(20)


@pytest.mark.parametrize("kind", [H2FT, GFT])
def test_threads_share_a_module_in_training_mode(kind):
    module = randomized(kind(6, value=Meeting(6)), 0).train()
    batches = [torch.randn(5, 6, dtype=torch.double) for _ in range(4)]
    module.value.barrier = threading.Barrier(1)
    expected = [copy.deepcopy(module.state_dict()), *(module.embed("x", x) for x in batches)]
    module.value.barrier = threading.Barrier(len(batches))
    with ThreadPoolExecutor(len(batches)) as pool:
        found = list(pool.map(lambda x: module.embed("x", x), batches))
    assert_close([module.state_dict(), *found], expected, rtol=0, atol=0)
    assert all(part.training for part in module.modules())


def test_the_recorder_sees_a_large_tensor():
    with LargestTensor() as largest:
        torch.zeros(10, 3) @ torch.zeros(3, 1000)
    assert largest.elements == 10_000


def test_inference_keeps_no_gallery_by_gallery_matrix_and_no_cubic_tensor():
    """Blocks have a fixed size: with more images the bound is a smaller part of their square, 64 million.

    64 queries by 8,000 images by 32 numbers are more than a quarter of it.
    """
    x = torch.randn(8_064, 32)
    h2ft, gft = H2FT(32), GFT(32)
    with LargestTensor() as largest:
        f_q, f_g = h2ft.transfer(x[:64], x[64:])
        distances = h2ft.distance(x[:64], x[64:]), gft.distance(x[:64], x[64:])
    assert (f_q.shape, f_g.shape) == ((64, 32), (8_000, 32))
    assert [distance.shape for distance in distances] == [(64, 8_000)] * 2
    assert 64 * 8_000 <= largest.elements < 8_000 * 8_000 / 4


@pytest.mark.parametrize("name", MODULES)
def test_inference_of_degenerate_input_is_finite(name):
    x = torch.randn(6, 6)
    for query, gallery, k in (
        (x[:1], x[:1], 4),
        (x[:3], x[:1], 100),
        (x[[0, 0]], x[[0, 0, 0, 1]], 2),
        (torch.zeros(2, 6), x, 3),
        (x, torch.zeros(4, 6), 3),
        (torch.zeros(1, 6), torch.zeros(3, 6), 1),
        (x[:2], -x[:2], 1),
    ):
        for value in (None, nn.Identity()):
            module = MODULES[name](k=k, value=value).eval()
            for t in (*module.transfer(query, gallery), module.distance(query, gallery)):
                assert torch.isfinite(t).all()
            half = module.bfloat16().distance(query.bfloat16(), gallery.bfloat16())
            assert torch.isfinite(half).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_inference_under_autocast_is_as_exact_as_without(name, half, device):
    """Neighbors, and which of them a query displaces, must not depend on the last bits of a half-precision cosine."""
    x, _ = batch(3, 30, 60, dim=6, device=device)
    module = MODULES[name]().to(device).eval()
    expected = module.double().distance(x[:30], x[30:])
    module.float()
    with torch.autocast(device.type, dtype=half):
        distance = module.distance(x[:30].float(), x[30:].float())
        f_q, f_g = module.transfer(x[:30].float(), x[30:].float())
    assert_close(distance.double(), expected, rtol=0, atol=1e-4)
    cosine = (nn.functional.normalize(f_q)[:, None] * nn.functional.normalize(f_g, dim=-1)).sum(-1)
    assert_close(1 - cosine.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("name", MODULES)
def test_a_zero_row_counts_itself_with_cosine_one_and_is_kept(name, k):
    """Its cosine with every row is 0, with itself 1: alone it stays, among all it has weight e^(1/tau) : 1."""
    x, modality = batch(3, 4, 4)
    x[modality == VISIBLE] = 0
    module = MODULES[name](k=k, value=nn.Identity()).double()
    out = module(x, modality)
    if name == "h2ft":
        f_q, f_g, a_het, a_hom = ref.h2ft(x, x, modality, k=k, tau_hom=0.4, tau_het=0.2)
        assert_close((out.affinity_het, out.affinity_hom), (a_het, a_hom), **EXACT)
        assert_close(out.gallery, f_g, **EXACT)
    elif name != "gft on groups":
        f_q, matrix = ref.gft(x, x, k=k, tau=0.2)
        assert_close((out.affinity_het, out.gallery), (matrix, f_q), **EXACT)
    else:
        f_q, f_g = ref.gft_groups(x, x, modality, k=k, tau=0.2)
        expected = per_image(torch.stack([f for *_, f in f_g]), [g for _, g, _ in f_g])
        assert_close(per_image(out.gallery, out.gallery_index.tolist()), expected, **EXACT)
    assert_close(out.query, f_q, **EXACT)

    query, gallery = torch.cat([x[:2], torch.zeros(1, 6).double()]), x.roll(1, 0)
    if name == "h2ft":
        f_q, f_g, _ = ref.h2ft_transfer(query, gallery, k=k, tau_hom=0.4, tau_het=0.2)
    else:
        f_q, f_g, _, _ = ref.gft_transfer(query, gallery, k=k, tau=0.2)
    assert_close(module.transfer(query, gallery), (f_q, f_g), **EXACT)
    assert_close(module.distance(query, gallery), ref.cosine_distance(f_q, f_g), **EXACT)


@pytest.mark.parametrize(("ng", "k"), [(1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5), (5, 4), (5, 7)])
def test_inference_at_every_boundary_of_k(ng, k):
    """k below, at and above the gallery's size, and with room for the query only."""
    x, _ = batch(11, 3, ng)
    h2ft, gft = H2FT(6, k=k, value=nn.Identity()), GFT(6, k=k, value=nn.Identity())
    f_q, f_g, _ = ref.h2ft_transfer(x[:3], x[3:], k=k, tau_hom=0.4, tau_het=0.2)
    assert_close(h2ft.transfer(x[:3], x[3:]), (f_q, f_g), **EXACT)
    f_q, f_g, _, _ = ref.gft_transfer(x[:3], x[3:], k=k, tau=0.2)
    assert_close(gft.transfer(x[:3], x[3:]), (f_q, f_g), **EXACT)
    assert_close(gft.distance(x[:3], x[3:]), ref.cosine_distance(f_q, f_g), **EXACT)


# -- GFT -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    seed=SEEDS,
    size=sizes(),
    k=st.integers(1, 12),
    training=st.booleans(),
    transferred=st.sampled_from(["values", "features"]),
)
def test_gft_equals_the_loop(device, seed, size, k, training, transferred):
    x, modality = batch(seed, *size, device=device)
    module = randomized(GFT(6, k=k, tau=0.3, transferred=transferred), seed).to(device).train(training)
    v = values_of(module, x)
    summed = v if transferred == "values" else x.cpu()
    expected, matrix = ref.gft(v, summed, k=k, tau=0.3)
    out = module(x, modality)
    for name in ("query", "gallery"):
        assert_close(getattr(out, name).cpu(), expected, **EXACT)
    for name in ("affinity_het", "affinity_hom"):
        assert_close(getattr(out, name).cpu(), matrix, **EXACT)
    assert_close(out.values.cpu(), summed, **EXACT)
    assert out.gallery_index.tolist() == list(range(len(x)))


def per_image(rows: Tensor, index: list[int]) -> dict[int, Tensor]:
    """The rows of each gallery image, sorted: which group a row is from has no name."""
    grouped = defaultdict(list)
    for row, image in zip(rows.tolist(), index, strict=True):
        grouped[image].append(row)
    return {image: torch.tensor(sorted(rows), dtype=torch.double) for image, rows in sorted(grouped.items())}


@settings(max_examples=20)
@given(seed=SEEDS, size=sizes(), k=st.integers(1, 9), training=st.booleans())
def test_gft_on_groups_equals_the_loop(device, seed, size, k, training):
    x, modality = batch(seed, *size, device=device)
    module = randomized(GFT(6, k=k, tau=0.3, unbalanced=True), seed).to(device).train(training)
    v = values_of(module, x)
    f_q, f_g = ref.gft_groups(v, v, modality.cpu(), k=k, tau=0.3)
    out = module(x, modality)
    assert_close(out.query.cpu(), f_q, **EXACT)
    assert out.gallery.shape == (2 * size[0] * size[1], 6)
    assert out.gallery_index.shape == (2 * size[0] * size[1],)
    ours = per_image(out.gallery.cpu(), out.gallery_index.tolist())
    loop = per_image(torch.stack([f for *_, f in f_g]) if f_g else torch.zeros(0, 6), [g for _, g, _ in f_g])
    assert_close(ours, loop, **EXACT)


@pytest.mark.parametrize("transferred", ["values", "features"])
def test_gft_on_groups_has_the_gradients_of_the_loop(transferred):
    x, modality = batch(6, 3, 4)
    module = randomized(GFT(6, k=2, tau=0.3, unbalanced=True, transferred=transferred)).train()
    ours = x.clone().requires_grad_()
    out = module(ours, modality)
    (out.query.pow(3).sum() + out.gallery.pow(3).sum()).backward()
    loop = x.clone().requires_grad_()
    v = values_of(module, loop)
    f_q, f_g = ref.gft_groups(v, v if transferred == "values" else loop, modality, k=2, tau=0.3)
    (f_q.pow(3).sum() + sum(f.pow(3).sum() for *_, f in f_g)).backward()
    assert_close(ours.grad, loop.grad, **EXACT)


def test_gft_distance_where_a_query_displaces_gallery_neighbors():
    """Queries beside one of three gallery clusters: they join the neighbors of its rows only."""
    g = torch.Generator().manual_seed(0)
    centers = torch.eye(3, 6).double().repeat_interleave(5, 0)
    gallery = centers + 0.2 * torch.randn(15, 6, generator=g).double()
    query = torch.stack([torch.eye(3, 6).double()[0], -torch.ones(6).double(), torch.eye(3, 6).double()[2]])
    query = query + 0.05 * torch.randn(3, 6, generator=g).double()
    module = GFT(6, k=4, tau=0.2, value=nn.Identity()).double()
    for rows, some_displaced in (([0], True), ([1], False), ([2], True), ([0, 1, 2], True)):
        f_q, f_g, taken, free = ref.gft_transfer(query[rows], gallery, k=4, tau=0.2)
        assert (taken > 0) == some_displaced
        assert free > 0
        assert_close(module.distance(query[rows], gallery), ref.cosine_distance(f_q, f_g), **EXACT)
        assert_close(module.transfer(query[rows], gallery), (f_q, f_g), **EXACT)


def test_gft_of_features_where_a_query_displaces_gallery_neighbors():
    """v turns the features around: neighbors are those of v, what is summed is not, and lengths differ widely."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=g).double() * torch.logspace(-3, 3, 30).double()[torch.randperm(30), None]
    value = nn.Linear(6, 6, bias=False).double()
    nn.init.orthogonal_(value.weight)
    module = GFT(6, k=4, tau=0.2, value=nn.Sequential(value, nn.Tanh()), transferred="features").double()
    v = module.embed("x", x)
    f_q, f_g, taken, free = ref.gft_transfer(v[:8], v[8:], k=4, tau=0.2, summed=(x[:8], x[8:]))
    assert taken > 5
    assert free > 5
    assert_close(module.transfer(x[:8], x[8:]), (f_q, f_g), rtol=1e-9, atol=1e-9)
    assert_close(module.distance(x[:8], x[8:]), ref.cosine_distance(f_q, f_g), **EXACT)
    assert_close(module.distance(x[[7]], x[8:]), ref.cosine_distance(f_q[[7]], f_g[[7]]), **EXACT)
    other, *_ = ref.gft_transfer(v[:8], v[8:], k=4, tau=0.2)
    assert (other - f_q).abs().max() > 0.1
    assert "transferred='features'" in repr(module)


def test_equal_values_of_different_features_are_told_apart():
    """v of both gallery images is 0, so that each is itself only: their features decide."""
    module = GFT(2, k=1, value=nn.Threshold(10, 0), transferred="features")
    distance = module.distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert_close(distance, torch.tensor([[0.0, 1.0]]))


def test_a_graph_of_values_cannot_transfer_features():
    module, x = GFT(6, transferred="features"), torch.randn(9, 6)
    with pytest.raises(ValueError, match="transferred='features' needs the features, and a graph holds v of them"):
        module.prepare_gallery(NeighborGraph.build(module.embed("x", x), 4))


@pytest.mark.parametrize("make", [H2FT, GFT])
def test_transfer_is_the_forward_pass_over_query_and_gallery(make):
    """A training batch of one query and a gallery of the other modality is the test-time graph."""
    x, _ = batch(4, 1, 9)
    module = randomized(make(6)).eval()
    out = module(x, torch.tensor([VISIBLE] + [INFRARED] * 9))
    f_q, f_g = module.transfer(x[:1], x[1:])
    assert_close(f_q, out.query[:1], **EXACT)
    assert_close(f_g.view(9, 6), out.gallery[1:], **EXACT)


@pytest.mark.parametrize(("nq", "ng"), [(150, 37), (37, 150)])
def test_gft_distance_equals_its_transfer_on_more_rows(nq, ng):
    """Enough rows that blocks begin and end inside them, or that every query displaces somebody."""
    x, _ = batch(8, nq, ng)
    module = randomized(GFT(6, k=5)).eval()
    f_q, f_g = module.transfer(x[:nq], x[nq:])
    expected = 1 - torch.einsum("qd,qgd->qg", nn.functional.normalize(f_q), nn.functional.normalize(f_g, dim=2))
    assert_close(module.distance(x[:nq], x[nq:]), expected, **EXACT)
    some = torch.randperm(nq)[:5]
    assert_close(module.distance(x[some], x[nq:]), expected[some], **EXACT)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: H2FT(6, k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: H2FT(6, k=2.0), TypeError, r"k must be an integer, got 2\.0"),
        (lambda: H2FT(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: H2FT(6, tau_hom=0.0), ValueError, r"tau_hom must be above 0 and finite, got 0\.0"),
        (lambda: H2FT(6, tau_het=-1.0), ValueError, r"tau_het must be above 0 and finite, got -1\.0"),
        (lambda: GFT(6, k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: GFT(6, tau=0.0), ValueError, r"tau must be above 0 and finite, got 0\.0"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("which", ["query", "gallery"])
@pytest.mark.parametrize("method", ["transfer", "distance"])
@pytest.mark.parametrize("name", MODULES)
def test_bad_features_at_inference(name, method, which):
    x, broken = torch.randn(4, 6), torch.randn(4, 6)
    broken[1, 2] = torch.nan
    for wrong, error, message in (
        (x[:, :5], ValueError, rf"{which} must have shape \(N, 6\), got \(4, 5\)"),
        (x.long(), TypeError, rf"{which} must be floating point, got torch\.int64"),
        (x.numpy(), TypeError, rf"{which} must be a torch\.Tensor, got ndarray"),
        (x.to("meta"), (TypeError, ValueError), f"{which} must .*, got .*meta"),
        (broken, ValueError, f"{which} must be finite.* 1 of 4 rows, first in row 1"),
    ):
        for k in (1, 4):
            with pytest.raises(error, match=message):
                getattr(MODULES[name](k=k), method)(**{"query": x, "gallery": x} | {which: wrong})
    with pytest.raises(ValueError, match="gallery must"):
        getattr(MODULES[name](), method)(x, x[:0])


@pytest.mark.parametrize("kind", [H2FT, GFT])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_and_gallery_of_different_precision_are_compared_in_the_higher_one(kind, dtype):
    q, g = torch.randn(4, 6).to(dtype), torch.randn(7, 6)
    for value in (None, nn.Identity()):
        module = kind(6, value=value)
        assert_close(module.distance(q, g), module.distance(q.float(), g), rtol=0, atol=1e-5, check_dtype=False)
        for found in (module.transfer(g, q), module.transfer(q, g)):
            assert found[0].dtype == found[1].dtype == torch.promote_types(dtype if value else g.dtype, g.dtype)


@pytest.mark.parametrize("kind", [H2FT, GFT])
@pytest.mark.parametrize(
    ("dtype", "power"),
    [(torch.float32, 64), (torch.float32, 120), (torch.float32, -100), (torch.float64, 190), (torch.float64, -190)],
    ids=str,
)
def test_distances_do_not_depend_on_the_unit_of_the_features(kind, dtype, power):
    q, g, unit = torch.randn(5, 6, dtype=dtype), torch.randn(9, 6, dtype=dtype), 2.0**power
    module = kind(6, k=3, value=nn.Identity())
    tolerance = {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps}
    assert_close(module.distance(q * unit, g * unit), module.distance(q, g), **tolerance)
    if dtype == torch.float64:
        with pytest.raises(ValueError, match=r"query must have entries from 2\*\*-200 to"):
            module.distance(q * unit * unit, g)


# -- compilers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compile():
    x, modality = batch(0, 4, 4)
    module = H2FT(6).double()
    compiled = torch.compile(copy.deepcopy(module))
    assert_close(tuple(compiled(x, modality)), tuple(module(x, modality)), **EXACT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_export():
    x, modality = batch(0, 4, 4)
    module = H2FT(6).double().eval()
    program = torch.export.export(module, (x, modality))
    other, kinds = batch(1, 4, 4)
    for ours, exported in zip(module(other, kinds), program.module()(other, kinds), strict=True):
        assert_close(exported, ours, **EXACT)
