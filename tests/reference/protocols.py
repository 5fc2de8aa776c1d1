"""SYSU-MM01's and LLCM's galleries and metrics, in plain loops from the protocols' texts and from published code."""

import random

import numpy as np


def metrics(features, ids, query, gallery, skipped):
    """Metrics of one trial in percent, and the number of queries without a true match; ``skipped(q, g)`` is left out.

    CMC is over identities: an identity's second image takes no rank.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    ranks, aps, inps = [], [], []
    for q in query:
        kept = [g for g in gallery if not skipped(q, g)]
        # rounded, so that ties of the exact distances are ties here and in the float64 product
        kept = sorted(kept, key=lambda g: round(1 - float(unit[q] @ unit[g]), 9))
        listed = [ids[g] for g in kept]
        if ids[q] not in listed:
            continue
        places = [i + 1 for i, identity in enumerate(listed) if identity == ids[q]]
        aps.append(np.mean([(j + 1) / p for j, p in enumerate(places)]))
        inps.append(len(places) / places[-1])
        ranks.append(1 + len(set(listed[: places[0] - 1])))
    values = {f"rank{r}": 100 * np.mean(np.array(ranks) <= r) for r in (1, 5, 10, 20)}
    return values | {"mAP": 100 * np.mean(aps), "mINP": 100 * np.mean(inps)}, len(query) - len(ranks)


def files_by_folder(ids, cameras, numbers, wanted):
    """(identity, camera, sorted file names) of each folder, identity by identity and camera by camera."""
    for identity in sorted(set(ids.tolist())):
        for camera in wanted:
            files = sorted(f"{n:04d}.jpg" for n in numbers[(ids == identity) & (cameras == camera)])
            if files:
                yield identity, camera, files


def sysu_gallery(mode, shots, sampling, trial, ids, cameras, numbers, cells):
    """SYSU-MM01's gallery of one trial as (identity, camera, number); the caller's random state is put back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002, what the research code draws from
    random.seed(trial)
    np.random.seed(trial)  # noqa: NPY002
    gallery = []
    for i, c, files in files_by_folder(ids, cameras, numbers, (1, 2, 4, 5) if mode == "all" else (1, 2)):
        if sampling == "official":
            names = [f"{n:04d}.jpg" for n in cells[c - 1][i - 1][trial][:shots]]
        elif shots == 1:
            names = [random.choice(files)]
        else:
            names = np.random.choice(files, shots, replace=False)  # noqa: NPY002
        assert set(names) <= set(files)
        gallery += [(i, c, int(name[:4])) for name in names]
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    return gallery


def llcm_gallery(trial, ids, cameras, numbers):
    """LLCM's gallery of one trial as (identity, camera, number), among images of one modality."""
    state = random.getstate()
    random.seed(trial)
    folders = files_by_folder(ids, cameras, numbers, range(1, 10))
    gallery = [(i, c, int(random.choice(files)[:4])) for i, c, files in folders]
    random.setstate(state)
    return gallery
