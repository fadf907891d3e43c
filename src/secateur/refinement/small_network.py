"""The network that is left as a function of its parameters, to be differentiated in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.objective.gated_loss import GatedLoss, masks
from secateur.structure.graph_run import compile_graph, fill, outputs, weights_of
from secateur.structure.inputs import Call, named_tensors
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import slice_graph, slice_tensor, unslice_tensor

Tensors = dict[str, Tensor]


class SmallNetwork:
    """The captured graph without the units that are gone, and what is left of its weights.

    Args:
        gated: The original and its units.
        g: The gates [K], 0 for what is gone.
        weights: Parameters and buffers in place of the original's, by name, in its sizes.

    Attributes:
        parameters: What is left of each parameter that may be trained, tied ones once.
        names: Placeholder of the graph → name of the parameter or buffer.
    """

    def __init__(self, gated: GatedLoss, g: Tensor, weights: Mapping[str, Tensor]) -> None:
        self.units, self.captured, self.axes = gated.units, gated.units.captured, gated.units.axes
        self.left = KeepMask(masks(gated.units, g))
        self.sliced = slice_graph(self.captured, gated.units.net, self.left)
        self._run = compile_graph(self.sliced.graph)
        named = named_tensors(gated.model)
        first = {id(tensor): name for name, tensor in named.items()}
        self.names = {place: first[id(weight)] for place, weight in weights_of(self.captured, gated.model).items()}
        self._whole = {name: weights.get(name, tensor).detach() for name, tensor in named.items()}
        trained = {name for name, parameter in gated.model.named_parameters() if parameter.requires_grad}
        left = {name: self._left_of(name) for name in dict.fromkeys(self.names.values())}
        self.parameters = {name: piece for name, piece in left.items() if name in trained}
        self._fixed = {name: piece for name, piece in left.items() if name not in trained}

    def _left_of(self, name: str) -> Tensor:
        return slice_tensor(self._whole[name], self.axes.get(name, []), self.left)

    def values(self, parameters: Tensors, call: Call) -> list[Any]:
        """Return the values of the graph's placeholders."""
        known = self._fixed | parameters
        return fill(self.captured, {place: known[name] for place, name in self.names.items()}, call)

    def run(self, parameters: Tensors, call: Call) -> Any:
        """Return what the network returns with these parameters."""
        with sdpa_kernel(SDPBackend.MATH):  # no other kernel can be differentiated forwards
            return outputs(self.captured, self._run(*self.values(parameters, call)))

    def tracing(self, nodes: Sequence[fx.Node]) -> Callable[[Tensors, Call], tuple[Any, list[Any]]]:
        """Return a function that runs the network and returns the values of some of the captured graph's calls, too."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        returned = graph.graph_copy(self.sliced.graph, copies)
        graph.output((returned, [copies[self.sliced.copies[node]] for node in nodes]))
        run = compile_graph(graph)

        def trace(parameters: Tensors, call: Call) -> tuple[Any, list[Any]]:
            with sdpa_kernel(SDPBackend.MATH):
                result, values = run(*self.values(parameters, call))
            return outputs(self.captured, result), values

        return trace

    def in_original(self, parameters: Tensors) -> Tensors:
        """Return the original's parameters with these in the places of what is left."""
        return {
            name: unslice_tensor(self._whole[name], piece, self.axes.get(name, []), self.left)
            for name, piece in parameters.items()
        }
