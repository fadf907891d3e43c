"""Tables whose rows a network looks up by whole numbers that are its inputs, or computed from them alone."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.errors import DataError
from secateur.structure.capture import Captured
from secateur.structure.graph_run import flatten
from secateur.structure.infer import ancestors
from secateur.structure.inputs import Call
from secateur.structure.ops.registry import arguments, name_of

EMBEDDINGS = ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")


class Lookups:
    """The tables of a captured graph, and what computes the numbers of their rows.

    Args:
        captured: The graph.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.calls = [node for node in captured.graph.nodes if name_of(node) in EMBEDDINGS]
        self.needed = ancestors(self.calls)

    def check(self, call: Call, where: str = "") -> None:
        """Refuse inputs by which a row would be looked up that a table has not.

        Args:
            call: Checked by `InputSpec.match`.
            where: The beginning of an error's text.

        Raises:
            DataError: There is such a row.
        """
        known = self._values(call) if self.calls else {}
        for lookup in self.calls:
            table, rows = arguments(lookup)["weight"], known.get(arguments(lookup)["indices"])
            last = table.meta["val"].shape[0] - 1
            if rows is not None and rows.numel() and not (0 <= rows.min() and rows.max() <= last):
                name = self.captured.weights.get(table.name, table.name)
                raise DataError(
                    f"{where}inputs: rows {rows.min()} to {rows.max()} of {name} are looked up, it has 0 to {last}"
                )

    def _values(self, call: Call) -> dict[fx.Node, Any]:
        """Return the values of the needed nodes that no weight has part in."""
        captured = self.captured
        values = captured.constants | dict(zip(captured.inputs, flatten(captured, call), strict=True))
        known = {n: values[n.name] for n in captured.graph.find_nodes(op="placeholder") if n.name in values}
        for node in captured.graph.nodes:
            if node in self.needed and node.op == "call_function" and all(n in known for n in node.all_input_nodes):
                operands: Any = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                function: Any = node.target
                known[node] = function(*operands[0], **operands[1])
        return known
