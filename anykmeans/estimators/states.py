"""A fitted estimator as a flat dictionary, for a checkpoint, and back: versioned, and checked key by key.

Arrays are entries of their own, in the estimator's own library. All else is text, JSON, which every format holds: what
`torch.load(weights_only=True)` and `numpy.load(allow_pickle=False)` read needs no trust.
"""

import dataclasses
import json
import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from sklearn.utils import check_random_state

from anykmeans import _check
from anykmeans._extent import Extent
from anykmeans._grid import Grid
from anykmeans._inputs import as_array
from anykmeans._libraries import (
    Array,
    device_of,
    from_numpy,
    is_array,
    is_sparse,
    library_of,
    move,
    to_numpy,
)
from anykmeans._minibatch import Seen
from anykmeans._stats import ClusterStats, Cost

VERSION = 1
T = TypeVar("T")
# What is kept as a dataclass, by the name of its place; its parts have dotted names.
_KINDS: dict[str, type] = {
    "_seen": Seen,
    "stats": ClusterStats,
    "grid": Grid,
    "extent": Extent,
    "cost": Cost,
}
_TEXTS = "parameters", "fitted"


def state_of(model: Any) -> dict[str, Any]:
    """Return the state of a fitted estimator, which shares no memory with it."""
    arrays: dict[str, Array] = {}
    parameters = model.get_params(deep=False)
    if callable(parameters["init"]):
        raise TypeError(
            "`init` must be a word or an array where a state is made; got a function, which a checkpoint cannot hold. "
            'It is needed no more: `km.set_params(init="k-means++")`.'
        )
    if not isinstance(parameters["init"], str | list | tuple):
        arrays["init"] = as_array(parameters.pop("init"), "init")
    fitted: dict[str, Any] = {}
    for name in model._kept:
        value = vars(model).get(name)
        if name in model._arrays and value is not None:
            arrays[name] = as_array(value, name)
        elif dataclasses.is_dataclass(value):
            for part, leaf in _parts(value, name):
                (arrays if isinstance(leaf, np.ndarray) else fitted)[part] = leaf
        elif name in vars(model):
            fitted[name] = value
    draws = fitted.get("_random_state")
    if draws is not None and draws is model.random_state:
        fitted["_random_state"] = {"same": "random_state"}  # one generator, not two
    fitted["arrays"] = sorted(arrays)
    texts = [
        {name: _plain(each, name) for name, each in some.items()} for some in (parameters, fitted)
    ]
    header = {"version": VERSION, "estimator": _kind(type(model))}
    beside = arrays["cluster_centers_"]
    return (
        header
        | {name: json.dumps(text) for name, text in zip(_TEXTS, texts, strict=True)}
        | {name: _copied(a, beside) for name, a in arrays.items()}
    )


