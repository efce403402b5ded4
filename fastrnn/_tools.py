"""What torch's older tools find in fastrnn's modules: ``torch.jit.script``, ``torch.fx`` and eager-mode quantization.

They know ``torch.nn``'s recurrent modules by their class or by their Python source.
"""

from __future__ import annotations

import copy
import warnings

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError


class Tooling(nn.Module):
    """A base of fastrnn's layers and cells; each inherits from its class of ``torch.nn``, too."""

    __jit_unused_properties__ = [*nn.RNNBase.__jit_unused_properties__, "qconfig", "own_options"]

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles, and puts in the place of this module: ``torch.nn``'s with the same
        parameters.

        Raises:
            RuntimeError: ``torch.nn`` has no such layer, or none with an option of this one.
        """
        kind = type(self)
        if not kind.__module__.startswith("fastrnn."):
            return self  # a subclass may have a forward of its own
        base = next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn."))
        if base in (nn.RNNBase, nn.RNNCellBase):
            raise RuntimeError(
                f"torch.jit.script cannot compile fastrnn.{kind.__name__}, which torch.nn does not have: use "
                "torch.jit.trace or torch.export"
            )
        if getattr(self, "own_options", None):
            raise RuntimeError(
                f"torch.jit.script cannot compile fastrnn.{kind.__name__} with {' or '.join(self.own_options)}, which "
                "torch.nn does not have: use torch.jit.trace or torch.export"
            )
        scriptable = copy.copy(self)
        scriptable.__class__ = base
        warnings.warn(
            f"torch.jit.script puts torch.nn.{kind.__name__} in the place of fastrnn.{kind.__name__}: script "
            "fastrnn.revert(model) to leave the model as it is",
            stacklevel=2,
        )
        return scriptable

    @property
    def qconfig(self):
        """How eager-mode quantization was told to treat the module."""
        try:
            return self.__dict__["qconfig"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute 'qconfig'") from None

    @qconfig.setter
    def qconfig(self, value) -> None:
        self.__dict__["qconfig"] = value
        warnings.warn(
            f"torch.ao.quantization knows torch.nn's classes alone and leaves fastrnn.{type(self).__name__} as it is: "
            "quantize fastrnn.revert(model)",
            stacklevel=2,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        del self.__dict__["qconfig"]


def leaf(module: nn.Module, *args, **kwargs) -> Proxy:
    """The call of ``module`` in a graph of ``torch.fx``, for whose tracer ``torch.nn``'s modules are leaves.

    Raises:
        TraceError: the module is not part of the model that is traced.
    """
    tracer = args[0].tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TraceError(
            f"torch.fx makes {type(module).__name__} a leaf of its graph and cannot trace it alone: trace a module "
            "that holds it, or fastrnn.revert(model)"
        )
    given = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", path, args, given)
