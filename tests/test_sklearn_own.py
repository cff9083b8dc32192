"""scikit-learn's own tests of k-means, with our classes in place of its own."""

import importlib.util

import numpy as np
import pytest
import sklearn.cluster
from sklearn.utils.fixes import parse_version

import anykmeans

if parse_version(sklearn.__version__) < parse_version("1.9"):
    pytest.skip("what differs is known of scikit-learn 1.9", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # as scikit-learn runs them

# Tests that fail, and why that is right.
DIFFERENCES = {
    "test_kmeans_init_auto_with_initial_centroids": "reads `_n_init`, which ours do not keep",
    "test_n_init_auto": "reads `_n_init`, which ours do not keep",
    "test_sample_weight_init": "calls `_init_centroids`, a private method",
    "test_sample_weight_zero": "calls `_init_centroids`, a private method",
}
# Tests of nothing of ours: scikit-learn's private functions, and `k_means`.
LEFT_OUT = {
    "test_euclidean_distance",
    "test_inertia",
    "test_is_same_clustering",
    "test_k_means_function",
    "test_minibatch_reassign",
    "test_minibatch_update_consistency",
    "test_relocate_empty_clusters",
}


def own_tests():
    """The tests of a copy of scikit-learn's module, made while our classes have the names of its own."""
    spec = importlib.util.find_spec("sklearn.cluster.tests.test_k_means")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("KMeans", "MiniBatchKMeans", "kmeans_plusplus"):
            patch.setattr(sklearn.cluster, name, getattr(anykmeans, name))
        spec.loader.exec_module(module)
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    assert tests.keys() >= LEFT_OUT | DIFFERENCES.keys()
    for name, reason in DIFFERENCES.items():
        tests[name] = pytest.mark.xfail(strict=True, raises=AttributeError, reason=reason)(
            tests[name]
        )
    return {name: test for name, test in tests.items() if name not in LEFT_OUT}


globals().update(own_tests())


@pytest.fixture
def global_random_seed():
    return 42


@pytest.fixture
def global_dtype():
    return np.float64
