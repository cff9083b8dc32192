"""What a call is about: one problem, or several, each clustered by itself, in whatever form they come.

Rows (n, d) are one problem. Several are a list of rows (n_i, d), or parts of one array: a batch (b, n, d), or rows (N, d) that lie
end to end, of which `lengths` tell. What is told of them is divided as they are, so that each has rows, weights, a number of
clusters, a way to begin, and a name by which errors call it.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._init import Init, given
from anykmeans._inputs import as_array, matrices
from anykmeans._libraries import Array, is_sparse, joined, take
from anykmeans._matrix import Dense, Matrix
from anykmeans._work import Work
from anykmeans.kernels import Kernel, choose
from anykmeans.sources.rows import Named, Rows

Group = tuple[list[Rows], list[Init], int]


class Problems(ABC):
    """One problem or several: what the caller has told of them, checked.

    Attributes
    ----------
    names : Names
        What the caller calls the rows of all, their number of clusters, and centroids.
    alone : bool
        Whether it is one, and results have neither axis nor list for it.
    sizes : list of int
        How many rows each has.
    features : list of int
        How many features each has.
    ks : list of int
        How many clusters each is to have.
    own_k : bool
        Whether each was given a number of its own.
    """

    sizes: list[int]
    features: list[int]
    alone = False

    def __init__(self, names: check.Names) -> None:
        self.names = names
        self.ks: list[int] = []
        self.own_k = self._own_centroids = False
        self._weights: Any = None
        self._first: Any = None  # for all, stacked, or a list

    def __len__(self) -> int:
        return len(self.sizes)

    # -- what is told -------------------------------------------------------------------------

    def cluster(self, k: Any, sample_weight: Any, init: Any) -> None:
        """Take down that they are to be clustered: into how many, by which weights, from where on."""
        name = self.names.k
        self.own_k = not self.alone and check.is_one_each(k)
        self.ks = check.wholes(k, name) if self.own_k else [check.whole(k, name, 1)] * len(self)
        self._refuse_others(len(self.ks), name, "a whole number")
        for i, (own, n) in enumerate(zip(self.ks, self.sizes, strict=True)):
            if own > n:
                check.clusters(own, self.rows(i), self.named(i))
        self._weights = None if sample_weight is None else self._weighed(sample_weight)
        if isinstance(init, str):
            self._first = check.word(init, "init", check.INITS)
        else:
            self._first = init if callable(init) else self._centroids(init, "init")

    def compare(self, centroids: Any) -> None:
        """Take down the centroids that they are to be compared with."""
        self._first = self._centroids(centroids, self.names.centroids)

    def _centroids(self, c: Any, name: str) -> Any:
        """Return checked centroids: of all at once, or a list of those of each."""
        each = None if self.alone else self._divided(c, name)
        if each is None:
            return self._shared(c, name)
        self._refuse_others(len(each), name, "centroids (k, d) for all")
        self._own_centroids = True
        return [
            check.centroids(own, self._beside(i), f"{name}[{i}]", k, self.named(i))
            for i, (own, k) in enumerate(zip(each, self._asked, strict=True))
        ]

    def _divided(self, c: Any, name: str) -> list[Any] | None:
        """Return the centroids of each problem if they are told one by one, or None."""
        if (each := matrices(c)) is not None:
            return each
        a = as_array(c, name)
        if len(a.shape) != 3:
            return None
        return list(c) if isinstance(c, list | tuple) else [take(a, i) for i in range(a.shape[0])]

    def _shared(self, c: Any, name: str) -> Any:
        """Return checked centroids that are those of every problem."""
        return [
            check.centroids(c, self._beside(i), name, k, self.named(i))
            for i, k in enumerate(self._asked)
        ]

    @property
    def _asked(self) -> Sequence[int | None]:
        """How many centroids each is to have: as many as there are where nothing is to be clustered."""
        return self.ks or [None] * len(self)

    def _refuse_others(self, number: int, name: str, one: str) -> None:
        """Raise if there is not one of what is called `name` for each problem."""
        if number != len(self):
            raise ValueError(
                f"`{name}` must be {one}, or one for each of the {len(self)} problems; got {number} of them."
            )

    @abstractmethod
    def _weighed(self, w: Any) -> Any:
        """Return checked weights."""

    @abstractmethod
    def _beside(self, i: int) -> Array:
        """Return an array (m, d) beside a problem's rows, with their features."""

    # -- what each is told --------------------------------------------------------------------

    @abstractmethod
    def name(self, i: int) -> str:
        """Return what the caller calls the rows of a problem."""

    def named(self, i: int) -> check.Names:
        """Return what the caller calls all that is of a problem."""
        if self.alone:
            return self.names
        k, c = self.names.k, self.names.centroids
        return check.Names(
            self.name(i),
            f"{k}[{i}]" if self.own_k else k,
            f"{c}[{i}]" if self._own_centroids else c,
        )

    @abstractmethod
    def rows(self, i: int) -> Array:
        """Return the rows (n, d) of a problem, in their library."""

    def first(self, i: int) -> Any:
        """Return the centroids of a problem, or what draws or makes them."""
        if isinstance(self._first, list):
            return self._first[i]
        return take(self._first, i) if len(getattr(self._first, "shape", ())) == 3 else self._first

    # -- the work, and what comes of it -------------------------------------------------------

    @abstractmethod
    def kernels(self, name: str, metric: str) -> list[Kernel]:
        """Return the kernel of each problem."""

    @abstractmethod
    def groups(self, kernels: list[Kernel], how: dict[str, Any]) -> Iterator[Group]:
        """Yield sources, told `how` as `Rows` is and not looked at yet, their inits and `k`: in order, those together that share launches."""

    @abstractmethod
    def part(self, matrix: Matrix, c: Array, labels: Array) -> tuple[Array, Array]:
        """Return what to keep of the centroids (g, k, d) and labels (g, n) that a group ended with, one of whose rows is a `matrix`."""

    @abstractmethod
    def whole(self, matrix: Matrix, cs: list[Array], labels: list[Array]) -> tuple[Any, Any]:
        """Return the centroids and labels of all, in the form that the rows came in, of what was kept of each group."""

    @abstractmethod
    def joined(self, parts: list[Array]) -> Any:
        """Return a value of each row, (n,) of each problem, in the form that the rows came in."""

    def numbers(self, values: list[Any]) -> Any:
        """Return a number of each problem, in NumPy, or that of the one there is."""
        dtype: Any = np.int64 if type(values[0]) is int else None
        return values[0] if self.alone else np.asarray(values, dtype)


