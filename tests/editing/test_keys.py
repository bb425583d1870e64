"""Keys read layer after layer, without running again what cannot have changed."""

import pytest
import torch

from sphere_bench.data.records import EditRequest
from sphere_bench.editing.keys import BatchReader
from sphere_bench.editing.locate_then_edit import LocateThenEdit
from sphere_bench.editing.pipeline import EditingPipeline
from sphere_bench.editing.solvers import LeastSquares
from sphere_bench.models.hooks import capture
from tests.editing.test_editors import setup
from tests.tiny_models import CONFIGS, tiny_model

REQUESTS = [
    EditRequest("0", "The mother tongue of Danielle is", "Danielle", "English", None),
    EditRequest("1", "Rome lies in", "Rome", "Spain", None),
    EditRequest("2", "The official religion of Edwin the Younger is", "Edwin", "Islam", None),
]
CONTEXTS = ["{}", "So it goes. {}", "The {}"]
VALUE_LAYER = 2


@pytest.mark.parametrize("architecture", CONFIGS)
def test_going_on_behind_a_written_layer_reads_what_a_whole_forward_reads(
    architecture: str,
) -> None:
    loaded = tiny_model(architecture)
    reader = BatchReader(loaded, REQUESTS, VALUE_LAYER, CONTEXTS, tokens_per_batch=40)
    for layer in (0, 2):
        anew = BatchReader(loaded, REQUESTS, VALUE_LAYER, CONTEXTS, tokens_per_batch=2048)
        kept, fresh = reader.measure(layer), anew.measure(layer)
        torch.testing.assert_close(kept.keys, fresh.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept.hidden, fresh.hidden, rtol=1e-5, atol=1e-5)
        loaded.layout.write(layer, loaded.layout.weight(layer) * 1.5)


def test_layers_that_are_done_do_not_run_again() -> None:
    loaded = tiny_model("llama")
    reader = BatchReader(loaded, REQUESTS, VALUE_LAYER, CONTEXTS, tokens_per_batch=2048)
    layers = loaded.layout.decoder_layers
    with capture({index: layer.mlp for index, layer in enumerate(layers)}, "input") as first:
        reader.measure(1)
    with capture({index: layer.mlp for index, layer in enumerate(layers)}, "input") as second:
        reader.measure(2)
    assert sorted(first) == [0, 1, 2]
    assert sorted(second) == [1, 2]


def test_keys_remembered_from_the_loop_are_those_behind_the_written_layers() -> None:
    given = setup()
    remembered = {}

    class Remembering(LeastSquares):
        def remember(self, layer: int, keys: torch.Tensor) -> None:
            remembered[layer] = keys
            super().remember(layer, keys)

    editor = LocateThenEdit(given, Remembering(second_moment_weight=5.0, remember="written"))
    EditingPipeline(editor, given).edit(given.pool(4))
    for layer, keys in remembered.items():
        reader = BatchReader(
            given.loaded, given.pool(4), given.weights.layers[-1], given.contexts, 2048
        )
        torch.testing.assert_close(keys, reader.measure(layer).keys, rtol=1e-5, atol=1e-6)
    assert list(remembered) == given.weights.layers