def restored(cls: type[T], state: Any) -> T:
    """Return the estimator whose state this is."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"`state` must be a dictionary, as `state_dict()` makes it; got {type(state).__name__}."
        )
    state = dict(state)
    if "version" in state:  # another may have other keys
        _check_version(state["version"])
    _refuse_other_keys(state, {"version", "estimator", *_TEXTS}, more=True)
    del state["version"]
    if (kind := str(state.pop("estimator"))) != _kind(cls):
        raise ValueError(
            f"`state` must be that of a {_kind(cls)}; got one of a {kind}. Use `{kind}.from_state_dict(state)`."
        )
    parameters, fitted = (json.loads(str(state.pop(name))) for name in _TEXTS)
    _refuse_other_keys(state, set(fitted.pop("arrays")))
    parameters = {name: _living(value) for name, value in parameters.items()}
    if "init" in state:
        parameters["init"] = _copied(state.pop("init"))
    known = cls()
    if unknown := sorted(set(parameters) - set(known.get_params(deep=False))):  # type: ignore[attr-defined]
        raise ValueError(
            f"`state` must have parameters that {_kind(cls)} has; got {', '.join(map(repr, unknown))} besides. "
            "Update anykmeans: a newer one may have written it."
        )
    new: Any = known.set_params(**parameters)  # type: ignore[attr-defined]
    leaves = {name: _living(value) for name, value in fitted.items()}
    for name in new._arrays:
        if name in state:
            setattr(new, name, _copied(state.pop(name)))
    leaves |= {name: np.array(to_numpy(as_array(value, name))) for name, value in state.items()}
    if leaves.get("_random_state") == {"same": "random_state"}:
        leaves["_random_state"] = new.random_state
    elif "_random_state" in leaves:
        leaves["_random_state"] = _generator(leaves["_random_state"])
    for name in new._kept:
        if name in leaves:
            setattr(new, name, leaves[name])
        elif name in _KINDS and any(leaf.startswith(f"{name}.") for leaf in leaves):
            setattr(new, name, _whole(_KINDS[name], leaves, name))
    return new  # type: ignore[no-any-return]


def _kind(cls: type) -> str:
    """Return the name of the class of this package that a class is, or is derived from."""
    return next(each.__name__ for each in cls.__mro__ if each.__module__.startswith("anykmeans."))


def _check_version(version: Any) -> None:
    """Raise if the state is of another version than this code writes."""
    try:
        number = operator.index(version)
    except TypeError:
        number = -1
    if number != VERSION:
        raise ValueError(
            f"`state` must be of version {VERSION}; got version {version}. Read it with the anykmeans that wrote it, a newer "
            "one if the number is larger, and keep the centroids: `cluster_centers_` may be set by hand."
        )


def _refuse_other_keys(state: dict[str, Any], wanted: set[str], *, more: bool = False) -> None:
    """Raise if keys are missing, or there are others, unless there may be `more`."""
    missing, unexpected = sorted(wanted - set(state)), sorted(map(str, set(state) - wanted))
    if missing or (unexpected and not more):
        said = [f"missing {', '.join(map(repr, missing))}"] if missing else []
        if unexpected and not more:
            said.append(f"unexpected {', '.join(map(repr, unexpected))}")
        raise ValueError(
            f"`state` must have the keys that `state_dict()` gave it; got {' and '.join(said)}. Pass it as it was, without "
            "a prefix or entries of other models."
        )


def _copied(a: Any, beside: Array | None = None) -> Array:
    """Return a copy of an array where it is; NumPy's as a tensor if it is to lie `beside` others in a file that PyTorch reads."""
    if is_sparse(a) or not is_array(a):
        a = _check.host(as_array(a, "state"))
    if beside is not None and isinstance(a, np.ndarray) and library_of(beside) == "torch":
        return from_numpy(np.array(a), "torch", "cpu")
    return move(a, library_of(a), device_of(a))


# -- dataclasses, by their parts ----------------------------------------------------------------


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what a dataclass holds, by dotted names."""
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if dataclasses.is_dataclass(own):
            yield from _parts(own, f"{name}.{field.name}")
        else:
            yield f"{name}.{field.name}", own


def _whole(kind: type, leaves: dict[str, Any], name: str) -> Any:
    """Return the dataclass that has these parts."""
    given = {}
    for field in dataclasses.fields(kind):
        part = f"{name}.{field.name}"
        if part not in leaves and field.name not in _KINDS:
            _refuse_other_keys(leaves, {part}, more=True)
        value = leaves[part] if part in leaves else _whole(_KINDS[field.name], leaves, part)
        given[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)


# -- JSON ---------------------------------------------------------------------------------------


def _plain(value: Any, name: str) -> Any:
    """Return a value, called `name`, as JSON has it."""
    if value is np.random or value is check_random_state(
        None
    ):  # which is everybody's, not the model's
        return None
    if isinstance(value, np.random.RandomState):
        return {"generator": _plain(value.get_state(legacy=False), name)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"values": [_plain(each, name) for each in value.tolist()], "dtype": value.dtype.str}
    if isinstance(value, Mapping):
        return {str(key): _plain(each, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"`{name}` must be a number, a word or a generator of NumPy where a state is made; got {type(value).__name__}. "
        "Set it to one first."
    )


def _living(value: Any) -> Any:
    """Return what `_plain` was given, of what it has returned."""
    if isinstance(value, list):
        return [_living(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"values", "dtype"}:
        return np.asarray(value["values"], dtype=np.dtype(value["dtype"]))
    value = {key: _living(each) for key, each in value.items()}
    return _generator(value["generator"]) if value.keys() == {"generator"} else value


def _generator(state: Any) -> Any:
    """Return the generator of NumPy that has a state, a seed as it is, and everybody's for None."""
    if isinstance(state, int | np.random.RandomState):
        return state
    if state is None:
        return check_random_state(None)
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(
            f"`state` must have a generator that NumPy has; got {state['bit_generator']!r}. Update NumPy, or set "
            "`random_state` anew."
        )
    rng = np.random.RandomState(kind())
    rng.set_state(state)
    return rng
