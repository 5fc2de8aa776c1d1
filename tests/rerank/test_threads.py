"""Re-rankers that are fitted anew while another thread ranks."""

import functools
import threading

import pytest
import torch
from torch import nn

from vireid.nn import GFT, H2FT
from vireid.rerank import AIM, ECN, GNN, SIM, GraphTransfer, KReciprocal, QueryExpansion

MAKERS = {
    "aim": lambda: AIM(k1=5, k2=3),
    "aim-whole": lambda: AIM(k1=None, k2=2, variant="released"),
    "sim": lambda: SIM(k1=6, k2=7),
    "ecn": lambda: ECN(k=8),
    "gnn": lambda: GNN(k1=5, k2=3),
    "k-reciprocal": lambda: KReciprocal(k1=5, k2=3),
    "query-expansion": lambda: QueryExpansion(n=3),
    "h2ft": lambda: GraphTransfer(H2FT(8, value=nn.Identity())),
    "gft": lambda: GraphTransfer(GFT(8, value=nn.Identity())),
}


def points(n, seed):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def meanwhile(method, work):
    """Return ``method``, preceded at its first call by ``work`` in another thread, for whose end it waits."""
    called = threading.Event()

    def wrapped(*arguments):
        if not called.is_set():
            called.set()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(timeout=60)
            assert not thread.is_alive()
        return method(*arguments)

    return wrapped


@pytest.mark.parametrize("change", ["fit", "extend"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_query_is_answered_by_one_gallery(name, change, monkeypatch):
    q, old, new = points(5, 0), points(30, 1), points(41, 2)
    wanted = MAKERS[name]().fit(old)
    distance, best = wanted.distance(q), wanted.topk(q, 4)
    for use, right in ((lambda r: (r.distance(q),), (distance,)), (lambda r: r.topk(q, 4), best)):
        reranker = MAKERS[name]().fit(old)
        with monkeypatch.context() as patch:
            kind, work = type(reranker), functools.cache(functools.partial(getattr(reranker, change), new))  # once
            for method in ("_distance", "_nearest"):
                patch.setattr(kind, method, meanwhile(getattr(kind, method), work))
            found = use(reranker)
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
        assert len(reranker.graph) == len(new) + (change == "extend") * len(old)  # the change took place meanwhile


@pytest.mark.parametrize("name", MAKERS)
def test_the_old_gallery_answers_until_the_new_one_is_fitted(name, monkeypatch):
    q, old, new = points(5, 0), points(30, 1), points(41, 2)
    reranker, found = MAKERS[name]().fit(old), []
    wanted = reranker.distance(q)
    kind = type(reranker)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_prepare", meanwhile(kind._prepare, lambda: found.append(reranker.distance(q))))
        reranker.fit(new)
    assert torch.equal(found[0], wanted)
    assert torch.equal(reranker.distance(q), MAKERS[name]().fit(new).distance(q))
