from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import CASES
from secateur import SecateurError, find_units
from secateur.errors import DataError, ModelError
from secateur.structure.capture import BATCH, Captured, capture, evaluating, sizes
from secateur.structure.graph_run import check_capture, difference, run
from secateur.structure.inputs import as_call

Hidden = Callable[[nn.Module, Tensor], Tensor]


class Between(nn.Module):
    """Two dense layers with anything between them."""

    def __init__(self, between: Hidden) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 6), nn.Linear(6, 2), between
        self.register_buffer("steps", torch.zeros(()))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def between(function: Hidden) -> Between:
    torch.manual_seed(0)
    return Between(function).double()


def inputs(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_captured(model: nn.Module, captured: Captured, x: Tensor) -> None:
    with torch.no_grad(), evaluating(model):
        assert difference(model(x), run(captured, model, as_call(x)))[1] < 1e-14


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_graph_computes_what_the_model_does_for_any_number_of_samples(name: str, n: int) -> None:
    model, x, *_ = CASES[name]()
    captured = capture(model, as_call(x))
    assert_captured(model, captured, torch.cat([x, 2 * x])[:n])


def test_the_graph_runs_with_other_weights() -> None:
    model, x, *_ = CASES["branches"]()
    captured = capture(model, as_call(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    assert_captured(model, captured, x)


def test_a_single_sample_is_enough() -> None:
    model, x, _, sets = CASES["two_hidden"]()
    captured = capture(model, as_call(x[:1]))
    assert_captured(model, captured, x)
    assert {s.name: s.size for s in find_units(model, x[:1])} == sets


def test_the_batch_is_a_size_that_no_layer_has() -> None:
    model, x, *_ = CASES["one_hidden"]()
    captured = capture(model, as_call(x))
    shapes = [sizes(node.meta["val"]) for node in captured.graph.nodes if node.op == "call_function"]
    assert shapes == [(BATCH, 7), (BATCH, 7), (BATCH, 3), (BATCH, 3)]
    assert sizes(next(reversed(list(captured.graph.nodes))).args[0][0].meta["val"], batch=5) == (5, 3)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def mixed() -> nn.Module:
    """In training, but for one layer that is frozen and has a child in training."""
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)), nn.Linear(6, 2)
    ).double().train()  # fmt: skip
    model[1].training = False
    model[1][0].eval()
    return model


def test_every_module_is_in_its_own_mode_again() -> None:
    model = mixed()
    before = modes(model)
    assert len(set(before)) == 2
    find_units(model, inputs())
    assert modes(model) == before


def test_every_module_is_in_its_own_mode_again_after_an_error() -> None:
    model = mixed()
    before = modes(model)
    with pytest.raises(ModelError, match="does not run"):
        find_units(model, torch.zeros(3, 5))
    assert modes(model) == before


def test_every_module_is_in_its_own_mode_again_after_a_failed_export() -> None:
    model = between(branch_on_values).train()
    model.last.eval()
    with pytest.raises(ModelError, match="chooses by the values"):
        find_units(model, inputs())
    assert modes(model) == [True, True, False]


