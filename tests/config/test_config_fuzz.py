"""Whatever a key is set to, there is a run or one line that says what is wrong."""

import json
import logging
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sphere_bench.commands.run
from sphere_bench.cli import main
from sphere_bench.config.composition import groups, known_keys
from sphere_bench.config.schema import Config
from sphere_bench.data.configured import build_dataset
from sphere_bench.run_folder.folder import RunFolder
from tests.commands.test_run import QUICK
from tests.fuzzing import fuzz

# What makes Hydra itself stumble.
STUMBLING = ["editor=[0]", "seed=${oc.env:NO_SUCH_VARIABLE}", "sphere=[1,0]", "experiment={a: 1}"]
# Right in type and range, or not checked by the schema, but more than a run can make sense of.
EXTREME = {
    "seed=18446744073709551616": "seed=18446744073709551616: must be a number of at least 0",
    "model.values.learning_rate=1e39": "must be a number greater than 0, up to 1e+18",
    "values.contexts=null values.context_tokens=500": "texts of 500 tokens do not fit",
    "perplexity.corpus=nowhere.txt": "perplexity.corpus=nowhere.txt: no such file",
    "perplexity.tokens=1": "perplexity.tokens=1: no text of perplexity.corpus has two tokens",
    "model.modules.projection=attn.c_attn": "its output has 384 numbers, not the hidden",
    "run.root=''": "run.root is empty",
    "model.layers=[7]": "editor.layers=[7]: the model has layers 0 to 5: set model.layers",
    "sphere.apply=after": "no key 'sphere.apply': did you mean 'editor.apply'?",
    "editor=rome ~model.editors.rome": "model tiny-gpt2 has no numbers for the editor rome: set "
    "model.editors.rome.layer and model.editors.rome.whiten",
    "editor.method.transforms=[5]": "editor.method.transforms=[5]: must be a list, each an object",
    "editor=ft editor.method.transforms=null": "editor.method.transforms=None: must be a list",
    "editor=ultraedit editor.method.continue_from=x": "editor.method.continue_from=x: must be one",
    "+editor.method.zeal=1": "no key 'editor.method.zeal': LocateThenEdit takes solver, value",
    "~editor.method.solver": "editor.method.solver is missing: LocateThenEdit needs it",
    "editor=rome model.editors.rome.layer=-1": "editor.layers=[-1]: must be a rising list",
    "editor=rome model.editors.rome.whiten=x": "editor.method.whiten=x: must be true or false",
    "editor=ft-l model.editors.fine_tuning.norm_constraint=0": "norm_constraint=0: must be a",
    "editor=ultraedit model.editors.ultraedit.layers=[5,4]": "editor.layers=[5, 4]: must be a ris",
    "editor.method.solver=null": "editor.method.solver=None: must be an object with a _target_",
    "+editor.method.solver.zeal=1": "no key 'editor.method.solver.zeal': LeastSquares takes",
    "editor=ft editor.method.learning_rate=-1": "editor.method.learning_rate=-1: must be",
    "editor=ft editor.method.steps=null": "editor.method.steps=None: must be a whole number",
    "editor=ft editor.method.loss=x": "must be one of teacher_forced, last_position",
    "editor=ft +editor.method.chunk=0": "editor.method.chunk=0: must be a number of at least 1",
    "editor=ultraedit editor.method.learning_rate=nan": "learning_rate=nan: must be a number",
    "editor=rome model.editors.rome.values.learning_rat=1": "no key 'model.editors.rome.values."
    "learning_rat': did you mean 'model.editors.rome.values.learning_rate'?",
    "editor=rome model.editors.rome.values.steps=x": "values.steps=x: must be a whole number",
    "editor=emmet model.editors.emmet.layers=[0.5]": "editor.layers=[0.5]: must be a rising list",
    "editor=emmet model.editors.emmet.second_moment_weight=x": "weight=x: must be a number",
    "editor=emmet editor.method.second_moment_weight=0": "weight=0: must be a number greater",
    "editor=emmet editor.method.emmet_lambda=-1": "emmet_lambda=-1: must be a number of at least 0",
    "editor=rlsedit editor.method.variant=x": "variant=x: must be one of paper, published-code, as",
    "editor=rlsedit editor.method.mu_reg=0": "editor.method.mu_reg=0: raise one of them",
    "editor=ultraedit editor.method.chunk=0": "editor.method.chunk=0: must be a number of at least",
    "editor=nas editor.method.value_transform.pilots=1.5": "pilots=1.5: must be a whole number",
    "editor=nas editor.method.value_transform.pilots=0": "method.value_transform.pilots=0: must be",
    "editor=nas editor.method.value_transform.drop=1": "method.value_transform.drop=1: must be",
    "editor=encore editor.method.variant=x": "variant=x: must be one of paper, published-code",
    "editor=encore model.editors.encore.argmax_hits=0": "method.argmax_hits=0: must be a",
    "editor=encore model.editors.encore.ridge=-1": "solver.ridge=-1: must be a number of",
    "editor=encore editor.method.argmax_hits=1.5": "argmax_hits=1.5: must be a whole number",
    "editor=encore values.contexts=[]": "editor.method.argmax_hits counts in the contexts besides",
}
KEYS = sorted({*known_keys(), *groups()} - {"run.root"})
# As they are typed; most are wrong for most keys.
WORDS = ["null", "true", "nan", "-inf", "[]", "[1,0]", "[[1]]", "{}", "{a: 1}", "''", "' '", "???"]
WORDS += ["${seed}", "${edits}", "${oc.env:NO_SUCH_VARIABLE}", "$", "'{}'", "'a {} {}'", "..", "/"]
WORDS += ["1e-400", "1e400", "0x10", "01", "1_000", "5050505050505050505050", "-0.0", "é", "'\\0'"]
VALUES = (
    st.sampled_from(WORDS)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.lists(st.integers(-1, 40), max_size=3).map(str)
    # Quoted: unquoted, nearly all texts break Hydra's grammar.
    | st.text(max_size=8).map(lambda text: "'" + text.replace("'", "\\'") + "'")
    | st.text(max_size=8)
)


