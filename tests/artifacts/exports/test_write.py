"""Files of other runtimes, run in fresh processes.

Covers also secateur.artifacts.exports.program, secateur.artifacts.exports.pt2, secateur.artifacts.exports.onnx,
secateur.artifacts.exports.pte and secateur.artifacts.exports.runtimes.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.artifacts.exports import write as writing
from secateur.artifacts.exports.program import plain, single_program
from secateur.artifacts.exports.pte import planned_memory
from secateur.artifacts.exports.runtimes import run_file
from secateur.artifacts.exports.write import write
from secateur.errors import ArgumentError, ArtifactError
from secateur.planning.details.file_formats import FORMATS
from secateur.result import Result
from secateur.structure.exporting.tracing import quiet
from secateur.structure.inputs import InputSpec
from secateur_experiments.networks import logistic_network, small_convolutional_network

EXPORTS = [suffix for suffix in FORMATS if suffix != ".safetensors"]
FLOATS = [suffix for suffix in EXPORTS if not FORMATS[suffix].quantised]
X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def libraries(suffix: str) -> None:
    """Skip a test where what writes such a file is not installed."""
    for library in FORMATS[suffix].libraries:
        pytest.importorskip(library)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(144, 64), nn.ReLU(), nn.Linear(64, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def result() -> Result:
    return sc.shrink(network(), (X, Y), "cross_entropy", sc.Budget(remove_fraction=0.5), progress=False)


def spec_of(*inputs: Tensor) -> InputSpec:
    return InputSpec.of((inputs, {}))


@pytest.mark.parametrize("suffix", FLOATS)
def test_a_file_computes_what_the_network_does_at_every_batch_size(suffix: str, result: Result, tmp_path: Path) -> None:
    libraries(suffix)
    path = tmp_path / f"small{suffix}"
    assert result.save(path) == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    sizes = (1, 3, 8) if suffix == ".pte" else (1, 3, 40)
    outputs = run_file(path, suffix, [((X[:n],), {}) for n in sizes], "small")
    for n, (output,) in zip(sizes, outputs, strict=True):
        wanted = result.model(X[:n]).detach()
        assert (output - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("suffix", [".int8.onnx", ".int8.pte"])
def test_a_file_in_whole_numbers_is_smaller_and_near_and_its_quality_is_its_own_runtimes(
    suffix: str, result: Result, tmp_path: Path
) -> None:
    libraries(suffix)
    ending = f".{suffix.split('.')[-1]}"
    written = write(network(), result.plan.inputs, tmp_path / f"a{suffix}", (X, Y), "cross_entropy")
    whole = write(network(), result.plan.inputs, tmp_path / f"b{ending}", (X, Y), "cross_entropy")
    assert written.bytes < 0.6 * whole.bytes
    assert 1e-4 < written.difference < 0.1
    logits = torch.cat(
        [out for (out,) in run_file(tmp_path / f"a{suffix}", ending, [((x,), {}) for x in X.split(8)], "a")]
    )
    assert written.loss == pytest.approx(nn.functional.cross_entropy(logits, Y).item(), rel=1e-5)
    assert written.accuracy == pytest.approx((logits.argmax(1) == Y).double().mean().item())
    assert written.module_loss == pytest.approx(nn.functional.cross_entropy(network()(X), Y).item(), rel=1e-5)
    assert whole.loss == pytest.approx(written.module_loss, rel=1e-5)
    assert written.loss != whole.loss


def test_whole_numbers_need_data_and_floats_of_32_or_16_bits(result: Result, tmp_path: Path) -> None:
    libraries(".int8.onnx")
    path = tmp_path / "a.int8.onnx"
    with pytest.raises(ArgumentError, match="needs data, on which the ranges of values are found; None were given"):
        result.save(path)
    with pytest.raises(ArgumentError, match=r"only float32 and float16 .*, the model is of torch\.float64"):
        write(network().double(), spec_of(X.double()), path, (X, Y))
    assert list(tmp_path.iterdir()) == []


def test_a_pt2_holds_no_path_of_the_machine_that_wrote_it_and_no_more_than_two_samples(tmp_path: Path) -> None:
    big = torch.randn(5000, 1, 8, 8)
    write(network(), spec_of(big[:2]), tmp_path / "a.pt2", (big, None))
    with zipfile.ZipFile(tmp_path / "a.pt2") as file:
        contents = {entry.filename: file.read(entry) for entry in file.infolist()}
    assert b"site-packages" not in b"".join(contents.values())
    assert (tmp_path / "a.pt2").stat().st_size < 80_000
    args, _ = torch.export.load(io.BytesIO((tmp_path / "a.pt2").read_bytes())).example_inputs
    assert args[0].shape == (2, 1, 8, 8)
    assert args[0].untyped_storage().nbytes() == args[0].nbytes


def test_an_onnx_file_needs_no_other_file_names_its_batch_and_holds_no_notes(result: Result, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    libraries(".onnx")
    result.save(tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx", load_external_data=False).graph
    assert [size.dim_param or size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        1,
        8,
        8,
    ]
    assert not any(tensor.external_data for tensor in graph.initializer)
    assert not any(node.metadata_props for node in graph.node)


@pytest.mark.parametrize("made", [small_convolutional_network, lambda: logistic_network([64, 40, 30, 10])])
def test_the_memory_counted_is_what_executorch_plans(made: Callable[[], nn.Module]) -> None:
    libraries(".pte")
    model, x = made().eval(), torch.randn(4, 64)
    with quiet():
        assert sc.measure(model, x).ram == planned_memory(single_program(model, spec_of(x)))


def test_the_planned_memory_of_a_pte_is_that_of_one_sample(tmp_path: Path) -> None:
    libraries(".pte")
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 50)).eval()
    written = write(model, spec_of(torch.zeros(2, 100)), tmp_path / "a.pte")
    assert written.planned_memory == pytest.approx(4 * (200 + 200), rel=0.15)


class Keywords(nn.Module):
    """Keyword inputs of a free length, a dictionary with something that is no tensor among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inner, self.head = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.inner(self.embed(ids))) * mask.unsqueeze(-1)
        return {"logits": self.head(hidden.sum(1) / mask.sum(1, keepdim=True)), "cache": None}


