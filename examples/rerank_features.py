"""Re-rank features that other code extracted: NumPy arrays in, a report out.

    python examples/rerank_features.py

Nothing here needs an image or an extra. Random features stand for yours: one row per image, with the identity, the
modality (0 visible, 1 infrared) and, where the protocol asks for it, the camera of each.
"""

from functools import partial

import numpy as np

from vireid.protocols import RegDB, Report
from vireid.rerank import AIM, aim, k_reciprocal


def load_yours(identities: int = 60, images: int = 4, dim: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features (N, d), ids (N,) and modality (N,), as np.load would."""
    rng = np.random.default_rng(0)
    ids = np.tile(np.repeat(np.arange(identities), images), 2)
    modality = np.repeat([0, 1], identities * images)
    centers, shift = rng.normal(size=(identities, dim)), rng.normal(size=(2, dim))
    features = centers[ids] + 0.7 * shift[modality] + 1.5 * rng.normal(size=(len(ids), dim))
    return features.astype(np.float32), ids, modality


def main() -> None:
    """Compare the cosine distance, AIM with the paper's k1 and k2, and k-reciprocal; then answer a single query."""
    features, ids, modality = load_yours()
    protocol = RegDB("infrared_to_visible")
    ways = {
        "none": None,
        "AIM": partial(aim, k1=8, k2=2),
        "k-reciprocal": partial(k_reciprocal, k1=20, k2=6),
    }
    reports = [
        protocol.evaluate(features, ids, modality, rerank=rerank, features_name="mine", rerank_name=name)
        for name, rerank in ways.items()
    ]
    print(Report.merge(reports))

    gallery = np.flatnonzero(modality == 0)
    reranker = AIM(k1=8, k2=2).fit(features[gallery])
    query = np.flatnonzero(modality == 1)[0]
    _, index = reranker.topk(features[[query]], 5)
    print(f"identity {ids[query]}: its five nearest are of {ids[gallery[index[0]]].tolist()}")


if __name__ == "__main__":
    main()