def message_about(*arguments: str) -> str:
    """What is printed about arguments that are wrong; nothing is left behind."""
    log = logging.getLogger()
    handlers = log.handlers.copy()
    with tempfile.TemporaryDirectory() as root:
        errors = StringIO()
        with redirect_stderr(errors), redirect_stdout(StringIO()):
            code = main(["run", f"run.root={root}", *arguments])
        # Hydra's would go on writing into the folder.
        log.handlers[:] = handlers
        message = errors.getvalue()
        assert code in (0, 2), message
        if code:
            assert message.startswith("sphere-bench: error: ") and message.count("\n") == 1
            assert not list(Path(root).iterdir())
        return message


def up_to_the_model(config: Config) -> None:
    """What a run does before it loads the model."""
    RunFolder(config.run.folder).check_location(config.run.root)
    sphere_bench.commands.run.check_targets(config)
    build_dataset(config)


@fuzz(40)
@given(choices=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2))
def test_any_value_of_any_key(choices: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sphere_bench.commands.run, "run", up_to_the_model)
    message_about(*(f"{key}={value}" for key, value in choices.items()))


@pytest.mark.parametrize("argument", STUMBLING)
def test_what_makes_hydra_stumble(argument: str) -> None:
    assert message_about(argument)


@pytest.mark.parametrize(("arguments", "message"), EXTREME.items())
def test_an_extreme_value_is_refused_before_anything_is_written(
    arguments: str, message: str
) -> None:
    few = [*QUICK, "edits.total=2", "edits.batch_size=2"]
    assert message in message_about(*few, *arguments.split(" "))


def test_a_prompt_longer_than_the_model_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    fits: dict[str, Any] = {
        "prompt": "Someone lives in",
        "subject": "Someone",
        "target_new": "Rome",
        "ground_truth": "Paris",
    }
    long = {**fits, "rephrase_prompt": "They say that " * 200, "case_id": "long"}
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([fits, long]))
    message = message_about(f"dataset.path={file}", "edits.total=2", "edits.batch_size=1", *QUICK)
    assert "case long: a prompt with its target has" in message
