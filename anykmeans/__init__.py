"""k-means written once against the Array API: one seed, one answer, on every array library."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from anykmeans._fork import first_call

__version__ = "0.1.0"

__all__ = [
    "KMeans",
    "KMeansResult",
    "MiniBatchKMeans",
    "__version__",
    "assign",
    "kmeans",
    "kmeans_plusplus",
]

# Loaded on first use (PEP 562): the estimators need scikit-learn, the functions SciPy, and neither
# is worth waiting for at `import anykmeans`.
_HOME = {
    "KMeans": "anykmeans.estimators",
    "MiniBatchKMeans": "anykmeans.estimators",
    "KMeansResult": "anykmeans._result",
    "assign": "anykmeans._kmeans",
    "kmeans": "anykmeans._kmeans",
    "kmeans_plusplus": "anykmeans._kmeans",
}

if TYPE_CHECKING:
    from anykmeans._kmeans import assign, kmeans, kmeans_plusplus
    from anykmeans._result import KMeansResult
    from anykmeans.estimators.kmeans import KMeans
    from anykmeans.estimators.minibatch import MiniBatchKMeans


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'anykmeans' has no attribute {name!r}")
    with first_call:
        value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
