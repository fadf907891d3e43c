"""Attributes of PyTorch's modules after a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import First, Kept, randomise
from secateur.cutting.verify import exact_truths, truth
from secateur.own_code.module_attributes import update_attributes
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.reference import RandomNetwork
from secateur.structure.inputs import as_call
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Net


def update(model: nn.Module) -> None:
    """Where no graph says more than the shapes."""
    update_attributes(model, Net(), {}, KeepMask({}))


def test_a_dense_layer_says_its_new_sizes() -> None:
    layer = nn.Linear(7, 5)
    layer.weight = nn.Parameter(torch.zeros(2, 3))
    update(nn.Sequential(layer))
    assert (layer.out_features, layer.in_features) == (2, 3)


@pytest.mark.parametrize(
    ("affine", "track"), [(True, True), (False, True), (True, False)], ids=["whole", "no weights", "no statistics"]
)
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.SyncBatchNorm])
def test_a_batch_norm_says_its_new_size(kind: type[nn.BatchNorm1d], affine: bool, track: bool) -> None:
    norm = kind(5, affine=affine, track_running_stats=track)
    if affine:
        norm.weight, norm.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    if track:
        norm.running_mean, norm.running_var = torch.zeros(3), torch.ones(3)
    update(nn.ModuleDict({"norm": norm}))
    assert norm.num_features == 3


def test_norms_without_tensors_are_left() -> None:
    norm, group = nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.GroupNorm(2, 4, affine=False)
    layer, rms = nn.LayerNorm((3, 4), elementwise_affine=False), nn.RMSNorm(4, elementwise_affine=False)
    update(nn.Sequential(norm, group, layer, rms, nn.ReLU()))
    assert norm.num_features == 5
    assert (group.num_groups, group.num_channels) == (2, 4)
    assert (layer.normalized_shape, rms.normalized_shape) == ((3, 4), (4,))


# ---------------------------------------------------------------- every layer with sizes, cut and nothing else done


class Example(NamedTuple):
    """A network, the units that stay, and what some of its modules are then like."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kept: Kept
    like: dict[str, Callable[[], nn.Module]]

    def input(self, n: int = 4) -> Tensor:
        generator = torch.Generator().manual_seed(n)
        if self.shape == ():
            return torch.randint(0, 9, (n, 5), generator=generator)
        return torch.randn(n, *self.shape, dtype=torch.float64, generator=generator)


def between(*middle: nn.Module, first: int = 8, last: int = 8) -> Callable[[], nn.Module]:
    """Something between convolutions 3 → first and last → 2."""
    return lambda: nn.Sequential(nn.Conv2d(3, first, 1), nn.Tanh(), *middle, nn.Tanh(), nn.Conv2d(last, 2, 1))


def behind(inner: nn.Module, out: int) -> Callable[[], nn.Module]:
    """A recurrent layer behind a dense one 4 → 7."""
    return lambda: nn.Sequential(nn.Linear(4, 7), nn.Tanh(), First(inner), nn.Linear(out, 2))


