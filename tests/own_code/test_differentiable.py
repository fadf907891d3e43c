"""A network that is left can be trained, also where the original's own code writes over what derivatives need."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.own_code.differentiable import has_derivatives, is_differentiable


class Partial(nn.Module):
    """A layer on the first half of the units, written over them: PyTorch cannot differentiate it in the weight."""

    def __init__(self, saved: bool = True) -> None:
        super().__init__()
        self.layer, self.saved = nn.Linear(4, 4), saved

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :4] = self.layer(y[:, :4] if self.saved else x[:, :4])
        return y


class Frozen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def network(inner: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), inner, nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).double()


X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.zeros(6, 2, dtype=torch.float64)


def test_what_can_be_differentiated() -> None:
    assert not is_differentiable(network(Partial()), ((X,), {}))
    assert is_differentiable(network(Partial(saved=False)), ((X,), {}))
    assert is_differentiable(Frozen(), ((X,), {}))
    model = network(Partial())
    assert not has_derivatives(model, [model(X), "and"])


def test_only_the_part_that_cannot_be_differentiated_runs_by_the_graph() -> None:
    model = network(Partial())
    small = sc.cut(model, sc.Plan.from_kept({"3": [0, 2, 4]}, X))
    assert [name for name, module in small.named_modules() if "forward" in vars(module)] == ["2"]
    small(X).sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in small.parameters() if parameter.grad is not None)
    assert small[2].layer.weight.grad is not None  # type: ignore[index, union-attr]


def test_code_that_can_be_differentiated_stays() -> None:
    small = sc.cut(network(Partial(saved=False)), sc.Plan.from_kept({"3": [0, 2, 4]}, X))
    assert not [name for name, module in small.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "ggn", "obs"])
def test_every_criterion_takes_it_and_what_is_left_is_trained(criterion: str) -> None:
    result = sc.shrink(
        network(Partial()), (X, Y), "squared_error", sc.Budget(remove_fraction=0.4), criterion=criterion, progress=False
    )
    result.model(X).square().sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in result.model.parameters() if parameter.grad is not None)
    assert result.model[0].weight.grad is not None
