"""Vector quantisation: a layer whose buffers are the exact sums of what its codes have seen."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anykmeans import _check as check
from anykmeans._stats import ClusterStats
from anykmeans.torch import operators
from anykmeans.torch.learning import FOLDS, NO_GRID, State, decode


class Quantized(NamedTuple):
    """What a codebook makes of rows; unpacks.

    Attributes
    ----------
    quantized : Tensor, as `x`
        The nearest code of each row, in the dtype of `x`; its gradient is passed on to `x` as it is.
    codes : Tensor of shape (...) or (..., heads), int64
        The codes' numbers, certified.
    loss : Tensor of shape (), float32 or float64
        The commitment loss.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import Codebook
    >>> found = Codebook(2, 1)(torch.tensor([[1.0], [1.0], [5.0]]))
    >>> found.quantized[:, 0].tolist(), found.codes[0] == found.codes[1]
    ([1.0, 1.0, 5.0], tensor(True))
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """A layer that replaces rows by the nearest of its codes, which learn from them as k-means by mini-batches does.

    In training, codes move to the means of the rows they win, each batch weighing `decay` times as much as the next one. The
    sums behind these means are exact (`stats`), so that a codebook learns the same bits on every device, in mixed precision
    and on any number of processes, which `torch.distributed` has add up by one all-reduce a batch.

    Parameters
    ----------
    num_codes : int
        Codes in each codebook.
    dim : int
        Features of a row.
    heads : int
        Codebooks side by side, each for rows of its own; with more than one, `x` has shape (..., heads, dim).
    decay : float
        Weight of all that was seen before a batch, over 0 and up to 1: with 1 codes are the means of all rows they ever won.
    commitment_weight : float
        Factor of the loss, which draws rows to their codes.
    restart_after : int or None
        A code that wins no row of so many batches in a row moves to the row of the batch that is farthest from its code (at
        most 64 codes a batch, those idle longest first). None: never.
    init : Tensor of shape (num_codes, dim) or (heads, num_codes, dim), optional
        Codes to begin with. Default: those that `kmeans` finds in the first rows.
    init_rows : int, optional
        How many rows these are; until there are as many, they are clustered anew each time there are twice as many as before.
        Default: ``8 * num_codes``.
    seed : int
        Of their k-means++; what `torch.manual_seed` does has no part in it.
    sync : bool
        Whether to learn together with the other processes of `torch.distributed`'s default group, if there is one.
    device, dtype
        Where the codes are, and their dtype, by default float32.

    Attributes
    ----------
    codebook : Tensor of shape (heads, num_codes, dim)
        The codes, zero before the first batch.
    sums, exponents, idle, seen : Tensor, int64
        What `stats` and the rules above are made of; whole numbers, which no conversion to half precision touches.

    Raises
    ------
    TypeError
        If a number is not one, or not whole, `dtype` is not floating, or `init` is no tensor.
    ValueError
        If a number is out of range, or `init` has another shape, lives elsewhere or is not finite.

    References
    ----------
    A. van den Oord, O. Vinyals and K. Kavukcuoglu, "Neural discrete representation learning", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from anykmeans.torch import Codebook
    >>> codebook = Codebook(num_codes=2, dim=1)
    >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]], requires_grad=True)
    >>> quantized, codes, loss = codebook(x)
    >>> quantized[:, 0].tolist()
    [0.5, 0.5, 9.5, 9.5]
    >>> codebook.decode(codes)[:, 0].tolist()
    [0.5, 0.5, 9.5, 9.5]
    """

    codebook: Tensor
    sums: Tensor
    exponents: Tensor
    idle: Tensor
    seen: Tensor
    first: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        heads: int = 1,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_after: int | None = 100,
        init: Tensor | None = None,
        init_rows: int | None = None,
        seed: int = 0,
        sync: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_codes = check.whole(num_codes, "num_codes", 1)
        self.dim = check.whole(dim, "dim", 1)
        self.heads = check.whole(heads, "heads", 1)
        self.decay = check.tolerance(decay, "decay")
        if self.decay > 1:
            raise ValueError(
                f"`decay` must be between 0 and 1; got decay={decay}. With 1 nothing is forgotten."
            )
        self.commitment_weight = check.tolerance(commitment_weight, "commitment_weight")
        self.restart_after = 0
        if restart_after is not None:
            self.restart_after = check.whole(restart_after, "restart_after", 1)
        if init_rows is None:
            init_rows = 8 * self.num_codes
        self.init_rows = check.whole(init_rows, "init_rows", self.num_codes)
        self.seed = check.whole(seed, "seed", 0)
        self.sync = sync
        shape = (self.heads, self.num_codes, self.dim)
        codes = torch.zeros(shape, device=device, dtype=dtype or torch.float32)
        if not codes.is_floating_point():
            raise TypeError(f"`dtype` must be a floating dtype of PyTorch; got {dtype}.")
        if isinstance(init, str):
            raise TypeError(
                f"`init` must be codes, or None for those that k-means finds in the first rows; got {init!r}."
            )
        if init is not None:
            codes = codes + check.centroids(init, codes, "init", self.num_codes).to(codes)
        whole = {"dtype": torch.int64, "device": codes.device}
        self.register_buffer("codebook", codes)
        self.register_buffer("sums", torch.zeros(*shape[:2], FOLDS * (self.dim + 1), **whole))
        self.register_buffer("exponents", torch.full((self.heads,), NO_GRID, **whole))
        self.register_buffer("idle", torch.zeros(shape[:2], **whole))
        self.register_buffer("seen", torch.zeros((), **whole))
        self.register_buffer("first", None, persistent=False)
        if init is not None:
            self.seen += self.init_rows
        self._have_room()

    def forward(self, x: Tensor) -> Quantized:
        """Return the nearest code of each row; in training, learn from the rows.

        Parameters
        ----------
        x : Tensor of shape (..., dim), or (..., heads, dim) with several heads
            Rows, of any floating dtype.

        Returns
        -------
        Quantized
            ``quantized, codes, loss``.

        Raises
        ------
        TypeError
            If `x` is not a floating tensor.
        ValueError
            If `x` has another shape, is on another device, or, in training, is not finite.
        RuntimeError
            If it is not in training and there are no codes yet.
        """
        sizes = (self.dim,) if self.heads == 1 else (self.heads, self.dim)
        rows = checked(x, sizes, self.codebook.device).reshape(-1, self.heads, self.dim)
        if self.training and not torch.onnx.is_in_onnx_export():
            values, codes = operators.learn_codes(
                rows.detach(),
                *self._learnt,
                *(self.decay, self.restart_after, self.seed, self.sync),
            )
        else:
            codes = self._codes(rows.detach())
            values = decode(self.codebook, codes)
        loss = self.commitment_weight * F.mse_loss(rows.to(values.dtype), values)
        quantized = passed_on(rows, values).reshape(x.shape)
        return Quantized(quantized, codes.reshape(x.shape[:-1]), loss)

    def _codes(self, rows: Tensor) -> Tensor:
        """Return the nearest codes (n, heads) of rows (n, heads, dim)."""
        if not torch.compiler.is_compiling() and self.first.shape[1] and not self.seen:
            raise RuntimeError(
                "The codebook has no codes yet. Train it on a batch, load a `state_dict`, or give it `init`."
            )
        if not torch.onnx.is_in_onnx_export():
            return operators.nearest_codes(rows, self.codebook)
        # ONNX has no certificate: scores in float64 are wrong only where two distances have some 15 digits in common.
        c = self.codebook.to(torch.float64)
        products = torch.einsum("nhd,hkd->nhk", rows.to(torch.float64), c)
        return ((c * c).sum(dim=2) - 2 * products).argmin(dim=2)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the values that codes stand for, in the dtype of the codebook.

        Parameters
        ----------
        codes : Tensor of shape (...), or (..., heads) with several heads, integers
            Numbers from 0 to ``num_codes - 1``.

        Returns
        -------
        Tensor of shape (..., dim) or (..., heads, dim)
            The bits of `quantized`, if that is in the codebook's dtype and nothing was learnt since: a batch in training is
            quantised before it is learnt from.

        Raises
        ------
        IndexError
            If a code is out of range.
        TypeError
            If `codes` is not a tensor of int64 or int32.
        ValueError
            If `codes` has no axis of heads where there are several.
        """
        if not isinstance(codes, Tensor) or codes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"`codes` must be a tensor of int64 or int32; got {_kind(codes)}.")
        if self.heads == 1:
            return decode(self.codebook, codes[..., None])[..., 0, :]
        if codes.ndim == 0 or codes.shape[-1] != self.heads:
            raise ValueError(
                f"`codes` must have shape (..., {self.heads}), a code of each head; got shape {tuple(codes.shape)}."
            )
        return decode(self.codebook, codes)

    @property
    def stats(self) -> list[ClusterStats]:
        """The exact sums and weights of each codebook, as of now: they add. In NumPy on a CPU."""
        state = State(*self._learnt)
        return [state.stats(head) for head in range(self.heads)]

    @property
    def usage(self) -> Tensor:
        """The share (heads, num_codes), float64, of each code in the rows seen, those long ago counting less."""
        mass = torch.stack([torch.as_tensor(stats.totals()[1]) for stats in self.stats])
        return mass / mass.sum(dim=1, keepdim=True).clamp(min=1e-300)

    def train(self, mode: bool = True) -> Codebook:
        """Set whether to learn."""
        super().train(mode)
        self._have_room()
        return self

    def extra_repr(self) -> str:
        """Return what the codebook is made of."""
        return f"num_codes={self.num_codes}, dim={self.dim}, heads={self.heads}, decay={self.decay}"

    @property
    def _learnt(self) -> tuple[Tensor, ...]:
        """The buffers, as `State` takes them."""
        return self.codebook, self.sums, self.exponents, self.idle, self.seen, self.first

    def _have_room(self) -> None:
        """Have room for the first rows as long as there are too few of them."""
        enough = int(self.seen) >= self.init_rows
        rows = 0 if enough else self.init_rows
        if self.first is None or self.first.shape[1] != rows:
            self.first = self.codebook.new_zeros((self.heads, rows, self.dim))
            if not enough:
                self.seen.zero_()  # those of before are not in a checkpoint

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.first = None
        self._have_room()


def checked(x: Any, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Return `x`, which must be a floating tensor whose last axes have these sizes, on a device."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"`x` must be a floating tensor; got {_kind(x)}.")
    if x.shape[-len(sizes) :] != sizes:
        raise ValueError(
            f"`x` must have shape (..., {', '.join(map(str, sizes))}); got shape {tuple(x.shape)}. Features come last: "
            f"where channels come first, pass `x.movedim(1, -1)`."
        )
    if x.device != device:
        raise ValueError(
            f"`x` must live where the codebook does, on {device}; got x on {x.device}. Move the model first: "
            f"`model.to({str(x.device)!r})`."
        )
    return x


def _kind(a: Any) -> str:
    """Return what `a` is, for messages."""
    return f"dtype {a.dtype}" if isinstance(a, Tensor) else f"an object of type {type(a).__name__}"


def passed_on(x: Tensor, values: Tensor) -> Tensor:
    """Return `values` in the dtype of `x`, to which their gradient goes as it is."""
    if torch.onnx.is_in_onnx_export():
        return values.to(x.dtype)
    return operators.straight_through(x, values)
