import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.structure.capture import Captured, capture
from secateur.structure.inputs import as_call
from secateur.structure.lookups import Lookups


class Several(nn.Module):
    """A table of words, one of places that no input decides, bags of words, and a code chosen by the network."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.codes = nn.Embedding(5, 4), nn.Embedding(3, 4), nn.Embedding(4, 4)
        self.bags = nn.EmbeddingBag(6, 4, mode="sum")
        self.first = nn.Linear(4, 4)

    def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
        h = self.words(words[:, 1:]) + self.places(torch.arange(words.shape[1] - 1, device=words.device))
        h = self.first(h).mean(1)
        return h + self.codes(h.argmax(1)) + self.bags(kinds.clamp(min=0) + 1)


def several() -> Captured:
    torch.manual_seed(0)
    return capture(Several(), as_call((torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64))))


WORDS, KINDS = torch.tensor([[0, 4, 3], [4, 0, 1]]), torch.tensor([[0, 4], [3, 1]])


def test_rows_that_there_are_may_be_looked_up() -> None:
    Lookups(several()).check(as_call((WORDS, KINDS)))


@pytest.mark.parametrize(
    ("words", "kinds", "text"),
    [
        (WORDS + 1, KINDS, "inputs: rows 1 to 5 of words.weight are looked up, it has 0 to 4"),
        (WORDS - 1, KINDS, "inputs: rows -1 to 3 of words.weight are looked up, it has 0 to 4"),
        (WORDS, KINDS + 1, "inputs: rows 2 to 6 of bags.weight are looked up, it has 0 to 5"),
    ],
)
def test_rows_that_there_are_not_are_refused(words: Tensor, kinds: Tensor, text: str) -> None:
    for where in ("", "data: batch 2: "):
        with pytest.raises(DataError) as caught:
            Lookups(several()).check(as_call((words, kinds)), where)
        assert str(caught.value) == where + text


def test_what_the_network_does_to_the_inputs_first_is_done() -> None:
    lookups = Lookups(several())
    beside = WORDS.clone()
    beside[:, 0] = 99  # cut off before the rows are looked up
    lookups.check(as_call((beside, KINDS)))
    lookups.check(as_call((WORDS, KINDS - 3)))  # clamped


def test_without_a_table_there_is_nothing_to_refuse() -> None:
    class Hot(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.one_hot(x, 3).float())

    lookups = Lookups(capture(Hot(3, 2), as_call(torch.tensor([[0], [1]]))))
    assert lookups.calls == []
    lookups.check(as_call(torch.tensor([[7]])))
