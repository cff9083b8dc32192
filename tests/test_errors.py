"""Bad input is refused before any work, in one voice: the argument, what was wanted, what came."""

import datetime
import sys
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from anykmeans import KMeans, assign, kmeans, kmeans_plusplus

NAN, INF = float("nan"), float("inf")


def good():
    return np.arange(16.0).reshape(8, 2) ** 2


def spoilt(value, at=(5, 1), dtype=float):
    x = good().astype(dtype)
    x[at] = value
    return x


def weights(*changes):
    w = np.ones(8)
    for i, value in changes:
        w[i] = value
    return w


def start(value=None):
    c = good()[:3].copy()
    if value is not None:
        c[1, 1] = value
    return c


BAD_X = [
    (spoilt(NAN), ValueError, "NaN"),
    (spoilt(NAN, (0, 0)), ValueError, "NaN"),
    (spoilt(NAN, (7, 0), "float32"), ValueError, "NaN"),
    (spoilt(INF), ValueError, "infinity"),
    (spoilt(-INF), ValueError, "infinity"),
    (spoilt(INF, dtype="float16"), ValueError, "65504"),
    (spoilt(INF, dtype="float32"), ValueError, "infinity"),
    (np.arange(8.0), ValueError, r"\(8,\)"),
    (np.float64(3), ValueError, r"\(\)"),
    (3.5, ValueError, r"\(\)"),
    (good()[None, None], ValueError, r"\(1, 1, 8, 2\)"),
    (np.empty((0, 2)), ValueError, r"\(0, 2\)"),
    (np.empty((8, 0)), ValueError, r"\(8, 0\)"),
    ([], ValueError, r"\(0,\)"),
    ([[1.0, 2.0], [3.0]], ValueError, "length"),
    (good() * 1j, ValueError, "complex128"),
    (good().astype("complex64"), ValueError, "complex64"),
    (good().astype(object), TypeError, "object"),
    (np.array([["a", "b"], ["c", "d"], ["e", "f"]]), TypeError, "str|<U1"),
    (np.array([[b"a"], [b"b"], [b"c"]]), TypeError, "S1|bytes"),
    (np.array([["2020-01-01"]] * 3, dtype="datetime64[D]"), TypeError, "datetime64"),
    (np.zeros((8, 2), dtype="timedelta64[s]"), TypeError, "timedelta64"),
    (np.zeros(8, dtype=[("a", float), ("b", float)]), (TypeError, ValueError), ""),
    (None, (TypeError, ValueError), ""),
    ("rows", (TypeError, ValueError), ""),
    ([[None, 1.0], [2.0, 3.0], [4.0, 5.0]], TypeError, "object"),
]
BAD_OPTIONS = [
    ("k", 0, ValueError, "0"),
    ("k", -1, ValueError, "-1"),
    ("k", 9, ValueError, r"9.*\(8, 2\)"),
    ("k", np.int64(9), ValueError, "9"),
    ("k", 3.0, TypeError, "3.0"),
    ("k", 2.5, TypeError, "float"),
    ("k", True, TypeError, "True"),
    ("k", np.True_, TypeError, "True"),
    ("k", "3", TypeError, "'3'"),
    ("k", None, TypeError, "None"),
    ("k", [3], TypeError, r"\[3\]"),
    ("sample_weight", weights((2, -1)), ValueError, "-1"),
    ("sample_weight", np.zeros(8), ValueError, "zero"),
    ("sample_weight", weights((0, NAN)), ValueError, "NaN"),
    ("sample_weight", weights((7, INF)), ValueError, "infinity"),
    ("sample_weight", np.ones(7), ValueError, r"\(7,\)"),
    ("sample_weight", np.ones((8, 1)), ValueError, r"\(8, 1\)"),
    ("sample_weight", np.ones(8) * 1j, (TypeError, ValueError), "complex"),
    ("sample_weight", np.array(["a"] * 8), TypeError, "str|<U1"),
    ("sample_weight", np.array([None] * 8), (TypeError, ValueError), ""),
    ("sample_weight", "heavy", (TypeError, ValueError), ""),
    ("init", good()[:2], ValueError, r"\(2, 2\) does not match the number of clusters 3\."),
    ("init", good()[:4], ValueError, r"\(4, 2\)"),
    (
        "init",
        np.ones((3, 3)),
        ValueError,
        r"\(3, 3\) does not match the number of features of .* 2\.",
    ),
    ("init", np.ones(3), ValueError, r"\(3,\)"),
    ("init", start(NAN), ValueError, "NaN"),
    ("init", start(INF), ValueError, "infinity"),
    ("init", start() * 1j, (TypeError, ValueError), "complex"),
    ("init", "kmeans++", ValueError, "'kmeans\\+\\+'"),
    ("init", None, (TypeError, ValueError), "None|\\(\\)"),
    ("init", 3, (TypeError, ValueError), "3|\\(\\)"),
    ("n_init", 0, ValueError, "0"),
    ("n_init", -2, ValueError, "-2"),
    ("n_init", 1.5, TypeError, "1.5"),
    ("n_init", True, TypeError, "True"),
    ("n_init", "many", (TypeError, ValueError), "'many'"),
    ("n_init", None, (TypeError, ValueError), "None"),
    ("max_iter", 0, ValueError, "0"),
    ("max_iter", -1, ValueError, "-1"),
    ("max_iter", 10.0, TypeError, "10.0"),
    ("max_iter", None, TypeError, "None"),
    ("tol", -1e-9, ValueError, "-1e-09"),
    ("tol", NAN, ValueError, "nan"),
    ("tol", INF, ValueError, "inf"),
    ("tol", "tight", TypeError, "'tight'"),
    ("tol", None, TypeError, "None"),
    ("tol", 1e-4j, TypeError, "complex"),
    ("rng", "seed", (TypeError, ValueError), "'seed'"),
    ("rng", 1.5, (TypeError, ValueError), "1.5"),
    ("rng", -1, (TypeError, ValueError), "-1"),
    ("empty", "drop", ValueError, "'drop'"),
    ("empty", None, ValueError, "None"),
    ("precision", "double", ValueError, "'double'"),
    ("precision", None, ValueError, "None"),
    ("max_bytes", 0, ValueError, "0"),
    ("max_bytes", -5, ValueError, "-5"),
    ("max_bytes", 1, ValueError, "max_bytes=1"),
    ("max_bytes", 1e6, TypeError, "1000000.0"),
    ("max_bytes", "1GB", TypeError, "'1GB'"),
    ("kernel", "fastest", ValueError, "'fastest'"),
    ("kernel", None, ValueError, "None"),
    ("kernel", "torch", ValueError, "torch"),
    ("kernel", "cupy", ValueError, "cupy"),
]


