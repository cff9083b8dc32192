"""Batches of a loader as rows, on the device where they are clustered, and there one batch ahead."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch

from anykmeans._batches import rows_of
from anykmeans._inputs import as_array
from anykmeans._libraries import Array, move


class Batches:
    """The rows of each batch of a loader, for `fit` and `partial_fit` of the estimators.

    Parameters
    ----------
    loader : iterable
        A `DataLoader`, or whatever gives batches: tensors (rows, features), or arrays of any library, or tuples, lists and
        dictionaries of such.
    key : int, str or hashable, optional
        Which part of a batch the rows are: the key of a dictionary, or the number in a tuple; by default the first of a
        tuple.
    device : str or torch.device, optional
        Where the rows are to be clustered. They are copied there; to a GPU from pinned memory, on a stream of their own, one
        batch ahead of the one that is worked on. By default they stay where they are.

    Yields
    ------
    rows : tensor of shape (rows, features)
        Those of one batch; an array as it is where no `device` is named.

    Raises
    ------
    TypeError
        If `loader` cannot be iterated over.
    ValueError
        If `key` is none of a batch, which tells the keys that there are; or if it is named and batches are rows themselves.

    Examples
    --------
    >>> import torch
    >>> from anykmeans import MiniBatchKMeans
    >>> from anykmeans.torch import Batches
    >>> data = [{"x": torch.tensor([[float(i)], [i + 10.0]]), "y": i} for i in range(3)]
    >>> km = MiniBatchKMeans(2, random_state=0).partial_fit(Batches(data, key="x"))
    >>> sorted(km.cluster_centers_[:, 0].tolist())
    [1.0, 11.0]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        key: Hashable = None,
        device: str | torch.device | None = None,
    ) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"`loader` must give batches, as a `DataLoader` does; got {type(loader).__name__}. Wrap a data set in one: "
                "`torch.utils.data.DataLoader(data, batch_size=1024)`."
            )
        self.loader, self.key = loader, key
        self.device = None if device is None else torch.device(device)

    def __iter__(self) -> Iterator[Any]:
        rows = (rows_of(batch, self.key) for batch in self.loader)
        if self.device is None:
            return rows
        arrays = (as_array(each, "rows") for each in rows)
        if self.device.type == "cuda":
            return _ahead(arrays, self.device)
        return (move(each, "torch", self.device) for each in arrays)


def _ahead(arrays: Iterator[Array], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield arrays as tensors on a GPU, each once the next is on its way."""
    stream, coming = torch.cuda.Stream(device), None
    for array in arrays:
        tensor = array if isinstance(array, torch.Tensor) else move(array, "torch", "cpu")
        following = _sent(tensor, device, stream)
        if coming is not None:
            yield _arrived(*coming)
        coming = following
    if coming is not None:
        yield _arrived(*coming)


def _sent(
    tensor: torch.Tensor, device: torch.device, stream: torch.cuda.Stream
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Return the tensor that another is being copied to on a stream, and what tells when it is there."""
    if tensor.is_cuda:
        return tensor.to(device), None
    pinned = tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()
    with torch.cuda.stream(stream):
        there = pinned.to(device, non_blocking=True)
        return there, stream.record_event()


def _arrived(there: torch.Tensor, event: torch.cuda.Event | None) -> torch.Tensor:
    """Return a tensor that is used from now on, by what is queued after its copy."""
    if event is not None:
        using = torch.cuda.current_stream(there.device)
        using.wait_event(event)
        there.record_stream(using)  # its memory is not to be given away while that works on it
    return there