def test_statistics_of_the_training_mode_are_not_captured() -> None:
    model = mixed()
    statistics = [model[1][0].running_mean.clone(), model[1][0].running_var.clone()]
    captured = capture(model, as_call(inputs()))
    assert_captured(model, captured, inputs(5))
    assert model[1][0].running_mean.equal(statistics[0])
    assert model[1][0].running_var.equal(statistics[1])


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_untouched(name: str) -> None:
    model, x, *_ = CASES[name]()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    given, state = x.clone(), torch.get_rng_state()
    find_units(model, x)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name: id(tensor) for name, tensor in after.items()} == {name: id(t) for name, t in tensors.items()}
    assert all(tensor.equal(values[name]) for name, tensor in after.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert x.equal(given)
    assert torch.get_rng_state().equal(state)


def add_to_a_view(model: nn.Module, h: Tensor) -> Tensor:
    view = h.view(-1, 2, 3)
    view += 1
    return h


def add_to_what_is_viewed(model: nn.Module, h: Tensor) -> Tensor:
    view = h.view(-1, 2, 3)
    h += 1
    return h * view.flatten(1)


def add_to_a_column(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 0] += 1
    return h


def add_and_use_before(model: nn.Module, h: Tensor) -> Tensor:
    before = h * 2
    h += before
    return h * before


def add_twice(model: nn.Module, h: Tensor) -> Tensor:
    h.add_(1)
    h.mul_(2).sigmoid_()
    return h


def rectify_in_place(model: nn.Module, h: Tensor) -> Tensor:
    return F.relu(h, inplace=True) + h


def rectify_what_dropout_passed_on(model: nn.Module, h: Tensor) -> Tensor:
    return F.relu(F.dropout(h, 0.5, model.training), inplace=True)


IN_PLACE = [
    add_to_a_view, add_to_what_is_viewed, add_to_a_column, add_and_use_before, add_twice, rectify_in_place,
    rectify_what_dropout_passed_on,
]  # fmt: skip


@pytest.mark.parametrize("function", IN_PLACE)
def test_what_is_done_in_place_is_captured(function: Hidden) -> None:
    model = between(function)
    captured = capture(model, as_call(inputs()))
    assert not any(
        getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in captured.graph.nodes
    )
    assert_captured(model, captured, inputs(5, seed=1))


def test_a_module_that_rectifies_in_place_keeps_its_units() -> None:
    model, x, _, sets = CASES["normalised"]()
    assert any(getattr(module, "inplace", False) for module in model)
    assert {s.name: s.size for s in find_units(model, x)} == sets


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model, x, *_ = CASES["normalised"]()
    model[4].weight.data[1, :2] = value
    with pytest.raises(ModelError, match=r"^4\.weight: 2 of 30 values are NaN or infinite$"):
        find_units(model, x)


def test_buffers_that_are_not_finite_are_refused() -> None:
    model, x, *_ = CASES["normalised"]()
    model[1].running_var[0] = torch.nan
    with pytest.raises(ModelError, match=r"^1\.running_var: 1 of 6 values are NaN or infinite$"):
        find_units(model, x)


def branch_on_values(model: nn.Module, h: Tensor) -> Tensor:
    return h if h.sum() > 0 else -h


def read_a_value(model: nn.Module, h: Tensor) -> Tensor:
    return h * float(h.sum())


def loop_over_the_batch(model: nn.Module, h: Tensor) -> Tensor:
    return torch.stack([2 * row for row in h])


def fix_the_batch(model: nn.Module, h: Tensor) -> Tensor:
    return h.view(3, 6)


def branch_on_the_batch(model: nn.Module, h: Tensor) -> Tensor:
    return h if h.shape[0] > 4 else 2 * h


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (
            branch_on_values,
            r"chooses by the values of tensors what it computes, at 'return .*' \(test_capture.py:\d+\)",
        ),
        (
            read_a_value,
            r"needs the values of tensors to go on, at '.*' \(test_capture.py:\d+\): Could.*; "
            r"a part that needs none can be cut alone and put back: "
            r"model\.first = secateur\.cut\(model\.first, plan\)$",
        ),
    ],
)
def test_a_forward_that_cannot_be_exported_is_refused_and_told_why(function: Hidden, why: str) -> None:
    with pytest.raises(ModelError, match=rf"^Between {why}"):
        find_units(between(function), inputs())


def test_a_transformer_with_a_mask_is_captured() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5).double()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.mask = model, nn.Buffer(mask)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, tgt_mask=self.mask)

    other = x.flip(0)
    got = run(capture(Masked(), as_call(x)), Masked(), as_call(other))
    assert difference(Masked()(other), got)[1] < 1e-12
    assert difference(model(other, other), got)[1] > 1e-3
    assert nn.modules.transformer._detect_is_causal_mask(mask, None, 5)  # its own again


