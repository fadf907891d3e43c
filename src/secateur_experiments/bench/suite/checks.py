"""One network of the suite: cut, then used in every way in which the original can be used."""

from __future__ import annotations

import copy
import io
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur import Budget, SecateurError, Units, cut, find_units, rank
from secateur.cutting.captured_forward import captured_parts
from secateur.errors import ModelError
from secateur.structure.graph_run import difference
from secateur.structure.inputs import as_call
from secateur.structure.units import require_units
from secateur_experiments.bench.architectures import limited, randomise
from secateur_experiments.bench.suite.registry import Subject, suite
from secateur_experiments.bench.suite.truth import InDouble, tensors, zeroed

SHARE = 0.4  # of every unit set, or of all units
COMPILING = 15  # seconds that torch.compile may take
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {"use_cache": True},
    "static": {"use_cache": True, "cache_implementation": "static"},
    "none": {"use_cache": False},
}
STEPS = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4}


@dataclass(frozen=True)
class Case:
    """A network, what is left of it, and what that must compute."""

    subject: Subject
    original: nn.Module
    small: nn.Module
    truth: nn.Module

    def inputs(self, samples: int = 2, size: Any = None) -> Any:
        """Return random inputs, of the example's size if that is left out."""
        return drawn(self.subject, samples, self.subject.sizes[0] if size is None else size)

    def outputs(self, model: Any, inputs: Any) -> Any:
        """Return what a network or a function gives, all of it computed in the network's dtype."""
        args, kwargs = as_call(inputs)
        with torch.no_grad(), throughout(self.subject.dtype):
            return model(*args, **kwargs)

    def check(self, got: Any, expected: Any, where: str = "") -> None:
        """Compare outputs.

        Raises:
            SecateurError: They differ.
        """
        absolute, relative = difference(tensors(expected), tensors(got))
        if not min(absolute, relative) <= TOLERANCES[self.subject.dtype]:
            raise SecateurError(f"{where}differs by {absolute:.1e}")


def drawn(subject: Subject, samples: int, size: Any) -> Any:
    """Return random inputs in the network's dtype."""
    torch.manual_seed(samples)

    def cast(value: Any) -> Any:
        return value.to(subject.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(cast, subject.inputs(samples, size))


@contextmanager
def throughout(dtype: torch.dtype) -> Iterator[None]:
    """Let code that makes numbers of its own make them in this dtype."""
    torch.set_default_dtype(dtype)
    try:
        with InDouble() if dtype == torch.float64 else nullcontext():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def built(name: str) -> Subject:
    """Return a network with random weights in eval mode."""
    torch.manual_seed(0)
    subject = suite()[name]()
    randomise(subject.model.to(subject.dtype).eval())
    return subject


def pruned(model: nn.Module, inputs: Any, scope: Literal["global", "set"] = "set") -> tuple[nn.Module, Units]:
    """Return the network without a random share of every set or of all units, and the unit sets."""
    units = require_units(find_units(model, inputs))
    budget = Budget(remove_fraction=SHARE, scope=scope)
    plan = rank(model, None, None, units=units, criterion="random", ranking="single", budget=budget, progress=False)
    return cut(model, plan.at(budget)).eval(), units


def examine(name: str, verbose: bool = False) -> dict[str, Any]:
    """Return the row of one network.

    Args:
        name: In the suite.
        verbose: Print tracebacks of what fails on stderr.
    """
    subject = built(name)
    model, example = subject.model, drawn(subject, 2, subject.sizes[0])
    start = time.perf_counter()
    small, units, note = as_it_comes(model, example)
    seconds = time.perf_counter() - start
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, small))
    case = Case(subject, model, small, zeroed(model, small))
    return {
        "name": name, "sets": len(units), "units": units.total, "params": before, "left": after,
        "captured": captured_parts(small), **{column: cell(check, case, verbose) for column, check in CHECKS.items()},
        "seconds": seconds, "note": note,
    }  # fmt: skip


def as_it_comes(model: Any, inputs: Any) -> tuple[nn.Module, Units, str]:
    """Return what `pruned` does, and how the network had to be changed for that.

    Raises:
        ModelError: It cannot be captured without its cache either.
    """
    try:
        return *pruned(model, inputs), ""
    except ModelError as error:
        configs = [getattr(module, "config", None) for module in model.modules()]  # a part may have one of its own
        caching: list[Any] = [config for config in configs if getattr(config, "use_cache", False)]
        if not caching:
            raise
        for config in caching:
            config.use_cache = False
        return *pruned(model, inputs), f"with use_cache=False; as it comes: {reason(error)}"


def cell(check: Callable[[Case], str], case: Case, verbose: bool) -> str:
    """Return what a check says, or why it fails."""
    try:
        return check(case)
    except Exception as error:  # noqa: BLE001 - one cell of the table
        if verbose:
            traceback.print_exc()
        return f"no: {reason(error)}"


def reason(error: Exception) -> str:
    """Return the kind of an error and the first words of its text."""
    words = " ".join(str(error).split())
    return words[:160] if type(error) is SecateurError else f"{type(error).__name__}: {words[:160]}"


def equal(case: Case) -> str:
    """Compare with the masked original at the example's shapes, which must differ from the original itself.

    Raises:
        SecateurError: They differ, or what was removed does not count.
    """
    example = case.inputs()
    expected = case.outputs(case.truth, example)
    case.check(case.outputs(case.small, example), expected)
    if not difference(tensors(case.outputs(case.original, example)), tensors(expected))[0] > 1e-6:
        raise SecateurError("what was removed does not count")
    return "yes"


