"""A device of PyTorch that has no float64, as Apple's `mps` has none: pretended, on a CPU.

Its tensors hold memory that only PyTorch's operations reach. NumPy is refused by PyTorch itself, as they say that
they are elsewhere; float64, and operands of other devices, are refused here, as they are there.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("single")  # so that PyTorch takes "single:0" for a device
HERE = torch.device("cpu")


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""

    copied = 0  # bytes that have come from there

    @staticmethod
    def __new__(cls, held, device):
        if held.dtype == torch.float64:
            raise TypeError("This device does not support float64")
        about = {
            "strides": held.stride(),
            "storage_offset": held.storage_offset(),
            "dtype": held.dtype,
        }
        out = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=device, **about)
        out.held = held
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        (device,) = {a.device for a in tensors if isinstance(a, Elsewhere)}
        if any(a.ndim and not isinstance(a, Elsewhere) for a in tensors):
            raise RuntimeError(f"Expected all tensors of {function} to be on the same device")
        there = kwargs.get("device") in (None, device)
        if "device" in kwargs:
            kwargs["device"] = HERE
        args, kwargs = tree_map_only(Elsewhere, lambda a: a.held, (args, kwargs))
        if not there:
            Elsewhere.copied += args[0].nbytes
        return _put(function(*args, **kwargs), device) if there else function(*args, **kwargs)


class Device(TorchFunctionMode):
    """While it is entered, tensors can be made on, and moved to, a device of this name."""

    def __init__(self, name="single:0"):
        super().__init__()
        self.device = torch.device(name)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        asked = [a for a in (*args, *kwargs.values()) if _is_device(a, self.device)]
        if not asked or any(isinstance(a, Elsewhere) for a in args):
            return function(*args, **kwargs)
        args = [HERE if _is_device(a, self.device) else a for a in args]
        kwargs = {name: HERE if _is_device(a, self.device) else a for name, a in kwargs.items()}
        made = function(*args, **kwargs)
        if made is args[0]:
            made = made.clone()
        return _put(made, self.device)


def _is_device(a, device):
    """Whether an argument names the device."""
    if isinstance(a, str):
        return a in (str(device), device.type)
    return isinstance(a, torch.device) and a.type == device.type


def _put(made, device):
    """What an operation made, on the device."""
    return tree_map_only(torch.Tensor, lambda a: Elsewhere(a, device), made)