class Apart(Problems):
    """Problems whose rows are arrays of their own, or one problem alone."""

    def __init__(self, xs: list[Array], names: check.Names, *, alone: bool) -> None:
        super().__init__(names)
        self.alone, self._xs = alone, xs
        self.sizes = [int(x.shape[0]) for x in xs]
        self.features = [int(x.shape[1]) for x in xs]

    def name(self, i: int) -> str:
        """Return what the caller calls the rows of a problem."""
        return self.names.x if self.alone else f"{self.names.x}[{i}]"

    def rows(self, i: int) -> Array:
        """Return the rows (n, d) of a problem, in their library."""
        return self._xs[i]

    _beside = rows

    def _weighed(self, w: Any) -> Any:
        """Return checked weights: a list of those of each problem, some of which may be None."""
        name = "sample_weight"
        if self.alone:
            return [check.weights(w, self._xs[0], self.names)]
        if not isinstance(w, list | tuple) or any(map(check.is_number, w)):
            raise TypeError(
                f"`{name}` must be a list of the weights of each problem, as `{self.names.x}` is one of rows; got "
                f"{type(w).__name__}."
            )
        self._refuse_others(len(w), name, "None")
        return [
            check.weights(own, x, self.named(i), name=f"{name}[{i}]")
            for i, (own, x) in enumerate(zip(w, self._xs, strict=True))
        ]

    def kernels(self, name: str, metric: str) -> list[Kernel]:
        """Return the kernel of each problem."""
        found = []
        for i, x in enumerate(self._xs):
            with Named("" if self.alone else self.name(i)):
                found.append(choose(x, name, metric))
        return found

    def groups(self, kernels: list[Kernel], how: dict[str, Any]) -> Iterator[Group]:
        """Yield a source for each."""
        weights = self._weights or [None] * len(self)
        for i, (x, w, k, kernel) in enumerate(
            zip(self._xs, weights, self.ks, kernels, strict=True)
        ):
            first, own = self.first(i), {"names": self.named(i)} | how
            if not self.alone:
                own["problem"] = self.name(i)
            rows = Rows.over(x, w, kernel=kernel, given=given(first, x), look=False, **own)
            yield [rows], [first], k

    def part(self, matrix: Matrix, c: Array, labels: Array) -> tuple[Array, Array]:
        """Return centroids and labels in their library, so that nothing else is kept of the rows."""
        return matrix.give(c[0, ...]), matrix.give(labels[0, ...])

    def whole(self, matrix: Matrix, cs: list[Array], labels: list[Array]) -> tuple[Any, Any]:
        """Return lists of them, or those of the one there is."""
        return (cs[0], labels[0]) if self.alone else (cs, labels)

    def joined(self, parts: list[Array]) -> Any:
        """Return the list."""
        return parts


