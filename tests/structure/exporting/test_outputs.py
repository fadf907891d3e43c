"""Outputs in objects of any kind. Also covers secateur.structure.exporting.tracing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError
from secateur.structure.exporting.outputs import flatten_outputs

X, Y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


@dataclass(frozen=True)
class Record:
    """Outputs of a class of the user's own."""

    logits: Tensor
    hidden: dict[str, Tensor]
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Slotted:
    """Outputs that have no `__dict__`."""

    logits: Tensor


class Store:
    """Any object that holds tensors, and is not a dataclass."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


Pack = Callable[[Tensor, Tensor], Any]


class Packing(nn.Module):
    """Two dense layers whose results are packed by a function of outputs and hidden values."""

    def __init__(self, pack: Pack) -> None:
        super().__init__()
        self.first, self.last, self.pack = nn.Linear(3, 8), nn.Linear(8, 2), pack

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        return self.pack(self.last(h), h)


def record(out: Tensor, _: Tensor) -> Record:
    return Record(out, {"first": out[:, 0]})


def slotted(out: Tensor, _: Tensor) -> Slotted:
    return Slotted(out)


def store(out: Tensor, _: Tensor) -> Store:
    return Store(logits=out, first=out[:, 0])


def with_cache(out: Tensor, h: Tensor) -> dict[str, Any]:
    return {"logits": out, "cache": Store(keys=h)}


def logits(returned: Any) -> Tensor:
    found: Tensor = returned["logits"] if isinstance(returned, dict) else returned.logits
    return found


@pytest.mark.parametrize("pack", [record, slotted, store, with_cache])
def test_a_model_that_returns_an_object_is_cut_and_still_returns_it(pack: Pack) -> None:
    torch.manual_seed(0)
    model = Packing(pack)
    result = sc.shrink(
        model, (X, Y), lambda out, y: nn.functional.cross_entropy(logits(out), y), sc.Budget(remove_units=4),
        criterion="oracle", progress=False,
    )  # fmt: skip
    assert result.model.first.out_features == 4
    assert type(result.model(X)) is type(model(X))
    assert logits(result.model(X)).shape == (4, 2)
    assert result.max_difference < 1e-5


def test_what_an_object_beside_the_outputs_holds_is_no_output() -> None:
    units = sc.find_units(Packing(with_cache), X)
    assert [(s.name, s.size) for s in units] == [("first", 8)]
    units = sc.find_units(Packing(lambda out, h: {"logits": out, "hidden": h}), X)
    assert {fixed.name: fixed.reason for fixed in units.fixed}["first.weight[0]"] == "a model output"


def test_named_losses_take_the_logits_of_a_dataclass() -> None:
    torch.manual_seed(0)
    model = Packing(record)
    scores = sc.score(model, (X, Y), "cross_entropy", units=sc.find_units(model, X), criterion="hessian")
    own = sc.score(
        model, (X, Y), lambda out, y: nn.functional.cross_entropy(out.logits, y), units=sc.find_units(model, X),
        criterion="hessian",
    )  # fmt: skip
    torch.testing.assert_close(scores["first"], own["first"])
    assert scores["first"].abs().max() > 0


def test_outputs_are_put_back_where_they_were() -> None:
    out, h = torch.ones(2), torch.zeros(3)
    leaves, form = flatten_outputs([Record(out, {"h": h}), None, 3])
    assert [type(leaf) for leaf in leaves] == [Tensor, Tensor, str, type(None), int]
    back = form.unflatten([h, out, "other", None, 4])
    assert back == [Record(h, {"h": out}, "other"), None, 4]
    leaves, form = flatten_outputs((out, Store(keys=h)))
    assert leaves[1] is None
    assert form.unflatten([h, None]) == (h, None)


def test_a_model_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^Packing returns no tensor, it returns 'nothing'$"):
        sc.find_units(Packing(lambda *_: "nothing"), X)


TINY = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 16,
}  # fmt: skip
SMALL_T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}


@pytest.mark.parametrize(
    ("config", "kind", "sizes", "names"),
    [
        ("LlamaConfig", "LlamaForCausalLM", TINY, ["input_ids"]),
        (
            "GPT2Config",
            "GPT2LMHeadModel",
            {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 8},
            ["input_ids"],
        ),
        ("T5Config", "T5ForConditionalGeneration", SMALL_T5, ["input_ids", "decoder_input_ids"]),
    ],
)
def test_decoders_are_cut_with_their_cache_on(config: str, kind: str, sizes: dict[str, int], names: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    try:
        model = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    except ModuleNotFoundError as error:  # of what it imports in turn
        pytest.skip(str(error))
    call = dict.fromkeys(names, torch.randint(0, 32, (2, 5)))
    units = sc.find_units(model, call)
    small = sc.cut(model, sc.Plan.from_kept({s.name: range(s.size // 2) for s in units}, call))
    left = units.params({s.name: s.size // 2 for s in units})
    assert sum(p.numel() for p in small.parameters()) == left < 0.9 * units.params({})
    with torch.no_grad():
        before, after = model(**call), small(**call)
    assert before.keys() == after.keys()
    assert after.logits.shape == before.logits.shape
    caches = [name for name, value in before.items() if value is not None and not isinstance(value, Tensor)]
    assert caches
    assert all(type(after[name]) is type(before[name]) for name in caches)
