"""Networks in bfloat16 and float16: found, ranked, cut and proven, with a tolerance that follows the type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.verify import exact_truths, truth
from secateur.errors import VerificationError

HALVES = [torch.bfloat16, torch.float16]
ROWS = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.embed(x.unflatten(1, (2, 3)))).mean(1))
        return logits


class FirstFour(nn.Module):
    """A network whose code sums the first four hidden units up, so lightly that half precision hardly shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(x))
        return self.head(h) + h[:, :4].sum(1, keepdim=True) / 1024


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 3)
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("make", "x"), [(dense, ROWS), (convolutional, IMAGES), (Attention, ROWS)])
def test_a_network_in_half_precision_is_shrunk_proven_and_written(
    tmp_path: Path, make: Callable[[], nn.Module], x: Tensor, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    sets = [(s.name, s.size, s.bytes_per_unit) for s in sc.find_units(model, x)]
    model = model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [(s.name, s.size, 2 * s.bytes_per_unit) for s in sc.find_units(model, x)] == sets
    result = sc.shrink(model, (x, Y), "cross_entropy", sc.Budget(remove_fraction=0.5), progress=False)
    halved = [tensor for tensor in result.model.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in halved} == {dtype}
    assert result.after.params < result.before.params
    assert result.max_difference <= 0.05
    assert result.save(tmp_path / "small.safetensors") == (tmp_path / "small.safetensors").stat().st_size
    again = sc.load(tmp_path / "small.safetensors", model)
    assert torch.equal(again(x.to(dtype)), result.model(x.to(dtype)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("ranking", ["single", "iterative", "quadratic", "layerwise"])
def test_an_order_in_half_precision_removes_the_units_that_do_nothing_first(dtype: torch.dtype, ranking: str) -> None:
    torch.manual_seed(0)
    model = dense()
    with torch.no_grad():
        for k in (3, 7, 11):
            model[2].weight[:, k] = 0
    budget = sc.Budget(remove_units=3)
    criterion = "ggn" if ranking == "layerwise" else None  # the slope of this loss is 0 at its start
    options = {"criterion": criterion, "ranking": ranking, "budget": budget}
    plan = sc.rank(model.to(dtype), (ROWS, None), "output", progress=False, **options)
    assert {(step.set, step.index) for step in plan.steps} == {("0", 3), ("0", 7), ("0", 11)}
    small = sc.cut(model, plan)
    x = ROWS.to(dtype)
    assert torch.allclose(small(x), model(x), atol=0.05)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_code_that_is_wrong_by_less_than_half_precision_shows_does_not_pass(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = FirstFour().to(dtype)
    plan = sc.Plan.from_kept({"hidden[0]": [1, 2, 3]}, ROWS[:2])
    small, x = sc.cut(model, plan), ROWS.to(dtype)
    assert captured_parts(small) == ("",)
    mask = (torch.arange(16) > 0).to(dtype)
    h = torch.tanh(model.hidden(x)) * mask
    gated = model.head(h) + h[:, :4].sum(1, keepdim=True) / 1024
    own = model.head(h) + h[:, :5].sum(1, keepdim=True) / 1024  # what its own code makes of the units that are left
    limit = {torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype] * gated.abs().max()
    assert 0 < (own - gated).abs().max() < limit
    assert (small(x) - gated).abs().max() < limit


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, "5e-02"), (torch.float16, "1e-02")], ids=str)
def test_a_wrong_cut_in_half_precision_fails_the_proof(dtype: torch.dtype, rounding: str) -> None:
    torch.manual_seed(0)
    model, kept = dense().to(dtype), {"0": (0, 1, 2, 3), "2": tuple(range(12))}
    units, call = sc.find_units(model, ROWS), ((ROWS.to(dtype),), {})
    other = sc.cut(model, sc.Plan.from_kept({"0": [4, 5, 6, 7]}, ROWS[:2]))
    with pytest.raises(VerificationError, match=rf"of the largest output; rounding explains {rounding}\. Nothing was"):
        truth(model, units, kept, call).check(other)
    other[1] = nn.Hardtanh()  # the same weights, other code
    (exact,) = exact_truths(model, units, kept, [call])
    with pytest.raises(VerificationError, match="of the largest output; rounding explains 1e-09"):
        exact.check(other)
    right = sc.cut(model, sc.Plan.from_kept({"0": [0, 1, 2, 3]}, ROWS[:2]))
    assert exact.check(right) < 1e-9
    assert truth(model, units, kept, call).check(right) < 0.05


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_a_named_loss_of_half_precision_outputs_is_computed_in_float32(dtype: torch.dtype, loss: str) -> None:
    torch.manual_seed(0)
    model = dense().to(dtype)
    targets = Y if loss == "cross_entropy" else nn.functional.one_hot(Y, 3).float()
    plan = sc.rank(model, (ROWS, targets), loss, criterion="magnitude", progress=False)
    outputs, t = model(ROWS.to(dtype)).double(), targets if loss == "cross_entropy" else targets.double()
    expected = {
        "cross_entropy": lambda: nn.functional.cross_entropy(outputs, t),
        "binary_cross_entropy": lambda: nn.functional.binary_cross_entropy_with_logits(outputs, t),
        "squared_error": lambda: (outputs - t).square().sum(1).mean() / 2,
    }[loss]().item()
    assert plan.start is not None
    assert plan.start.loss == pytest.approx(expected, rel=1e-6)
    assert len({step.loss for step in plan.steps}) == len(plan.steps)  # in bfloat16 they would coincide