class Within(Problems):
    """Problems whose rows are parts of one array: a batch (b, n, d), or of so many rows as `lengths` tell, end to end in (N, d)."""

    def __init__(self, x: Array, names: check.Names, lengths: list[int] | None) -> None:
        super().__init__(names)
        self._x = x
        self._slices: list[slice] | None = None
        if lengths is None:
            self.sizes = [int(x.shape[1])] * int(x.shape[0])
        else:
            self.sizes, stops = lengths, itertools.accumulate(lengths)
            self._slices = [slice(end - n, end) for n, end in zip(lengths, stops, strict=True)]
        self.features = [int(x.shape[-1])] * len(self.sizes)

    def name(self, i: int) -> str:
        """Return what the caller calls the rows of a problem."""
        if self._slices is None:
            return f"{self.names.x}[{i}]"
        part = self._slices[i]
        return f"{self.names.x}[{part.start}:{part.stop}]"

    def rows(self, i: int) -> Array:
        """Return the rows (n, d) of a problem, in their library."""
        return take(self._x, i if self._slices is None else self._slices[i])

    def _beside(self, i: int) -> Array:
        """Return an array (m, d) beside a problem's rows, with their features."""
        return take(self._x, 0) if self._slices is None else self._x

    def _weighed(self, w: Any) -> Any:
        """Return checked weights (n,) of each problem, or those of all: (b, n), or (N,) end to end."""
        w = check.weights(w, self._x, self.names)
        if self._slices is not None:
            check.weigh(w, self._slices)
        return w

    def _divided(self, c: Any, name: str) -> list[Any] | None:
        """Return the centroids of each problem if they are told one by one, or None: those of a batch are looked at all at once."""
        if self._slices is None and not self.own_k:
            return matrices(c)
        return super()._divided(c, name)

    def _shared(self, c: Any, name: str) -> Any:
        """Return checked centroids that are those of every problem, or those (b, k, d) of a batch."""
        if self.own_k:
            return super()._shared(c, name)
        return check.centroids(c, self._x, name, self._asked[0], self.names)

    def kernels(self, name: str, metric: str) -> list[Kernel]:
        """Return the kernel of each problem: one, chosen once."""
        return [choose(self._x, name, metric)] * len(self)

    def groups(self, kernels: list[Kernel], how: dict[str, Any]) -> Iterator[Group]:
        """Yield those together that follow each other with as many rows and clusters."""
        sources = zip(self.ks, self.sizes, self._sources(kernels[0], how), strict=True)
        for (k, _), alike in itertools.groupby(sources, key=lambda each: each[:2]):
            for group in kernels[0].together(source for _, _, source in alike):
                all_rows, inits = map(list, zip(*group, strict=True))
                yield all_rows, inits, k

    def _sources(self, kernel: Kernel, how: dict[str, Any]) -> Iterator[tuple[Rows, Init]]:
        """Yield a source, not looked at yet, and the init of each problem: work on as many rows is cut alike."""
        work: Work | None = None
        parts = self._matrices(kernel.library, how["max_bytes"]), self._inits(kernel.library)
        for i, (one, first, w) in enumerate(
            zip(*parts, self._columns(kernel.library), strict=False)
        ):
            if work and (work.n, work.d) != (one.shape[0], one.width):
                work = None
            names, problem = self.named(i), self.name(i)
            rows = Rows(one, w, kernel, names=names, problem=problem, look=False, work=work, **how)
            work = rows.work
            yield rows, first

    def _matrices(self, library: str | None, max_bytes: int | None) -> Iterator[Matrix]:
        """Return the rows of each problem as a `library` that works on them sees them: dense ones are all seen at once."""
        if not is_sparse(self._x):
            return Dense.over(self._x, library).problems(self._slices)
        return (
            Matrix.of(
                self.rows(i), library, given=given(self.first(i), self._x), max_bytes=max_bytes
            )
            for i in range(len(self))
        )

    def _columns(self, library: str | None) -> Iterator[Matrix | None]:
        """Return the weights (n, 1) of each problem, likewise."""
        if self._weights is None:
            return itertools.repeat(None)
        seen = Dense.over(self._weights, library)
        if self._slices is None and len(self._weights.shape) == 1:
            return itertools.repeat(seen)
        return seen.problems(self._slices)

    def _inits(self, library: str | None) -> Iterator[Init]:
        """Return the init of each problem, likewise where it is an array."""
        first = self._first
        if isinstance(first, str) or callable(first):
            return itertools.repeat(first)
        if is_sparse(self._x):
            return map(self.first, range(len(self)))
        if isinstance(first, list):
            return (Matrix.of(c, library) for c in first)
        if len(first.shape) == 3:
            return Dense.over(first, library).problems()
        return itertools.repeat(Matrix.of(first, library))

    def part(self, matrix: Matrix, c: Array, labels: Array) -> tuple[Array, Array]:
        """Return them, labels end to end if rows are."""
        if self._slices is not None:
            labels = matrix.xp.reshape(labels, (-1,))
        return c, labels

    def whole(self, matrix: Matrix, cs: list[Array], labels: list[Array]) -> tuple[Any, Any]:
        """Return labels (b, n) or (N,), and centroids (b, k, d), or a list where `k` is one of each."""
        give = matrix.give
        if self.own_k:
            c: Any = [give(group[i, ...]) for group in cs for i in range(group.shape[0])]
        else:
            c = give(joined(cs, ends=True))
        return c, give(joined(labels, ends=True))

    def joined(self, parts: list[Array]) -> Any:
        """Return one array, with an axis for problems in front, or end to end as rows are."""
        return joined(parts, ends=self._slices is not None)


def problems(x: Any, names: check.Names, lengths: Any = None) -> Problems:
    """Return what `x` holds: rows (n, d), a list of such, a batch (b, n, d), or, with `lengths`, rows (N, d) end to end.

    Raises
    ------
    TypeError
        If `x` or `lengths` is of the wrong type.
    ValueError
        If `x` does not hold finite matrices, all in one place, or `lengths` do not add up to its rows.
    """
    name, each = names.x, matrices(x)
    if each is not None:
        if lengths is not None:
            raise ValueError(
                f"`lengths` must be None where `{name}` is a list of problems, which have theirs; got lengths."
            )
        xs = [check.matrix(own, f"{name}[{i}]") for i, own in enumerate(each)]
        for i, own in enumerate(xs):
            check.beside(own, xs[0], f"{name}[{i}]", f"{name}[0]")
        return Apart(xs, names, alone=False)
    x = check.matrix(x, name, batch=lengths is None)
    if lengths is not None:
        return Within(x, names, check.lengths(lengths, x, name))
    return Apart([x], names, alone=True) if len(x.shape) == 2 else Within(x, names, None)
