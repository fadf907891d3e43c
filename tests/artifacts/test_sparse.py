"""Files without removed weights."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur as sc
from cases import CASES
from secateur.artifacts.safetensors import save_bytes, weights_to_bytes
from secateur.artifacts.sparse import ENTRY, Masked, encode
from secateur.cutting.weight_masks import count_moved, freeze
from secateur.errors import ArgumentError, ArtifactError, ModelError, PlanError
from secateur.structure.inputs import InputSpec

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
SHAPES = st.one_of(
    st.lists(st.integers(0, 7), max_size=4).map(tuple), st.tuples(st.integers(1, 40), st.integers(1, 60))
)


def some(shape: tuple[int, ...], removed: float, seed: int = 0) -> Tensor:
    """A mask; 0 and 1 mean none and all."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= removed


def bits(tensor: Tensor) -> list[int]:
    return tensor.flatten().contiguous().view(torch.uint8).tolist()


def gap_bytes(mask: Tensor) -> int:
    """One byte for each True, and one for every 255 False before it."""
    size = gap = 0
    for one in mask.flatten().tolist():
        size, gap = (size + 1 + gap // 255, 0) if one else (size, gap + 1)
    return size


# ---------------------------------------------------------------- one tensor


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.sampled_from(DTYPES), st.sampled_from([0, 0.001, 0.03, 0.3, 0.8, 0.97, 0.999, 1]), st.integers(0, 99))
@example((), torch.float32, 1, 0)
@example((), torch.float32, 0, 0)
@example((40, 50), torch.float32, 0.9995, 1)
def test_what_is_decoded_is_what_was_encoded_bit_by_bit(
    shape: tuple[int, ...], dtype: torch.dtype, removed: float, seed: int
) -> None:
    tensor, mask = torch.randn(shape, generator=torch.Generator().manual_seed(seed)), some(shape, removed, seed)
    special = [0.0, -0.0, float("nan")] + ([] if dtype == torch.float8_e4m3fn else [float("inf")])
    if seed % 2 and tensor.numel():
        tensor.view(-1)[:: 1 + seed % 7] = special[seed % len(special)]
    tensor = torch.where(mask, tensor, 0).to(dtype)
    masked = encode(tensor, mask)
    decoded, found = masked.decode()
    assert (decoded.shape, decoded.dtype, found.shape) == (tensor.shape, dtype, mask.shape)
    assert bits(decoded) == bits(tensor)
    assert torch.equal(found, mask)
    codes = {"bitmap": -(-mask.numel() // 8), "kept": gap_bytes(mask), "removed": gap_bytes(~mask)}
    smallest = int(mask.sum()) * dtype.itemsize + min(codes.values())
    if masked.positions is None:
        assert smallest + ENTRY > tensor.nbytes
        assert torch.equal(tensor != 0, mask)
    else:
        assert codes[masked.encoding] == len(masked.positions) == min(codes.values())
        assert masked.values.nbytes + len(masked.positions) == smallest
        assert smallest + ENTRY <= tensor.nbytes or not torch.equal(tensor != 0, mask)


def test_the_codes_as_they_are_written() -> None:
    mask = torch.zeros(2, 400, dtype=torch.bool)
    mask[0, 0] = mask[0, 4] = mask[0, 259] = mask[1, 115] = True
    masked = encode(torch.arange(800.0).view(2, 400), mask)
    assert masked.values.tolist() == [0, 4, 259, 515]
    assert masked.positions is not None
    # 0, 3, 254 and 255 removed ones in between
    assert (masked.encoding, masked.positions.tolist()) == ("kept", [0, 3, 254, 255, 0])
    masked = encode(torch.arange(800.0).view(2, 400) + 1, ~mask)
    assert masked.positions is not None
    assert (masked.encoding, masked.positions.tolist()) == ("removed", [0, 3, 254, 255, 0])
    pattern = torch.tensor([True, False, False, True, False, True, False, False, False, True])
    masked = encode(torch.zeros(10), pattern)
    assert masked.positions is not None
    assert (masked.encoding, masked.positions.tolist()) == ("bitmap", [0b00101001, 0b10])


def test_a_mask_that_is_a_view_is_read_in_the_order_of_its_indices() -> None:
    mask = some((30, 20), 0.5).T
    tensor = torch.where(mask, torch.randn(20, 30), 0)
    decoded, found = encode(tensor, mask).decode()
    assert torch.equal(decoded, tensor)
    assert torch.equal(found, mask)


@pytest.mark.parametrize(
    ("removed", "encoding"),
    [(0.02, "removed"), (0.11, "removed"), (0.14, "bitmap"), (0.5, "bitmap"), (0.86, "bitmap"), (0.89, "kept")],
)
def test_the_shares_at_which_the_codes_change(removed: float, encoding: str) -> None:
    assert encode(torch.ones(100_000), some((100_000,), removed)).encoding == encoding


def test_small_tensors_are_whole_unless_a_kept_weight_is_zero() -> None:
    tensor, mask = torch.tensor([1.0, 0, 3, 0]), torch.tensor([True, False, True, False])
    assert encode(tensor, mask) == Masked("zeros", (4,), tensor)
    for zero in (0.0, -0.0):
        tensor[0] = zero
        masked = encode(tensor, mask)
        assert masked.encoding == "bitmap"
        assert bits(masked.decode()[0]) == bits(tensor)
        assert torch.equal(masked.decode()[1], mask)


BYTES = torch.tensor([3, 1], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("masked", "text"),
    [
        (Masked("bitmap", (3, 6), torch.ones(3), BYTES), "a bitmap of 2 bytes does not fit 18 weights"),
        (Masked("bitmap", (8,), torch.ones(3), BYTES), "a bitmap of 2 bytes does not fit 8 weights"),
        (Masked("bitmap", (2, 4), torch.ones(3), BYTES[:0]), "a bitmap of 0 bytes does not fit 8 weights"),
        (Masked("bitmap", (9,), torch.ones(2), BYTES + 2), "a bitmap of 2 bytes does not fit 9 weights"),
        (Masked("bitmap", (9,), torch.ones(4), BYTES), "(4,) values for 3 kept weights"),
        (Masked("bitmap", (9,), torch.ones(3, 1), BYTES), "(3, 1) values for 3 kept weights"),
        (Masked("kept", (5,), torch.ones(2), BYTES), "gaps that reach beyond the 5 weights there are"),
        (Masked("kept", (6,), torch.ones(3), BYTES), "(3,) values for 2 kept weights"),
        (Masked("removed", (6,), torch.ones(2), BYTES), "(2,) values for 4 kept weights"),
        (Masked("removed", (), torch.ones(1), BYTES), "gaps that reach beyond the 1 weights there are"),
        (Masked("zeros", (2, 3), torch.ones(3, 2)), "(3, 2) values for a tensor of (2, 3)"),
        (Masked("zip", (9,), torch.ones(3), BYTES), "unknown encoding 'zip'; one of: bitmap, kept, removed, zeros"),
        (Masked("kept", (9,), torch.ones(2)), "which weights are kept must be told in one row of bytes"),
        (Masked("kept", (9,), torch.ones(2), BYTES.int()), "which weights are kept must be told in one row of bytes"),
        (Masked("kept", (9,), torch.ones(2), BYTES[None]), "which weights are kept must be told in one row of bytes"),
    ],
)
def test_what_does_not_fit_is_refused(masked: Masked, text: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        masked.decode()
    assert str(caught.value) == text


# ---------------------------------------------------------------- a network


def dense(n: int = 1) -> nn.Sequential:
    torch.manual_seed(n)
    return nn.Sequential(nn.Linear(78, 100), nn.ReLU(), nn.Linear(100, 10))


def pruned(removed: float = 0.9) -> tuple[nn.Sequential, dict[str, Tensor]]:
    model = dense()
    masks = {name: some(tuple(p.shape), removed, len(name)) for name, p in model.named_parameters()}
    freeze(model, masks)
    return model, masks


def header(content: bytes) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), 8 + length


def check_loaded(loaded: nn.Module, model: nn.Module, masks: dict[str, Tensor], x: Tensor) -> None:
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(bits(t) == bits(model.state_dict()[n]) for n, t in loaded.state_dict().items())
    assert torch.equal(loaded(x), model(x))
    named = {n: p for n, p in loaded.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(named.values(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        sum((p.sum() - 1).square() for p in named.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    assert count_moved(loaded, masks) == 0
    before = dict(model.named_parameters())
    assert all((p != before[n])[masks.get(n, torch.ones_like(p).bool())].all() for n, p in named.items())


@pytest.mark.parametrize("removed", [0, 0.01, 0.5, 0.95, 1])
def test_a_loaded_network_is_the_one_saved_and_its_zeros_are_frozen(removed: float, tmp_path: Path) -> None:
    model, masks = pruned(removed)
    with torch.no_grad():
        model[0].weight[masks["0.weight"]] = torch.where(torch.arange(int(masks["0.weight"].sum())) % 9 > 0, 1.5, -0.0)
    path, other = tmp_path / "a.safetensors", dense(2).eval()
    content = weights_to_bytes(model, masks, None)
    assert save_bytes(content, path) == path.stat().st_size == len(content)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    loaded = sc.load(path, other)
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())
    assert not any(p._backward_hooks for p in other.parameters())
    assert not loaded.training
    check_loaded(loaded, model, masks, torch.randn(4, 78))


@pytest.mark.parametrize("name", CASES)
def test_networks_of_every_kind_come_back(name: str, tmp_path: Path) -> None:
    model = CASES[name]().model.eval()
    masks = {n: some(tuple(p.shape), 0.7, 3) for n, p in model.named_parameters()}
    freeze(model, masks)
    save_bytes(weights_to_bytes(model, masks, None), tmp_path / "a.safetensors")
    loaded = sc.load(tmp_path / "a.safetensors", CASES[name]().model.eval())
    check_loaded(loaded, model, masks, CASES[name]().x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    model, masks = pruned(0.6)
    model.to(dtype)
    save_bytes(weights_to_bytes(model, masks, None), tmp_path / "a.safetensors")
    loaded = sc.load(tmp_path / "a.safetensors", dense().to(dtype))
    assert all(bits(t) == bits(model.state_dict()[n]) for n, t in loaded.state_dict().items())
    assert all(t.dtype == dtype for t in loaded.state_dict().values())
    assert count_moved(loaded, masks) == 0


@pytest.mark.parametrize("removed", [0, 0.05, 0.5, 0.8, 0.9, 0.95, 0.98])
def test_the_size_of_the_file_is_that_of_its_parts(removed: float) -> None:
    model, masks = pruned(removed)
    content = weights_to_bytes(model, masks, None)
    data = 0
    for mask in masks.values():
        coded = 4 * int(mask.sum()) + min(-(-mask.numel() // 8), gap_bytes(mask), gap_bytes(~mask))
        whole = 4 * mask.numel()
        data += whole if mask.all() or whole - coded < ENTRY else coded
    _, start = header(content)
    assert len(content) == start + data
    assert start < 900
    assert len(content) < 8 + 900 + 4 * 8910 * (1.01 - removed) + 8910 / 8


def test_the_file_says_of_itself_only_its_format_its_inputs_and_what_is_masked() -> None:
    model, masks = pruned()
    inputs = InputSpec.of(((torch.zeros(3, 78),), {}))
    found, _ = header(weights_to_bytes(model, masks, inputs))
    about = found.pop("__metadata__")
    assert about.keys() == {"secateur"}
    assert json.loads(about["secateur"]) == {
        "format": 1,
        "inputs": {"args": [{"dtype": "float32", "shape": [78]}], "kwargs": {}},
        "masked": {
            "0.bias": ["kept", [100]],
            "0.weight": ["kept", [100, 78]],
            "2.bias": ["zeros", [10]],
            "2.weight": ["kept", [10, 100]],
        },
    }
    sizes = {name: (one["dtype"], one["shape"]) for name, one in found.items()}
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    for name in ("0.weight", "0.bias", "2.weight"):
        assert sizes.pop(name) == ("F32", [kept[name]])
        assert sizes.pop(name + ".mask") == ("U8", [gap_bytes(masks[name])])
    assert sizes == {"2.bias": ("F32", [10])}


def test_the_same_weights_and_masks_give_the_same_bytes_in_any_order() -> None:
    (model, masks), (again, others) = pruned(), pruned()
    content = weights_to_bytes(model, masks, None)
    assert content == weights_to_bytes(again, dict(reversed(others.items())), None)
    others["2.weight"][0, 0] ^= True
    freeze(again, others)
    assert content != weights_to_bytes(again, others, None)


def test_only_some_tensors_masked_buffers_and_what_is_not_trained(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)).eval()
        model[1].running_mean.normal_()
        model[2].requires_grad_(False)
        return model

    model = make()
    masks = {"0.weight": some((20, 30), 0.8), "0.bias": torch.ones(20).bool(), "2.weight": some((4, 20), 0.5)}
    freeze(model, masks)
    content = weights_to_bytes(model, masks, None)
    about = json.loads(header(content)[0]["__metadata__"]["secateur"])
    assert about["masked"].keys() == {"0.weight", "2.weight"}
    save_bytes(content, tmp_path / "a.safetensors")
    loaded = sc.load(tmp_path / "a.safetensors", make())
    assert not any(p.requires_grad for p in loaded[2].parameters())  # type: ignore[index]
    check_loaded(loaded, model, masks, torch.randn(3, 30))


def test_tied_weights_are_written_once_and_tied_again(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        model = nn.ModuleDict({"a": nn.Linear(20, 20), "b": nn.Linear(20, 20)})
        model["b"].weight = model["a"].weight
        return model

    model, masks = make(), {"a.weight": some((20, 20), 0.8)}
    freeze(model, masks)
    content = weights_to_bytes(model, masks, None)
    assert header(content)[0].keys() == {"__metadata__", "a.weight", "a.weight.mask", "a.bias", "b.bias"}
    save_bytes(content, tmp_path / "a.safetensors")
    loaded = sc.load(tmp_path / "a.safetensors", make())
    assert loaded["a"].weight is loaded["b"].weight  # type: ignore[index]
    assert torch.equal(loaded["a"].weight, model["a"].weight)  # type: ignore[index, arg-type]


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    model = nn.ParameterDict({"one": torch.ones(()), "gone": torch.ones(()), "none": torch.ones(0, 3)})
    masks = {"one": torch.tensor(True), "gone": torch.tensor(False), "none": torch.ones(0, 3).bool()}
    freeze(model, masks)
    save_bytes(weights_to_bytes(model, masks, None), tmp_path / "a.safetensors")
    loaded = sc.load(tmp_path / "a.safetensors", nn.ParameterDict({n: torch.zeros_like(p) for n, p in model.items()}))
    assert {n: p.tolist() for n, p in loaded.named_parameters()} == {"one": 1, "gone": 0, "none": []}
    assert count_moved(loaded, masks) == 0


# ---------------------------------------------------------------- what is refused


def test_removed_weights_that_moved_are_not_written() -> None:
    model, masks = pruned(0.5)
    with torch.no_grad():
        model[0].weight[~masks["0.weight"]] += 1
    with pytest.raises(ArtifactError) as caught:
        weights_to_bytes(model, masks, None)
    moved = int((~masks["0.weight"]).sum())
    assert str(caught.value) == (
        f"{moved} of the weights that were removed are not zero; set them to zero before writing"
    )
    with pytest.raises(PlanError, match=r"masks: that of '0.bias' has shape \(3,\), the parameter has \(100,\)"):
        weights_to_bytes(model, {"0.bias": torch.ones(3).bool()}, None)


def test_a_parameter_that_the_state_lacks_is_refused() -> None:
    model = nn.Linear(3, 2)
    model.register_state_dict_post_hook(lambda _, state, *__: state.__delitem__("bias"))  # type: ignore[no-untyped-call]
    with pytest.raises(ArtifactError, match=r"^not in the model's state_dict: bias$"):
        weights_to_bytes(model, {"bias": torch.ones(2).bool()}, None)


def test_a_path_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"files are written as .*\.int8\.pte, not as '\.bin'$"):
        save_bytes(b"", tmp_path / "a.bin")
    with pytest.raises(ArtifactError, match="cannot be written, there is no folder"):
        save_bytes(b"", tmp_path / "none" / "a.safetensors")
    assert os.listdir(tmp_path) == []


class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("no copies")


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (nn.Sequential(nn.Linear(100, 78), nn.ReLU(), nn.Linear(100, 10)), ArtifactError,
         "0.bias has shape (100,), the model's would be (78,)"),
        (nn.Sequential(nn.Linear(78, 100), nn.ReLU(), nn.Linear(10, 100)), ArtifactError,
         "2.bias has shape (10,), the model's would be (100,)"),
        (nn.Sequential(nn.Linear(78, 100), nn.Linear(100, 10)), ArtifactError,
         "1.bias has shape none, the model's would be (10,)"),
        (dense().half(), ArtifactError, "0.bias has dtype torch.float32, the model's would be torch.float16"),
        (Uncopied(*dense()), ModelError, "Uncopied cannot be copied (RuntimeError: no copies)"),
    ],
)  # fmt: skip
def test_another_model_is_refused(model: nn.Module, error: type[Exception], text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_bytes(weights_to_bytes(*pruned(), None), path)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(error) as caught:
        sc.load(path, model)
    assert str(caught.value).removeprefix(f"{path}: ") == text
    assert str(caught.value).startswith(f"{path}: ") == (error is ArtifactError)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def rewritten(path: Path, masked: Any, **entries: Tensor | None) -> None:
    """The file again with other metadata, and other entries or without them."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["secateur"])
    if callable(masked):
        masked(about["masked"])
    elif masked is not None:
        about["masked"] = masked
    changed = {name: tensor for name, tensor in {**tensors, **entries}.items() if tensor is not None}
    save_file(changed, path, {"secateur": json.dumps(about)})


@pytest.mark.parametrize(
    ("masked", "entries", "text"),
    [
        (None, {"0.bias.mask": torch.full((9,), 200, dtype=torch.uint8)},
         "0.bias cannot be read: gaps that reach beyond the 100 weights there are"),
        (None, {"0.bias.mask": torch.zeros(3, dtype=torch.uint8)},
         "0.bias cannot be read: (9,) values for 3 kept weights"),
        (None, {"0.bias.mask": None},
         "0.bias cannot be read: which weights are kept must be told in one row of bytes"),
        (None, {"0.bias": None}, "0.bias is said to be masked, but is not there"),
        (None, {"2.bias.mask": torch.zeros(3, dtype=torch.uint8)},
         "2.bias.mask has shape (3,), the model's would be none"),
        (None, {"2.bias": torch.ones(2, 5)}, "2.bias cannot be read: (2, 5) values for a tensor of (10,)"),
        (None, {"other": torch.ones(2)}, "other has shape (2,), the model's would be none"),
        (lambda m: m.update({"0.bias": ["bitmap", [100]]}), {},
         "0.bias cannot be read: a bitmap of 9 bytes does not fit 100 weights"),
        (lambda m: m.update({"0.bias": ["zip", [100]]}), {},
         "0.bias cannot be read: unknown encoding 'zip'; one of: bitmap, kept, removed, zeros"),
        (lambda m: m.update({"0.bias": [["zip"], [100]]}), {},
         "0.bias cannot be read: unknown encoding \"['zip']\"; one of: bitmap, kept, removed, zeros"),
        (lambda m: m.update({"0.bias": ["kept", [10, 10]]}), {},
         "0.bias has shape (10, 10), the model's would be (100,)"),
        (lambda m: m.update({"0.weight": ["kept", [78, 100]]}), {},
         "0.weight has shape (78, 100), the model's would be (100, 78)"),
        (lambda m: m.update({"0.bias": ["kept", [10**30]]}), {},
         f"0.bias has shape ({10**30},), the model's would be (100,)"),
        (lambda m: m.update({"0.bias": ["kept", [100.0]]}), {}, "its plan cannot be read (TypeError: "),
        (lambda m: m.update({"0.bias": ["kept"]}), {}, "its plan cannot be read (ValueError: "),
        (lambda m: m.update({"0.bias": 3}), {}, "its plan cannot be read (TypeError: "),
        (lambda m: m.update({"3.bias": ["kept", [3]]}), {}, "3.bias is said to be masked, but is not there"),
        (lambda m: m.pop("0.bias"), {}, "0.bias has shape (9,), the model's would be (100,)"),
        ([], {}, "its plan cannot be read (AttributeError: "),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_or_not_ours_is_refused(
    masked: Any, entries: dict[str, Tensor | None], text: str, tmp_path: Path
) -> None:
    path, model = tmp_path / "a.safetensors", dense()
    content = weights_to_bytes(*pruned(), None)
    save_bytes(content, path)
    assert header(content)[0]["0.bias"]["shape"] == [9]
    rewritten(path, masked, **entries)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        sc.load(path, model)
    assert str(caught.value).startswith(f"{path}: {text}")
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_weights_removed_from_a_buffer_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", nn.BatchNorm1d(3)
    save_bytes(weights_to_bytes(model, {}, None), path)
    rewritten(path, {"running_mean": ["zeros", [3]]})
    with pytest.raises(ArtifactError) as caught:
        sc.load(path, model)
    assert str(caught.value) == f"{path}: running_mean: weights are removed from what is no parameter of the model"
