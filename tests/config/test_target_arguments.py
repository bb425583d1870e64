"""Arguments of the configuration's objects, compared to what their classes take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from sphere_bench.config.target_arguments import check_arguments, check_editor, make_object
from sphere_bench.errors import SphereBenchError

if TYPE_CHECKING:
    from nowhere import Unknown

HERE = f"{__name__}."


class Plain:
    def __init__(self, setup: object, rate: float, layers: Sequence[int] = (), deep: Any = None):
        self.given = setup, rate, layers, deep


class Free:
    def __init__(self, setup: object, rate: float = 1.0, **others: Any):
        self.others = others


class Listing:
    def __init__(self, names: list, table: dict, sizes: dict[str, int] | None = None): ...


class Hidden:
    def __init__(self, what: "Unknown", rate: float = 1.0): ...


class Failing:
    def __init__(self, error: str):
        raise {"ours": SphereBenchError, "memory": MemoryError}[error]("reason")


def node(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": HERE + name, **arguments}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (node("Plain"), "key.rate is missing: Plain needs it"),
        (node("Plain", rate=1, setup=2), "no key 'key.setup': Plain takes rate, layers, deep"),
        (node("Plain", rate="1"), "key.rate=1: must be a number"),
        (node("Plain", rate=1, layers=[1, "2"]), r"key.layers=.*: must be a list, each a whole"),
        (node("Plain", rate=1, deep=node("Plain")), r"key.deep.setup is missing: Plain needs it"),
        (node("Plain", rate=1, deep=[1, node("Free", rate="x")]), "key.deep.1.setup is missing"),
        (node("Free", rate="x"), "key.rate=x: must be a number"),
        (node("Free", others=node("Free")), "key.others.setup is missing"),
        (node("Hidden", rate=1, no=1), "no key 'key.no': Hidden takes rate"),
    ],
)
def test_what_does_not_fit_is_named_with_its_key(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SphereBenchError, match=f"^{message}"):
        check_arguments(wrong, "key", given=1)


def test_whatever_two_stars_take_is_accepted() -> None:
    check_arguments(node("Free", anything=[1], rate=2), "key", given=1)


def test_bare_lists_and_dicts_are_what_they_say() -> None:
    check_arguments(node("Listing", names=["a", 1], table={"a": 1}, sizes={"b": 2}), "key")
    with pytest.raises(SphereBenchError, match=r"^key\.names=a: must be a list"):
        check_arguments(node("Listing", names="a", table={}), "key")
    with pytest.raises(SphereBenchError, match=r"^key\.table=\[\]: must be a dict"):
        check_arguments(node("Listing", names=[], table=[]), "key")


def test_an_editors_transforms_and_conditioner_are_checked_in_their_own_right() -> None:
    rect = {"_target_": "sphere_bench.editing.transforms.Rect"}
    editor = node("Free", rate=1)
    check_editor(editor, {"transforms": [rect, node("Listing", names=[], table={})]}, "key")
    with pytest.raises(
        SphereBenchError, match=r"^no key 'key\.transforms\.1\.zeal': Rect takes keep"
    ):
        check_editor(editor, {"transforms": [rect, {**rect, "zeal": 1}]}, "key")
    with pytest.raises(SphereBenchError, match=r"^key\.conditioner\.keep=all: must be a number"):
        check_editor(editor, {"conditioner": {**rect, "keep": "all"}}, "key")


def test_an_object_gets_what_is_given_first_and_plain_lists() -> None:
    made = make_object(
        node("Plain", rate=2.0, layers=[1, 2], deep={"a": [node("Free", setup=0)]}), 7
    )
    setup, rate, layers, deep = made.given
    assert (setup, rate) == (7, 2.0)
    assert type(layers) is list and type(deep) is dict and type(deep["a"]) is list
    assert isinstance(deep["a"][0], Free)


@pytest.mark.parametrize(("error", "kind"), [("ours", SphereBenchError), ("memory", MemoryError)])
def test_what_a_class_raises_is_what_is_seen(error: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^reason$"):
        make_object(node("Failing", error=error))
