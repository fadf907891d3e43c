from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cases import CASES, in_batches
from secateur import Budget, cut, find_units, interactions, rank, score, shrink
from secateur.errors import DataError
from secateur.objective.gated_loss import GatedLoss, ones

WEIGHT = torch.tensor([1.0, 4.0, 16.0])


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def samples(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 4, generator=generator).to(dtype), torch.randint(0, 3, (n,), generator=generator)


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHT.to(outputs))


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - F.one_hot(targets, 3)).square().mean().sqrt()


def ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=1)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs), device=outputs.device))


def standardised(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.batch_norm(outputs, None, None, training=True), targets)


NO_MEANS = [weighted, summed, root, ignoring, contrastive, standardised]


def one_class_a_batch(x: Tensor, y: Tensor) -> Any:
    order = y.sort(stable=True).indices
    return DataLoader(TensorDataset(x[order], y[order]), batch_size=3)


WAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "two batches": lambda x, y: in_batches(x, y, [17]),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=8),
    "a sample each": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=1),
    "sorted by class": one_class_a_batch,
    "an empty one first": lambda x, y: in_batches(x, y, [0, 10]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", NO_MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loss_that_is_no_mean_over_samples_is_refused_for_several_batches(
    way: str, loss: Any, dtype: torch.dtype
) -> None:
    with pytest.raises(DataError, match=r"^loss: it is not a mean over samples: "):
        GatedLoss(
            network(dtype), find_units(network(dtype), samples(40, dtype)[0]), WAYS[way](*samples(40, dtype)), loss
        )


def test_the_error_says_what_was_measured() -> None:
    model, x, y = (
        network(),
        torch.tensor([[1.0], [2.0], [3.0], [4.0]]).double().expand(4, 4),
        torch.tensor([0, 1, 2, 0]),
    )
    with pytest.raises(DataError) as caught:
        GatedLoss(model, find_units(model, x), in_batches(x, y, [2]), lambda o, t: (t + 0 * o[:, 0]).sum())
    assert str(caught.value) == (
        "loss: it is not a mean over samples: 3 for 4 samples together, 1.5 on average over them in two parts, so that "
        "results would depend on the batches. Divide by the number of samples (reduction='mean'); weigh classes by "
        "(weight[targets] * F.cross_entropy(outputs, targets, reduction='none')).mean(); or give all data as one "
        "batch, [(inputs, targets)]"
    )


def test_a_loss_that_is_nan_for_few_samples_is_no_mean() -> None:
    model, (x, y) = network(), samples(40)
    of_many = lambda o, t: F.cross_entropy(o, t) * (1 if len(o) > 10 else torch.nan)  # noqa: E731
    with pytest.raises(DataError, match=r"^loss: it is not a mean over samples: .* together, nan on average"):
        GatedLoss(model, find_units(model, x), in_batches(x, y, [20]), of_many)


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return (WEIGHT.to(outputs)[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()


MEANS = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    weighted_mean,
    lambda o, t: (o - F.one_hot(t, 3)).square().mean(),
    lambda o, t: summed(o, t) / len(o),
    lambda o, t: weighted_mean(o, t) + 3,
    lambda o, t: -F.cosine_similarity(o, F.one_hot(t, 3).to(o)).mean(),
    lambda o, t: (o.argmax(1) != t).double().mean(),
    lambda o, t: (o * (t[:, None] - 1)).mean(),  # of both signs
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mean_over_samples_is_the_same_whatever_the_batches(way: str, loss: Any, dtype: torch.dtype) -> None:
    model, (x, y) = network(dtype), samples(40, dtype)
    units = find_units(model, x)
    split, together = (
        GatedLoss(model, units, data, loss).loss(ones(model, units)) for data in (WAYS[way](x, y), (x, y))
    )
    assert split == pytest.approx(together, rel={torch.float32: 1e-5, torch.float64: 1e-12}[dtype])


@pytest.mark.parametrize("loss", NO_MEANS)
@pytest.mark.parametrize("form", ["pair", "list"])
def test_one_batch_may_have_any_loss(loss: Any, form: str) -> None:
    model, (x, y) = network(), samples(40)
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, y) if form == "pair" else [(x, y)], loss)
    assert gated.loss(ones(model, units)) == pytest.approx(loss(model(x), y).item(), rel=1e-12)


def test_a_dataset_given_whole_is_refused_where_memory_splits_it() -> None:
    model, (x, y) = network(), samples(400)
    assert score(model, (x, y), weighted, max_memory="1 MB")["0"].shape == (6,)
    with pytest.raises(DataError, match="it is not a mean over samples"):
        score(model, (x, y), weighted, max_memory="100 kB")


def test_weights_that_hardly_any_sample_has_are_found() -> None:
    model, (x, y) = network(torch.float32), samples(2000, torch.float32)
    y = (torch.arange(2000) % 20 == 7).long()
    with pytest.raises(DataError, match="it is not a mean over samples"):
        GatedLoss(model, find_units(model, x), DataLoader(TensorDataset(x, y), batch_size=100), weighted)


def test_classes_that_take_turns_are_found() -> None:
    model, (x, _) = network(), samples(64)
    for classes in (2, 3):
        data = DataLoader(TensorDataset(x, torch.arange(64) % classes), batch_size=12)
        with pytest.raises(DataError, match="it is not a mean over samples"):
            GatedLoss(model, find_units(model, x), data, weighted)


