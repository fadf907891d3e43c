"""Mixtures of experts: whole experts, found by a choice and looked up, and the neurons of all of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.cutting.captured_forward import captured_parts
from secateur_experiments.bench.suite.run import importable

EXPERTS, WIDTH, NEURONS = 5, 8, 12


class Mixture(nn.Module):
    """The two best of the experts for each sample; how they are computed is a function."""

    def __init__(self, mix: Callable[[Mixture, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.experts, self.k = mix, EXPERTS, 2
        self.first, self.router = nn.Linear(4, WIDTH, dtype=dtype), nn.Linear(WIDTH, EXPERTS, dtype=dtype)
        self.up = nn.Parameter(torch.randn(EXPERTS, NEURONS, WIDTH, dtype=dtype))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, NEURONS, dtype=dtype))
        self.last = nn.Linear(WIDTH, 3, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.mix(self, x))

    def with_experts(self, kept: list[int]) -> Mixture:
        """Return the network without the other experts, sliced by hand."""
        small = copy.deepcopy(self)
        small.experts = len(kept)
        small.up, small.down = (nn.Parameter(w.detach()[kept]) for w in (self.up, self.down))
        small.router.weight, small.router.bias = (
            nn.Parameter(w.detach()[kept]) for w in (self.router.weight, self.router.bias)
        )
        return small


def computed(m: Mixture, x: Tensor, shares: Tensor) -> Tensor:
    """Return all experts' results, weighted."""
    h = F.gelu(torch.einsum("nd,efd->enf", x, m.up))
    return torch.einsum("end,ne->nd", torch.bmm(h, m.down.mT), shares)


def scattered(m: Mixture, x: Tensor) -> Tensor:
    p = m.router(x).softmax(-1)
    values, places = p.topk(m.k, -1)
    return computed(m, x, torch.zeros_like(p).scatter(-1, places, values / values.sum(-1, keepdim=True)))


def one_hot(m: Mixture, x: Tensor) -> Tensor:
    values, places = m.router(x).topk(m.k, -1)
    return computed(m, x, (F.one_hot(places, m.experts) * values.softmax(-1)[..., None]).sum(1))


def the_best(m: Mixture, x: Tensor) -> Tensor:
    p = m.router(x).softmax(-1)
    place = p.argmax(-1, keepdim=True)
    return computed(m, x, torch.zeros_like(p).scatter(-1, place, p.gather(-1, place)))


def gathered(m: Mixture, x: Tensor) -> Tensor:
    values, places = m.router(x).topk(m.k, -1)
    ids = places.reshape(-1)
    h = F.relu(torch.bmm(m.up[ids], x.repeat_interleave(m.k, 0)[..., None])).squeeze(-1)
    y = torch.bmm(m.down[ids], h[..., None]).squeeze(-1) * values.softmax(-1).reshape(-1, 1)
    return y.view(-1, m.k, WIDTH).sum(1)


