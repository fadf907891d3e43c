"""Optimal Brain Surgeon on units: what happens if unit k goes and the others make up for it?"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection

import torch
from torch import Tensor

from secateur.compensation.block_obs import BlockOBS
from secateur.compensation.compensator import Compensator
from secateur.compensation.linear_layers import Layer, compensable, layers_of
from secateur.compensation.targets import curvature
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.leave_one_out import rises
from secateur.structure.unit_set import UnitSet

GROUP = 32  # units of a set, at most, that are removed together to see how far the prediction is off
SPAN = 10.0  # by which a set's costs are scaled at most, up or down
TENTH = 0.1  # of all units: when so many more are gone the scales are measured again


class UnitSurgeon:
    """A surgeon that removes units one after the other, and lets the weights left make up for each.

    Args:
        compensator: The compensator of the original network; changed.
        costs: Whether saliencies will be asked for.
        names: The sets that units are removed from; None for all. Of others there is no saliency.
        shortlist: The number of units that no layer makes up for whose rise is measured, the least ones by taylor1;
            the others' saliency is infinite until these are gone. None for all.
    """

    def __init__(
        self, compensator: Compensator, costs: bool = True, names: Collection[str] | None = None,
        shortlist: int | None = None,
    ) -> None:  # fmt: skip
        self.shortlist = shortlist
        self.compensator, self.units, self.costs = compensator, compensator.units, costs
        self.open_sets = [s for s in self.units if names is None or s.name in names]
        gated = {s.name for s in self.units if s.removal == "gated"}
        layers = [layer for layer in compensator.layers if not compensator.keeps_rows(layer)]
        self.sets = {s.name: layers_of(s, layers) if s.name in gated else [] for s in self.units}
        self.compensable = {s.name for s in self.units if compensable(s, layers)}
        self.numbers = self.units.split(torch.arange(self.units.total, device=compensator.ones.device))
        self.weighted = compensator.settings.weighting == "ggn"
        self.block_obs: dict[Layer, BlockOBS] = {}
        self.scales = [1.0] * len(self.open_sets)
        self._places: dict[tuple[str, Layer], Tensor] = {}
        self.scaled_at: int | None = None
        self.measured: Tensor | None = None  # rises of units that are no layer's, at the last fit

    @property
    def gated(self) -> GatedLoss:
        """The network with the weights of now."""
        return self.compensator.gated

    def begin(self, g: Tensor) -> None:
        """Fit all weights for the gates g [K], and be ready to remove more."""
        self.compensator.fit(g, all_layers=True)
        self.measured = None
        gone = int((g == 0).sum())
        again = self.costs and (self.scaled_at is None or gone - self.scaled_at >= TENTH * len(g))
        needed = {layer for unit_set in self.open_sets for layer in self.sets[unit_set.name]}
        layers = [layer for layer in self.compensator.layers if layer in needed]
        sliced = self.gated.sliced(g)
        curved = curvature(sliced, layers, g) if self.costs and self.weighted else {}
        for layer, matrix in curved.items():  # of outputs that are gone but not sliced out there is none
            left = torch.isin(sliced.graph.kept.indices(layer.outputs).to(g.device), self._fitted_outputs(layer))
            curved[layer] = matrix[left][:, left]
        self.block_obs = {layer: self._block_obs(layer, curved.get(layer)) for layer in layers}
        if again:
            self.scaled_at = gone
            self.scales = [self._scale(unit_set, g) for unit_set in self.open_sets]

    def _fitted_outputs(self, layer: Layer) -> Tensor:
        return self.compensator.fitted[layer].outputs

    def _block_obs(self, layer: Layer, curved: Tensor | None) -> BlockOBS:
        _, fit, inputs, _ = self.compensator.fitted[layer]
        assert fit.second is not None  # layers with more inputs than rows are none of these
        blocks, _, width = fit.weight.shape
        if not self.costs:
            root = fit.weight.new_zeros(blocks, width, 0)
        elif curved is None:
            root = torch.eye(width).to(fit.weight).expand(blocks, -1, -1)
        elif blocks > 1:
            root = curved.diagonal().sqrt()[:, None, None]
        else:
            values, vectors = torch.linalg.eigh(curved)
            root = (vectors * values.clamp(min=0).sqrt())[None]
        return BlockOBS(fit.second, fit.weight, fit.ridge, root, inputs)

    def saliency(self, g: Tensor) -> Tensor:
        """Return the rise of the loss that each unit's removal is predicted to cause [K], float64."""
        others = torch.cat([g.new_empty(0, dtype=torch.long), *(self._left(s, g) for s in self._unreached)])
        if self.measured is None or (len(others) and not self.measured[others].isfinite().any()):
            self.measured = torch.full_like(g, torch.inf).double()
            if len(others):
                self.measured = rises(self.gated, g, self._short(others, g))
        rise = self.measured.masked_fill(g == 0, torch.inf)
        for unit_set, scale in zip(self.open_sets, self.scales, strict=True):
            if unit_set.name in self.compensable:
                left = self._left(unit_set, g)
                rise[left] = scale * self._costs(unit_set, left, self.block_obs)
        return rise

    @property
    def _unreached(self) -> list[UnitSet]:
        """The sets that no layer makes up for."""
        return [unit_set for unit_set in self.open_sets if unit_set.name not in self.compensable]

    def _short(self, units: Tensor, g: Tensor) -> Tensor:
        """Return the units whose rise is measured."""
        if self.shortlist is None or len(units) <= self.shortlist:
            return units
        taylor = -self.gated.gradient(g)[units]
        return units[taylor.argsort(stable=True)[: self.shortlist]]

    def _left(self, unit_set: UnitSet, g: Tensor) -> Tensor:
        units = self.numbers[unit_set.name]
        return units[g[units] != 0]

    def _rows(self, unit_set: UnitSet, layer: Layer, units: Tensor, block_obs: BlockOBS) -> Tensor:
        """Return the rows of each unit [M, p], without those that went with units of another set (widths of a head)."""
        key = unit_set.name, layer
        if key not in self._places:
            self._places[key] = layer.rows_of_units(unit_set).to(units.device)
        rows = self._places[key][units - self.numbers[unit_set.name][0]]
        return rows[block_obs.holds(rows)].reshape(len(units), -1)

    def _costs(self, unit_set: UnitSet, units: Tensor, block_obs: dict[Layer, BlockOBS]) -> Tensor:
        total = torch.zeros(len(units), dtype=torch.float64, device=units.device)
        for layer in self.sets[unit_set.name]:
            obs = block_obs[layer]
            total += obs.costs(self._rows(unit_set, layer, units, obs))[1]
        return total

    def remove(self, g: Tensor, k: int) -> None:
        """Take out unit k, whose gate g_k is 0 by now."""
        unit_set = self.units[self.units.places[k][0]]
        self._strike(unit_set, torch.tensor([k], device=g.device), self.block_obs)
        for layer in self.sets[unit_set.name]:
            obs = self.block_obs[layer]
            self.compensator.change(self._tensors(layer, obs.weight(), obs.names))

    def _tensors(self, layer: Layer, weight: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        return self.compensator.fitted[layer].tensors(self.compensator.named, weight, inputs)

    def _strike(self, unit_set: UnitSet, units: Tensor, block_obs: dict[Layer, BlockOBS]) -> None:
        for layer in self.sets[unit_set.name]:
            for rows in self._rows(unit_set, layer, units, block_obs[layer]):
                block_obs[layer].remove(rows)

    def exact(self, g: Tensor, units: Tensor) -> Tensor:
        """Return the measured rise of the loss without each of some units, compensated [K]; infinite for the others."""
        rise = torch.full((len(g),), torch.inf, dtype=torch.float64, device=g.device)
        loss = self._here(g)
        for k in units.tolist():
            rise[k] = self._loss_without(g, k) - loss
        return rise

    def _loss_without(self, g: Tensor, k: int) -> float:
        unit_set = self.units[self.units.places[k][0]]
        unit = torch.tensor([k], device=g.device)
        changed = dict(self.compensator.weights)
        for layer in self.sets[unit_set.name]:
            obs = self.block_obs[layer]
            weight = obs.weight(obs.change(self._rows(unit_set, layer, unit, obs)[0]))
            changed |= self._tensors(layer, weight, obs.names)
        without = g.index_fill(0, unit, 0)
        return self.gated.sliced(without).with_weights(changed).loss(without)

    def _here(self, g: Tensor) -> float:
        return self.gated.sliced(g).loss(g)

    def _scale(self, unit_set: UnitSet, g: Tensor) -> float:
        """Return measured over predicted rise where the cheapest tenth of a set's units goes and all is fitted."""
        left = self._left(unit_set, g)
        if len(left) < 2 or unit_set.name not in self.compensable:
            return 1.0
        block_obs = {layer: copy.deepcopy(self.block_obs[layer]) for layer in self.sets[unit_set.name]}
        cheapest = left[self._costs(unit_set, left, block_obs).argsort(stable=True)]
        group = cheapest[: max(1, min(GROUP, len(left) // 10))]
        predicted = 0.0
        for unit in torch.split(group, 1):
            predicted += self._costs(unit_set, unit, block_obs).item()
            self._strike(unit_set, unit, block_obs)
        trial, without = self.compensator.fork(), g.index_fill(0, group, 0)
        trial.fit(without)
        loss = self._here(g)
        rise = trial.gated.sliced(without).loss(without) - loss
        measurable = predicted > 100 * torch.finfo(g.dtype).eps * abs(loss) and math.isfinite(rise)
        return min(SPAN, max(1 / SPAN, rise / predicted)) if measurable else 1.0