class Keywords(nn.Module):
    """Its inputs have no names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.last(self.first(kwargs["x"]).tanh()) + sum(args)


@pytest.mark.parametrize("args", [(), (torch.zeros(3, 2).double(),)])
def test_a_forward_of_any_inputs_is_captured_for_any_number_of_samples(args: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    model, x = Keywords().double(), inputs()
    before = dict(vars(model))
    captured = capture(model, (args, {"x": x}))
    assert vars(model) == before
    more = torch.cat([x, x])
    given = tuple(torch.cat([one, one]) for one in args)
    assert difference(model(*given, x=more), run(captured, model, (given, {"x": more})))[1] < 1e-14


def test_len_of_a_tensor_is_a_free_size() -> None:
    model, x = between(lambda _, h: h.view(len(h), 3, 2).flatten(1)), inputs()
    assert find_units(model, x).notes == []
    captured = capture(model, as_call(x))
    assert captured.spec.fixed is None
    assert_captured(model, captured, inputs(7))
    assert len([1, 2]) == 2
    assert type(len(x)) is int  # its own again


def test_a_model_whose_code_fixes_the_batch_and_cannot_be_cut_is_refused_for_the_latter() -> None:
    def loop_and_choose(_: nn.Module, h: Tensor) -> Tensor:
        return torch.cond(h.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (torch.stack(list(h)),))

    with pytest.raises(ModelError, match="a graph within the graph"):
        find_units(between(loop_and_choose), inputs())


@pytest.mark.parametrize("function", [loop_over_the_batch, fix_the_batch, branch_on_the_batch])
def test_a_forward_that_fixes_the_batch_is_taken_at_that_size_with_a_note(function: Hidden) -> None:
    model, x = between(function), inputs()
    units = find_units(model, x)
    note = f"The model's code fixes the batch at {len(x)} samples: all sizes are for these, all data comes so."
    assert units.notes == [note]
    assert str(units).endswith(f"\n\n{note}")
    kept = {s.name: range(s.size - 1) for s in units}
    small = sc.cut(model, sc.Plan.from_kept(kept, x))
    assert small(x).shape == model(x).shape
    with pytest.raises(DataError, match=rf"^inputs: the model's code fixes the batch at {len(x)} samples, got 2; give"):
        sc.score(model, (x[:2], torch.zeros(2, dtype=torch.long)), "cross_entropy", units=units)


def count_calls(model: nn.Module, h: Tensor) -> Tensor:
    model.calls = getattr(model, "calls", 0) + 1
    return h * model.calls


def count_in_a_buffer(model: nn.Module, h: Tensor) -> Tensor:
    model.steps.add_(1)
    return h * model.steps


@pytest.mark.parametrize("function", [count_calls, count_in_a_buffer])
def test_a_forward_that_differs_from_call_to_call_is_refused(function: Hidden) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        ModelError,
        match=r"^Between: the captured graph differs from the model by \d\.\de[+-]\d\d of the largest output; forward "
        r"must give the same outputs for the same inputs in eval mode \(dropout left on, cached tensors\?\)$",
    ):
        find_units(between(function), inputs())


def replace_a_buffer(model: nn.Module, h: Tensor) -> Tensor:
    model.steps = model.steps + 1
    return h * model.steps


@pytest.mark.parametrize("function", [count_in_a_buffer, replace_a_buffer])
def test_a_buffer_that_forward_changes_is_left_as_it_was(function: Hidden) -> None:
    model = between(function)
    before = model.steps
    with pytest.raises(ModelError):
        find_units(model, inputs())
    assert model.steps is before
    assert before == 0


class CachedBatch(Between):
    """Keeps what it made of its weights in the first call in eval mode, as position biases are."""

    def __init__(self, forgets: bool) -> None:
        super().__init__(CachedBatch.scale)
        self.forgets = forgets

    def train(self, mode: bool = True) -> nn.Module:
        if mode and self.forgets:
            self.cache = None
        return super().train(mode)

    def scale(self, h: Tensor) -> Tensor:
        if self.training:
            return h * self.first.weight.sum(1)
        if self.cache is None:
            self.cache = self.first.weight.sum(1)
        return h * self.cache


def test_what_a_module_caches_is_traced_to_its_weights() -> None:
    model = CachedBatch(forgets=True).double().eval()
    model(inputs())
    captured = capture(model, as_call(inputs()))
    assert captured.constants == {}
    check_capture(model, captured, as_call(inputs()))
    with torch.no_grad():
        model.first.weight.mul_(2)
    assert_captured(model, captured, inputs(5))
    assert {s.name: s.size for s in find_units(model, inputs())} == {"first": 6}


def test_a_cache_that_stays_is_a_constant_and_fixes_what_it_reaches() -> None:
    model = CachedBatch(forgets=False).double().eval()
    model(inputs())
    units = find_units(model, inputs())
    assert len(units) == 0
    assert ("first.weight[0]", 6, "a tensor made in forward, not a parameter or buffer") in units.fixed


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.zeros(3, 5), r"^Linear does not run on the inputs given, of shape \(3, 5\): mat1 and mat2 shapes"),
        (torch.zeros(3, 4, dtype=torch.long), r"^Linear does not run on the inputs given, of shape \(3, 4\): .*dtype"),
        (
            (torch.zeros(3, 4), torch.zeros(3, 1)),
            r"^Linear does not run on the inputs given, of shape \(3, 4\), \(3, 1\): too many positional arguments$",
        ),
        ({"x": torch.zeros(3, 4)}, r"^Linear does not run .*: missing a required argument: 'input'$"),
    ],
    ids=["shape", "dtype", "number", "name"],
)
def test_inputs_that_do_not_fit_are_refused(x: object, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        find_units(nn.Linear(4, 2), x)


def test_an_index_out_of_range_is_refused() -> None:
    text = r"^Embedding does not run on the inputs given, of shape \(2, 1\): index out of range in self$"
    with pytest.raises(ModelError, match=text):
        find_units(nn.Embedding(3, 2), torch.tensor([[7], [0]]))


class Choosy(nn.Linear):
    """Refuses its inputs in a way of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__(4, 2)
        self.error = error

    def forward(self, _: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("expected 2D"), AssertionError("expected 2D"), KeyError("expected 2D")])
