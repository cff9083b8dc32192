"""KMeans and MiniBatchKMeans: scikit-learn estimators over the functions of the core.

They take whatever scikit-learn's own take, and arrays of any library besides: what goes in on a GPU
comes out on it. What is computed is the core's business.
"""

from anykmeans.estimators.kmeans import KMeans
from anykmeans.estimators.minibatch import MiniBatchKMeans

__all__ = ["KMeans", "MiniBatchKMeans"]
