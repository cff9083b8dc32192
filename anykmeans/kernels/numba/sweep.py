"""The nearest centroid of every row, certified, compiled: `anykmeans._search` for arrays in host memory.

Two ways to skip work. In few features a row has one lower bound, and the centroids near its own are searched
(`near`); in more it has one for every panel of sixteen near centroids, and those are searched that it does not rule
out, at first by codes or a few coordinates (`grouped`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anykmeans._settings import current
from anykmeans.kernels.numba.few import FewSearch
from anykmeans.kernels.numba.grouped import GroupedSearch
from anykmeans.kernels.numba.near import NearSearch

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

# Features up to which boxes around panels rule out more than bounds of their own; and where so many rows share a centroid
# that they fill vectors.
_BOXES, _SHARED = (16, 32), 256
# Rows a centroid, one for each feature at most, up to which none share so much that bounds pay; in fewer features than that.
_SCARCE, _NARROW = 8, 32


def choose(
    frame: Frame, work: Work, k: int, *, bounds: str, exact: bool
) -> FewSearch | NearSearch | GroupedSearch:
    """Return the search of all rows for `k` centroids: by `bounds`, one lower bound a row or one for each panel, or what suits `d`.

    `bounds` is "auto", "off" (of either, and no row is skipped), "hamerly" or "groups".
    """
    n, d = frame.matrix.shape
    scarce = min(d, _SCARCE, current().few)
    if bounds == "auto" and d < _NARROW and n <= scarce * k:
        return FewSearch(frame, work, k, keeps=True)
    grouped = bounds == "groups" or (bounds != "hamerly" and d > _BOXES[n >= _SHARED * k])
    search = GroupedSearch if grouped else NearSearch
    return search(frame, work, skips=bounds != "off", exact=exact)