def check_message(caught, name, about):
    """The message opens with the argument in backticks, says what came, and ends as a sentence."""
    message = str(caught.value)
    assert message.startswith(f"`{name}`"), message
    assert " must " in message or " cannot " in message, message
    assert "got " in message or "kernel" in message, message
    assert "\n    " in message or message.endswith("."), message
    caught.match(about)


@pytest.mark.parametrize(("x", "error", "about"), BAD_X, ids=lambda v: type(v).__name__)
def test_bad_x(x, error, about):
    def init(*_args, **_options):
        raise AssertionError("work began")

    with pytest.raises(error) as caught:
        kmeans(x, 3, init=init)
    check_message(caught, "x", about)
    with pytest.raises(error) as caught:
        assign(x, start())
    check_message(caught, "x", about)
    with pytest.raises(error) as caught:
        kmeans_plusplus(x, 3)
    check_message(caught, "X", about)


@pytest.mark.parametrize(
    ("name", "value", "error", "about"), BAD_OPTIONS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_bad_options(name, value, error, about):
    calls = []

    def init(*_args, **_options):
        calls.append(1)
        return start()

    x = good()
    options = {"k": 3, "init": init, name: value}
    with pytest.raises(error) as caught:
        kmeans(x, **options)
    check_message(caught, name, about)
    assert not calls, "work began"
    np.testing.assert_array_equal(x, good())


@pytest.mark.parametrize(
    ("name", "value", "error", "about"),
    [
        ("n_clusters", 0, ValueError, "0"),
        ("n_clusters", 9, ValueError, "9"),
        ("n_clusters", 2.0, TypeError, "2.0"),
        ("sample_weight", np.ones(3), ValueError, r"\(3,\)"),
        ("sample_weight", -np.ones(8), ValueError, "-1"),
        ("sample_weight", np.zeros(8), ValueError, "zero"),
        ("x_squared_norms", np.ones(7), ValueError, r"norms 7 should be equal to .* n_samples 8\."),
        ("x_squared_norms", 1.0, ValueError, r"\(\)"),
        ("max_bytes", 1, ValueError, "max_bytes=1"),
        ("kernel", "torch", ValueError, "torch"),
        ("n_local_trials", 0, ValueError, "0"),
        ("n_local_trials", 1.5, TypeError, "1.5"),
        ("random_state", "seed", (TypeError, ValueError), "'seed'"),
    ],
)
def test_bad_options_of_kmeans_plusplus(name, value, error, about):
    with pytest.raises(error) as caught:
        kmeans_plusplus(good(), **{"n_clusters": 3, name: value})
    check_message(caught, name, about)


@pytest.mark.parametrize(
    ("centroids", "error", "about"),
    [
        (np.ones((3, 3)), ValueError, r"\(3, 3\)"),
        (np.ones(2), ValueError, r"\(2,\)"),
        (np.empty((0, 2)), ValueError, r"\(0, 2\)"),
        (start(NAN), ValueError, "NaN"),
        (start(-INF), ValueError, "infinity"),
        (start() * 1j, (TypeError, ValueError), "complex"),
        (start().astype(str), TypeError, "str|<U"),
        (None, (TypeError, ValueError), ""),
    ],
)
def test_bad_centroids(centroids, error, about):
    with pytest.raises(error) as caught:
        assign(good(), centroids)
    check_message(caught, "centroids", about)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_bytes", 1), ("max_bytes", "1GB"), ("kernel", "fastest"), ("kernel", "torch")],
)
def test_bad_options_of_assign(name, value):
    for x in (good(), good()[None]):
        with pytest.raises((TypeError, ValueError)) as caught:
            assign(x, start(), **{name: value})
        check_message(caught, name, str(value))