def free(case: Case) -> str:
    """Compare at other numbers of samples, and at every other size.

    Raises:
        SecateurError: They differ somewhere, or the cut network does not take a size.
    """
    named = {f"batch {samples}": (samples, None) for samples in (1, 3)}
    named |= {f"{case.subject.dimension} {size}": (2, size) for size in case.subject.sizes[1:]}
    failures = []
    for where, (samples, size) in named.items():
        inputs = case.inputs(samples, size)
        expected = case.outputs(case.truth, inputs)
        try:
            case.check(case.outputs(case.small, inputs), expected)
        except Exception as error:  # noqa: BLE001 - the other sizes count too
            failures.append(f"{where}: {reason(error)}")
    if failures:
        raise SecateurError(f"{len(failures)} of {len(named)}, {failures[0]}")
    return "batch" if len(case.subject.sizes) == 1 else f"batch, {case.subject.dimension}"


def generate(case: Case) -> str:
    """Compare three tokens, and the numbers that they were chosen by, with every kind of cache.

    Raises:
        SecateurError: They differ, or the cut network does not generate.
    """
    if case.subject.prompt is None:
        return ""
    prompt = tree_map(lambda t: t.to(case.subject.dtype) if t.is_floating_point() else t, case.subject.prompt())
    done, failures = [], []
    for kind, cache in CACHES.items():
        try:
            expected = _generated(case, case.truth, prompt, cache)
        except Exception:  # noqa: BLE001 - the original cannot either
            continue
        try:
            case.check(_generated(case, case.small, prompt, cache), expected)
            done.append(kind)
        except Exception as error:  # noqa: BLE001 - the other kinds count too
            failures.append(f"{kind}: {reason(error)}")
    if failures:
        raise SecateurError(f"{len(failures)} of {len(failures) + len(done)}, {failures[0]}")
    return ", ".join(done) or "nor the original"


def _generated(case: Case, model: Any, prompt: dict[str, Any], cache: dict[str, Any]) -> list[Tensor]:
    with throughout(case.subject.dtype):
        result = model.generate(**prompt, **STEPS, **cache, return_dict_in_generate=True, output_logits=True)
    return [result.sequences, *result.logits]


def train(case: Case) -> str:
    """Take one step; every parameter that had a gradient must have one, where the original can be trained.

    Raises:
        SecateurError: One has not.
    """
    have = _trained(case, copy.deepcopy(case.small))
    try:
        wanted = _trained(case, copy.deepcopy(case.original))
    except RuntimeError:
        return "yes, unlike the original"
    without = sorted(wanted - have)
    if without:
        raise SecateurError(f"{len(without)} without a gradient, {without[0]}")
    return "yes"


def _trained(case: Case, model: nn.Module) -> set[str]:
    args, kwargs = as_call(case.inputs(4))
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    results = [tensor for tensor in tensors(model.train()(*args, **kwargs)) if tensor.is_floating_point()]
    loss: Any = torch.stack([tensor.square().mean() for tensor in results]).sum()
    loss.backward()
    optimiser.step()
    if not all(tensor.isfinite().all() for tensor in tensors(case.outputs(model.eval(), case.inputs()))):
        raise SecateurError("not finite after a step")
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _reloaded(model: nn.Module, _: Any) -> nn.Module:
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    twin.load_state_dict(saved)
    return twin


def _unpickled(model: nn.Module, _: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _exported(model: nn.Module, inputs: Any) -> Callable[..., Any]:
    args, kwargs = as_call(inputs)
    return torch.export.export(model, args, kwargs, strict=False).module()


def life(make: Callable[[nn.Module, Any], Callable[..., Any]]) -> Callable[[Case], str]:
    """Return the check of a network made of the cut one; empty where none can be made of the original."""

    def check(case: Case) -> str:
        example = case.inputs()
        expected = case.outputs(case.truth, example)
        try:
            got = case.outputs(make(case.small, example), example)
        except Exception:
            try:
                case.outputs(make(case.original, example), example)
            except Exception:  # noqa: BLE001 - then nothing is lost
                return "nor the original"
            raise
        case.check(got, expected)
        return "yes"

    return check


def again(case: Case) -> str:
    """Cut what is left once more."""
    example = case.inputs()
    smaller, _ = pruned(case.small, example)
    case.check(case.outputs(smaller, example), case.outputs(zeroed(case.original, smaller), example))
    return "yes"


def unequal(case: Case) -> str:
    """Make the first three comparisons where the share differs from set to set, as budgets for all have it.

    Raises:
        SecateurError: One of them fails.
    """
    small, _ = pruned(case.original, case.inputs(), "global")
    other = Case(case.subject, case.original, small, zeroed(case.original, small))
    for check in (equal, free, generate):
        check(other)
    return "yes" if not captured_parts(small) else f"captured {captured_parts(small)[0] or 'whole'}"


def compiled(case: Case) -> str:
    """Compare what torch.compile makes with the network itself, where that does not take long."""
    torch.compiler.reset()
    args, kwargs = as_call(case.inputs())
    try:
        with limited(COMPILING), torch.no_grad():
            case.check(torch.compile(case.small, backend="eager")(*args, **kwargs), case.small(*args, **kwargs))
    except TimeoutError:
        return "slow"
    return "yes"


CHECKS: dict[str, Callable[[Case], str]] = {
    "equal": equal, "free": free, "generate": generate, "train": train,
    "deepcopy": life(lambda model, _: copy.deepcopy(model)), "state_dict": life(_reloaded), "save": life(_unpickled),
    "export": life(_exported), "again": again, "unequal": unequal, "compile": compiled,
}  # fmt: skip
