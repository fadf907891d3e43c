"""The networks of the suite: those written by hand take every size that they say, all are used as before when cut.

secateur_experiments.bench.suite.registry, and of the families
secateur_experiments.bench.suite.models.assorted, secateur_experiments.bench.suite.models.audio,
secateur_experiments.bench.suite.models.decoders, secateur_experiments.bench.suite.models.detection,
secateur_experiments.bench.suite.models.diffusion, secateur_experiments.bench.suite.models.hugging_face_decoders,
secateur_experiments.bench.suite.models.hugging_face_encoders,
secateur_experiments.bench.suite.models.hugging_face_pairs, secateur_experiments.bench.suite.models.image_networks,
secateur_experiments.bench.suite.models.torch_attention,
secateur_experiments.bench.suite.models.vision_transformers and secateur_experiments.bench.suite.models.yolo.
"""

from __future__ import annotations

import logging
import os

import pytest
import torch

from secateur.errors import ModelError
from secateur.structure.inputs import as_call
from secateur_experiments.bench.suite import checks
from secateur_experiments.bench.suite.registry import suite
from secateur_experiments.bench.suite.run import importable

BY_HAND = [name for name, build in suite().items() if ".hugging_face_" not in build.__module__]
BEHIND_NORMS = "Mamba2"  # all its units are: at the default scope there are none
OF_TRANSFORMERS = [name for name in suite() if name not in BY_HAND]


def test_there_are_as_many_as_promised() -> None:
    assert len(BY_HAND) >= 40
    assert len(OF_TRANSFORMERS) >= 20


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_a_network_takes_every_size_that_it_says(name: str) -> None:
    subject = checks.built(name)
    for samples, size in ((1, subject.sizes[0]), *((3, size) for size in subject.sizes)):
        args, kwargs = as_call(checks.drawn(subject, samples, size))
        with torch.no_grad():
            outputs = checks.tensors(subject.model(*args, **kwargs))
        assert outputs, size
        assert all(tensor.isfinite().all() for tensor in outputs), size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*BY_HAND, *OF_TRANSFORMERS])
def test_a_cut_network_is_used_as_before(name: str, caplog: pytest.LogCaptureFixture) -> None:
    if name in OF_TRANSFORMERS:
        caplog.set_level(logging.ERROR)
        importable(os.environ.get("ZOO_DIR"))
        pytest.importorskip("transformers", exc_type=ImportError)
    if name == BEHIND_NORMS:
        with pytest.raises(ModelError, match=r"no removable units: .*a mean is taken over it; include='all' removes"):
            checks.examine(name)
        return
    row = checks.examine(name)
    assert {column: row[column] for column in checks.CHECKS if row[column].startswith("no: ")} == {}
