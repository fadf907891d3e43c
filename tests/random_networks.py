"""A seeded generator of small random networks of every kind: images, sequences and vectors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Build = Callable[[random.Random, Tensor], nn.Module]


class RandomArchitecture(nn.Module):
    """A chain of random blocks on random inputs, a hidden dense layer and a dense output: float64, eval mode.

    All parameters and buffers are random; outputs are about 1.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        side, width = rng.randint(4, 6), rng.randint(1, 4)
        self.shape = rng.choice([(width, side, side), (rng.randint(3, 5), width), (rng.randint(2, 5),)])
        self.blocks = nn.Sequential()
        x = self.sample(4)
        for _ in range(rng.randint(2, 4)):
            x = self._append(rng.choice(BLOCKS[x.ndim])(rng, x), x)
        while x.ndim > 2:
            x = self._append(flattened(rng, x), x)
        hidden = rng.randint(1, 8)
        x = self._append(nn.Sequential(nn.Linear(x.shape[1], hidden), activation(rng)), x)
        head = nn.Linear(hidden, rng.randint(1, 3))
        x = self._append(head, x)
        with torch.no_grad():
            scale = x.abs().mean().clamp(min=1e-3)
            head.weight /= scale
            head.bias /= scale

    def _append(self, block: nn.Module, x: Tensor) -> Tensor:
        """What comes next, with weights of its own."""
        self.blocks.append(randomise(block.double(), self.generator))
        self.eval()
        with torch.no_grad():
            return block(x)

    def sample(self, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(n)
        return torch.randn(n, *self.shape, dtype=torch.float64, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random values everywhere: matrices that keep the size of what passes, vectors about 0 or 1, variances above 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(values / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.3 * values + (1 if name.endswith("weight") else 0))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, dtype=torch.float64, generator=generator) + 0.5)
    return model


# ---------------------------------------------------------------- modules


class Around(nn.Module):
    """A module on a branch, on the channels of an image, or with several outputs of which the first is taken."""

    def __init__(self, form: str, inner: nn.Module) -> None:
        super().__init__()
        self.form, self.inner = form, inner

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "residual":
            return x + self.inner(x)
        if self.form == "channels":
            return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(x, x, x, need_weights=False)[0]
        return self.inner(x)[0]


class Cat(nn.Module):
    def __init__(self, branches: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.branches, self.dim = nn.ModuleList(branches), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim)


class Split(nn.Module):
    """Two parts of the features, the first through an activation: multiplied, added, or one behind the other."""

    def __init__(self, act: nn.Module, sizes: list[int], join: str, dim: int) -> None:
        super().__init__()
        self.act, self.sizes, self.join, self.dim = act, sizes, join, dim

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, self.dim) if self.join != "swap" else x.split(self.sizes, self.dim)
        if self.join == "swap":
            return torch.cat([b, self.act(a)], self.dim)
        return self.act(a) * b if self.join == "gate" else self.act(a) + b


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, hidden: int, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.down = nn.Linear(width, hidden) if dense else nn.Conv2d(width, hidden, 1)
        self.up = nn.Linear(hidden, width) if dense else nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3)) if self.dense else F.adaptive_avg_pool2d(x, 1)
        gate = self.up(torch.relu(self.down(mean))).sigmoid()
        return x * (gate[:, :, None, None] if self.dense else gate)


