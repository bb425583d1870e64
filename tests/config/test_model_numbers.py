"""An editor's numbers for a model: all that are missing are named at once."""

import pytest
from omegaconf import OmegaConf

from sphere_bench.config.model_numbers import check_model_numbers
from sphere_bench.errors import SphereBenchError

ROME = {
    "name": "rome",
    "layers": ["${model.editors.rome.layer}"],
    "method": {
        "_target_": "Rome",
        "whiten": "${model.editors.rome.whiten}",
        "factors": [{"size": "${model.editors.rome.values.size}"}, "${model.layers}"],
    },
}


def check(editor, **numbers):
    model = {"name": "toy", "layers": [0], "editors": numbers}
    check_model_numbers(OmegaConf.create({"model": model, "editor": editor}))


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({}, "layer, model.editors.rome.whiten and model.editors.rome.values.size "),
        ({"layer": 1}, "whiten and model.editors.rome.values.size "),
        ({"layer": 1, "whiten": True, "values": {}}, "values.size "),
        ({"layer": 1, "whiten": True, "values": {"size": "???"}}, "values.size "),
    ],
)
def test_all_numbers_that_are_missing_are_named(numbers, named):
    with pytest.raises(SphereBenchError) as raised:
        check(ROME, rome=numbers)
    beginning = "model toy has no numbers for the editor rome: set model.editors.rome."
    assert str(raised.value).startswith(beginning + named)


def test_a_number_may_be_null_and_an_override_needs_none():
    check(ROME, rome={"layer": 1, "whiten": None, "values": {"size": 2}})
    check({**ROME, "method": {"whiten": True}}, rome={"layer": 1})
    check({"name": "mine", "layers": "${model.layers}", "method": {}})
