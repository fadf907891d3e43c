from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur import Budget, find_units, score, shrink
from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import DataError
from secateur.objective.data import CHUNK, Batch, batches, first_inputs
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import squared_error


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.a(x) + self.b(z)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def samples(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return (
        torch.randn(n, 3, generator=generator, dtype=torch.float64),
        torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )


def whole(found: list[Batch]) -> tuple[Tensor, Tensor]:
    """The first input and the targets of all batches together."""
    inputs = [next(iter((*batch.call[0], *batch.call[1].values()))) for batch in found]
    return torch.cat(inputs), torch.cat([batch.targets for batch in found])


class Again:
    """An iterable of its own kind."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, t: (x, t),
    "pair as a list": lambda x, t: [x, t],
    "pair with a tuple of inputs": lambda x, t: ((x,), t),
    "pair with a dict of inputs": lambda x, t: ({"input": x}, t),
    "list of one batch": lambda x, t: [(x, t)],
    "list of two batches": lambda x, t: [(x[:2], t[:2]), (x[2:], t[2:])],
    "tuple of two batches": lambda x, t: ((x[:2], t[:2]), (x[2:], t[2:])),
    "list of batches as lists": lambda x, t: [[x[:2], t[:2]], [x[2:4], t[2:4]], [x[4:], t[4:]]],
    "batches with a tuple of inputs": lambda x, t: [((x[:2],), t[:2]), ((x[2:],), t[2:])],
    "batches with a dict of inputs": lambda x, t: [({"input": x[:4]}, t[:4]), ({"input": x[4:]}, t[4:])],
    "batches as dicts with labels": lambda x, t: [{"input": x[:1], "labels": t[:1]}, {"input": x[1:], "labels": t[1:]}],
    "an iterable": lambda x, t: Again([(x[:3], t[:3]), (x[3:], t[3:])]),
    "DataLoader": lambda x, t: DataLoader(TensorDataset(x, t), batch_size=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_holds_the_same_samples(form: str) -> None:
    x, t = samples(5)
    found = list(batches(network(), FORMS[form](x, t)))
    assert sum(batch.size for batch in found) == 5
    got_x, got_t = whole(found)
    assert got_x.equal(x)
    assert got_t.equal(t)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_has_the_same_loss(form: str) -> None:
    model, (x, t) = network(), samples(5)
    units = find_units(model, {"input": x} if "dict" in form else x)
    expected = squared_error(model(x), t).item()
    assert GatedLoss(model, units, FORMS[form](x, t), "squared_error").loss(ones(model, units)) == pytest.approx(
        expected, rel=1e-13
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_units_are_found_with_the_first_batch(form: str) -> None:
    model, (x, t) = network(), samples(5)
    assert score(model, FORMS[form](x, t), "squared_error", criterion="taylor1")["0"].shape == (4,)


def test_a_dict_keeps_all_its_inputs_and_gives_its_labels() -> None:
    x, z, t = torch.ones(2, 3), torch.zeros(2, 2), torch.tensor([0, 1])
    (batch,) = batches(TwoInputs(), [{"z": z, "labels": t, "x": x}])
    assert batch.call[0] == ()
    assert set(batch.call[1]) == {"x", "z"}
    assert batch.call[1]["x"].equal(x)
    assert batch.targets.equal(t)


@pytest.mark.parametrize("make", [lambda x, z: (x, z), lambda x, z: {"z": z, "x": x}], ids=["tuple", "dict"])
@pytest.mark.parametrize("split", [False, True], ids=["pair", "batches"])
def test_several_inputs_are_split_together(make: Callable[..., Any], split: bool) -> None:
    torch.manual_seed(0)
    model = TwoInputs().double()
    x, z, t = torch.randn(5, 3).double(), torch.randn(5, 2).double(), torch.randn(5, 2).double()
    units = find_units(model, make(x, z))
    data = [(make(x[i], z[i]), t[i]) for i in (slice(0, 2), slice(2, 5))] if split else (make(x, z), t)
    expected = squared_error(model(x, z), t).item()
    assert GatedLoss(model, units, data, "squared_error").loss(ones(model, units)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("form", ["pair", "batches"])
def test_targets_may_be_none(form: str) -> None:
    x, _ = samples(5)
    found = list(batches(network(), (x, None) if form == "pair" else [(x[:2], None), (x[2:], None)]))
    assert [batch.targets for batch in found] == [None] * len(found)
    assert sum(batch.size for batch in found) == 5


def test_targets_of_any_other_form_reach_the_loss_as_they_are() -> None:
    x, _ = samples(2)
    targets = {"a": [1, 2]}
    (batch,) = batches(network(), [(x, targets)])
    assert batch.targets is targets


@pytest.mark.parametrize("cuts", [(1,), (4,), (1, 2, 6), (3, 3, 3), (1, 2, 3, 4, 5, 6)], ids=str)
def test_batches_count_by_their_number_of_samples(cuts: tuple[int, ...]) -> None:
    model, (x, t) = network(), samples(7)
    units = find_units(model, x)
    data = list(zip(torch.tensor_split(x, cuts), torch.tensor_split(t, cuts), strict=True))
    expected = sum(len(a) * squared_error(model(a), b).item() for a, b in data if len(a)) / 7
    gated = GatedLoss(model, units, data, "squared_error")
    assert sum(batch.share for batch in gated.cached) == pytest.approx(1)
    assert gated.loss(ones(model, units)) == pytest.approx(expected, rel=1e-13)
    assert expected == pytest.approx(squared_error(model(x), t).item(), rel=1e-13)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_empty_batch_among_others_is_left_out(where: int) -> None:
    model, (x, t) = network(), samples(5)
    data = [(x[:2], t[:2]), (x[2:], t[2:])]
    data.insert(where, (x[:0], t[:0]))
    assert [batch.size for batch in batches(model, data)] == [2, 3]
    with_it, without = (score(model, d, "squared_error", criterion="oracle")["0"] for d in (data, (x, t)))
    assert torch.allclose(with_it, without, rtol=1e-12, atol=0)


EMPTY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "no batch": lambda *_: [],
    "an empty pair": lambda x, t: (x, t),
    "empty batches": lambda x, t: [(x, t), (x, t), (x, t)],
    "an empty DataLoader": lambda x, t: DataLoader(TensorDataset(x, t), batch_size=2),
}


@pytest.mark.parametrize("form", EMPTY)
@pytest.mark.parametrize("given", [True, False], ids=["units given", "units found"])
def test_data_without_a_sample_are_refused(form: str, given: bool) -> None:
    model, (x, t) = network(), samples(3)
    units = find_units(model, x) if given else None
    with pytest.raises(DataError, match=r"^data: there is no (sample|batch) in it$"):
        score(model, EMPTY[form](x[:0], t[:0]), "squared_error", units=units)


@pytest.mark.parametrize("use", [lambda d: list(batches(network(), d)), first_inputs], ids=["batches", "first"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda items: (item for item in items), "generator"),
        (iter, "list_iterator"),
        (lambda items: map(tuple, items), "map"),
        (lambda items: zip(*items, strict=True), "zip"),
    ],
    ids=["generator", "iterator", "map", "zip"],
)
def test_data_that_can_be_read_only_once_are_refused(
    use: Callable[..., Any], make: Callable[..., Any], name: str
) -> None:
    with pytest.raises(DataError) as caught:
        use(make([samples(2), samples(2)]))
    assert str(caught.value) == (
        f"data: a {name} can be read only once; give a list, a DataLoader or a pair of tensors"
    )


def test_data_that_can_be_read_only_once_are_refused_before_they_are_read() -> None:
    read = []
    with pytest.raises(DataError, match="a generator can be read only once"):
        score(network(), (read.append(i) or samples(2) for i in range(3)), "squared_error")
    assert read == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["inputs", "targets"])
@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("given", [True, False], ids=["units given", "units found"])
def test_nan_is_refused_with_its_batch(bad: float, which: str, position: int, given: bool) -> None:
    model = network()
    data = [samples(2), samples(3), samples(4)]
    units = find_units(model, data[0][0]) if given else None
    data[position][which == "targets"][1, 0] = bad
    with pytest.raises(DataError, match=rf"^data: the {which} of batch {position} hold NaN or infinite values$"):
        score(model, data, "squared_error", units=units)


def test_nan_in_any_of_several_inputs_is_refused() -> None:
    x, z, t = torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 2)
    z[1, 1] = float("nan")
    with pytest.raises(DataError, match=r"^data: the inputs of batch 0 hold NaN"):
        list(batches(TwoInputs(), ({"x": x, "z": z}, t)))


def test_masks_of_zeros_and_minus_infinity_are_no_bad_data() -> None:
    x, t = torch.ones(2, 3), torch.ones(2, 2)
    mask = torch.tensor([[0.0, -float("inf")], [0.0, 0.0]])
    assert [batch.size for batch in batches(TwoInputs(), ({"x": x, "z": mask}, t))] == [2]
    for bad in (mask + 1, -mask, mask - float("inf"), mask.log()):
        with pytest.raises(DataError, match=r"^data: the inputs of batch 0 hold NaN or infinite values$"):
            list(batches(TwoInputs(), ({"x": x, "z": bad}, t)))
    with pytest.raises(DataError, match=r"^data: the targets of batch 0 hold NaN"):
        list(batches(TwoInputs(), ({"x": x, "z": t}, mask)))


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (torch.ones(2, 3), "Tensor"),
        ((torch.ones(2, 3),), "tuple of 1"),
        ([torch.ones(2, 3)] * 3, "list of 3"),
        ({"x": torch.ones(2, 3), "label": 1}, "dict with x, label"),
        ({}, "dict with nothing"),
        (np.ones(3), "ndarray"),
        ("xy", "str"),
        (None, "NoneType"),
    ],
    ids=["tensor", "one", "three", "no labels", "nothing", "array", "text", "none"],
)
def test_a_batch_of_another_form_is_refused(item: object, name: str) -> None:
    with pytest.raises(DataError) as caught:
        list(batches(network(), [samples(2), item, samples(2)]))
    assert str(caught.value) == f"data: batch 1 is a {name}; expected (inputs, targets) or a dict with labels"


@pytest.mark.parametrize("use", [lambda d: list(batches(network(), d)), first_inputs], ids=["batches", "first"])
@pytest.mark.parametrize(
    ("given", "name"),
    [
        (5, "int"),
        (torch.ones(2, 3), "Tensor"),
        (len, "builtin_function_or_method"),
        ({"input": torch.ones(2, 3), "labels": torch.ones(2)}, "dict"),
        ((np.ones((2, 3)), np.ones(2)), "(ndarray, ndarray)"),
        ((torch.ones(2, 3), np.ones(2)), "(Tensor, ndarray)"),
        ([torch.ones(2, 3), [0, 1]], "(Tensor, list)"),
        (
            TensorDataset(torch.ones(2, 3), torch.ones(2)),
            "single samples, a TensorDataset: put it into a torch.utils.data.DataLoader",
        ),
    ],
)
def test_what_is_no_data_is_refused(use: Callable[..., Any], given: object, name: str) -> None:
    with pytest.raises(DataError) as caught:
        use(given)
    assert str(caught.value) == f"data: expected (inputs, targets) as tensors, or an iterable of such pairs; got {name}"


def test_ten_inputs_with_nine_targets_are_refused() -> None:
    x, t = samples(10)
    with pytest.raises(DataError, match=r"^data: 10 inputs, but 9 targets$"):
        list(batches(network(), (x, t[:9])))


def test_a_batch_of_ten_inputs_with_nine_targets_is_refused() -> None:
    model, (x, t) = network(), samples(10)
    with pytest.raises(DataError, match="targets"):
        score(model, [samples(3), (x, t[:9])], lambda o, t: o.mean() - t.mean())


def test_one_target_for_all_samples_is_refused() -> None:
    with pytest.raises(DataError, match=r"^data: .*targets"):
        list(batches(network(), (samples(3)[0], torch.tensor(1.0))))


@pytest.mark.parametrize("form", ["pair", "list"])
def test_inputs_of_different_lengths_are_refused(form: str) -> None:
    pair = ({"x": torch.ones(3, 3), "z": torch.ones(4, 2)}, torch.ones(3, 2))
    with pytest.raises(DataError, match=r"expected one number of samples in the first dimension, got \[3, 4\]"):
        list(batches(TwoInputs(), pair if form == "pair" else [pair]))


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64], ids=str)
def test_floating_point_data_get_the_dtype_of_the_model(given: torch.dtype, wanted: torch.dtype) -> None:
    x, t = samples(3)
    (batch,) = batches(network().to(wanted), (x.to(given), t.to(given)))
    assert batch.call[0][0].dtype == wanted
    assert batch.targets.dtype == wanted


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool], ids=str)
def test_integers_stay_integers(dtype: torch.dtype) -> None:
    t = torch.tensor([0, 1, 1]).to(dtype)
    (batch,) = batches(network(), (samples(3)[0], t))
    assert batch.targets.dtype == dtype
    assert batch.targets.equal(t)


def test_targets_keep_their_values_where_the_inputs_are_integers() -> None:
    t = torch.tensor([0.25, 0.5, 0.75])
    (batch,) = batches(network(), (torch.tensor([[1], [2], [3]]), t))
    assert batch.targets.dtype == torch.float64
    assert batch.targets.tolist() == [0.25, 0.5, 0.75]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_data_are_moved_to_the_device_of_the_model() -> None:
    (batch,) = batches(network().cuda(), samples(3))
    assert batch.call[0][0].device.type == batch.targets.device.type == "cuda"


def later(x: Tensor, t: Tensor, *more: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    return [(x, t), (x[:0], t[:0]), *more]


@pytest.mark.parametrize("shape", [(2, 5), (2, 2), (2,), (2, 3, 1)], ids=str)
def test_inputs_of_another_shape_than_the_example_s_are_refused(shape: tuple[int, ...]) -> None:
    model, (x, t) = network(), samples(4)
    data = later(x, t, (torch.zeros(shape), t[:2]))
    for use in (
        lambda: score(model, data, "squared_error"),
        lambda: score(model, data, "squared_error", granularity="weight"),
        lambda: list(batches(model, data, captured=find_units(model, x).captured)),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value) == (f"data: batch 2: inputs of shape {shape}, the model was captured for (samples, 3)")


def test_the_error_calls_the_data_as_it_is_told() -> None:
    model, (x, t) = network(), samples(4)
    units, wide = find_units(model, x), [(torch.zeros(2, 5), t[:2])]
    for use in (
        lambda data: list(batches(model, data, captured=units.captured, name="validation")),
        lambda data: GatedLoss(model, units, data, "squared_error", name="validation"),
        lambda data: WeightLoss(model, units.captured, data, "squared_error", name="validation"),
        lambda data: shrink(
            model, (x, t), "squared_error", Budget(remove_units=1), validation=data, granularity="weight",
            progress=False,
        ),
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"^validation: batch 0: inputs of shape \(2, 5\), the model was captured"):
            use(wide)
        with pytest.raises(DataError, match=r"^validation: 4 inputs, but 3 targets$"):
            use((x, t[:3]))
        with pytest.raises(DataError, match=r"^validation: the inputs of batch 0 hold NaN"):
            use([(x / 0 * 0, t)])
        with pytest.raises(DataError, match=r"^validation: there is no sample in it$"):
            use([])
        with pytest.raises(DataError, match=r"^validation: expected \(inputs, targets\) as tensors"):
            use(5)
        with pytest.raises(DataError, match=r"^validation: a generator can be read only once"):
            use(item for item in [(x, t)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128], ids=str)
def test_inputs_of_another_kind_than_the_example_s_are_refused(dtype: torch.dtype) -> None:
    model, (x, t) = network(), samples(4)
    with pytest.raises(DataError) as caught:
        score(model, later(x, t, (x.to(dtype), t)), "squared_error")
    assert str(caught.value) == f"data: batch 2: inputs of {dtype}, the model was captured for torch.float64"


def test_other_inputs_than_the_example_s_are_refused() -> None:
    torch.manual_seed(0)
    model, x, z, t = TwoInputs().double(), torch.ones(2, 3), torch.ones(2, 2), torch.ones(2, 2)
    named = [({"x": x, "z": z}, t)]
    start = "data: batch 1: inputs"
    for other, text in (
        ({"x": x}, r": expected 0 positional, keywords ['x', 'z'] as in the example, got 0 positional, keywords ['x']"),
        (
            {"x": x, "y": z},
            ": expected 0 positional, keywords ['x', 'z'] as in the example, got 0 positional, keywords ['x'",
        ),
        ((x, z), ": expected 0 positional, keywords ['x', 'z'] as in the example, got 2 positional, keywords []"),
        ({"x": x, "z": x}, "['z'] of shape (2, 3), the model was captured for (samples, 2)"),
        ({"x": x, "z": 1.0}, "['z']: captured with a tensor, got 1.0"),
        ({"x": x, "z": z.numpy()}, "['z']: captured with a tensor, got array("),
        ({"x": x, "z": z[:1]}, ": expected one number of samples in the first dimension, got [1, 2]"),
    ):
        with pytest.raises(DataError) as caught:
            score(model, [*named, (other, t)], "squared_error")
        assert str(caught.value).startswith(start + text)


def test_inputs_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        list(batches(network(), [(np.ones((2, 3)), torch.ones(2, 2))]))
    forms = "a tensor, a tuple of positional inputs or a dict of keyword inputs"
    assert str(caught.value) == f"data: batch 0: expected as inputs {forms}, got ndarray"


class Words(nn.Module):
    """The mean of looked-up rows, some of them behind a shift."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.table, self.a, self.b, self.shift = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 2), shift

    def forward(self, words: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(self.table(words + self.shift).mean(1))))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_whole_numbers_of_a_smaller_type_are_taken(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, words, t = Words().double(), torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.ones(3, 2)
    mixed = [(words[:1], t[:1]), (words[1:].to(dtype), t[1:])]
    got, wanted = (score(model, data, "squared_error") for data in (mixed, [(words[:1], t[:1]), (words[1:], t[1:])]))
    assert all(got[name].equal(wanted[name]) for name in wanted)
    small = [(words[:1].to(torch.uint8).to(torch.int32), t[:1]), (words[1:], t[1:])]
    with pytest.raises(
        DataError, match=r"^data: batch 1: inputs of torch.int64, the model was captured for torch.int32"
    ):
        score(model, small, "squared_error")


@pytest.mark.parametrize("granularity", ["unit", "weight"])
@pytest.mark.parametrize(
    ("shift", "words", "rows"),
    [(0, [0, 7], "0 to 7"), (0, [-1, 6], "-1 to 6"), (2, [-2, 5], "0 to 7"), (2, [-3, 0], "-1 to 2")],
)
def test_rows_that_a_table_has_not_are_refused(granularity: str, shift: int, words: list[int], rows: str) -> None:
    torch.manual_seed(0)
    model, t = Words(shift).double(), torch.ones(1, 2)
    edges = [(torch.tensor([one]) - shift, t) for one in ([0, 1], [0, 6])]
    assert score(model, edges, "squared_error", granularity=granularity)
    with pytest.raises(DataError) as caught:
        score(model, [*edges, (torch.tensor([words]), t)], "squared_error", granularity=granularity)
    assert str(caught.value) == f"data: batch 2: inputs: rows {rows} of table.weight are looked up, it has 0 to 6"


@pytest.mark.parametrize("loss", ["squared_error", nn.MSELoss()], ids=["named", "own"])
@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "hessian", "ggn", "obs"])
@pytest.mark.parametrize("how", ["asking", "inference"])
def test_tensors_that_something_computed_are_taken_by_their_values(loss: Any, criterion: str, how: str) -> None:
    model, teacher, (x, _) = network(), network(), samples(5)
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    if how == "asking":
        x, t = x.requires_grad_(), teacher(x)
    else:
        with torch.inference_mode():
            x, t = x.clone(), teacher(x)
    plain = samples(5)[0], torch.tensor(t.tolist(), dtype=torch.float64)
    got, wanted = (score(model, data, loss, criterion=criterion)["0"] for data in ((x, t), plain))
    assert got.equal(wanted)
    assert x.grad is None
    (batch,) = batches(model, (x, t))
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in (batch.call[0][0], batch.targets))


