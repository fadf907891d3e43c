from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, in_batches, randomise
from cases import targets as random_targets
from random_networks import RandomArchitecture
from secateur import find_units
from secateur.compensation.compensator import Compensator
from secateur.compensation.linear_layers import Layer, find_layers
from secateur.compensation.targets import FEW, curvature, draws_of, last_layers, sample_weights, trace_layers
from secateur.errors import DataError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES, find_loss

Loss = Any


def own(outputs: Tensor, t: Tensor) -> Tensor:
    """Convex, another curvature for each sample; a mean over samples."""
    return (F.softplus(outputs).flatten(1).square().sum(1) * (1 + t.flatten(1)[:, 0] ** 2)).mean()


def bent(outputs: Tensor, t: Tensor) -> Tensor:
    """Convex in some directions and concave in others."""
    outputs, t = outputs.flatten(1), t.flatten(1)
    return (F.softplus(outputs).prod(1) + outputs.sin().sum(1) * t[:, 0]).mean()


# ---------------------------------------------------------------- dense references


def with_shift(model: nn.Module, module: str, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The network as a function of what is added to a module's output, and that output."""
    seen: list[Tensor] = []

    def function(shift: Tensor) -> Tensor:
        def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            seen.append(out.detach())
            return out + shift

        handle = model.get_submodule(module).register_forward_hook(add)
        try:
            return model(x)
        finally:
            handle.remove()

    function(torch.zeros((), dtype=x.dtype))
    return function, seen[0]


def jacobians(function: Callable[[Tensor], Tensor], given: Tensor, channels_first: bool = False) -> Tensor:
    """∂(outputs of n)/∂(given of n) [N, K, P, O], P positions."""
    whole = torch.autograd.functional.jacobian(function, torch.zeros_like(given))
    n = len(given)
    own = torch.stack([whole[i].flatten(0, whole.ndim - given.ndim - 2)[:, i] for i in range(n)])
    if channels_first:
        own = own.movedim(2, -1)
    return own.reshape(n, own.shape[1], -1, own.shape[-1])


def hessians(loss: Loss, out: Tensor, t: Tensor) -> Tensor:
    """L_n, N times the loss's Hessian in the outputs of each sample [N, K, K]; without the concave part."""
    n = len(out)
    whole = torch.func.hessian(lambda o: n * find_loss(loss)(o.reshape(out.shape), t))(out.detach().flatten(1))
    values, vectors = torch.linalg.eigh(torch.stack([whole[i, :, i] for i in range(n)]))
    return vectors @ torch.diag_embed(values.clamp(min=0)) @ vectors.mT


def dense(j: Tensor, curved: Tensor) -> Tensor:
    """1/N Σ_n Σ_p J_npᵀ L_n J_np."""
    total = torch.zeros(j.shape[-1], j.shape[-1], dtype=j.dtype)
    for n in range(len(j)):
        for p in range(j.shape[2]):
            total += j[n, :, p].T @ curved[n] @ j[n, :, p]
    return total / len(j)


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 6) for _ in range(3))
        self.out, self.last, self.heads = nn.Linear(6, 4), nn.Linear(4, 3), 3

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(torch.tanh(self.out(attended)).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Conv2d(4, 3, 2, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 3),
    )  # fmt: skip


def positions() -> nn.Module:
    """Four outputs at three positions."""
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 4, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)), (5,),
    ),
    "convolutions": (convolutional, (2, 5, 5)),
    "attention": (Attention, (4, 3)),
    "outputs at positions": (positions, (2, 5)),
}  # fmt: skip


class Made:
    def __init__(self, model: nn.Module, shape: tuple[int, ...], loss: Loss, cuts: list[int] | None = None) -> None:
        torch.manual_seed(0)
        self.model, self.loss = randomise(model.double().eval()), loss
        self.x = torch.randn(5, *shape, dtype=torch.float64)
        self.out = self.model(self.x).detach()
        self.t = random_targets(loss if isinstance(loss, str) else "squared_error", self.out, 0)
        if loss == "cross_entropy" and self.out.ndim > 2:
            self.t = torch.randint(0, self.out.shape[1], (5, *self.out.shape[2:]))
        self.units = find_units(self.model, self.x)
        self.layers = find_layers(self.units)
        self.gated = GatedLoss(self.model, self.units, in_batches(self.x, self.t, cuts or []), loss)
        self.ones = ones(self.model, self.units)

    def drawn(self, seed: int) -> Made:
        """The same with other draws."""
        self.gated.generator.manual_seed(seed)
        return self

    def curvature(self) -> dict[str, Tensor]:
        return {one.weight: found for one, found in curvature(self.gated, self.layers, self.ones).items()}

    def jacobians(self, layer: Layer) -> Tensor:
        module = layer.weight.removesuffix(".weight")
        channels_first = not isinstance(self.model.get_submodule(module), nn.Linear)
        return jacobians(*with_shift(self.model, module, self.x), channels_first)

    def rows(self, layer: Layer) -> Tensor:
        """What the layer's module gives, a row for each sample and position."""
        module = layer.weight.removesuffix(".weight")
        out = with_shift(self.model, module, self.x)[1]
        linear = isinstance(self.model.get_submodule(module), nn.Linear)
        return (out if linear else out.movedim(1, -1)).reshape(-1, layer.outputs.size)


