"""An editor's numbers for a model: which of them count, and what is said about wrong ones."""

import pytest
from omegaconf import OmegaConf

from sphere_bench.config.composition import compose_config
from sphere_bench.config.model_numbers import check_model_numbers, references
from sphere_bench.errors import SphereBenchError

ROME = {
    "name": "rome",
    "layers": ["${model.editors.rome.layer}"],
    "method": {
        "_target_": "Rome",
        "whiten": "${model.editors.rome.whiten}",
        "factors": [{"size": "${model.editors.rome.sizes.one}"}, "${model.layers}"],
    },
}


def check(editor, **numbers):
    model = {"name": "toy", "layers": [0], "editors": numbers}
    check_model_numbers(OmegaConf.create({"model": model, "editor": editor}))


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({}, "layer, model.editors.rome.whiten and model.editors.rome.sizes.one "),
        ({"layer": 1}, "whiten and model.editors.rome.sizes.one "),
        ({"layer": 1, "whiten": True, "sizes": {}}, "sizes.one "),
        ({"layer": 1, "whiten": True, "sizes": {"one": "???"}}, "sizes.one "),
    ],
)
def test_all_numbers_that_are_missing_are_named(numbers, named):
    with pytest.raises(SphereBenchError) as raised:
        check(ROME, rome=numbers)
    beginning = "model toy has no numbers for the editor rome: set model.editors.rome."
    assert str(raised.value).startswith(beginning + named)


def test_a_number_may_be_null_and_an_override_needs_none():
    check(ROME, rome={"layer": 1, "whiten": None, "sizes": {"one": 2}})
    check({**ROME, "method": {"whiten": True}}, rome={"layer": 1})
    check({"name": "mine", "layers": "${model.layers}", "method": {}})


def test_a_selection_refers_to_its_key_where_it_is_set_and_else_to_its_default():
    def found(**numbers):
        model = {"layers": [0], "editors": {"ft-l": numbers, "ft": {"layer": 3}}}
        composed = OmegaConf.create({"model": model, "editor": {"name": "ft-l"}})
        nodes = [
            "${oc.select:model.editors.${editor.name}.layers,[${model.editors.ft.layer}]}",
            {"a": "${oc.select:model.editors.ft-l.x, ${oc.select:model.y,${model.layers}}}"},
        ]
        return list(references(nodes, composed))

    assert found() == ["model.editors.ft.layer", "model.layers"]
    assert found(layers=[1]) == ["model.editors.ft-l.layers", "model.layers"]
    assert found(x=None) == ["model.editors.ft.layer", "model.editors.ft-l.x"]


def test_a_number_of_a_default_is_missed_only_where_the_default_counts():
    selecting = "${oc.select:model.editors.toy.layers,[${model.editors.other.layer}]}"
    editor = {"name": "toy", "layers": selecting, "method": {}}
    check(editor, toy={"layers": [1]})
    with pytest.raises(SphereBenchError, match=r"set model\.editors\.other\.layer \("):
        check(editor)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, r"values\.learning_rat': did you mean '.*\.values\.learning_rate'\?"),
        ({"z": 1}, r"values\.z': there are steps, learning_rate, .*loss_threshold$"),
        (3, r"values=3: must be a dict of steps, "),
        (None, r"values=None: must be a dict of steps, "),
    ],
)
def test_values_of_an_editor_have_the_value_solvers_names(values, message):
    with pytest.raises(SphereBenchError, match=r"^(no key ')?model\.editors\.toy\." + message):
        check({"name": "toy"}, toy={"values": values})
    check({"name": "another"}, toy={"values": values})


def test_an_editors_numbers_come_before_the_models_own():
    values = "{steps: 3, clamp_norm_factor: 0.5}"
    numbers = f"++model.editors.emmet={{layers: [1], second_moment_weight: 7, values: {values}}}"
    config = compose_config(["editor=emmet", numbers])
    own = compose_config(["editor=memit", numbers])
    assert config.editor.layers == [1] and own.editor.layers == config.model.layers == [0, 1, 2]
    assert config.editor.method["second_moment_weight"] == 7
    assert own.editor.method["solver"]["second_moment_weight"] == 5
    assert own.editor.values == own.model.values
    found, models = config.editor.values, config.model.values
    assert (found.steps, found.clamp_norm_factor) == (3, 0.5)
    assert (models.steps, models.clamp_norm_factor) == (20, 4.0)
    assert found.learning_rate == models.learning_rate


def test_ft_l_has_the_layer_of_ft_unless_it_has_its_own():
    assert compose_config(["editor=ft-l"]).editor.layers == [3]
    own = "++model.editors.ft-l.layers=[2]"
    assert compose_config(["editor=ft-l", own]).editor.layers == [2]
    assert compose_config(["editor=ft", own]).editor.layers == [3]


def test_rome_has_its_own_contexts_and_clamp():
    config = compose_config(["editor=rome", "model=qwen2.5-7b", "model.values.clamp_norm_factor=1"])
    assert config.editor.values.clamp_norm_factor == 4
    assert config.editor.context_lengths == [[5, 10], [10, 10]]
    config = compose_config(["editor=rome", "++model.editors.rome.values.clamp_norm_factor=2"])
    assert config.editor.values.clamp_norm_factor == 2
    assert compose_config([]).editor.context_lengths == [[10, 5]]
    assert compose_config(["values.context_tokens=7"]).editor.context_lengths == [[7, 5]]