@pytest.mark.parametrize("suffix", FLOATS)
def test_keyword_inputs_and_other_lengths(suffix: str, tmp_path: Path) -> None:
    libraries(suffix)
    inputs = {"ids": torch.arange(30).view(6, 5) % 11, "mask": torch.ones(6, 5)}
    small = sc.shrink(Keywords(), [(inputs, None)], "output", sc.Budget(remove_units=6), progress=False)
    small.save(tmp_path / f"a{suffix}")
    shorter = {name: value[:3, : 5 if suffix == ".pte" else 4] for name, value in inputs.items()}
    ((output,),) = run_file(tmp_path / f"a{suffix}", suffix, [((), shorter)], "a")
    torch.testing.assert_close(output, small.model(**shorter)["logits"].detach(), rtol=1e-5, atol=1e-6)


def test_outputs_are_in_containers_that_every_process_knows() -> None:
    class Outputs(dict): ...

    assert type(plain(Outputs(a=[1.0, object()], b=object()))) is dict
    assert plain(Outputs(a=[1.0, object()], b=object())) == {"a": (1.0,)}


def test_a_file_that_does_not_run_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "to_pt2", lambda _: b"no file")
    with pytest.raises(ArtifactError, match=r"a\.pt2: its own runtime cannot run it \("):
        write(network(), spec_of(X), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_computes_something_else_is_not_left(tmp_path: Path) -> None:
    text = r"a\.pt2: outputs of its own runtime differ from the module's by .* of the largest, more than 1e-05"
    with pytest.raises(ArtifactError, match=text):
        write(Changing(network()), spec_of(X), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


class Changing(nn.Sequential):
    """A network that computes something else when it is exported."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0.01 if torch.compiler.is_exporting() else 0.0)


def test_what_cannot_be_exported_is_one_error(tmp_path: Path) -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ArtifactError, match=r"a\.pt2: Asking cannot be exported \(GuardOnDataDependentSymNode: "):
        write(Asking(), spec_of(X), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_written_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype).eval()
    write(model, spec_of(torch.zeros(2, 4, dtype=dtype)), tmp_path / "a.pt2")
    module = torch.export.load(io.BytesIO((tmp_path / "a.pt2").read_bytes())).module()
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def test_the_command_line_writes_and_says_what_the_file_does(
    tmp_path: Path, monkeypatch: Any, command_line: Any
) -> None:
    (tmp_path / "exported_models.py").write_text(
        "import torch\n\ndef network():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))\n\n"
        "def data():\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.rand(20, 4, generator=g), torch.randint(3, (20,), generator=g)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["shrink", "exported_models:network", "--data", "exported_models:data", "--loss", "cross_entropy"]
    code, out, _ = command_line(*words, "--remove-units", "2", "--out", "small.pt2", "--json")
    artifact = json.loads(out)["artifact"]
    assert code == 0
    assert artifact["bytes"] == (tmp_path / "small.pt2").stat().st_size
    assert artifact["difference"] <= 1e-5
    assert artifact["loss"] == pytest.approx(artifact["module_loss"], rel=1e-5)
    code, out, _ = command_line(*words, "--remove-units", "2", "--out", "small.pt2")
    assert code == 0
    assert "\nwritten to small.pt2, " in out
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    code, out, err = command_line(*words, "--remove-units", "2", "--out", "small.onnx")
    assert (code, out) == (2, "")
    assert err.startswith("secateur: small.onnx: needs ")
    assert err.endswith('pip install "secateur[onnx]"\n')
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.filterwarnings("ignore")
def test_sizes_that_a_runtime_cannot_leave_free_are_the_examples(tmp_path: Path) -> None:
    """ONNX has no pooling to a number of places for maps of any size: its kernel would be that of the example."""
    libraries(".onnx")
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    model, x = nn.Sequential(*layers).eval(), torch.randn(3, 1, 12, 12)
    spec = sc.find_units(model, x).captured.spec
    assert len(spec.free) == 2
    write(model, spec, tmp_path / "a.onnx")
    import onnx

    sizes = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 1, 12, 12]