def network(name: str, loss: Loss, cuts: list[int] | None = None) -> Made:
    build, shape = NETWORKS[name]
    return Made(build(), shape, loss, cuts)


# ---------------------------------------------------------------- curvature


SAMPLED = [(name, loss) for name in NETWORKS if name != "dense" for loss in LOSSES]  # layers with positions
EXACT = [("dense", loss) for loss in LOSSES] + [(name, loss) for name in NETWORKS for loss in (own, bent)]


@pytest.mark.parametrize(("name", "loss"), EXACT)
def test_curvature_is_that_of_dense_jacobians(name: str, loss: Loss) -> None:
    made = network(name, loss, cuts=[2])
    got = made.curvature()
    assert [*got] == [one.weight for one in made.layers] != []
    curved = hessians(loss, made.out, made.t)
    for layer in made.layers:
        assert_same(got[layer.weight], dense(made.jacobians(layer), curved))


def assert_mean(draws: list[Tensor], expected: Tensor, precision: float = 0.1) -> None:
    """The draws differ, and their mean is the expected within its statistical error, which is small."""
    several = torch.stack(draws)
    deviation = several.std(0) / len(several) ** 0.5
    assert not torch.equal(several[0], several[1])
    assert deviation.max() < precision * expected.abs().max()  # enough draws to tell
    assert ((several.mean(0) - expected).abs() <= 5 * deviation + 1e-12).all()


@pytest.mark.parametrize(("name", "loss"), SAMPLED)
def test_where_layers_have_positions_targets_are_drawn_and_the_mean_is_exact(name: str, loss: str) -> None:
    made = network(name, loss, cuts=[2])
    draws = [made.drawn(seed).curvature() for seed in range(1000)]
    curved = hessians(loss, made.out, made.t)
    for layer in made.layers:
        assert_mean([one[layer.weight] for one in draws], dense(made.jacobians(layer), curved))


@pytest.mark.parametrize("seed", range(15))
def test_curvature_of_random_architectures(seed: int) -> None:
    network = RandomArchitecture(seed)
    x = network.sample(3)
    out = network(x).detach()
    units = find_units(network, x)
    gated = GatedLoss(network, units, (x, out + 1), own)
    layers = find_layers(units)
    got, curved = curvature(gated, layers, ones(network, units)), hessians(own, out, out + 1)
    checked = 0
    for layer in layers:
        module = network.get_submodule(layer.weight.rpartition(".")[0])
        if type(module) in (nn.Linear, nn.Conv2d):
            function, given = with_shift(network, layer.weight.removesuffix(".weight"), x)
            if len(given) == len(x):
                j = jacobians(function, given, isinstance(module, nn.Conv2d))
                expected = dense(j, curved)
                assert (got[layer] - expected).abs().max() <= 1e-10 * expected.abs().max() + 1e-14
                checked += 1
    assert checked > 0


def test_with_units_gone_it_is_that_of_the_smaller_network() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [4]), "cross_entropy")
    g = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1, 0, 0]).double()
    narrow, layers = gated.sliced(g), find_layers(units)
    assert narrow.graph.count == 4
    first, second, last = case.model[0], case.model[2], case.model[4]

    def rest(z: Tensor) -> Tensor:
        return torch.tanh(z) @ last.weight[:, :2].T + last.bias

    z = (torch.sigmoid(first(case.x)) * g[:6] @ second.weight.T + second.bias)[:, :2].detach()
    out = rest(z).detach()
    got, curved = curvature(narrow, layers, g), hessians("cross_entropy", out, case.y)
    assert_same(got[layers[0]], dense(jacobians(lambda shift: rest(z + shift), z), curved))
    assert_same(got[layers[1]], curved.mean(0))


class Transposing(nn.Module):
    """PyTorch's own attention projects positions first, samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def rest(self, y: Tensor) -> Tensor:
        return self.last(torch.tanh(y).mean(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(
    "loss",
    [*LOSSES, own],
)
def test_curvature_of_a_layer_that_has_the_samples_second(loss: Loss) -> None:
    made = Made(Transposing(), (4, 6), loss)
    assert [one.weight for one in made.layers] == ["attention.out_proj.weight"]
    y = (made.x + made.model.attention(made.x, made.x, made.x, need_weights=False)[0]).detach()
    j = jacobians(lambda shift: made.model.rest(y + shift), y)
    assert_same(made.curvature()["attention.out_proj.weight"], dense(j, hessians(loss, made.out, made.t)))


class Table(nn.Module):
    """Weights from a network that takes no sample: a table of positions, as in Swin V2."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(7, 2))
        self.a, self.b, self.first = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ self.b(torch.tanh(self.a(self.table)))[2:5]