def grouped(m: Mixture, x: Tensor) -> Tensor:
    values, places = m.router(x).topk(m.k, -1)
    ids, order = places.reshape(-1).sort()
    counts = torch.histc(ids.float(), bins=m.experts, min=0, max=m.experts - 1)
    ends = counts.cumsum(0, dtype=torch.int32)
    h = F.relu(F.grouped_mm(x[order // m.k], m.up.mT, offs=ends))
    y = F.grouped_mm(h, m.down.mT, offs=ends) * values.softmax(-1).reshape(-1)[order][:, None]
    return y[order.argsort()].view(-1, m.k, WIDTH).sum(1)


FORMS = {
    "scattered shares": (scattered, 2), "one-hot shares": (one_hot, 2), "the best alone": (the_best, 1),
    "gathered matrices": (gathered, 2),
}  # fmt: skip
X = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mixture(form: str) -> tuple[Mixture, sc.Units]:
    model = Mixture(FORMS[form][0]).eval()
    return model, sc.find_units(model, X, include="all")


@pytest.mark.parametrize("form", FORMS)
def test_experts_are_units_of_which_as_many_stay_as_are_chosen(form: str) -> None:
    router = mixture(form)[1]["router"]
    assert (router.kind, router.size, router.removal, router.least) == ("expert", EXPERTS, "sliced", FORMS[form][1])
    of_expert = {(s.tensor, s.dim) for s in router.slices}
    assert of_expert == {("router.weight", 0), ("router.bias", 0), ("up", 0), ("down", 0)}


@pytest.mark.parametrize("form", FORMS)
def test_without_experts_the_choice_is_among_the_others(form: str) -> None:
    model, _ = mixture(form)
    small = sc.cut(model, sc.Plan.from_kept({"router": [0, 2, 4]}, X))
    expected = model.with_experts([0, 2, 4])(X)
    torch.testing.assert_close(small(X), expected, rtol=1e-12, atol=1e-12)
    assert (expected - model(X)).abs().max() > 0.01
    assert captured_parts(small) == ()


@pytest.mark.parametrize("form", FORMS)
def test_a_neuron_of_all_experts_is_gated(form: str) -> None:
    model, units = mixture(form)
    assert (units["up"].size, units["up"].removal) == (NEURONS, "gated")
    assert "up" in [unit_set.name for unit_set in sc.find_units(model, X)]
    small, gated = sc.cut(model, sc.Plan.from_kept({"up": range(0, NEURONS, 2)}, X)), copy.deepcopy(model)
    gated.down.data[..., 1::2] = 0
    torch.testing.assert_close(small(X), gated(X), rtol=1e-12, atol=1e-12)
    assert small.up.shape == (EXPERTS, NEURONS // 2, WIDTH)
    assert captured_parts(small) == ()


def test_fewer_experts_than_are_chosen_are_refused() -> None:
    model, _ = mixture("scattered shares")
    with pytest.raises(sc.SecateurError, match="keeps 1 of 'router', and as many as are chosen at once must stay: 2"):
        sc.cut(model, sc.Plan.from_kept({"router": [3]}, X))


@pytest.mark.parametrize("ranking", ["iterative", "single", "layerwise"])
def test_a_ranking_leaves_as_many_as_are_chosen(ranking: str) -> None:
    model, units = mixture("scattered shares")
    targets = torch.zeros(len(X), 3, dtype=torch.float64)
    plan = sc.rank(model, (X, targets), "squared_error", units=units, criterion="taylor1", ranking=ranking)
    assert {name: len(indices) for name, indices in plan.kept.items()} == {"first": 1, "router": 2, "up": 1}


def test_all_that_are_always_chosen_stay() -> None:
    model = Mixture(scattered).eval()
    model.k = EXPERTS
    assert "all of it are chosen" in [fixed.reason for fixed in sc.find_units(model, X, include="all").fixed]


@pytest.mark.parametrize(
    ("use", "operation"),
    [(lambda i: i.double().mean(-1, keepdim=True), "mean"), (lambda i: i[:, :1] * 2.0, "mul"),
     (lambda i: (i == 1).double().sum(-1, keepdim=True), "eq")],
)  # fmt: skip
def test_places_that_are_no_longer_looked_up_fix_the_experts(use: Callable[[Tensor], Tensor], operation: str) -> None:
    def mix(m: Mixture, x: Tensor) -> Tensor:
        return scattered(m, x) + use(m.router(x).topk(m.k, -1).indices)

    fixed = sc.find_units(Mixture(mix).eval(), X, include="all").fixed
    assert f"{operation} counts along it" in [axis.reason for axis in fixed if axis.size == EXPERTS]


def test_places_that_are_returned_fix_the_experts() -> None:
    class Returning(Mixture):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), self.router(self.first(x)).topk(2, -1).indices

    fixed = sc.find_units(Returning(scattered).eval(), X, include="all").fixed
    assert [axis.reason for axis in fixed if axis.size == EXPERTS] == ["a model output"]


def grouped_mixture() -> Mixture:
    """Return a network whose experts are computed by the grouped product, which is there for this dtype."""
    model = Mixture(grouped, torch.bfloat16).eval()
    model.up, model.down = (
        nn.Parameter(torch.randn(shape).bfloat16()) for shape in ((EXPERTS, 16, WIDTH), (EXPERTS, WIDTH, 16))
    )
    return model


def test_grouped_products_lose_whole_groups() -> None:
    model, x = grouped_mixture(), X.bfloat16()
    units = sc.find_units(model, x)
    assert {unit_set.name: unit_set.size for unit_set in units} == {"up": 2}  # of 8 neurons each, 16 bytes
    assert "a grouped product takes rows of multiples of 16 bytes" in [fixed.reason for fixed in units.fixed]
    small, gated = sc.cut(model, sc.Plan.from_kept({"up": [0]}, x)), copy.deepcopy(model)
    gated.down.data[..., 8:] = 0
    torch.testing.assert_close(small(x), gated(x))
    assert small.down.shape == (EXPERTS, WIDTH, 8)
    assert captured_parts(small) == ()


def test_experts_of_grouped_products_are_units() -> None:
    model, x = grouped_mixture(), X.bfloat16()
    small = sc.cut(model, sc.Plan.from_kept({"router": [1, 2, 4]}, x))
    torch.testing.assert_close(small(x), model.with_experts([1, 2, 4])(x))
    assert small.experts == 3
    assert captured_parts(small) == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_experts_of_hugging_face_decoders(kind: str, implementation: str) -> None:
    importable(os.environ.get("ZOO_DIR"))
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=16, hidden_size=16, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts_per_tok=2, use_cache=False,
        experts_implementation=implementation, **{"num_local_experts" if kind == "Mixtral" else "num_experts": 4},
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = getattr(transformers, f"{kind}ForCausalLM")(config).eval(), torch.randint(0, 16, (3, 7))
    layer, by_hand = "model.layers.0.mlp", copy.deepcopy(model)
    assert sc.find_units(model, ids, include="all")[f"{layer}.gate"].kind == "expert"
    small = sc.cut(model, sc.Plan.from_kept({f"{layer}.gate": [0, 1, 3]}, ids))
    block = by_hand.get_submodule(layer)
    block.experts.num_experts = 3
    for module, name in ((block.gate, "weight"), (block.experts, "gate_up_proj"), (block.experts, "down_proj")):
        setattr(module, name, nn.Parameter(getattr(module, name).detach()[[0, 1, 3]]))
    other = torch.randint(0, 16, (2, 5))
    torch.testing.assert_close(small(other).logits, by_hand(other).logits)
    assert captured_parts(small) == ()
    neurons = sc.find_units(model, ids)[f"{layer}.experts"]
    assert neurons.size == (8 if implementation == "grouped_mm" else 32)
    small = sc.cut(model, sc.Plan.from_kept({neurons.name: range(neurons.size - 1)}, ids))
    gated = copy.deepcopy(model)
    gated.get_parameter(f"{layer}.experts.down_proj").data[..., 32 - 32 // neurons.size :] = 0
    torch.testing.assert_close(small(other).logits, gated(other).logits)
    assert captured_parts(small) == ()


class Shares(nn.Module):
    """The experts' shares, from places that are handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.number = EXPERTS

    def forward(self, places: Tensor, values: Tensor) -> Tensor:
        return (F.one_hot(places, self.number) * values[..., None]).sum(1)


def test_a_module_that_places_are_handed_to_computes_by_its_own_code() -> None:
    def mix(m: Mixture, x: Tensor) -> Tensor:
        values, places = m.router(x).topk(m.k, -1)
        return computed(m, x, m.shares(places, values.softmax(-1)))

    model = Mixture(mix).eval()
    model.shares = Shares()
    small = sc.cut(model, sc.Plan.from_kept({"router": [0, 3]}, X))
    assert small.shares.number == 2
    assert captured_parts(small) == ()
