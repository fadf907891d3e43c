"""Exported programs as models: a .pt2 file, read without unpickling, becomes a module that can be cut."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.errors import ArgumentError
from secateur.structure.export import first_line, is_check
from secateur.structure.exporting.tracing import quiet

TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
OBJECTS = ("custom_obj_", "opaque_obj_")  # what the names of pickled objects begin with in a .pt2 file


def load_program(path: str | os.PathLike[str]) -> nn.Module:
    """Return the network in a .pt2 file that `torch.export.save` wrote, as a module whose units can be found and cut.

    Nothing is unpickled but tensors. The dimensions that were dynamic in the export are free; it should have been made
    in eval mode, with a dynamic batch.

    Raises:
        ArgumentError: The file cannot be read, holds pickled objects, or no program that can be run as a module.
    """
    try:
        with zipfile.ZipFile(path) as file:
            pickled = [name for name in file.namelist() if any(f"/{prefix}" in name for prefix in OBJECTS)]
        if pickled:
            raise ArgumentError(f"{path}: holds pickled objects, which are never read: {', '.join(pickled)}")
        with quiet(), patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            program = torch.export.load(Path(path))
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"{path}: cannot be read as a program of torch.export.save ({type(error).__name__}: {first_line(error)})"
        ) from error
    try:
        return ProgramModule(program)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from error


class ProgramModule(nn.Module):
    """A module that computes what an exported program does, with parameters and buffers of its own, by their names.

    Args:
        program: The program; its graph is changed.

    Raises:
        ArgumentError: It takes or changes what no module of tensors does.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        signature = program.graph_signature
        odd = [spec.arg.name for spec in signature.input_specs if spec.kind not in (*TENSORS, InputKind.USER_INPUT)]
        odd += [spec.arg.name for spec in signature.output_specs if spec.kind != OutputKind.USER_OUTPUT]
        odd += [node.name for node in program.graph.nodes if _trains(node)]
        if odd:
            raise ArgumentError(
                f"the program does more than compute outputs from tensors: {', '.join(odd)}; export model.eval()"
            )
        specs = [spec for spec in signature.input_specs if spec.kind in TENSORS]
        tensors = {**program.state_dict, **program.constants}
        self.names = dict(zip((spec.arg.name for spec in specs), self._adopt(specs, tensors), strict=True))
        self.code = Code(program)

    def _adopt(self, specs: list[InputSpec], tensors: dict[str, Any]) -> list[str]:
        """Register the tensors by their names, tied ones as one, and return the names."""
        known: dict[tuple[object, ...], Tensor] = {}
        for spec in specs:
            name, tensor = str(spec.target), tensors[str(spec.target)]
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, spec.kind)
            tensor = known.setdefault(place, tensor) if tensor.numel() else tensor
            path, _, attribute = name.rpartition(".")
            owner: nn.Module = self
            for part in filter(None, path.split(".")):
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if spec.kind == InputKind.PARAMETER:
                owner.register_parameter(attribute, cast(nn.Parameter, tensor))
            else:
                owner.register_buffer(attribute, tensor, persistent=bool(spec.persistent))
        return [str(spec.target) for spec in specs]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the program returns.

        Raises:
            TypeError: It is called in another way than the exported module was.
        """
        return self.code.run(
            {placeholder: self._tensor(name) for placeholder, name in self.names.items()}, args, kwargs
        )

    def _tensor(self, name: str) -> Tensor:
        path, _, attribute = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(path), attribute)
        return tensor


def _trains(node: fx.Node) -> bool:
    """Return whether a call computes as in training: drops values, or normalises by the batch."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    named = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return any(named.get(name) is True for name in ("training", "train"))


class Code:
    """The graph of a program and the forms of its inputs and outputs; never changes, copies of a module share it.

    Checks of shapes and types are left out: they would stop it with other sizes or in another type.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.graph, self.form = program.graph_module, program.call_spec
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and is_check(node):
                self.graph.graph.erase_node(node)
        self.graph.recompile()
        self.placeholders = [node.name for node in self.graph.graph.find_nodes(op="placeholder")]

    def __deepcopy__(self, memo: dict[int, Any]) -> Code:
        """Return the code itself."""
        return self

    def run(self, weights: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the program returns for weights by placeholder, and inputs.

        Raises:
            TypeError: The inputs have another form than the exported module's.
        """
        leaves, form = tree_flatten((args, kwargs))
        if form != self.form.in_spec:
            raise TypeError(f"the program takes {self.form.in_spec}, got {form}")
        inputs = iter(leaves)
        values = [weights[name] if name in weights else next(inputs) for name in self.placeholders]
        return tree_unflatten(self.graph(*values), self.form.out_spec)
