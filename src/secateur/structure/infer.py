"""From a captured graph to the axes of all its values: each node by the rule of its operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx

from secateur.structure.axis import BATCH, fix, leaf
from secateur.structure.capture import Captured
from secateur.structure.ops.net import Axes, Net, NotCoveredError
from secateur.structure.ops.registry import arguments, blamed, find_op, load_rules, name_of

NOT_COVERED = "does not cover"
KEEPING = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "t", "transpose", "permute",
    "movedim", "unbind", "split", "chunk", "split_with_sizes", "slice", "narrow", "select", "expand", "broadcast_to",
    "repeat", "repeat_interleave", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "index", "gather",
    "index_select",
})  # fmt: skip  # operations whose results are values of their first operand


def infer(captured: Captured) -> Net:
    """Return the axes of every value of the graph, with the reason where one is fixed.

    Axes that reach the model's inputs or outputs, an operation without a rule, or a form of one that its rule does not
    cover, are fixed.

    Raises:
        ModelError: A rule fails.
    """
    load_rules()
    net = Net()
    used = ancestors([captured.graph.output_node()])  # the code of other nodes is run, too, but changes no value
    weights: dict[str, Axes] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            _placeholder(net, captured, node, weights)
        elif node.op == "call_function":
            net.used = node in used
            _call(net, node)
        elif node.op == "output":
            net.fix_all([net.axes(n) for n in node.all_input_nodes if net.is_tensor(n)], "a model output")
            net.fix_all([[net.places[n, 0] for n in node.all_input_nodes if (n, 0) in net.places]], "a model output")
    return net


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that these depend on."""
    reached: set[fx.Node] = set()
    rest = list(nodes)
    while rest:
        node = rest.pop()
        rest += [operand for operand in node.all_input_nodes if operand not in reached]
        reached.update(node.all_input_nodes)
    return reached


def _placeholder(net: Net, captured: Captured, node: fx.Node, weights: dict[str, Axes]) -> None:
    if not net.is_tensor(node):
        return
    reason = None
    if node.name in captured.inputs:
        net.of_inputs.add(node)
        reason = "a model input"
    elif node.name in captured.constants:
        reason = "a tensor made in forward, not a parameter or buffer"
    axes = [leaf(n, "the batch" if n == BATCH else reason) for n in net.shape(node)]
    name = captured.weights.get(node.name)
    net.known[node] = axes if name is None else weights.setdefault(name, axes)  # tied ones are one


def _call(net: Net, node: fx.Node) -> None:
    if any(n in net.of_inputs for n in node.all_input_nodes):
        net.of_inputs.add(node)
    if not isinstance(node.meta.get("val"), Tensor | tuple | list):
        if name_of(node) in ("item", "_local_scalar_dense"):  # else a size
            net.fix_all([[net.places[n, 0] for n in node.all_input_nodes if (n, 0) in net.places]], "it is a number")
        return
    op = find_op(node)
    if op is None:
        _fix(net, node, f"no rule for {name_of(node)}")
        return
    try:
        with blamed(op.infer, node):
            net.known[node] = op.infer(net, node, arguments(node))
            _follow_places(net, node)
            if _shapes(net.outputs_of(node)) != _shapes(net.fresh_outputs(node)):
                raise NotCoveredError
    except NotCoveredError as form:
        _fix(net, node, f"the rule for {name_of(node)} {NOT_COVERED} {form}")


def _shapes(tensors: Sequence[Axes]) -> list[list[int]]:
    return [[axis.size for axis in axes] for axes in tensors]


def _fix(net: Net, node: fx.Node, reason: str) -> None:
    """State that none of the axes that reach a call can lose units, nor those of its results."""
    net.fix_all([axes for n in node.all_input_nodes if n in net.known for axes in net.outputs_of(n)], reason)
    net.fix_all([[place for (n, _), place in net.places.items() if n in node.all_input_nodes]], reason)
    results = net.fresh_outputs(node, reason)
    net.known[node] = results[0] if isinstance(node.meta["val"], Tensor) else results


def _follow_places(net: Net, node: fx.Node) -> None:
    """State where the places go that a call is given, after its rule has stated which of them it looks up."""
    first = node.all_input_nodes[:1]
    if net.gathered.issuperset(first) and len(node.all_input_nodes) == 1:
        net.gathered.add(node)
    op, operands = name_of(node), [n for n in node.all_input_nodes if (n, 0) in net.places or _several(net, n)]
    for operand in operands:
        if op == "getitem":
            _take_output(net, node, operand)
        elif (node, operand) not in net.looked_up:
            place = net.places[operand, 0]
            if op in KEEPING and node.args[0] is operand:
                for output in range(len(net.outputs_of(node))):
                    net.places[node, output] = place
            else:
                fix(place, f"{op} counts along it")


def _several(net: Net, node: fx.Node) -> bool:
    return not net.is_tensor(node) and any(of is node for of, _ in net.places)


def _take_output(net: Net, node: fx.Node, operand: fx.Node) -> None:
    place = net.places.get((operand, node.args[1]))  # type: ignore[arg-type]
    if place is not None:
        net.places[node, 0] = place