class Attention(nn.Module):
    """Self-attention with heads of any width: fused or separate projections, fused or eager, grouped queries."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.heads, self.each = rng.choice([1, 2, 2, 4]), rng.randint(1, 3)
        self.form = rng.choice(["unbind", "chunk", "separate", "separate"])
        self.shared = rng.choice([d for d in (1, 2, 4) if self.heads % d == 0]) if self.form == "separate" else 1
        self.eager, self.scale = rng.choice(["no", "scale", "shape", "attribute"]), self.each**-0.5
        inner, bias = self.heads * self.each, rng.random() < 0.5
        if self.form == "separate":
            self.q = nn.Linear(width, inner, bias)
            self.k, self.v = (nn.Linear(width, inner // self.shared, bias) for _ in range(2))
        else:
            self.qkv = nn.Linear(width, 3 * inner, bias)
        self.out = nn.Linear(inner, width)

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = x.shape
        if self.form == "unbind":
            return self.qkv(x).reshape(n, t, 3, self.heads, self.each).permute(2, 0, 3, 1, 4).unbind(0)
        separate = (self.q(x), self.k(x), self.v(x)) if self.form == "separate" else self.qkv(x).chunk(3, -1)
        return tuple(one.view(n, t, -1, self.each).transpose(1, 2) for one in separate)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._projected(x)
        if self.eager == "no":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.shared > 1)
        else:
            k, v = (one.repeat_interleave(self.shared, 1) if self.shared > 1 else one for one in (k, v))
            scale = {"scale": self.scale, "shape": q.shape[-1] ** -0.5, "attribute": self.each**-0.5}[self.eager]
            y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Move(nn.Module):
    """Positions to one sequence, features to groups and back in another order, many positions to one."""

    def __init__(self, form: str, groups: int = 1) -> None:
        super().__init__()
        self.form, self.groups = form, groups

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "sequence":
            return x.flatten(2).transpose(1, 2)
        if self.form == "regroup":
            return x.unflatten(1, (self.groups, -1)).permute(0, 2, 1).flatten(1)
        if self.form == "last":
            return x[:, -1]
        return x.mean((2, 3) if x.ndim == 4 else 1)


# ---------------------------------------------------------------- blocks: from a random number and an input


def activation(rng: random.Random) -> nn.Module:
    return rng.choice([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.PReLU])()


def features(x: Tensor) -> int:
    return -1 if x.ndim == 3 else 1


def groups_of(rng: random.Random, width: int) -> int:
    return rng.choice([n for n in range(1, width + 1) if width % n == 0])


def mix(rng: random.Random, x: Tensor, width: int | None = None) -> nn.Module:
    """The layer that makes features of any number from those given."""
    width = width or rng.randint(1, 8)
    if x.ndim < 4:
        return nn.Linear(x.shape[-1], width, rng.random() < 0.8)
    kernel = rng.choice([1, 3])
    if rng.random() < 0.2:
        return nn.ConvTranspose2d(x.shape[1], width, kernel, padding=kernel // 2)
    return nn.Conv2d(x.shape[1], width, kernel, padding=kernel // 2, bias=rng.random() < 0.8)


def grouped(rng: random.Random, x: Tensor) -> nn.Module:
    """A plain layer before a convolution with groups, each channel a group now and then."""
    groups, members = rng.randint(1, 4), rng.choice([1, 1, 2])
    width, out = groups * members, groups * rng.randint(1, 2)
    kind = rng.choice([nn.Conv2d, nn.ConvTranspose2d])
    return nn.Sequential(mix(rng, x, width), activation(rng), kind(width, out, 3, padding=1, groups=groups))


def normalised(rng: random.Random, x: Tensor) -> nn.Module:
    width = rng.randint(1, 8)
    last = rng.choice([nn.LayerNorm, nn.RMSNorm])(width)
    batch = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    channels = [batch(width), batch(width, affine=False)]
    images = [nn.GroupNorm(groups_of(rng, width), width), Around("channels", last)]
    options = {4: [channels[0], *images], 3: [last], 2: [*channels, last]}[x.ndim]
    return nn.Sequential(mix(rng, x, width), rng.choice(options), activation(rng))


def plain(rng: random.Random, x: Tensor) -> nn.Module:
    return nn.Sequential(mix(rng, x), activation(rng))


def residual(rng: random.Random, x: Tensor) -> nn.Module:
    width, first = x.shape[features(x)], mix(rng, x)
    norm = (nn.BatchNorm2d if x.ndim == 4 else nn.LayerNorm)(width)
    return Around("residual", nn.Sequential(norm, first, activation(rng), mix(rng, first(x.float()), width)))


def joined(rng: random.Random, x: Tensor) -> nn.Module:
    branches = [plain(rng, x), mix(rng, x), nn.Identity()][: rng.randint(2, 3)]
    return Cat(branches, features(x))


def divided(rng: random.Random, x: Tensor) -> nn.Module:
    half = rng.randint(1, 4)
    sizes = [half, rng.randint(1, 3)]
    join = rng.choice(["gate", "add", "swap"])
    width = sum(sizes) if join == "swap" else 2 * half
    return nn.Sequential(mix(rng, x, width), Split(activation(rng), sizes, join, features(x)))


def shared(rng: random.Random, x: Tensor) -> nn.Module:
    """One layer used two times."""
    layer = mix(rng, x, x.shape[features(x)])
    return nn.Sequential(layer, activation(rng), layer)


def squeezed(rng: random.Random, x: Tensor) -> nn.Module:
    width = rng.randint(1, 8)
    return nn.Sequential(mix(rng, x, width), SqueezeExcite(width, rng.randint(1, 3), rng.random() < 0.5))


def attended(rng: random.Random, x: Tensor) -> nn.Module:
    norm = rng.choice([nn.LayerNorm, nn.RMSNorm, nn.Identity])(x.shape[-1])
    return Around("residual", nn.Sequential(norm, Attention(rng, x.shape[-1])))


def recurrent(rng: random.Random, x: Tensor) -> nn.Module:
    if rng.random() < 0.4:
        return Around(
            "residual",
            Around("first", nn.MultiheadAttention(x.shape[-1], groups_of(rng, x.shape[-1]), batch_first=True)),
        )
    kind, both = rng.choice([nn.LSTM, nn.GRU]), rng.random() < 0.3
    return Around(
        "first", kind(x.shape[-1], rng.randint(1, 4), rng.choice([1, 1, 2]), batch_first=True, bidirectional=both)
    )


def regrouped(rng: random.Random, x: Tensor) -> nn.Module:
    groups = rng.randint(1, 3)
    return nn.Sequential(mix(rng, x, groups * rng.randint(1, 3)), activation(rng), Move("regroup", groups))


def pooled(rng: random.Random, x: Tensor) -> nn.Module:
    return rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)]) if x.shape[-1] > 3 else nn.Identity()


def flattened(rng: random.Random, x: Tensor) -> nn.Module:
    return rng.choice([nn.Flatten(), Move("mean"), Move("sequence" if x.ndim == 4 else "last")])


ANY: list[Build] = [plain, normalised, residual, joined, divided, shared]


BLOCKS: dict[int, list[Build]] = {
    4: [*ANY, normalised, normalised, grouped, grouped, grouped, squeezed, pooled],
    3: [*ANY, attended, attended, attended, attended, recurrent],
    2: [*ANY, regrouped],
}