TWICE = in_batches(*samples(40), [17])
USES: dict[str, Callable[[nn.Module], Any]] = {
    "score": lambda m: score(m, TWICE, summed),
    "score of weights": lambda m: score(m, TWICE, summed, granularity="weight"),
    "interactions": lambda m: interactions(m, TWICE, summed),
    "rank": lambda m: rank(m, TWICE, summed, progress=False),
    "shrink": lambda m: shrink(m, TWICE, summed, Budget(remove_units=1), progress=False),
    "validation": lambda m: rank(m, samples(40), summed, validation=TWICE, progress=False),
    "shrink weights": lambda m: shrink(
        m, samples(40), summed, Budget(remove_units=1), validation=TWICE, granularity="weight", progress=False
    ),
    "cut": lambda m: cut(
        m, rank(m, samples(40), "cross_entropy", budget=Budget(remove_units=1), progress=False), TWICE, loss=summed
    ),
}


@pytest.mark.parametrize("use", USES)
def test_it_is_refused_wherever_a_loss_is_taken(use: str) -> None:
    with pytest.raises(DataError, match="it is not a mean over samples: "):
        USES[use](network())


class Counted:
    """A mean that says on how many samples it was called."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.sizes.append(len(outputs))
        return F.cross_entropy(outputs, targets)


def test_it_is_tried_once_on_few_samples() -> None:
    model, (x, y) = network(), samples(1000)
    units, loss = find_units(model, x), Counted()
    gated = GatedLoss(model, units, in_batches(x, y, list(range(50, 1000, 50))), loss)
    assert loss.sizes == [8] * 6 + [16] * 5  # 6 of each of 8 batches, in pieces, and every two of these
    del loss.sizes[:]
    GatedLoss(model, units, in_batches(x, y, [400, 800]), loss)
    assert sum(loss.sizes[: 3 * 32 // 7]) == 3 * 32
    del loss.sizes[:]
    gated.loss(ones(model, units))
    gated.measure(ones(model, units))
    assert loss.sizes == [50] * 20 * 2
    del loss.sizes[:]
    GatedLoss(model, units, (x, y), loss)
    assert loss.sizes == []


class Sequence(nn.Module):
    """Outputs [positions, samples, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))).expand(2, -1, -1)


def test_what_cannot_be_told_is_taken() -> None:
    torch.manual_seed(0)
    model, (x, y) = Sequence().double(), samples(6)
    units, data = find_units(model, x), in_batches(x, y, [3])
    assert GatedLoss(model, units, data, lambda o, t: summed(o[0], t)).has_loss
    model = network()
    units = find_units(model, x)
    batch_of_three = lambda o, _: (o * torch.ones(3, 1)).square().mean()  # noqa: E731
    assert GatedLoss(model, units, data, batch_of_three).loss(ones(model, units)) == pytest.approx(
        model(x).square().mean().item(), rel=1e-12
    )
    lists = [(inputs, targets.tolist()) for inputs, targets in data]
    assert GatedLoss(model, units, lists, lambda o, t: summed(o, torch.tensor(t))).has_loss


def test_targets_may_be_missing_or_several() -> None:
    model, (x, y) = network(), samples(40)
    units, data = find_units(model, x), in_batches(x, y, [17])
    for loss in (lambda o, _: o.square().mean(), lambda o, _: o.square().sum()):
        bare = [(inputs, None) for inputs, _ in data]
        named = [(inputs, {"classes": targets, "same": (targets,)}) for inputs, targets in data]
        for batches in (bare, named):
            if loss(torch.ones(2, 3), None).item() == 1:
                assert GatedLoss(model, units, batches, loss).has_loss
            else:
                with pytest.raises(DataError, match="it is not a mean over samples"):
                    GatedLoss(model, units, batches, loss)


def test_several_outputs_are_split_together() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = torch.tanh(self.a(x))
            return {"classes": self.b(h), "value": self.c(h)}

    torch.manual_seed(0)
    model, (x, y) = Two().double(), samples(40)
    units, data = find_units(model, x), in_batches(x, y, [17])
    mean = lambda o, t: F.cross_entropy(o["classes"], t) + o["value"].square().mean()  # noqa: E731
    assert GatedLoss(model, units, data, mean).has_loss
    with pytest.raises(DataError, match="it is not a mean over samples"):
        GatedLoss(model, units, data, lambda o, t: F.cross_entropy(o["classes"], t) + o["value"].square().sum())


def test_of_a_network_whose_code_fixes_the_batch() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.reshape(5, 4))))

    torch.manual_seed(0)
    model, (x, y) = Fixed().double(), samples(10)
    units, data = find_units(model, x[:5]), in_batches(x, y, [5])
    assert GatedLoss(model, units, data, nn.CrossEntropyLoss()).has_loss
    with pytest.raises(DataError, match=r"^loss: it is not a mean over samples: .* for 8 samples together"):
        GatedLoss(model, units, data, summed)


def test_named_losses_are_means() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    for name, t in (("cross_entropy", case.y), ("squared_error", case.y), ("binary_cross_entropy", case.x[:, :3] * 0)):
        split, whole = (
            GatedLoss(case.model, units, data, name).loss(ones(case.model, units))
            for data in (in_batches(case.x, t, [1, 3]), (case.x, t))
        )
        assert split == pytest.approx(whole, rel=1e-12)