def test_whatever_forward_raises_says_that_the_inputs_do_not_fit(error: Exception) -> None:
    with pytest.raises(
        ModelError, match=r"^Choosy does not run on the inputs given, of shape \(3, 4\): '?expected 2D'?$"
    ):
        find_units(Choosy(error), torch.zeros(3, 4))


def test_complex_inputs_are_refused() -> None:
    with pytest.raises(SecateurError):
        find_units(nn.Linear(4, 2), torch.zeros(3, 4, dtype=torch.complex64))


def test_inputs_without_samples_are_refused() -> None:
    with pytest.raises(DataError, match="samples"):
        find_units(nn.Linear(4, 2), torch.zeros(0, 4))


def test_inputs_without_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"^inputs: expected one number of samples in the first dimension, got none$"):
        find_units(nn.Linear(4, 2), torch.tensor(1.0))


def test_evaluating_restores_modes_after_an_error() -> None:
    model = mixed()
    before = modes(model)
    during = []

    def fail() -> None:
        with evaluating(model):
            during.extend(modes(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert during == [False] * 6
    assert modes(model) == before


def test_a_refusal_is_the_only_thing_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="chooses by the values"):
        find_units(between(lambda _model, h: h if h.sum() > 0 else -h), inputs())
    assert capfd.readouterr() == ("", "")
