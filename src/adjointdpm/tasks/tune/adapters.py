"""The adapters, modes and flags of a network before a training, so that they can be put back.

A training adds an adapter beside those that are there. All that were active stay active with their own scales,
those that were fused stay fused, and `NetworkState.restore` leaves the modules as they were: layers that got their
first adapter are plain layers again, with their plain names.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .precision import Master

__all__ = ["NetworkState", "tuner_layers"]


def tuner_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a network that carry adapters of peft, by name."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        return
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module


@dataclass(frozen=True, eq=False)
class NetworkState:
    """What a network was before a training, apart from the values of its weights.

    network   the module, without the wrappers of compiling and distributing
    adapters  names of the adapters; None where there was no dict of them
    layers    layers with adapters: (active, fused, disabled)
    flags     parameters and whether they required a gradient
    modes     modules and whether they were training
    """

    network: Any
    adapters: tuple[str, ...] | None
    layers: dict[Any, tuple[Any, list[str], bool]]
    flags: list[tuple[Tensor, bool]]
    modes: list[tuple[nn.Module, bool]]

    @classmethod
    def of(cls, network: Any) -> "NetworkState":
        """Return the state of a network as it is now."""
        known = getattr(network, "peft_config", None)
        return cls(
            network,
            None if known is None else tuple(known),
            {
                layer: (layer._active_adapter, list(layer.merged_adapters), layer._disable_adapters)
                for _, layer in tuner_layers(network)
            },
            [(parameter, parameter.requires_grad) for parameter in network.parameters()],
            [(module, module.training) for module in network.modules()],
        )

    def join(self, adapter: str) -> None:
        """Make a new adapter active beside those that were; adapters that are fused act through the weights."""
        for _, layer in tuner_layers(self.network):
            active, fused, disabled = self.layers.get(layer, ([], [], False))
            own = (
                [adapter]
                if any(adapter in getattr(layer, n, ()) for n in layer.adapter_layer_names)
                else []
            )
            if not own and layer in self.layers:
                layer._active_adapter, layer.merged_adapters = active, list(fused)
            elif fused:
                layer.merged_adapters, layer._active_adapter = [], own
            elif disabled:
                layer._disable_adapters, layer._active_adapter = False, own
            else:
                layer._active_adapter = [*([active] if isinstance(active, str) else active), *own]
        self.reset_flags()

    def settle(self, adapter: str) -> None:
        """End a training whose adapter stays: it is fused where others are, active elsewhere, and frozen."""
        for layer, (_, fused, _) in self.layers.items():
            if fused and layer._active_adapter == [adapter]:
                layer.merged_adapters = list(fused)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Already following adapters were merged")
                    layer.merge(adapter_names=[adapter])
        for _, layer in tuner_layers(self.network):
            for name, parameter in layer.named_parameters():
                if adapter in name.split("."):
                    parameter.requires_grad_(False)

    def reset_flags(self) -> None:
        """The flags and modes of what was there; new modules take the network's mode."""
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)
        known = {id(module) for module, _ in self.modes}
        for module in self.network.modules():
            if id(module) not in known:
                module.training = self.network.training
        for module, mode in self.modes:
            module.training = mode

    def restore(self) -> None:
        """Take away every adapter and master weight that was added, and put the rest back."""
        for module in list(self.network.modules()):
            for name, chain in list(getattr(module, "parametrizations", {}).items()):
                if any(isinstance(each, Master) for each in chain):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        for layer, (active, fused, disabled) in self.layers.items():
            layer._active_adapter, layer.merged_adapters, layer._disable_adapters = (
                active,
                list(fused),
                disabled,
            )
        added = [
            each for each in getattr(self.network, "peft_config", {}) if each not in (self.adapters or ())
        ]
        for name, layer in list(tuner_layers(self.network)):
            if layer not in self.layers:
                parent, _, last = name.rpartition(".")
                setattr(self.network.get_submodule(parent), last, layer.get_base_layer())
        for adapter in added:
            for layer in self.layers:
                layer.delete_adapter(adapter)
            del self.network.peft_config[adapter]
        if self.adapters is None and hasattr(self.network, "peft_config"):
            del self.network.peft_config
            self.network._hf_peft_config_loaded = False
        self.reset_flags()
