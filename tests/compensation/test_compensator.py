"""Weights that make up for removed units, against the same least squares written out densely."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cases import randomise
from secateur import find_units
from secateur.compensation.compensator import Compensator, compensated
from secateur.errors import ArgumentError, DataError
from secateur.objective.gated_graph import GatedGraph
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.options import Compensation

RIDGE = 1e-3
PLAIN = Compensation(RIDGE, "none")
WeightLoss = dict[str, Tensor]
Gone = dict[str, tuple[int, ...]]


class Made:
    """A network in float64 with random values, its units, and data in batches of some sizes."""

    def __init__(
        self, model: nn.Module, *shape: int, n: int = 40, cuts: tuple[int, ...] = (), constant: int | None = None,
        seed: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.model: Any = randomise(model.double().eval())
        if constant is not None:  # a unit of the first layer that gives the same for all samples
            with torch.no_grad():
                self.model[0].weight[constant], self.model[0].bias[constant] = 0, 0.8
        self.x = torch.randn(n, *shape, dtype=torch.float64)
        with torch.no_grad():
            self.t = torch.randn_like(self.model(self.x))
        pairs = zip(torch.tensor_split(self.x, cuts), torch.tensor_split(self.t, cuts), strict=True)
        self.units = find_units(self.model, self.x)
        self.gated = GatedLoss(self.model, self.units, list(pairs), "squared_error", **options)

    def gates(self, gone: Gone) -> Tensor:
        """Zero for these units."""
        g = ones(self.model, self.units)
        for name, units in gone.items():
            for k in units:
                g[self.units.places.index((name, k))] = 0
        return g

    def fit(self, gone: Gone, settings: Compensation = PLAIN) -> WeightLoss:
        return compensated(self.gated, self.gates(gone), settings)

    def output(self, gone: Gone, weights: WeightLoss | None = None, x: Tensor | None = None) -> Tensor:
        """What the network gives without some units of a chain of layers, with other weights.

        A unit is the layer's output behind the one module that follows, which is no layer of weights.
        """
        masks = {name: [*units] for name, units in gone.items()}
        out = self.x if x is None else x
        named = dict(self.model.state_dict()) | (weights or {})
        last = ""
        for name, module in self.model.named_children():
            own = {key: named[f"{name}.{key}"] for key in module.state_dict()}
            out = torch.func.functional_call(module, own, (out,))
            if own:
                last = name if not isinstance(module, nn.BatchNorm1d) else last
            elif last in masks:
                out = out.index_fill(1, torch.tensor(masks[last], dtype=torch.long), 0)
        return out.detach()


def rest(size: int, gone: tuple[int, ...]) -> list[int]:
    return [k for k in range(size) if k not in gone]


def ridge(a: Tensor, z: Tensor, w: Tensor, centred: bool = True) -> tuple[Tensor, Tensor]:
    """(ÃᵀÃ/N + λI)⁻¹ (ÃᵀZ/N + λW), λ in units of the mean diagonal of ÃᵀÃ/N; and what the bias takes up."""
    mean_a, mean_z = (a.mean(0), z.mean(0)) if centred else (torch.zeros_like(a[0]), torch.zeros_like(z[0]))
    a, z = a - mean_a, z - mean_z
    second = a.T @ a / len(a)
    strength = RIDGE * second.diagonal().mean()
    solved = torch.linalg.solve(second + strength * torch.eye(len(second)).double(), a.T @ z / len(a) + strength * w)
    return solved, mean_z - mean_a @ solved


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- dense layers


def mlp(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 9), nn.Sigmoid(), nn.Linear(9, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3, bias=bias)
    )


MLP_GONE: Gone = {"0": (1, 4, 5), "2": (0, 6)}
SEVERAL = [{"0": (3,)}, MLP_GONE, {"0": (0, 1, 2, 4, 5, 7, 8), "2": (1, 2, 3, 4, 6)}]


def expected_mlp(made: Made, gone: Gone, bias: bool = True) -> WeightLoss:
    """Rows and columns of all that is left, in order."""
    first, second, third = (made.model[i] for i in (0, 2, 4))
    kept, later = rest(9, gone.get("0", ())), rest(7, gone.get("2", ()))
    with torch.no_grad():
        a = first(made.x).sigmoid()
        z = second(a)
        w, b = ridge(a[:, kept], z, second.weight.T[kept], bias)
        a_next = torch.tanh(a[:, kept] @ w + b)
        w_next, b_next = ridge(a_next[:, later], third(z.tanh()), third.weight.T[later], bias)
    return {"2.weight": w, "2.bias": b, "4.weight": w_next, "4.bias": b_next}


def check_mlp(found: WeightLoss, made: Made, gone: Gone, bias: bool = True) -> None:
    wanted = expected_mlp(made, gone, bias)
    kept, later = rest(9, gone.get("0", ())), rest(7, gone.get("2", ()))
    assert {*found} == {name for name in wanted if bias or "weight" in name}
    close(found["2.weight"].T[kept][:, later], wanted["2.weight"][:, later])
    close(found["4.weight"].T[later], wanted["4.weight"])
    if bias:
        close(found["2.bias"][later], wanted["2.bias"][later])
        close(found["4.bias"], wanted["4.bias"])


@pytest.mark.parametrize("gone", SEVERAL)
@pytest.mark.parametrize("cuts", [(), (7, 15, 16)])
def test_dense_layers_are_fitted_one_after_the_other(gone: Gone, cuts: tuple[int, ...]) -> None:
    made = Made(mlp(), 5, cuts=cuts)
    found = made.fit(gone)
    check_mlp(found, made, gone)
    original = made.output({})
    assert (made.output(gone, found) - original).square().mean() < (made.output(gone) - original).square().mean()


@pytest.mark.parametrize("gone", SEVERAL)
def test_without_a_bias_the_moments_are_about_zero(gone: Gone) -> None:
    made = Made(mlp(bias=False), 5)
    check_mlp(made.fit(gone), made, gone, bias=False)


def test_a_squared_error_weighs_all_samples_of_a_last_layer_the_same() -> None:
    made = Made(mlp(), 5, cuts=(11,))
    found, plain = made.fit(MLP_GONE, Compensation(RIDGE, "ggn")), made.fit(MLP_GONE)
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        close(found[name], tensor)


def deep() -> nn.Sequential:
    return nn.Sequential(*mlp()[:4], nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3))


def test_without_room_for_all_batches_walks_start_again_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    walks, walk = list[Any](), GatedGraph.walk

    def counted(*given: Any, results: Collection[fx.Node] = (), **options: Any) -> Any:
        walks.extend([results] if results else [])  # of the original, with halts after its layers
        return walk(*given, results=results, **options)

    monkeypatch.setattr(GatedGraph, "walk", counted)
    enough, little = (Made(deep(), 5, cuts=(7, 15, 16), max_memory=size) for size in (None, 17_000))
    held = enough.fit(MLP_GONE)
    assert len(walks) == 4  # one for each batch
    again = little.fit(MLP_GONE)
    assert len(walks) == 4 + 2 * 4  # the first layer behind units takes what it took in the original
    assert {*again} == {*held} == {f"{name}.{kind}" for name in (2, 4, 6) for kind in ("weight", "bias")}
    for name, tensor in held.items():
        close(again[name], tensor, 1e-12)


# ---------------------------------------------------------------- convolutions


def convolutions(bias: bool = True, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 2, padding=padding, bias=bias), nn.Sigmoid(),
        nn.Conv2d(4, 3, (2, 1), stride=2, bias=bias),
    )  # fmt: skip


def patches(x: Tensor, layer: nn.Conv2d) -> Tensor:
    columns = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
    return columns.transpose(1, 2).flatten(0, 1)


def positions(z: Tensor) -> Tensor:
    return z.flatten(2).transpose(1, 2).flatten(0, 1)


def blocks(channels: list[int], kernel: int) -> list[int]:
    return [c * kernel + p for c in channels for p in range(kernel)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cuts", [(), (3, 5)])
def test_convolutions_are_fitted_over_all_positions_of_their_kernels(bias: bool, cuts: tuple[int, ...]) -> None:
    made = Made(convolutions(bias), 2, 6, 6, n=12, cuts=cuts)
    gone: Gone = {"0": (0, 3), "2": (2,)}
    kept, later = [1, 2, 4], [0, 1, 3]
    rows, rows_later = blocks(kept, 4), blocks(later, 2)
    first, second, third = (made.model[i] for i in (0, 2, 4))
    with torch.no_grad():
        a = first(made.x).tanh()
        z = second(a)
        w, b = ridge(patches(a, second)[:, rows], positions(z), second.weight.flatten(1).T[rows], bias)
        new = patches(a, second)[:, rows] @ w + b
        a_next = new.unflatten(0, (12, -1)).transpose(1, 2).reshape(z.shape).sigmoid()
        old = third.weight.flatten(1).T[rows_later]
        w_next, b_next = ridge(patches(a_next, third)[:, rows_later], positions(third(z.sigmoid())), old, bias)
    found = made.fit(gone)
    assert {*found} == {name for name in ("2.weight", "2.bias", "4.weight", "4.bias") if bias or "weight" in name}
    close(found["2.weight"].flatten(1).T[rows][:, later], w[:, later])
    close(found["4.weight"].flatten(1).T[rows_later], w_next)
    if bias:
        close(found["2.bias"][later], b[later])
        close(found["4.bias"], b_next)


# ---------------------------------------------------------------- which weights change


@pytest.mark.parametrize(
    ("gone", "changed"),
    [
        ({}, set()),
        ({"2": (0, 3)}, {"4.weight", "4.bias"}),
        ({"0": (2,)}, {"2.weight", "2.bias", "4.weight", "4.bias"}),
    ],
)
def test_layers_with_nothing_removed_in_front_of_them_keep_their_weights(gone: Gone, changed: set[str]) -> None:
    made = Made(mlp(), 5)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    assert {*made.fit(gone)} == changed
    assert {*made.fit(gone, Compensation())} == changed
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("weighting", ["none", "ggn"])
def test_a_fit_depends_on_the_gates_alone_and_not_on_fits_before(weighting: str) -> None:
    made, settings = Made(mlp(), 5, cuts=(13,)), Compensation(RIDGE, weighting)
    compensation = Compensator(made.gated, settings)
    for gone in ({}, MLP_GONE, {"2": (1,)}, {}, SEVERAL[2], {"0": (8,)}):
        compensation.fit(made.gates(gone))
        fresh = made.fit(gone, settings)
        assert compensation.weights.keys() == fresh.keys()
        for name, tensor in fresh.items():
            close(compensation.weights[name], tensor, 1e-10)


def test_another_one_leaves_the_first_as_it_was() -> None:
    made = Made(mlp(), 5)
    compensation = Compensator(made.gated, PLAIN)
    compensation.fit(made.gates(MLP_GONE))
    before = dict(compensation.weights)
    other = compensation.fork()
    other.fit(made.gates({"0": (8,)}))
    assert {*other.weights} == {*before}
    assert not torch.equal(other.weights["2.weight"], before["2.weight"])
    assert all(compensation.weights[name] is tensor for name, tensor in before.items())
    assert compensation.gated.weights is compensation.weights
    assert other.gated.weights is other.weights


@pytest.mark.parametrize("weighting", ["none", "ggn"])
def test_layers_that_keep_their_weights_are_known_too_if_asked(weighting: str) -> None:
    made = Made(deep(), 5, cuts=(13,))
    compensation = Compensator(made.gated, Compensation(RIDGE, weighting))
    g = made.gates({"2": (0, 3)})
    compensation.fit(g)
    assert not compensation.fitted  # which takes memory, and was not asked for
    before = dict(compensation.weights)
    compensation.fit(g, all_layers=True)
    first, *_ = compensation.layers
    assert [one.weight for one in compensation.fitted] == ["2.weight", "4.weight", "6.weight"]
    assert compensation.weights.keys() == before.keys()
    assert all(torch.equal(compensation.weights[name], tensor) for name, tensor in before.items())
    _, fit, inputs, outputs = compensation.fitted[first]
    a = made.model[0](made.x).sigmoid().detach()
    left = [1, 2, 4, 5, 6]  # of its outputs two are gone
    assert torch.equal(fit.weight[0], made.model[2].weight[left].T)
    assert (inputs.tolist(), outputs.tolist()) == ([*range(9)], left)
    close(fit.mean[0], a.mean(0), 1e-12)
    close(fit.second[0], (a - a.mean(0)).T @ (a - a.mean(0)) / len(a), 1e-12)


@pytest.mark.parametrize("removals", [(0,), (0, 3), (0, 3, 5, 6)])
def test_a_fit_depends_on_gates_and_data_and_not_on_what_was_fitted_before(removals: tuple[int, ...]) -> None:
    made = Made(deep(), 5, cuts=(13,))
    used, fresh = Compensator(made.gated, PLAIN), Compensator(Made(deep(), 5, cuts=(13,)).gated, PLAIN)
    for n in range(len(removals) + 1):
        used.fit(made.gates({"0": (2, 7), "2": removals[:n]}), all_layers=True)
    fresh.fit(made.gates({"0": (2, 7), "2": removals}))
    for name, tensor in fresh.weights.items():
        close(used.weights[name], tensor, 1e-12)


def test_a_cap_that_holds_no_moments_for_each_output_leaves_the_layer_as_it_is() -> None:
    made = Made(nn.Sequential(nn.Linear(5, 9), nn.Sigmoid(), nn.Linear(9, 3)), 5)
    needed, g = 3 * 4 * 8 * (9 + 3) ** 2, made.gates({"0": (1, 4)})

    def weight(memory: int | None, weighting: str = "ggn") -> Tensor:
        gated = GatedLoss(made.model, made.units, (made.x, made.t.argmax(1)), "cross_entropy", max_memory=memory)
        return compensated(gated, g, Compensation(RIDGE, weighting)).get("2.weight", made.model[2].weight)

    assert torch.equal(weight(needed - 1), made.model[2].weight)
    close(weight(needed), weight(None), 1e-12)
    assert (weight(needed) - weight(needed, "none")).abs().max() > 1e-4


# ---------------------------------------------------------------- units that never change


@pytest.mark.parametrize("settings", [PLAIN, Compensation(), Compensation(1.0)], ids=["plain", "defaults", "strong"])
@pytest.mark.parametrize(
    ("build", "shape"), [(mlp, (5,)), (lambda: convolutions(padding=0), (2, 6, 6))], ids=["dense", "convolutions"]
)
def test_a_constant_unit_goes_into_the_next_bias(
    build: Callable[[], nn.Module], shape: tuple[int, ...], settings: Compensation
) -> None:
    made = Made(build(), *shape, constant=2)
    found = made.fit({"0": (2,)}, settings)
    assert (made.output({"0": (2,)}) - made.output({})).abs().max() > 1e-2
    close(made.output({"0": (2,)}, found), made.output({}), 1e-10)


def test_a_constant_channel_before_zero_padding_is_not_made_up_for_exactly() -> None:
    made = Made(convolutions(), 2, 6, 6, constant=2)
    found = made.fit({"0": (2,)})
    off = made.output({"0": (2,)}, found) - made.output({})
    assert off.abs().max() > 1e-4
    assert off.square().mean() < (made.output({"0": (2,)}) - made.output({})).square().mean()


# ---------------------------------------------------------------- few samples


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("settings", [Compensation(), Compensation(RIDGE)], ids=["chosen", "fixed"])
def test_fewer_samples_than_units_still_help_on_others(seed: int, settings: Compensation) -> None:
    made = Made(nn.Sequential(nn.Linear(5, 40), nn.Sigmoid(), nn.Linear(40, 3)), 5, n=8, seed=seed)
    gone: Gone = {"0": tuple(range(0, 40, 3))}
    held = torch.randn(200, 5, dtype=torch.float64)
    original = made.output({}, x=held)
    before = (made.output(gone, x=held) - original).square().sum(1).mean()
    after = (made.output(gone, made.fit(gone, settings), held) - original).square().sum(1).mean()
    assert after < before


@pytest.mark.parametrize("n", [1, 2])
def test_one_sample_is_met_exactly(n: int) -> None:
    made = Made(mlp(), 5, n=n)
    found = made.fit(MLP_GONE, Compensation(1e-7))
    close(made.output(MLP_GONE, found), made.output({}), 1e-4)


# ---------------------------------------------------------------- BatchNorm


def normalised(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6, bias=bias), nn.BatchNorm1d(6), nn.Sigmoid(),
        nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cuts", [(), (9, 30)])
def test_statistics_are_those_of_the_fitted_network(bias: bool, cuts: tuple[int, ...]) -> None:
    made = Made(normalised(bias), 4, cuts=cuts)
    gone: Gone = {"0": (1, 5), "3": (0,)}
    kept, later = [0, 2, 3, 4, 6, 7], [1, 2, 3, 4, 5]
    first, norm, _, second, last_norm, _, third = made.model
    with torch.no_grad():
        a = norm(first(made.x)).tanh()
        z = second(a)
        w, b = ridge(a[:, kept], z, second.weight.T[kept])  # the norm takes up the mean if no bias does
        new = a[:, kept] @ w + (b if bias else 0)
        mean, variance = new.mean(0), new.var(0, unbiased=False)
        a_next = (new - mean) / (variance + last_norm.eps).sqrt() * last_norm.weight + last_norm.bias
        z_next = third(last_norm(z).sigmoid())
        w_next, b_next = ridge(a_next.sigmoid()[:, later], z_next, third.weight.T[later])
    found = made.fit(gone, Compensation(RIDGE, "none", recalibrate=True))
    names = {"3.weight", "3.bias", "4.running_mean", "4.running_var", "6.weight", "6.bias"}
    assert {*found} == names - (set() if bias else {"3.bias"})
    close(found["3.weight"].T[kept][:, later], w[:, later])
    close(found["4.running_mean"][later], mean[later])
    close(found["4.running_var"][later], variance[later])
    close(found["6.weight"].T[later], w_next)
    close(found["6.bias"], b_next)
    assert "4.running_mean" not in made.fit(gone)


def test_statistics_alone() -> None:
    made = Made(normalised(), 4)
    gone: Gone = {"0": (1, 5)}
    first, norm, _, second, *_ = made.model
    with torch.no_grad():
        new = second(norm(first(made.x)).tanh().index_fill(1, torch.tensor([1, 5]), 0))
    found = made.fit(gone, Compensation(recalibrate=True, fit=False))
    assert {*found} == {"4.running_mean", "4.running_var"}
    close(found["4.running_mean"], new.mean(0))
    close(found["4.running_var"], new.var(0, unbiased=False))
    assert made.fit({}, Compensation(recalibrate=True)) == {}
    assert made.fit({"3": (0,)}, Compensation(recalibrate=True, fit=False)) == {}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"weighting": "fisher"}, "unknown weighting 'fisher'; one of: ggn, none"),
        ({"weighting": None}, "unknown weighting None; one of: ggn, none"),
        *(
            ({"ridge": value}, f"ridge: expected a number above 0, or None to choose it, got {value!r}")
            for value in (0, -1e-3, float("inf"), float("nan"), "1e-3", True)
        ),
    ],
)
def test_settings_that_are_none(given: dict[str, Any], error: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        Compensation(**given)
    assert str(raised.value) == error


def test_what_memory_has_no_room_for_stays_as_it_is_and_is_listed() -> None:
    assert 4 * 8 * (9 + 7) ** 2 == 8192
    little, enough = (Compensator(Made(mlp(), 5, max_memory=size).gated, PLAIN) for size in (8191, 8192))
    assert little.unfitted == {"2.weight": "its fit takes 8.2 kB, max_memory is 8.2 kB"}
    assert [layer.weight for layer in little.layers] == ["4.weight"]
    assert enough.unfitted == {}
    assert [layer.weight for layer in enough.layers] == ["2.weight", "4.weight"]


def test_without_data_nothing_is_fitted() -> None:
    made = Made(mlp(), 5)
    with pytest.raises(DataError, match="this needs data"):
        compensated(GatedLoss(made.model, made.units, None, "squared_error"), made.gates(MLP_GONE), PLAIN)


def test_activations_whose_squares_are_not_finite() -> None:
    made = Made(nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)), 5)
    gated = GatedLoss(made.model, made.units, (made.x * 1e200, made.t))
    with pytest.raises(DataError) as raised:
        compensated(gated, made.gates({"0": (1,)}), PLAIN)
    assert str(raised.value) == (
        "compensation: the activations' second moments are not finite or not positive on this data"
    )
