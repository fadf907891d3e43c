"""The public names, the one direction in which the stages import each other, what an import brings along, and sizes."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import secateur
import secateur_experiments

PACKAGE = Path(secateur.__file__).parent
EXPERIMENTS = Path(secateur_experiments.__file__).parent
ROOTS = {"secateur": PACKAGE, "secateur_experiments": EXPERIMENTS}
STAGES = [
    "errors", "plugins", "text", "phases", "arguments", "process_state", "options", "reference",
    "structure", "own_code",
    "objective", "curvature", "least_squares", "compensation", "saliency", "planning", "refinement", "cutting",
    "artifacts", "reporting", "result", "weight_pruning", "ordering", "estimating", "retraining",
    "shrinking",
    "secateur", "optim", "cli_options", "commands", "cli",
]  # fmt: skip
# "secateur" is the package itself: whoever imports from it imports all that it imports
ROOMS = [
    "extra", "curves", "datasets", "networks", "training", "subjects", "study", "demo_report", "demo", "commands",
    "papers", "bench",
]  # fmt: skip
ANYTHING = {"__init__.py", "__main__.py"}


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


FILES, EXPERIMENT_FILES = files_of(PACKAGE), files_of(EXPERIMENTS)
TESTS = Path(__file__).parent
SOURCES = {
    **{f"secateur/{file}": PACKAGE / file for file in FILES},
    **{f"secateur_experiments/{file}": EXPERIMENTS / file for file in EXPERIMENT_FILES},
}
# what begins with an underscore in other libraries, and has no public name there
FOREIGN = {
    "_asdict", "_fields", "_replace",  # of every NamedTuple
    "_backward_hooks", "_buffers", "_call_impl", "_detect_is_causal_mask", "_flat_weights", "_forward_hooks",
    "_forward_pre_hooks", "_l0", "_python_dispatch", "_qkv_same_embed_dim", "_schema",  # of PyTorch
}  # fmt: skip

PUBLIC = [
    "Budget", "Compensation", "Plan", "SecateurError", "Units", "criterion", "cut", "estimate", "find_units",
    "interactions", "load", "measure", "rank", "score", "shrink",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert secateur.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    public = getattr(secateur, name)
    assert public.__module__.startswith("secateur.")
    assert public.__name__ == name
    assert public.__doc__


# ------------------------------------------------------------ one direction


def imported(source: str, file: str, package: str = "secateur") -> set[str]:
    """What a file imports from a package, at any level of nesting, for type checkers too: stages, or the package."""
    inside = [package, *file.split("/")[:-1]]
    stages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            stages |= {stage(alias.name.split("."), package) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            path = [*start, *(node.module or "").split(".")]
            stages |= {stage([part for part in [*path, alias.name] if part], package) for alias in node.names}
    return {name for name in stages if name is not None}


def stage(path: list[str], package: str) -> str | None:
    """The stage of a dotted name; the package itself for one of its public names; None outside of it."""
    if path[0] != package:
        return None
    root = ROOTS[package]
    inside = len(path) > 1 and ((root / path[1]).is_dir() or (root / f"{path[1]}.py").exists())
    public = package == "secateur" and len(path) == 2 and path[1] in PUBLIC
    return path[1] if inside and not public else package


def against(source: str, file: str, package: str = "secateur", order: Sequence[str] = STAGES) -> set[str]:
    """The stages that a file imports from although they come after its own."""
    own = file.split("/")[0].removesuffix(".py")
    return {other for other in imported(source, file, package) if order.index(other) > order.index(own)}


@pytest.mark.parametrize("file", [file for file in FILES if file not in ANYTHING])
def test_a_module_imports_in_the_direction_of_data_flow(file: str) -> None:
    assert file.split("/")[0].removesuffix(".py") in STAGES
    assert against((PACKAGE / file).read_text(), file) == set()


@pytest.mark.parametrize("file", [file for file in EXPERIMENT_FILES if file not in ANYTHING])
def test_so_does_an_experiment(file: str) -> None:
    assert file.split("/")[0].removesuffix(".py") in ROOMS
    assert against((EXPERIMENTS / file).read_text(), file, "secateur_experiments", ROOMS) == set()


@pytest.mark.parametrize("file", FILES)
def test_the_library_knows_nothing_of_the_experiments(file: str) -> None:
    assert imported((PACKAGE / file).read_text(), file, "secateur_experiments") == set()
    assert "secateur_experiments" not in (PACKAGE / file).read_text()


@pytest.mark.parametrize("file", [file for file in EXPERIMENT_FILES if file.startswith("papers/")])
def test_the_papers_and_the_benchmarks_know_nothing_of_each_other(file: str) -> None:
    assert "bench" not in imported((EXPERIMENTS / file).read_text(), file, "secateur_experiments")
    benches = [name for name in EXPERIMENT_FILES if name.startswith("bench/")]
    sources = {name: (EXPERIMENTS / name).read_text() for name in benches}
    assert [name for name in benches if "papers" in imported(sources[name], name, "secateur_experiments")] == []


def test_there_is_something_to_check() -> None:
    assert {file.split("/")[0] for file in FILES} >= {"errors.py", "structure", "saliency", "shrinking.py"}
    stages = {other for file in FILES for other in imported((PACKAGE / file).read_text(), file)}
    assert {"errors", "structure", "saliency", "planning", "cutting", "artifacts"} <= stages
    sources = {file: (EXPERIMENTS / file).read_text() for file in EXPERIMENT_FILES}
    rooms = {other for file in sources for other in imported(sources[file], file, "secateur_experiments")}
    assert {"curves", "study", "papers", "bench"} <= rooms
    assert {"secateur", "saliency", "reporting"} <= {
        other for file in sources for other in imported(sources[file], file, "secateur")
    }


@pytest.mark.parametrize(
    ("source", "file", "offence"),
    [
        ("from secateur.objective.gated_loss import Gated", "structure/units.py", "objective"),
        ("import secateur.cutting.cut as c", "planning/plan.py", "cutting"),
        ("def f():\n    from secateur.shrinking import rank", "artifacts/measure.py", "shrinking"),
        ("if TYPE_CHECKING:\n    from secateur.planning import budget", "reference/quantities.py", "planning"),
        ("from secateur import saliency", "structure/units.py", "saliency"),
        ("from secateur import find_units", "reference/quantities.py", "secateur"),
        ("import secateur as sc", "shrinking.py", "secateur"),
        ("from ..cutting import cut", "saliency/gates.py", "cutting"),
        ("from .. import shrink", "reporting/tables.py", "secateur"),
        ("from ...planning.plan import Plan", "structure/ops/net.py", "planning"),
        ("try:\n    import os, secateur.artifacts\nexcept ImportError:\n    pass", "errors.py", "artifacts"),
    ],
)
def test_an_import_against_the_direction_is_found(source: str, file: str, offence: str) -> None:
    assert against(source, file) == {offence}


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("from secateur.structure.axis import Axis", "structure/ops/net.py"),
        ("from .axis import Axis\nfrom . import run", "structure/units.py"),
        ("from secateur import saliency", "saliency/criterion.py"),
        ("import torch\nfrom torch import nn", "errors.py"),
        ("import secateur as sc", "optim.py"),
        ("from secateur.shrinking import shrink", "cli.py"),
        ("from secateur_experiments.study import Study", "errors.py"),  # for which there is a test of its own
    ],
)
def test_an_import_in_the_direction_is_not(source: str, file: str) -> None:
    assert against(source, file) == set()


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from secateur_experiments.study import Study", {"study"}),
        ("import secateur_experiments", {"secateur_experiments"}),
        ("def f():\n    from secateur_experiments import datasets", {"datasets"}),
        ("from secateur.shrinking import shrink", set()),
    ],
)
def test_an_import_of_the_experiments_is_found(source: str, rooms: set[str]) -> None:
    assert imported(source, "cli.py", "secateur_experiments") == rooms


# ------------------------------------------------------------ what an import brings along


def test_importing_secateur_imports_nothing_that_only_its_pages_tables_and_commands_need() -> None:
    code = "import sys, secateur; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "secateur.shrinking"} <= set(loaded)
    roots = {name.split(".")[0] for name in loaded}
    assert roots.isdisjoint({"matplotlib", "sklearn", "scipy", "typer", "jinja2", "rich", "secateur_experiments"})


# ------------------------------------------------------------ printing


def prints(source: str) -> list[int]:
    """The lines that call `print`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize(
    "path",
    [*(PACKAGE / file for file in FILES if file != "cli.py"), *(EXPERIMENTS / file for file in EXPERIMENT_FILES)],
)
def test_nothing_but_the_command_line_prints(path: Path) -> None:
    assert prints(path.read_text()) == []