def masked(a):
    """The array with one value masked."""
    return np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) == 1)


@pytest.mark.parametrize("as_given", [lambda a: a, list], ids=["array", "list"])
def test_masked_values(as_given):
    for call, name in [
        (lambda: kmeans(as_given(masked(good())), 2), "x"),
        (lambda: kmeans(good(), 3, init=as_given(masked(start()))), "init"),
        (lambda: assign(good(), as_given(masked(start()))), "centroids"),
        (lambda: kmeans_plusplus(as_given(masked(good())), 2), "X"),
    ]:
        with pytest.raises(ValueError, match=r"must have no masked values; got 1") as caught:
            call()
        check_message(caught, name, "Remove or impute")
    with pytest.raises(ValueError, match=r"^`sample_weight` must have no masked values"):
        kmeans(good(), 2, sample_weight=masked(weights()))
    whole = np.ma.masked_array(good())
    assert kmeans(as_given(whole), 2, rng=0).inertia == kmeans(good(), 2, rng=0).inertia


def unusual():
    """What people pass, and the line that makes an array of it, if there is one."""
    pd, pl, torch = (pytest.importorskip(name) for name in ("pandas", "polars", "torch"))
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]
    computed = torch.nn.Linear(2, 2)(torch.tensor(vectors))
    return {
        "column of lists": (pd.Series(vectors), "numpy.stack(x)"),
        "column of arrays": (pd.Series(list(np.asarray(vectors))), "numpy.stack(x)"),
        "polars column of lists": (pl.Series(vectors), "numpy.stack(x)"),
        "frame of lists": (pd.DataFrame({"e": vectors}), "numpy.stack(x['e'])"),
        "polars frame of lists": (pl.DataFrame({"e": vectors}), "numpy.stack(x['e'])"),
        "array of arrays": (pd.Series(vectors).to_numpy(), "numpy.stack(x)"),
        "lazy frame": (pl.LazyFrame({"a": [1.0, 2.0, 3.0]}), "x.collect()"),
        "generator": ((row for row in vectors), "list(x)"),
        "set": ({(1.0, 2.0), (3.0, 4.0), (5.0, 7.0)}, "list(x)"),
        "dictionary": ({"a": [1.0, 2.0, 3.0]}, "numpy.column_stack(list(x.values()))"),
        "column": (pd.Series([1.0, 2.0, 3.0]), "x.to_frame()"),
        "polars column": (pl.Series([1.0, 2.0, 3.0]), "x.to_frame()"),
        "list of tensors": (list(computed), "torch.stack(x)"),
        "nested tensor": (torch.nested.nested_tensor(list(computed), layout=torch.jagged), None),
        "dates": (pl.DataFrame({"a": [datetime.date(2020, 1, i) for i in (1, 2, 3)]}), None),
        "anything": (object(), None),
    }


def test_what_is_no_array_is_told_how_to_become_one():
    for what, (x, line) in unusual().items():
        with pytest.raises((TypeError, ValueError)) as caught:
            kmeans(x, 2)
        check_message(caught, "x", "")
        if line is not None:
            assert f"`{line}`" in str(caught.value), what
            scope = {name: sys.modules[name] for name in ("numpy", "torch")}
            assert kmeans(eval(line, {"x": x, **scope}), 2, rng=0).inertia >= 0
        with pytest.raises((TypeError, ValueError), match=r"^`init` must "):
            kmeans(good(), 3, init=x)


