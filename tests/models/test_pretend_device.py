"""On devices that are not the CPU: nothing mixes them, and the host seldom waits."""

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas
import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, LlamaConfig

from sphere_bench.build import build_editing, build_measurer, build_setup
from sphere_bench.cli import main
from sphere_bench.config.composition import compose_config, groups
from sphere_bench.data.configured import build_dataset
from sphere_bench.editing.statistics.second_moments import second_moments
from sphere_bench.editing.statistics.texts import ordinary_texts
from sphere_bench.editing.values.solver import TargetValues, ValueSettings, solve_target_values
from sphere_bench.evaluation import fluency, generation, harness
from sphere_bench.models.loading import LoadedModel, wrap_model
from sphere_bench.models.team import pack
from tests.every_editor import EDITORS
from tests.golden_numbers import load_golden
from tests.models.pretend_device import (
    DEVICES,
    NAME,
    PretendTensor,
    counted_waits,
    pretend_device,
)
from tests.tiny_models import TOKENIZER, VOCABULARY

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
# As little as makes an editor do everything that it does: its second batch has a memory.
NUMBERS = (
    f"device={NAME}",
    "model.layers=[0,1]",
    "model.editors.rome.layer=1",
    "model.editors.fine_tuning.layer=1",
    "model.editors.ultraedit.layers=[1,2]",
    "model.values.steps=2",
    "model.values.loss_threshold=0",
    "values.contexts=['Nobody knew. {}']",
    "edits.total=2",
    "edits.batch_size=1",
)
PROBES = (
    *("evaluation=careful", "evaluation.seen=1", "evaluation.first=1", "perplexity.tokens=20"),
    *(f"probes.{probe}.every=1" for probe in groups()["probe"]),
    *("probes.ability.tasks=[tiny_kinds]", "probes.ability.items=1"),
    *(f"probes.{probe}.records=1" for probe in ("generation", "locality", "fluency")),
    *(f"probes.{probe}.prompts=1" for probe in ("generation", "locality")),
)
FEW_STEPS = "editor.method.steps=2"
WIDE = (
    "editor.method.solver.null_space.rule=share",
    "editor.method.solver.null_space.threshold=0.5",
)
OWN = {
    "alphaedit": WIDE,
    "nas": (*WIDE, "editor.method.value_transform.pilots=1"),
    "encore": ("editor.method.argmax_hits=null",),
    "ft": (FEW_STEPS,),
    "ft-l": (FEW_STEPS,),
    "locft-bf-replay": (FEW_STEPS,),
    "lora": (FEW_STEPS,),
    "crispedit": (FEW_STEPS, "model.editors.crispedit.layers=[1,2]", "statistics.tokens=100"),
    "stableedit": ("editor.method.warmup_batches=10", "model.editors.stableedit.layers=[1,2]"),
}
# How often the host may wait in a batch of two iterations; reads in all, and for every layer.
READS, READS_OF_A_LAYER, WRITES = 9, 14, 45
# PRUNE conditions the change of every layer behind the editor, REVIVE decomposes every weight once
# more, SimIE writes and checks what the editor inside it wrote already.
READS_OF_A_LAYER_OF = {"prune": 21, "revive": 15, "simie": 18}


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    with pretend_device():
        yield


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model whose edited layers are on two devices, as with ``device=sharded``."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, initializer_range=0.2))
    first, second = DEVICES
    dispatch_model(
        model,
        {
            **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0"), first),
            **dict.fromkeys(("model.layers.1", "model.layers.2", "model.norm", "lm_head"), second),
        },
    )
    return wrap_model(model, AutoTokenizer.from_pretrained(TOKENIZER))


@pytest.fixture(scope="module")
def moments(loaded: LoadedModel) -> Mapping[int, Tensor]:
    return second_moments(loaded, [0, 1, 2], ordinary_texts(loaded, "bundled"), 300).moments


def test_the_devices_are_strict() -> None:
    here, there, elsewhere = (torch.ones(3, device=each) for each in ("cpu", *DEVICES))
    assert there.device.type == NAME and there.device != elsewhere.device
    with pytest.raises(RuntimeError, match="add: tensors on npu:0 and on npu:1"):
        there + elsewhere
    assert (there.to(elsewhere.device) + elsewhere).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match=r"add: tensors on npu and, with the shapes \[\(3,\)\]"):
        there + here
    assert (torch.tensor(2.0) * there).tolist() == [2.0, 2.0, 2.0]
    with counted_waits() as waits:
        there * 2 + there.sum()
    assert not waits.counts
    with counted_waits() as waits:
        torch.tensor([1.0], device=NAME)
        here.to(NAME)
        there.cpu()
        there.sum().item()
        there[there > 0]
        there.copy_(here)
        here.copy_(there)
        there[torch.tensor([0])]
    assert (waits.total("write"), waits.total("read")) == (4, 4)


def test_what_goes_to_another_process_is_on_the_cpu() -> None:
    there = torch.tensor([[1.0, 2.0]], device=DEVICES[1], requires_grad=True)
    sent = pickle.loads(pack([TargetValues(there, there * 2, [[0.5]]), {"more": (there,)}]))
    values, deltas = sent[0].values, sent[0].deltas
    assert {tensor.device.type for tensor in (values, deltas, *sent[1]["more"])} == {"cpu"}
    assert (values.tolist(), deltas.tolist()) == ([[1.0, 2.0]], [[2.0, 4.0]])
    assert sent[0].losses == [[0.5]]