def test_a_print_is_found() -> None:
    assert prints('def f():\n    """print(1)"""\n    print("x")\n    console.print("y")') == [3]


def private(source: str) -> list[str]:
    """The private names that a test takes of others' objects, and those that it hands on as strings."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "secateur":
            found |= {name for alias in node.names for name in f"{node.module}.{alias.name}".split(".")}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.]+", str(node.value)):
            found |= set(str(node.value).split("."))
    return sorted(name for name in found - FOREIGN if re.match("_[a-z]", name))


@pytest.mark.parametrize("file", sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py")))
def test_a_test_touches_no_private_name(file: str) -> None:
    if file != Path(__file__).name:
        assert private((TESTS / file).read_text()) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from secateur.shrink import _rank", ["_rank"]),
        ("from secateur._hidden import x", ["_hidden"]),
        ("from secateur.saliency import oracle\noracle._run()", ["_run"]),
        ("assert gated._frontiers is None", ["_frontiers"]),
        ('monkeypatch.setattr(UnitSurgeon, "_scale", 1)', ["_scale"]),
        ('monkeypatch.setattr("secateur.compensation.unit_surgeon._costs", 1)', ["_costs"]),
        ('@pytest.mark.parametrize("where", ["cut_units", "_result"])\ndef test(where): ...', ["_result"]),
    ],
)
def test_a_private_name_in_a_test_is_found(source: str, names: list[str]) -> None:
    assert private(source) == names


@pytest.mark.parametrize(
    "source",
    [
        "def _made(): ...\n_made()",
        "class A:\n    def f(self):\n        self._values = cls._values",
        "module._forward_hooks, row._replace(a=1), x.__dict__",
        "from torch.utils._python_dispatch import TorchDispatchMode",
        "'a _word of a sentence'",
        "lambda _, __: 0",
    ],
)
def test_a_tests_own_names_and_other_libraries_are_not(source: str) -> None:
    assert private(source) == []


# ------------------------------------------------------------ a test for each source file


def mirrored(source: str) -> str:
    """Return where the tests of a source file are: tests/planning/test_plan.py for secateur/planning/plan.py."""
    package, *folders, name = source.split("/")
    return "/".join([*(["experiments"] if package == "secateur_experiments" else []), *folders, f"test_{name}"])


def named_in(docstring: str | None) -> set[str]:
    """Return the source files that a docstring names as modules."""
    modules = re.findall(r"\bsecateur\w*(?:\.\w+)+", docstring or "")
    return {f"{module.replace('.', '/')}.py" for module in modules}


@functools.cache
def covered() -> set[str]:
    """Return the source files that the docstrings of all tests name."""
    docstrings = (ast.get_docstring(ast.parse(path.read_text())) for path in TESTS.rglob("test_*.py"))
    return set().union(*map(named_in, docstrings))


@pytest.mark.parametrize("source", [name for name in SOURCES if Path(name).name not in ANYTHING])
def test_a_source_file_has_a_test_file_or_is_named_in_the_docstring_of_one(source: str) -> None:
    assert (TESTS / mirrored(source)).exists() or source in covered()


def test_a_docstring_names_source_files_that_there_are() -> None:
    assert covered() - {f"secateur/{name}.py" for name in PUBLIC} <= SOURCES.keys()


def test_the_test_of_a_source_file_is_where_the_file_is() -> None:
    assert mirrored("secateur/planning/plan.py") == "planning/test_plan.py"
    assert mirrored("secateur/errors.py") == "test_errors.py"
    assert mirrored("secateur_experiments/bench/oracle.py") == "experiments/bench/test_oracle.py"


@pytest.mark.parametrize(
    ("docstring", "sources"),
    [
        ("Plans; also covers secateur.planning.state.", {"secateur/planning/state.py"}),
        (
            "Covers `secateur.errors`, secateur_experiments.bench.fitting and others.",
            {"secateur/errors.py", "secateur_experiments/bench/fitting.py"},
        ),
        ("What secateur does, in secateur/errors.py", set()),
        (None, set()),
    ],
)
def test_a_source_file_in_a_docstring_is_found(docstring: str | None, sources: set[str]) -> None:
    assert named_in(docstring) == sources


# ------------------------------------------------------------ sizes

MOST_PARAMETERS, MOST_FILES, MOST_LINES = 8, 15, 350


def public_functions(source: str) -> set[str]:
    """Return the functions of a source file that are public names."""
    module = source.removesuffix(".py").replace("/", ".")
    return {name for name in PUBLIC if getattr(secateur, name).__module__ == module}


def is_command(function: ast.AST) -> bool:
    """Return whether a function is decorated as a command of the command line, ``@app.command()``."""
    decorators = (getattr(decorator, "func", None) for decorator in getattr(function, "decorator_list", []))
    return any(isinstance(decorator, ast.Attribute) and decorator.attr == "command" for decorator in decorators)


def parameter_counts(text: str) -> list[tuple[str, int]]:
    """Return the functions that are no commands, with the number of their parameters without self and cls."""
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [(f.name, len(parameters(f.args))) for f in functions if not is_command(f)]


def parameters(arguments: ast.arguments) -> set[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument is not None} - {"self", "cls"}


@pytest.mark.parametrize("source", SOURCES)
def test_a_function_that_is_not_public_has_at_most_8_parameters(source: str) -> None:
    counts = parameter_counts(SOURCES[source].read_text())
    many = {name for name, count in counts if count > MOST_PARAMETERS}
    assert many <= public_functions(source)


def test_parameters_are_counted() -> None:
    text = """
class A:
    def method(self, a, /, b, *c, d=1, **e): ...
@app.command()
def command(a, b): ...
class B:
    def method(cls, a, b): ...
def outer(a):
    async def inner(a, b, c): ...
"""
    assert sorted(parameter_counts(text)) == [("inner", 3), ("method", 2), ("method", 5), ("outer", 1)]
    assert public_functions("secateur/shrinking.py") == {"shrink"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES.values()}))
def test_a_folder_holds_at_most_15_files_of_code(folder: Path) -> None:
    assert len({path.name for path in folder.glob("*.py")} - {"__init__.py"}) <= MOST_FILES


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_file_has_at_most_350_lines(source: str) -> None:
    assert len(SOURCES[source].read_text().splitlines()) <= MOST_LINES