def test_a_layer_whose_rows_are_no_samples() -> None:
    made = Made(Table(), (3,), "squared_error")
    assert "b.weight" in [one.weight for one in made.layers]
    got = made.curvature()
    assert all(bool(one.isfinite().all()) for one in got.values())
    assert got["b.weight"].shape == (3, 3)
    compensation = Compensator(made.gated)
    compensation.fit(made.ones.index_fill(0, torch.tensor([0]), 0))
    assert all(bool(one.isfinite().all()) for one in compensation.weights.values())


# ---------------------------------------------------------------- many outputs


def many(loss: Loss, outputs: int, shape: tuple[int, ...] = (3,)) -> Made:
    if len(shape) > 1:
        return Made(nn.Sequential(nn.Conv1d(3, 3, 1), nn.Tanh(), nn.Conv1d(3, outputs, 2)), shape, loss)
    layers = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, outputs)
    return Made(nn.Sequential(*layers), shape, loss)


@pytest.mark.parametrize(
    ("loss", "outputs", "shape"),
    [(loss, FEW + 1, (3,)) for loss in LOSSES] + [("cross_entropy", 3, (3, 7)), ("binary_cross_entropy", 3, (3, 7))],
)
def test_many_outputs_have_one_drawn_target_whose_mean_is_exact(
    loss: str, outputs: int, shape: tuple[int, ...]
) -> None:
    made = many(loss, outputs, shape)
    layer = made.layers[0]
    draws = [made.drawn(seed).curvature()[layer.weight] for seed in range(600)]
    assert_mean(draws, dense(made.jacobians(layer), hessians(loss, made.out, made.t)))
    if shape == (3,):
        assert torch.linalg.matrix_rank(made.curvature()[made.layers[-1].weight]) == len(made.x)  # one term for each


@pytest.mark.parametrize("loss", LOSSES)
def test_few_outputs_are_exact_each_time(loss: str) -> None:
    made = many(loss, FEW)
    expected = dense(made.jacobians(made.layers[0]), hessians(loss, made.out, made.t))
    for _ in range(2):
        assert_same(made.curvature()["2.weight"], expected)


def test_few_outputs_of_a_loss_of_ones_own_are_exact_and_of_many_the_mean_is() -> None:
    made = many(own, FEW)
    layer = made.layers[0]
    assert_same(made.curvature()[layer.weight], dense(made.jacobians(layer), hessians(own, made.out, made.t)))
    made = many(own, FEW + 1)
    draws = [made.drawn(seed).curvature()[layer.weight] for seed in range(600)]
    assert_mean(draws, dense(made.jacobians(layer), hessians(own, made.out, made.t)))


def both_ways(outputs: Tensor, t: Tensor) -> Tensor:
    """Concave in half of the outputs, and in all together convex."""
    return ((outputs * torch.linspace(-1, 3, outputs.shape[1]).to(outputs)) * outputs).sum(1).mean()


def test_drawn_terms_of_negative_sign_count_and_no_weight_falls_below_zero() -> None:
    made = many(both_ways, FEW + 1)
    layer, curved = made.layers[0], 2 * torch.diag(torch.linspace(-1, 3, FEW + 1).double())
    expected = dense(made.jacobians(layer), curved.expand(len(made.x), -1, -1))
    assert_mean([made.drawn(seed).curvature()[layer.weight] for seed in range(600)], expected)
    weights = found_weights(made, made.layers)[made.layers[-1]]
    torch.testing.assert_close(weights, curved.diagonal().clamp(min=0).expand(len(made.x), -1))
    (diagonal,) = [found.diagonal() for name, found in made.curvature().items() if name == made.layers[-1].weight]
    torch.testing.assert_close(diagonal, curved.diagonal().clamp(min=0))


# ---------------------------------------------------------------- no curvature


def tied(outputs: Tensor, t: Tensor) -> Tensor:
    return outputs.mean().square()


def without_derivative(outputs: Tensor, t: Tensor) -> Tensor:
    return (outputs.argmax(1) == 0).double().mean()


@pytest.mark.parametrize("loss", [None, tied, without_derivative])
def test_there_is_none_without_a_loss_of_each_sample(loss: Loss) -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [] if loss is tied else [3]), loss)
    assert curvature(gated, find_layers(units), ones(case.model, units)) == {}