@pytest.fixture(scope="module")
def padding() -> LoadedModel:
    """A model whose attention takes no packed tokens, on one device."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "rotary_dim": 4}
    model = AutoModelForCausalLM.from_config(GPTJConfig(**shape, n_positions=64))
    return wrap_model(model.to(DEVICES[0]), AutoTokenizer.from_pretrained(TOKENIZER))


@pytest.mark.parametrize("model", ["loaded", "padding"])
def test_an_iteration_of_the_value_solver_waits_once(
    model: str, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(model)
    before: list[Counter[tuple[str, str]]] = []
    requests = load_golden("tiny-llama").requests[:2]
    with counted_waits() as waits:
        solve_target_values(
            loaded,
            requests,
            1,
            ["{}", "Nobody knew. {}"],
            ValueSettings(steps=5, loss_threshold=0),
            advance=lambda share: before.append(Counter(waits.counts)),
        )
    iterations = [after - start for start, after in pairwise(before)]
    # The first one also sends the indices that all share.
    assert [sum(each.values()) for each in iterations[1:]] == [1, 1, 1]
    assert sum(number for (kind, _), number in iterations[0].items() if kind == "read") == 1


def test_key_statistics_wait_no_more_than_their_forwards(padding: LoadedModel) -> None:
    # Of unlike length: there is padding.
    texts = ["Nobody knew why.", "It rained in Rome, and then it rained in Oslo, too."] * 2
    with counted_waits() as waits:
        second_moments(padding, [0, 1], texts, 100)
    at_the_end = waits.counts["read", "editing/statistics/second_moments.py:means"]
    # The forward's own, which looks for packed sequences: one batch.
    assert waits.total("read") - at_the_end == 1, waits.counts


@pytest.mark.parametrize("editor", EDITORS)
def test_an_editor_stays_on_the_devices_and_goes_on_from_its_state(
    editor: str, loaded: LoadedModel, moments: Mapping[int, Tensor]
) -> None:
    config = compose_config([f"editor={editor}", *NUMBERS, *OWN.get(editor, ())])
    dataset = build_dataset(config)
    setup = replace(
        build_setup(config, loaded, dataset),
        second_moments=lambda: {layer: moments[layer] for layer in config.editor.layers},
        held_out_moments=dict,
    )
    first, second = ([record.request] for record in dataset.records)
    editing = build_editing(config, setup)
    editing.edit(first)
    again = build_editing(config, setup)
    again.load_state_dict(tree_map(lambda tensor: tensor.cpu(), editing.state_dict()))
    with counted_waits() as waits:
        report = again.edit(second)
    layers = setup.weights.layers
    of_a_layer = READS_OF_A_LAYER_OF.get(editor, READS_OF_A_LAYER)
    assert waits.total("read") <= READS + of_a_layer * len(layers), waits.counts
    assert waits.total("write") <= WRITES, waits.counts
    for layer in layers:
        assert isinstance(setup.weights.current[layer], PretendTensor)
        assert setup.weights.current[layer].device == loaded.device_of(layer)
        assert report.layers[layer].applied_norm > 0
        setup.weights.write(layer, setup.weights.pretrained[layer])


def test_every_probe_measures_a_model_on_two_devices(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TOKENS", 3)
    monkeypatch.setattr(fluency, "TOKENS", 12)
    config = compose_config([*NUMBERS, "edits.total=1", *PROBES, "values.precision=bfloat16"])
    dataset = build_dataset(config)
    setup = build_setup(config, loaded, dataset)
    found = build_measurer(config, loaded, dataset, setup.weights).measure(0, None)
    assert {"cases", "geometry", "generations"} <= set(found.tables)
    # The copy of the layers above z in another precision is on both devices as well.
    solved = solve_target_values(
        loaded, [dataset.records[0].request], 0, setup.contexts, setup.values
    )
    assert solved.values.device == loaded.device_of(0)


def test_a_run_with_every_probe_is_made_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TOKENS", 3)
    monkeypatch.setattr(fluency, "TOKENS", 16)
    shape = ",".join(f"{key}:{value}" for key, value in {"model_type": "llama", **SHAPE}.items())
    command = [
        *("run", *NUMBERS, "edits.total=1", f"model.path={TOKENIZER}", f"model.shape={{{shape}}}"),
        *("statistics.corpus=bundled", "statistics.tokens=300", *PROBES),
        *(f"run.root={tmp_path}", "run.name=run"),
    ]
    assert main(command) == 0
    with counted_waits() as waits:
        assert main([*command, "edits.total=2"]) == 0
    said = waits.counts["read", "models/decoding.py:_say"]
    fingerprinted = waits.counts["read", "models/fingerprint.py:_tensor_digest"]
    parameters = 3 + 9 * SHAPE["num_hidden_layers"]
    assert fingerprinted == parameters  # once
    assert 0 < said <= generation.TOKENS + fluency.TOKENS
    by_lm_eval = waits.counts["read", "evaluation/harness.py:scores"]  # in its own code
    assert by_lm_eval <= 8 and (by_lm_eval > 0) == harness.is_installed()
    assert waits.total("read") - said - fingerprinted - by_lm_eval <= 90, waits.counts
    steps = pandas.read_parquet(tmp_path / "run" / "steps")
    assert set(steps["step"]) == {0, 1, 2}
