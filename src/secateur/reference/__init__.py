"""Slow, obviously correct computations and random networks: everything fast is tested against them."""

from secateur.reference.quantities import (
    IDENTITY,
    SIGMOID,
    TANH,
    Activation,
    dense_gauss_newton,
    dense_hessian,
    gated_loss,
    gated_weights,
    leave_one_out,
    second_derivative_back_propagation,
    second_derivatives_of_weights,
    weight_ggn,
    weight_hessian,
)
from secateur.reference.random_networks import RandomNetwork, random_networks

__all__ = [
    "IDENTITY",
    "SIGMOID",
    "TANH",
    "Activation",
    "RandomNetwork",
    "dense_gauss_newton",
    "dense_hessian",
    "gated_loss",
    "gated_weights",
    "leave_one_out",
    "random_networks",
    "second_derivative_back_propagation",
    "second_derivatives_of_weights",
    "weight_ggn",
    "weight_hessian",
]
