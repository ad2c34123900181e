"""Devices that are not there: tensors of the CPU which say that they are on another device.

An operation whose tensors are on different devices fails, as it does on GPUs; its result is the
CPU's, bit for bit.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

CPU = torch.device("cpu")
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Simulated(torch.Tensor):
    """A tensor that computes on the CPU, and says that it is on a device."""

    @staticmethod
    def __new__(cls, real, device):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=device,
        )

    def __init__(self, real, device):
        self.held = real

    def __repr__(self):
        return f"{self.held} on {self.device}"

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.held = other.held
        torch.Tensor.data.__set__(self, other)

    def numpy(self):
        assert self.device == CPU
        with _disable_current_modes():
            return self.held.numpy()

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


def computed(function, args, kwargs):
    given = []

    def real(value):
        if not isinstance(value, torch.Tensor):
            return value
        given.append(value)
        return value.held if isinstance(value, Simulated) else value

    inner, options = tree_map(real, args), tree_map(real, kwargs)
    home = kwargs.get("device")
    if home is not None:
        options["device"] = CPU
    elif function in COPIES:
        home = given[0].device
    else:
        # numbers and indices on the CPU may be used anywhere
        free = function in INDEXING
        found = {one.device for one in given if one.device != CPU or (one.dim() and not free)}
        assert len(found) < 2, f"{function} of tensors on {found}"
        home = next(iter(found), CPU)
    result = function(*inner, **options)

    known = {id(getattr(one, "held", one)): one for one in given}  # of operations in place

    def simulated(value):
        if not isinstance(value, torch.Tensor):
            return value
        return known.get(id(value)) if id(value) in known else Simulated(value, torch.device(home))

    return tree_map(simulated, result)


class SimulatedDevices(TorchDispatchMode):
    """Within this context, tensors can be made on, and moved to, devices that are not there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})
