"""How one labelled data set is divided among clients: pure functions, disjoint and complete, repeatable by seed.

Each returns one array of indices per client, in random order, so that a prefix of it is a fair sample of the client.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
Parts = list[NDArray[np.int64]]


def iid(labels: Labels, of: int, seed: int) -> Parts:
    """Shuffle, and cut into `of` parts whose sizes differ by one at most."""
    return [np.asarray(part) for part in np.array_split(np.random.default_rng(seed).permutation(len(labels)), of)]


def shards(labels: Labels, of: int, seed: int, shards_per_client: int = 2) -> Parts:
    """Sort by label, cut into `of * shards_per_client` shards, and deal each client that many at random.

    With two shards a client sees about two classes: the pathological split of McMahan et al. 2017, section 3.
    """
    rng = np.random.default_rng(seed)
    pieces = np.array_split(np.argsort(labels, kind="stable"), of * shards_per_client)
    dealt = rng.permutation(len(pieces)).reshape(of, shards_per_client)
    return [rng.permutation(np.concatenate([pieces[i] for i in hand])) for hand in dealt]


def dirichlet(labels: Labels, of: int, seed: int, alpha: float = 0.5) -> Parts:
    """Divide each class by proportions drawn from Dirichlet(alpha): a small alpha gives each class to few clients.

    Hsu et al. 2019. Sizes differ, and with a small alpha a client may get nothing.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(of)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(of, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]