def test_dask_arrays_are_to_be_computed():
    class Lazy:
        def __dask_graph__(self):
            raise AssertionError("computed")

    for call in (lambda: kmeans(Lazy(), 2), lambda: kmeans(good(), 2, sample_weight=Lazy())):
        with pytest.raises(
            TypeError, match=r"^`(x|sample_weight)` must be in memory.*compute\(\)`"
        ):
            call()


def test_transforms_of_functions():
    torch = pytest.importorskip("torch")
    x = torch.rand(2, 9, 2)
    with pytest.raises(TypeError, match=r"^`x` must .*torch\.vmap.*a batch \(b, n, d\) may be"):
        torch.vmap(lambda x: kmeans(x, 2).centroids)(x)
    with pytest.raises(TypeError, match=r"^`x` must .*torch\.func"):
        torch.func.grad(lambda x: x.sum() * kmeans(x, 2).inertia)(x[0])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_not_finite_in_every_library(backend, make, kernel, dtype, bad):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    for at in [(0, 0), (4, 1), (7, 1)]:
        with pytest.raises(ValueError, match=r"^`x` must be finite; got (NaN|infinity)"):
            kmeans(make(spoilt(bad, at), dtype), 2, rng=0, kernel=kernel)
    with pytest.raises(ValueError, match=r"^`sample_weight` must be finite"):
        kmeans(make(good()), 2, sample_weight=make(weights((3, bad)), dtype), kernel=kernel)


def test_bad_kinds_in_every_library(backend, make, xp):
    with pytest.raises(ValueError, match=r"^`x` must hold real numbers; got complex64"):
        kmeans(make(good(), "complex64"), 2)
    with pytest.raises(ValueError, match=r"^`x` must have 2 dimensions.*got shape \(8,\)"):
        kmeans(make(good()[:, 0]), 2)
    with pytest.raises(ValueError, match=r"^`x` must have at least one row.*got shape \(0, 2\)"):
        kmeans(make(good()[:0]), 2)
    with pytest.raises(ValueError, match=r"^`k` must be between 1 and the number of rows; got k=9"):
        kmeans(make(good()), 9)
    with pytest.raises(ValueError, match=r"^`sample_weight` must not be negative"):
        kmeans(make(good()), 2, sample_weight=make(-weights()))
    with pytest.raises(ValueError, match=r"^`sample_weight` must not be all zero"):
        kmeans(make(good()), 2, sample_weight=make(0 * weights()))


def test_overflow_to_float16_is_named(backend, make):
    if not backend.has_dtype("float16"):
        pytest.skip(f"{backend.name} has no float16")
    with np.errstate(over="ignore"):
        x = make(good() * 1000, "float16")
    with pytest.raises(ValueError, match=r"^`x` must be finite.*float16 overflows above 65504"):
        kmeans(x, 2)


def test_weights_beyond_any_product_with_the_rows():
    """Only their proportions matter: rows times weights overflow float64 here."""
    x = good() * 1e300
    plain = kmeans(x, 2, init=x[:2])
    heavy = kmeans(x, 2, init=x[:2], sample_weight=np.full(len(x), 2.0**1000))
    np.testing.assert_array_equal(heavy.centroids, plain.centroids)
    np.testing.assert_array_equal(heavy.labels, plain.labels)


def test_sums_beyond_float64():
    with pytest.raises(ValueError, match=r"^`x` must add up within float64.*Scale the data"):
        kmeans(np.full((8, 2), 1e308), 2)


def test_mixed_libraries_are_named_with_the_line_that_fixes_it(backend, make):
    """Nothing is moved silently: the message names both places and gives the line to paste."""
    if backend.name in ("numpy", "jax"):
        pytest.skip("takes NumPy's arrays as its own")
    x, other = make(good()), good()
    for call, name in [
        (lambda: kmeans(x, 3, init=other[:3]), "init"),
        (lambda: kmeans(x, 3, sample_weight=other[:, 0]), "sample_weight"),
        (lambda: assign(x, other[:3]), "centroids"),
    ]:
        with pytest.raises((TypeError, ValueError), match=rf"^`{name}`.*numpy") as caught:
            call()
        message = str(caught.value)
        assert backend.library.split(".")[0] in message
        line = message.splitlines()[-1]
        assert line.startswith("    "), "no line that fixes it"
        scope = {name: other[:3], "x": x, "xp": backend.xp, backend.library: backend.xp}
        exec(line.strip(), scope)  # the line does what it says
        assert type(scope[name]) is type(x)
    with pytest.raises((TypeError, ValueError), match=r"^`init`[^\n]*\n    "):
        kmeans(other, 3, init=x[:3, :])


