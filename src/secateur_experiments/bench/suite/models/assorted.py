"""Graphs, points, tables and mixers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, images, subject


class GatLayer(nn.Module):
    """Attention over neighbours by a dense adjacency."""

    def __init__(self, inputs: int, width: int, heads: int):
        super().__init__()
        self.heads, self.width = heads, width
        self.lin = nn.Linear(inputs, heads * width, bias=False)
        self.att_src = nn.Parameter(torch.randn(1, 1, heads, width))
        self.att_dst = nn.Parameter(torch.randn(1, 1, heads, width))
        self.bias = nn.Parameter(torch.zeros(heads * width))

    def forward(self, x: Tensor, adjacency: Tensor) -> Any:
        b, n, _ = x.shape
        x = self.lin(x).view(b, n, self.heads, self.width)
        source, target = (x * self.att_src).sum(-1), (x * self.att_dst).sum(-1)
        scores = F.leaky_relu(source.unsqueeze(1) + target.unsqueeze(2), 0.2)
        scores = scores.masked_fill(adjacency.unsqueeze(-1) == 0, -1e9).softmax(dim=2)
        return torch.einsum("bijh,bjhc->bihc", scores, x).reshape(b, n, self.heads * self.width) + self.bias


class GraphAttention(nn.Module):
    """Two layers over nodes, the mean of all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = GatLayer(8, 8, 4), GatLayer(32, 12, 2), nn.Linear(24, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Any:
        x = F.elu(self.conv1(x, adjacency))
        return self.head(F.elu(self.conv2(x, adjacency)).mean(1))


def _graphs(samples: int, nodes: int) -> tuple[Tensor, Tensor]:
    edges = (torch.rand(samples, nodes, nodes) < 0.4).double()
    return torch.randn(samples, nodes, 8), (edges + torch.eye(nodes)).clamp(max=1)


@subject("Graph attention")
def graph_attention() -> Subject:
    """Return attention over a dense adjacency."""
    return Subject(GraphAttention(), _graphs, (9, 6, 14), "nodes")


class EdgeConv(nn.Module):
    """Messages along a list of edges, added up where they arrive; nodes have no batch."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * inputs, 24), nn.ReLU(), nn.Linear(24, outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        sent = self.message(torch.cat([x[edges[0]], x[edges[1]]], dim=1))
        return torch.zeros(x.shape[0], sent.shape[1], dtype=x.dtype, device=x.device).index_add(0, edges[1], sent)


class MessagePassing(nn.Module):
    """Two layers along a list of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = EdgeConv(8, 16), EdgeConv(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        x = F.relu(self.conv1(x, edge_index))
        return self.head(F.relu(self.conv2(x, edge_index)))


def _edges(samples: int, edges: int) -> dict[str, Tensor]:
    nodes = 4 * samples
    return {"x": torch.randn(nodes, 8), "edge_index": torch.randint(0, nodes, (2, edges))}


@subject("Message passing")
def message_passing() -> Subject:
    """Return messages along `edge_index`; the samples are nodes."""
    return Subject(MessagePassing(), _edges, (14, 9, 20), "edges")


class Dlrm(nn.Module):
    """Dense features through an MLP, categories through embeddings, products of all pairs, an MLP."""

    def __init__(self, width: int = 12):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.EmbeddingBag(30, width, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
        rows, columns = torch.tril_indices(4, 4, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, dense: Tensor, sparse: Tensor) -> Any:
        x = self.bottom(dense)
        parts = [x, *(embedding(sparse[:, i]) for i, embedding in enumerate(self.embeddings))]
        stacked = torch.stack(parts, dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        pairs = products[:, self.get_buffer("rows"), self.get_buffer("columns")]
        return torch.sigmoid(self.top(torch.cat([x, pairs], dim=1)))


@subject("DLRM")
def dlrm() -> Subject:
    """Return the recommender; the sizes are of the bags."""

    def inputs(samples: int, bag: int) -> tuple[Tensor, Tensor]:
        return torch.randn(samples, 6), torch.randint(0, 30, (samples, 3, bag))

    return Subject(Dlrm(), inputs, (4, 1, 7), "bag size")


class PointNet(nn.Module):
    """Points rotated by a matrix that a small network gives, features of each, their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 24, 1), nn.ReLU())
        self.turn_head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 9))
        self.features = nn.Sequential(
            nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32)
        )
        self.segment = nn.Sequential(nn.Conv1d(64, 24, 1), nn.ReLU(), nn.Conv1d(24, 5, 1))

    def forward(self, points: Tensor) -> Any:
        turn = self.turn_head(self.turn(points).max(2).values).view(-1, 3, 3) + torch.eye(
            3, dtype=points.dtype, device=points.device
        )
        x = self.features(torch.bmm(points.transpose(2, 1), turn).transpose(2, 1))
        whole = x.max(2, keepdim=True).values.expand(-1, -1, x.shape[2])
        return self.segment(torch.cat([x, whole], 1))


@subject("PointNet")
def point_net() -> Subject:
    """Return the segmentation of points."""
    return Subject(PointNet(), lambda samples, points: (torch.randn(samples, 3, points),), (20, 7, 33), "points")


class Nerf(nn.Module):
    """Frequencies of a place, a deep MLP with its input joined again in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(27, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(59, 32), nn.ReLU(), nn.Linear(32, 33))
        self.colour = nn.Sequential(nn.Linear(35, 16), nn.ReLU(), nn.Linear(16, 3), nn.Sigmoid())

    def forward(self, places: Tensor, directions: Tensor) -> Any:
        angles = [places * 2.0**i for i in range(4)]
        x = torch.cat([places, *(turn(a) for a in angles for turn in (torch.sin, torch.cos))], -1)
        density, features = self.second(torch.cat([x, self.first(x)], -1)).split([1, 32], dim=-1)
        return self.colour(torch.cat([features, directions], -1)), density.relu()


@subject("NeRF")
def nerf() -> Subject:
    """Return the radiance field."""

    def inputs(samples: int, points: int) -> tuple[Tensor, Tensor]:
        return torch.randn(samples, points, 3), torch.randn(samples, points, 3)

    return Subject(Nerf(), inputs, (8, 3, 13), "points")


class DuelingDqn(nn.Module):
    """Convolutions, then a value and advantages around their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 24, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        )
        self.value = nn.Sequential(nn.Linear(216, 32), nn.ReLU(), nn.Linear(32, 1))
        self.advantage = nn.Sequential(nn.Linear(216, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


@subject("Dueling DQN")
def dueling() -> Subject:
    """Return a value network with two branches."""
    return Subject(DuelingDqn(), images, (32, 24, (28, 40)), "image size")
