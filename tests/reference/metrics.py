"""Plain loops of the ranking metrics, query by query and image by image, from the protocols' text."""

import numpy as np
import torch

from vireid import metrics
from vireid.neighbors._scores import cosine_distance


def draw_images(seed=0, n=48, dim=6):
    """Draw features of small integers, whose products are exact, labels, modality and cameras in mixed order."""
    r = np.random.default_rng(seed)
    features = torch.from_numpy(r.integers(-3, 4, (n, dim))).float()
    return features, *(torch.from_numpy(r.integers(high, size=n)) for high in (5, 2, 3))


def of_images(x, y, m, c, direction="visible_to_infrared", **options):
    """Metrics of all images at once; the features' products are exact, whatever the block."""
    q = m == (direction == "infrared_to_visible")
    distance = cosine_distance(x[q], x[~q])
    unit = torch.nn.functional.normalize(x.double())
    torch.testing.assert_close(distance.double(), 1 - unit[q] @ unit[~q].T, rtol=0, atol=1e-5)
    return metrics.rank_metrics(distance, y[q], y[~q], c[q], c[~q], **options)


def assert_same(a, b):
    """Compare two results of rank_metrics, to the bit."""
    for name in ("cmc", "average_precision", "inverse_negative_penalty", "first_match"):
        np.testing.assert_array_equal(np.asarray(getattr(a, name)), np.asarray(getattr(b, name)))
    assert (a.mAP, a.mINP, a.queries, a.valid_queries) == (b.mAP, b.mINP, b.queries, b.valid_queries)


def rank_metrics(distance, q_ids, g_ids, q_cams, g_cams, exclude, cmc_over):
    """CMC, mAP, mINP and the number of valid queries; 0 without one."""
    length = len(g_ids) if cmc_over == "images" else len(set(g_ids))
    hits, aps, inps = [0] * length, [], []
    for q in range(len(q_ids)):
        ranking = []
        for g in sorted(range(len(g_ids)), key=lambda g: (distance[q][g], g)):
            same_camera = exclude is not None and q_cams[q] == g_cams[g]
            if same_camera and (exclude == "same_camera" or q_ids[q] == g_ids[g]):
                continue
            ranking.append(g_ids[g])
        if q_ids[q] not in ranking:
            continue
        places = [i + 1 for i, identity in enumerate(ranking) if identity == q_ids[q]]
        aps.append(sum((j + 1) / place for j, place in enumerate(places)) / len(places))
        inps.append(len(places) / places[-1])
        listed = ranking
        if cmc_over == "identities":
            listed = [identity for i, identity in enumerate(ranking) if identity not in ranking[:i]]
        for r in range(listed.index(q_ids[q]), length):
            hits[r] += 1
    n = len(aps)
    return n and ([h / n for h in hits], sum(aps) / n, sum(inps) / n, n)