IMAGE, SEQUENCE, VECTOR, INDICES = (3, 4, 4), (5, 4), (4,), ()
EXAMPLES = {
    "conv1d": Example(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3, padding=1, bias=False), nn.Tanh(), nn.Conv1d(8, 2, 3)),
        (3, 5), {"0": (1, 4, 6)},
        {"0": lambda: nn.Conv1d(3, 3, 3, padding=1, bias=False), "2": lambda: nn.Conv1d(3, 2, 3)},
    ),
    "conv2d": Example(
        between(nn.Conv2d(8, 6, (3, 2), stride=2, dilation=(1, 2), padding_mode="reflect", padding=1), last=6),
        IMAGE, {"0": (1, 4, 6), "2": (0, 5)},
        {
            "0": lambda: nn.Conv2d(3, 3, 1), "4": lambda: nn.Conv2d(2, 2, 1),
            "2": lambda: nn.Conv2d(3, 2, (3, 2), stride=2, dilation=(1, 2), padding_mode="reflect", padding=1),
        },
    ),
    "conv3d": Example(
        lambda: nn.Sequential(nn.Conv3d(2, 5, 2), nn.Tanh(), nn.Conv3d(5, 2, 1)), (2, 3, 3, 3), {"0": (4,)},
        {"0": lambda: nn.Conv3d(2, 1, 2), "2": lambda: nn.Conv3d(1, 2, 1)},
    ),
    "grouped conv": Example(
        between(nn.Conv2d(8, 12, 3, groups=4), last=12), IMAGE, {"0[0]": (0, 2, 3), "0[1]": (1,), "2": (0, 2)},
        {"0": lambda: nn.Conv2d(3, 3, 1), "2": lambda: nn.Conv2d(3, 6, 3, groups=3), "4": lambda: nn.Conv2d(6, 2, 1)},
    ),
    "grouped conv, one group left": Example(
        between(nn.Conv2d(8, 12, 3, groups=4), last=12), IMAGE, {"0[0]": (2,)},
        {"0": lambda: nn.Conv2d(3, 2, 1), "2": lambda: nn.Conv2d(2, 3, 3, groups=1)},
    ),
    "depthwise conv": Example(
        between(nn.Conv2d(8, 8, 3, groups=8)), IMAGE, {"0": (1, 4, 6)},
        {"0": lambda: nn.Conv2d(3, 3, 1), "2": lambda: nn.Conv2d(3, 3, 3, groups=3), "4": lambda: nn.Conv2d(3, 2, 1)},
    ),
    "depthwise conv with two outputs a channel": Example(
        between(nn.Conv2d(8, 16, 3, groups=8), last=16), IMAGE, {"0": (1, 4, 6)},
        {"2": lambda: nn.Conv2d(3, 6, 3, groups=3), "4": lambda: nn.Conv2d(6, 2, 1)},
    ),
    "transposed conv": Example(
        between(nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), last=6), IMAGE, {"0": (1, 4, 6), "2": (0, 5)},
        {
            "2": lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), "4": lambda: nn.Conv2d(2, 2, 1),
        },
    ),
    "grouped transposed conv": Example(
        between(nn.ConvTranspose2d(8, 12, 3, groups=4), last=12), IMAGE,
        {"0[0]": (0, 2, 3), "0[1]": (1,), "2": (0, 2)},
        {"2": lambda: nn.ConvTranspose2d(3, 6, 3, groups=3), "4": lambda: nn.Conv2d(6, 2, 1)},
    ),
    "depthwise transposed conv": Example(
        between(nn.ConvTranspose2d(8, 8, 3, groups=8)), IMAGE, {"0": (1, 4, 6)},
        {"2": lambda: nn.ConvTranspose2d(3, 3, 3, groups=3), "4": lambda: nn.Conv2d(3, 2, 1)},
    ),
    "embedding": Example(
        lambda: nn.Sequential(nn.Embedding(9, 6, padding_idx=3), nn.Linear(6, 2)), INDICES, {"0": (0, 1, 3, 5)},
        {"0": lambda: nn.Embedding(9, 4, padding_idx=3), "1": lambda: nn.Linear(4, 2)},
    ),
    "batch norm": Example(
        between(nn.BatchNorm2d(8, eps=0.1)), IMAGE, {"0": (1, 4, 6)}, {"2": lambda: nn.BatchNorm2d(3, eps=0.1)}
    ),
    "instance norm": Example(
        between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), IMAGE, {"0": (1, 4, 6)},
        {"2": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True)},
    ),
    "group norm, groups": Example(
        between(nn.GroupNorm(4, 8)), IMAGE, {"0[0]": (0, 2, 3)}, {"2": lambda: nn.GroupNorm(3, 6)}
    ),
    "group norm, members": Example(
        between(nn.GroupNorm(2, 8)), IMAGE, {"0[1]": (0, 2, 3)}, {"2": lambda: nn.GroupNorm(2, 6)}
    ),
    "group norm, both": Example(
        between(nn.GroupNorm(4, 8, eps=0.1)), IMAGE, {"0[0]": (0, 2, 3), "0[1]": (1,)},
        {"0": lambda: nn.Conv2d(3, 3, 1), "2": lambda: nn.GroupNorm(3, 3, eps=0.1)},
    ),
    "layer norm": Example(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.Linear(8, 2)), SEQUENCE, {"0": (1, 4, 6)},
        {"0": lambda: nn.Linear(4, 3), "1": lambda: nn.LayerNorm(3, eps=0.1), "2": lambda: nn.Linear(3, 2)},
    ),
    "layer norm of two dimensions": Example(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm((5, 8)), nn.Linear(8, 2)), SEQUENCE, {"0": (1, 4, 6)},
        {"1": lambda: nn.LayerNorm((5, 3))},
    ),
    "rms norm": Example(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 2)), SEQUENCE, {"0": (1, 4, 6)},
        {"1": lambda: nn.RMSNorm(3)},
    ),
    "prelu": Example(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 2)), VECTOR, {"0": (1, 4, 6)},
        {"1": lambda: nn.PReLU(3)},
    ),
    "prelu with one slope": Example(between(nn.PReLU()), IMAGE, {"0": (1, 4, 6)}, {"2": lambda: nn.PReLU(1)}),
    "lstm": Example(
        behind(nn.LSTM(7, 5, batch_first=True), 5), SEQUENCE, {"0": (0, 3, 6), "2.inner": (0, 4)},
        {"0": lambda: nn.Linear(4, 3), "2.inner": lambda: nn.LSTM(3, 2, batch_first=True),
         "3": lambda: nn.Linear(2, 2)},
    ),
    "bidirectional lstm of two layers": Example(
        behind(nn.LSTM(7, 5, 2, batch_first=True, bidirectional=True), 10), SEQUENCE,
        {"0": (0, 3, 6), "2.inner": (0, 4)},
        {"2.inner": lambda: nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True), "3": lambda: nn.Linear(4, 2)},
    ),
    "projected lstm": Example(
        behind(nn.LSTM(7, 5, proj_size=3, batch_first=True), 3), SEQUENCE,
        {"0": (0, 6), "2.inner[0]": (0, 2, 4), "2.inner[1]": (1, 2)},
        {"2.inner": lambda: nn.LSTM(2, 3, proj_size=2, batch_first=True), "3": lambda: nn.Linear(2, 2)},
    ),
    "gru": Example(
        behind(nn.GRU(7, 5, batch_first=True), 5), SEQUENCE, {"0": (0, 3, 6), "2.inner": (0, 4)},
        {"2.inner": lambda: nn.GRU(3, 2, batch_first=True), "3": lambda: nn.Linear(2, 2)},
    ),
    "gru without biases": Example(
        behind(nn.GRU(7, 5, 2, batch_first=True, bias=False), 5), SEQUENCE, {"2.inner": (1, 2, 4)},
        {"2.inner": lambda: nn.GRU(7, 3, 2, batch_first=True, bias=False)},
    ),
    "rnn": Example(
        behind(nn.RNN(7, 5, nonlinearity="relu", batch_first=True), 5), SEQUENCE, {"0": (0, 3), "2.inner": (0, 1, 4)},
        {"2.inner": lambda: nn.RNN(2, 3, nonlinearity="relu", batch_first=True)},
    ),
}  # fmt: skip


