"""Sparse rows as people have them: words of documents, hashed words, categories, counts."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

TOPICS = 20


def text(n: int, d: int, words: int) -> scipy.sparse.csr_array:
    """Return how often words occur (n, d) in documents of about so many `words`, CSR, float64.

    Words come as often as Zipf's law says; three in ten are those of one of some topics.
    """
    rng = np.random.default_rng(0)
    often = np.arange(1, d + 1) ** -1.07
    lengths = rng.poisson(words, n) + 1
    drawn = rng.choice(d, lengths.sum(), p=often / often.sum())
    document = np.repeat(np.arange(n), lengths)
    own = np.stack([rng.permutation(d) for _ in range(TOPICS)])[rng.integers(TOPICS, size=n)]
    features = np.where(rng.random(drawn.size) < 0.3, own[document, drawn], drawn)
    x = scipy.sparse.coo_array((np.ones(drawn.size), (document, features)), shape=(n, d)).tocsr()
    return as_scikit_learn_takes_it(x)


def weighed(x: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return TF-IDF: counts times the logarithm of how rare words are, rows of length one."""
    rare = np.log((1 + x.shape[0]) / (1 + np.bincount(x.indices, minlength=x.shape[1]))) + 1
    values = x.data * rare[x.indices]
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    lengths = np.sqrt(np.bincount(row, values**2))
    return scipy.sparse.csr_array((values / lengths[row], x.indices, x.indptr), shape=x.shape)


def one_hot(n: int, d: int, features: int) -> scipy.sparse.csr_array:
    """Return categorical `features` (n, d), each of ``d / features`` categories, as columns of 0 and 1."""
    rng = np.random.default_rng(0)
    each = d // features
    kind = rng.integers(3, size=(n, 1))
    category = (rng.integers(each, size=(n, features)) // 2 + kind * each // 3) % each
    columns = category + np.arange(features) * each
    starts = np.arange(n + 1) * features
    x = scipy.sparse.csr_array((np.ones(n * features), columns.ravel(), starts), shape=(n, d))
    return as_scikit_learn_takes_it(x)


def as_scikit_learn_takes_it(x: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Return the same rows with indices of 32 bits."""
    starts = x.indptr.astype(np.int32)
    return scipy.sparse.csr_array((x.data, x.indices.astype(np.int32), starts), shape=x.shape)


DATA: dict[str, tuple[int, Callable[[], scipy.sparse.csr_array]]] = {
    "text": (20, lambda: weighed(text(3000, 8000, 80))),
    "hashed": (10, lambda: weighed(text(500, 1 << 20, 200))),
    "one-hot": (10, lambda: one_hot(20_000, 500, 20)),
    "counts": (20, lambda: text(3000, 8000, 80)),
}
"""k, and rows, by name"""


def centres(x: scipy.sparse.csr_array, k: int) -> NDArray:
    """Return k different rows, dense."""
    return x[np.sort(np.random.default_rng(1).choice(x.shape[0], k, replace=False))].toarray()