@pytest.mark.parametrize("outputs", [3, FEW + 1])
def test_targets_that_the_loss_does_not_take_are_no_lack_of_curvature(outputs: int) -> None:
    made = many("cross_entropy", outputs)
    wrong = GatedLoss(made.model, made.units, (made.x, made.t + outputs), "cross_entropy")
    with pytest.raises(DataError, match=rf"^cross_entropy: class targets must be in 0 to {outputs - 1} for"):
        curvature(wrong, made.layers, made.ones)


def test_a_linear_loss_has_none_anywhere() -> None:
    made = network("dense", lambda o, t: (o * t).sum(1).mean())
    assert all(not found.any() for found in made.curvature().values())


# ---------------------------------------------------------------- what each number counts


class Two(nn.Module):
    """One layer behind the other, and two that nothing is behind: one of many outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, FEW + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.c(x) + self.d(x.relu()).sum(1, keepdim=True)


def test_last_layers_have_few_outputs_and_no_layer_behind_them() -> None:
    def last(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
        return [one.weight for one in last_layers(find_layers(find_units(model, torch.randn(2, *shape))))]

    assert last(Two(), (3,)) == ["c.weight"]
    assert last(Attention(), (4, 3)) == ["last.weight"]
    assert last(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, FEW)), (3,)) == ["2.weight"]
    assert last(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, FEW + 1)), (3,)) == []


def weights_of_rows(made: Made, curved: Tensor) -> Tensor:
    """The diagonals of each sample's and position's B, of the last layer."""
    j = made.jacobians(made.layers[-1])
    return torch.einsum("nkpo,nkl,nlpo->npo", j, curved, j).flatten(0, 1)


def found_weights(made: Made, layers: list[Layer]) -> dict[Layer, Tensor]:
    """Of all batches."""
    traced = [(batch, trace_layers(made.gated, batch, (), made.ones, layers)) for batch in made.gated.cached]
    draw = draws_of(made.gated)
    found = [sample_weights(made.gated, batch, layers, values, draw) for batch, values in traced]
    return {layer: torch.cat([one[layer] for one in found]) for layer in found[0]}


DRAWN = [("outputs at positions", loss) for loss in LOSSES]  # the last layer has positions


@pytest.mark.parametrize(
    ("name", "loss"), [(name, loss) for name in NETWORKS for loss in [*LOSSES, own, bent] if (name, loss) not in DRAWN]
)
def test_numbers_of_the_last_layer_count_by_the_losss_curvature(name: str, loss: Loss) -> None:
    made = network(name, loss, cuts=[2])
    last = last_layers(made.layers)
    assert last == made.layers[-1:]
    found = found_weights(made, last)
    assert [*found] == last
    expected = weights_of_rows(made, hessians(loss, made.out, made.t))
    torch.testing.assert_close(found[last[0]], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("name", "loss"), DRAWN)
def test_weights_are_right_in_the_mean_where_targets_are_drawn(name: str, loss: str) -> None:
    made = network(name, loss, cuts=[2])
    curved, (layer,) = hessians(loss, made.out, made.t), made.layers
    draws = [found_weights(made.drawn(seed), [layer])[layer] for seed in range(4000)]  # some classes are rare
    assert_mean(draws, weights_of_rows(made, curved))


def test_the_same_seed_draws_the_same_each_time() -> None:
    made = network("outputs at positions", "cross_entropy", cuts=[2])
    first, again, other = made.curvature(), made.curvature(), made.drawn(1).curvature()
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("loss", [tied, without_derivative])
def test_without_curvature_of_each_sample_no_number_counts_more(loss: Loss) -> None:
    made = network("convolutions", loss)
    assert found_weights(made, last_layers(made.layers)) == {}


def test_a_trace_holds_what_is_asked_for_and_can_be_differentiated_in_the_layers() -> None:
    made = Made(Two(), (3,), "squared_error")
    (batch,) = made.gated.cached
    copies, last = made.gated.graph.copies, last_layers(made.layers)
    values = trace_layers(made.gated, batch, [one.call for one in made.layers], made.ones, last)
    assert {*values} >= {copies[one.call] for one in made.layers}
    assert not any(node.name.startswith("tanh") for node in values)
    for layer in made.layers:
        value = values[copies[layer.call]]
        torch.testing.assert_close(layer.targets(value.detach()), made.rows(layer), rtol=1e-12, atol=0)
        assert value.requires_grad == (layer in last)
    out = values[made.gated.graph.suffix.output_node()]
    slopes = torch.autograd.grad(torch.cat([*out]).sum(), values[copies[last[0].call]])
    assert torch.equal(slopes[0], torch.ones_like(slopes[0]))
    plain = trace_layers(made.gated, batch, [last[0].call], made.ones, [])
    assert not plain[copies[last[0].call]].requires_grad