def resized(example: Example) -> tuple[nn.Module, nn.Module]:
    """A random network of this form, and its sliced copy with new attributes, held against the gated graph."""
    torch.manual_seed(0)
    model, x = randomise(example.model().double().eval()), example.input()
    units, call = sc.find_units(model, x, "all"), as_call(x)
    keep_mask = keep_mask_of(units, example.kept)
    small = sliced_copy(model, units, keep_mask)
    update_attributes(small, units.net, units.axes, keep_mask)
    for expected in (truth(model, units, example.kept, call), *exact_truths(model, units, example.kept, [call])):
        assert expected.outputs.abs().max() > 0.01
        assert expected.check(small) < 1e-12
    return model, small


def says(module: nn.Module) -> dict[str, Any]:
    """What a module says of itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and (value is None or isinstance(value, bool | int | float | str | tuple))
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cut_layer_says_what_one_made_in_its_size_says(name: str) -> None:
    example = EXAMPLES[name]
    _, small = resized(example)
    for path, make in example.like.items():
        layer, other = small.get_submodule(path), make()
        assert says(layer) == says(other)
        assert str(layer) == str(other)
        assert {n: t.shape for n, t in layer.state_dict().items()} == {
            n: t.shape for n, t in other.state_dict().items()
        }


@pytest.mark.parametrize("name", EXAMPLES)
def test_layers_made_in_the_sizes_left_compute_the_same(name: str) -> None:
    example = EXAMPLES[name]
    _, small = resized(example)
    x = example.input(3)
    wanted = small(x)
    for path, make in example.like.items():
        parent, _, last = path.rpartition(".")
        weights = small.get_submodule(path).state_dict()
        setattr(small.get_submodule(parent), last, make().double().eval())
        small.get_submodule(path).load_state_dict(weights)
    assert torch.equal(small(x), wanted)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_layers_of_the_original_say_what_they_said(name: str) -> None:
    example = EXAMPLES[name]
    torch.manual_seed(0)
    before = [says(module) for module in example.model().modules()]
    model, _ = resized(example)
    assert [says(module) for module in model.modules()] == before


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "lstm" in name or "gru" in name or "rnn" in name])
def test_a_recurrent_layer_computes_with_its_parameters(name: str) -> None:
    _, small = resized(EXAMPLES[name])
    layer = small.get_submodule("2.inner")
    assert isinstance(layer, nn.RNNBase)
    assert [id(weight) for weight in layer._flat_weights] == [id(weight) for weight in layer.parameters()]
    x = EXAMPLES[name].input(3)
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    wanted = small(x)
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert not small(x).any()
    assert wanted.any()


class Twice(nn.Module):
    """One grouped convolution under two names, called by these."""

    def __init__(self, called: str) -> None:
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.b, self.last, self.called = self.a, nn.Conv2d(8, 2, 1), called

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for name in self.called:
            h = torch.tanh(getattr(self, name)(h))
        return self.last(h)


@pytest.mark.parametrize("called", ["a", "b", "aa", "bb", "ab", "bab"])
def test_a_layer_of_two_names_is_one_layer(called: str) -> None:
    _, small = resized(Example(lambda: Twice(called), IMAGE, {"first[0]": (0, 3)}, {}))
    assert isinstance(small.a, nn.Conv2d)
    assert small.a is small.b
    assert says(small.a) == says(nn.Conv2d(4, 4, 3, padding=1, groups=2))


class Wide(nn.Linear):
    """A dense layer of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_layer_of_ones_own_says_its_new_sizes_too() -> None:
    model = nn.Sequential(
        Wide(4, 6, bias=False), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
    )
    model.double().eval()
    small = sc.cut(model, sc.Plan.from_kept({"0": [0, 5, 2], "2": [1, 3]}, torch.zeros(2, 4)))
    assert [str(layer) for layer in small] == [  # type: ignore[attr-defined]
        "Wide(in_features=4, out_features=3, bias=False)",
        str(nn.BatchNorm1d(3, affine=False)),
        "Linear(in_features=3, out_features=2, bias=True)",
        str(nn.BatchNorm1d(2)),
        "Linear(in_features=2, out_features=2, bias=True)",
    ]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [6, 5, 2]
    assert [layer.num_features for layer in model if isinstance(layer, nn.BatchNorm1d)] == [6, 5]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_attributes_agree_with_shapes_everywhere_in_a_cut_network(seed: int) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(3)
    small = sc.cut(network, sc.Plan.from_kept({name: [size - 1] for name, size in network.sets.items()}, x))
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
            assert module.bias is None or module.bias.shape == (module.out_features,)
        elif isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert {len(t) for t in (module.weight, module.bias, module.running_mean)} == {module.num_features}
