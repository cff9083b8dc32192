"""Rows that come batch by batch: what gives them, and which part of a batch they are."""

from __future__ import annotations

import operator
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from anykmeans._fork import first_call
from anykmeans._inputs import as_array
from anykmeans._libraries import Array, dtype_name, is_sparse, namespace, where_is

# What arrays, frames, and whatever else holds rows itself, have one of.
_OF_ARRAYS = (
    "shape",
    "__array__",
    "__dlpack__",
    "__array_interface__",
    "to_numpy",
    "collect",
    "__dask_graph__",
)


def gives_batches(x: Any) -> bool:
    """Return whether `x` is a `DataLoader`, a generator, or whatever else can be iterated over and is no rows itself."""
    if not hasattr(x, "__iter__") or isinstance(x, Mapping | str | bytes):
        return False
    # A sequence is a list of rows. PyTorch's datasets are sequences by name alone where they can be iterated over.
    streamed = getattr(sys.modules.get("torch.utils.data"), "IterableDataset", ())
    if hasattr(x, "__getitem__") and not isinstance(x, streamed):
        return False
    return not any(hasattr(x, name) for name in _OF_ARRAYS)


def rows_of(batch: Any, key: Hashable = None) -> Any:
    """Return the rows of a batch: itself, its item `key` (of a dictionary, or a number), or the first of a tuple."""
    if isinstance(batch, Mapping):
        if key is None or key not in batch:
            keys = ", ".join(map(repr, batch))
            raise ValueError(
                f"`key` must be one of those of a batch, {keys}; got {key!r}. Name the rows: "
                "`anykmeans.torch.Batches(loader, key=...)`."
            )
        return batch[key]
    if isinstance(batch, list | tuple) and (key is not None or any(map(_is_matrix, batch))):
        try:
            return batch[operator.index(0 if key is None else key)]  # type: ignore[arg-type]
        except (TypeError, IndexError):
            raise ValueError(
                f"`key` must be a number from 0 to {len(batch) - 1} where batches are of {len(batch)} parts; got {key!r}."
            ) from None
    if key is not None:
        raise ValueError(
            f"`key` must be None where batches are rows themselves; got {key!r} for a batch of type {type(batch).__name__}."
        )
    return batch


def _is_matrix(part: Any) -> bool:
    """Return whether a part of a batch may be rows."""
    return len(getattr(part, "shape", ())) > 1


def refuse_weights(sample_weight: Any) -> None:
    """Raise if there are weights of rows that come batch by batch."""
    if sample_weight is not None:
        raise ValueError(
            "`sample_weight` must be None where `X` gives batches; got weights. Pass batches one by one: `for x, w in "
            "loader: km.partial_fit(x, sample_weight=w)`."
        )


def each_of(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield the rows of each batch, of which there must be one at least."""
    none = True
    for batch in batches:
        none = False
        rows = rows_of(batch)
        if isinstance(rows, float | int) or len(getattr(rows, "shape", (0, 0))) < 2:
            raise ValueError(
                f"`{name}` must give batches of 2 dimensions, (rows, features); got one of shape "
                f"{tuple(getattr(rows, 'shape', ()))}. If it gives row by row, make it a list first: `list({name})`."
            )
        yield rows
    if none:
        raise ValueError(
            f"`{name}` must give one batch at least; got none from {type(batches).__name__}. A generator gives its "
            "batches once: make a new one, or pass what can be iterated over again, such as a `DataLoader`."
        )


def gathered(batches: Iterable[Any], name: str) -> Array:
    """Return the rows (n, d) of all batches as one array in their library, in the order they came in."""
    parts = [as_array(rows, name) for rows in batches]
    first = parts[0]
    kinds = {(where_is(part), is_sparse(part), tuple(part.shape[1:])): part for part in parts}
    if len(kinds) > 1:
        said = [f"{where_is(part)} of shape {tuple(part.shape)}" for part in kinds.values()]
        raise ValueError(
            f"`{name}` must give batches of one library, device and number of features; got {' and '.join(said[:2])}."
        )
    if len(parts) == 1:
        return first
    if is_sparse(first):
        with first_call:
            from scipy.sparse import vstack

        return vstack(parts, format="csr")
    if len(types := {dtype_name(part) for part in parts}) > 1:
        raise ValueError(
            f"`{name}` must give batches of one dtype; got {' and '.join(sorted(types))}."
        )
    return namespace(first).concat(parts, axis=0)
