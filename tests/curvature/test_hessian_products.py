from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.curvature.hessian_products import hessian_vector_products


def curved(x: Tensor) -> Tensor:
    return (x.reshape(-1).cumsum(0).tanh() * x.reshape(-1).exp()).sum()


class Cube(torch.autograd.Function):
    """Twice differentiable backward, not forward; not batched by vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Looked(torch.autograd.Function):
    """Likewise; its backward looks at values, which vmap does not allow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x = Square.apply(ctx.saved_tensors[0])
        return 3 * x * grad


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad * float(grad.isfinite().all())


def through(function: Any) -> Any:
    return lambda x: (function.apply(x) * x.flip(0)).sum()


def plain(x: Tensor) -> Tensor:
    return (x**3 * x.flip(0)).sum()


def dense(f: Any, x: Tensor, directions: Tensor) -> Tensor:
    matrix = torch.func.hessian(f)(x).reshape(x.numel(), x.numel())
    return (directions.reshape(-1, x.numel()) @ matrix).reshape(directions.shape)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1,), ()])
def test_products_are_those_of_the_dense_hessian(shape: tuple[int, ...]) -> None:
    x, d = torch.randn(shape, dtype=torch.float64), torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(hessian_vector_products(curved, x, d), dense(curved, x, d), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [Cube, Looked])
def test_what_has_no_forward_derivative_is_differentiated_backward(function: Any) -> None:
    x, d = torch.randn(5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        hessian_vector_products(through(function), x, d), dense(plain, x, d), rtol=1e-12, atol=1e-12
    )


def test_only_one_direction_at_a_time_is_asked_for_what_looks_at_values() -> None:
    seen: list[int] = []

    def f(x: Tensor) -> Tensor:
        seen.append(1)
        return through(Looked)(x)

    hessian_vector_products(f, torch.ones(2), torch.eye(2))
    assert len(seen) == 3  # forward over reverse, reverse over reverse, one by one


def test_f_may_depend_linearly_on_x_or_not_at_all() -> None:
    x, d = torch.ones(3), torch.eye(3)
    for f in (lambda x: x.sum(), lambda _: torch.ones(()), lambda x: through(Cube)(x[:0]) + 2 * x.sum()):
        assert hessian_vector_products(f, x, d).tolist() == torch.zeros(3, 3).tolist()


def test_no_directions_are_no_products() -> None:
    assert hessian_vector_products(curved, torch.ones(3), torch.ones(0, 3)).shape == (0, 3)


def test_it_works_without_gradients_around_it_and_leaves_x_alone() -> None:
    x = torch.ones(2)
    with torch.no_grad():
        assert hessian_vector_products(plain, x, torch.eye(2)).tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert not x.requires_grad


def test_what_has_no_second_derivative_is_an_error() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_: Any, grad: Tensor) -> Tensor:
            return grad

    with pytest.raises(RuntimeError, match="once_differentiable"):
        hessian_vector_products(lambda x: (Once.apply(x) ** 2).sum(), torch.ones(2), torch.eye(2))