@pytest.mark.parametrize("kept", ["sparse", "meta"])
def test_tensors_whose_numbers_are_not_at_hand(kept):
    torch = pytest.importorskip("torch")
    x = torch.asarray(good())

    def away(t):
        return t.to_sparse() if kept == "sparse" else t.to("meta")

    for name, call in {
        "x": lambda: kmeans(away(x), 3),
        "sample_weight": lambda: kmeans(x, 3, sample_weight=away(x[:, 0])),
        "init": lambda: kmeans(x, 3, init=away(x[:3])),
        "centroids": lambda: assign(x, away(x[:3])),
        "X": lambda: KMeans(3).fit(away(x)),
    }.items():
        with pytest.raises(TypeError, match=rf"^`{name}` must be a dense array.*{kept}"):
            call()


def test_mixed_devices_are_named(strict):
    x = strict.asarray(good(), device=strict.Device("device1"))
    with pytest.raises(ValueError, match=r"^`init`.*CPU_DEVICE.*device1"):
        kmeans(x, 3, init=strict.asarray(start()))


def test_named_kernel_that_cannot_run_gives_its_reason(backend, make):
    other = "torch" if backend.library != "torch" else "cupy"
    with pytest.raises(ValueError, match=f"(?s)^`kernel`='{other}' cannot run.*can run"):
        kmeans(make(good()), 2, kernel=other)


@pytest.mark.parametrize("empty_policy", ["relocate", "keep"])
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
def test_fewer_distinct_rows_than_clusters(backend, make, host, kernel, init, empty_policy):
    distinct = good()[:3]
    x = distinct[[0, 1, 2, 2, 1, 0, 0, 1, 1, 1]]
    with pytest.warns(ConvergenceWarning, match=r"3\b.*\b5\b"):
        result = kmeans(make(x), 5, init=init, rng=0, empty=empty_policy, kernel=kernel)
    centroids, labels = host(result.centroids), host(result.labels)
    assert np.isfinite(centroids).all()
    if init != "random":  # random starts may all lie on one row, and "keep" leaves them there
        assert result.inertia == 0
        np.testing.assert_array_equal(centroids[labels], x)
        assert len(set(labels.tolist())) == 3


def test_all_rows_equal(backend, make, host, kernel):
    with pytest.warns(ConvergenceWarning):
        result = kmeans(make(np.full((6, 3), 7.25)), 2, rng=0, kernel=kernel)
    assert (host(result.centroids) == 7.25).all()
    assert not host(result.labels).any()
    assert result.inertia == 0
    assert result.converged


def test_enough_distinct_rows_do_not_warn():
    x = good()[[0, 1, 2, 2, 1, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kmeans(x, 3, rng=0).inertia == 0
        kmeans(good(), 3, rng=0, max_iter=1)  # the outcome is data: converged=False, no warning


def test_empty_clusters_can_be_an_error(kernel):
    init = np.concatenate([good()[:2], [[1e6, 1e6]]])
    with pytest.raises(ValueError, match="empty"):
        kmeans(good(), 3, init=init, empty="error", kernel=kernel)
    assert kmeans(good(), 3, init=good()[:3], empty="error", kernel=kernel).converged


@pytest.mark.parametrize(
    ("wrong", "about"),
    [
        (np.ones((2, 2)), r"\(2, 2\)"),
        (start(NAN), "NaN"),
        (None, ""),
        (datetime.date(2020, 1, 1), ""),
    ],
)
def test_a_callable_that_returns_nonsense(wrong, about):
    with pytest.raises((TypeError, ValueError), match=f"(?s)^`init`.*{about}"):
        kmeans(good(), 3, init=lambda *_args, **_options: wrong, n_init=1)


def test_an_error_inside_a_callable_is_the_callers():
    def init(*_args, **_options):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        kmeans(good(), 3, init=init)


def test_the_estimator_speaks_its_own_names():
    with pytest.raises(ValueError, match="n_clusters"):
        KMeans(n_clusters=9).fit(good())
    with pytest.raises(ValueError, match="NaN"):
        KMeans(n_clusters=2).fit(spoilt(NAN))