@pytest.mark.parametrize("which", ["inputs", "targets"])
@pytest.mark.parametrize("form", ["pair", "batches"])
def test_sparse_tensors_are_refused(which: str, form: str) -> None:
    x, t = (
        one.to_sparse() if name == which else one for name, one in zip(("inputs", "targets"), samples(3), strict=True)
    )
    where = "data" if form == "pair" else "data: batch 0"
    with pytest.raises(DataError, match=rf"^{where}: expected dense tensors, got one of layout torch.sparse_coo$"):
        list(batches(network(), (x, t) if form == "pair" else [(x, t)]))


def test_a_large_pair_is_run_in_chunks_and_is_the_same_dataset() -> None:
    model, (x, t) = network(), samples(2 * CHUNK + 5)
    assert [batch.size for batch in batches(model, (x, t))] == [CHUNK, CHUNK, 5]
    units = find_units(model, x[:3])
    in_chunks, at_once = (
        GatedLoss(model, units, d, "squared_error").gradient(ones(model, units)) for d in ((x, t), [(x, t)])
    )
    assert torch.allclose(in_chunks, at_once, rtol=1e-11, atol=0)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("targets", [True, False], ids=["targets", "none"])
def test_chunks_leave_out_nothing(n: int, targets: bool) -> None:
    x, t = samples(n)
    scale = torch.tensor(3.0, dtype=torch.float64)  # no samples in it: the same for all
    found = list(batches(network(), ((x, scale), t if targets else None), 4))
    assert [batch.size for batch in found] == {1: [1], 3: [3], 4: [4], 5: [4, 1], 8: [4, 4]}[n]
    assert torch.cat([batch.call[0][0] for batch in found]).equal(x)
    assert all(batch.call[0][1].equal(scale) for batch in found)
    if targets:
        assert torch.cat([batch.targets for batch in found]).equal(t)


def test_the_first_inputs_are_those_of_the_first_batch() -> None:
    (x, t), other = samples(2), samples(3)
    assert first_inputs((x, t)) is x
    assert first_inputs([(x, t), other]) is x
    assert first_inputs([{"input": x, "labels": t}, other])["input"] is x
    assert list(first_inputs([{"input": x, "labels": t}])) == ["input"]


def test_without_data_the_inputs_are_unknown() -> None:
    with pytest.raises(DataError) as caught:
        first_inputs(None)
    assert str(caught.value) == "pass units=find_units(model, example_inputs): without data the inputs are unknown"
