"""`sphere-bench export`: the edited model of a run, as `transformers` loads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sphere_bench.commands.arguments import Parser
from sphere_bench.config.composition import read_config
from sphere_bench.errors import SphereBenchError
from sphere_bench.run_folder.folder import RunFolder

if TYPE_CHECKING:
    from sphere_bench.models.loading import LoadedModel

DESCRIPTION = """\
Write the model as it was after a step of a run, for AutoModelForCausalLM.from_pretrained and
AutoTokenizer.from_pretrained. A step needs a checkpoint: checkpoint.steps of a run asks for some
that are kept, checkpoint.keep for more of the latest.
"""


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(prog="sphere-bench export", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, metavar="N", help="by default the latest there is")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder")
    parser.add_argument(
        "--model", metavar="PATH", help="where the unedited model is now, if it has moved"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    given = parser.parse_args(list(arguments))
    export(given.run, given.step, given.out, given.model, given.trust_remote_code)
    return 0


def export(
    run: Path,
    step: int | None,
    out: Path,
    model_path: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the edited model and its tokenizer into the new folder ``out``.

    Args:
        run: a run's folder.
        step: of the checkpoint to export; ``None`` takes the latest.
        out: must not exist.
        model_path: of the unedited model; ``None`` takes the run's own.
        trust_remote_code: run code that comes with the model. That the run did so does not count:
            its folder may be somebody else's.

    Raises:
        SphereBenchError: there is no run, no such checkpoint, no such model, or ``out`` exists.
    """
    recorded = RunFolder(run)
    if not recorded.is_run:
        raise SphereBenchError(f"{run} holds no run: name a run's own folder")
    if out.exists() or out.is_symlink():
        raise SphereBenchError(f"--out {out} exists: name a folder that does not")

    from sphere_bench.files import atomic_folder
    from sphere_bench.run_folder.checkpoints import Checkpoints

    checkpoints = Checkpoints(recorded.checkpoints)
    checkpoint = checkpoints.latest() if step is None else checkpoints.load(step)
    if checkpoint is None:
        raise SphereBenchError(f"{run} has no checkpoint yet: let the run go on first")
    loaded = _unedited_model(recorded, model_path, trust_remote_code)
    for layer, weight in checkpoint.weights.items():
        loaded.layout.write(layer, weight)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    print(f"{run} after step {checkpoint.step}: {out}")


def _unedited_model(run: RunFolder, model_path: str | None, trust_remote_code: bool) -> LoadedModel:
    """The model that the run began with.

    Raises:
        SphereBenchError: it is not there any more, or another one is.
    """
    from sphere_bench.build import build_model
    from sphere_bench.models.fingerprint import model_fingerprint

    facts = run.provenance()
    config = read_config(run.config_file)
    config.device, remedy = "cpu", "name where the run's unedited model is now with --model"
    if config.model.shape is not None:
        config.device = facts["device"]["torch_device"].partition(":")[0]
        remedy = (
            f"its weights are random, drawn on {config.device}, and others elsewhere: export it on "
            "a machine like the run's"
        )
    config.model = replace(
        config.model,
        path=model_path or config.model.path,
        trust_remote_code=trust_remote_code,
    )
    try:
        loaded = build_model(config)
    except SphereBenchError as error:
        raise SphereBenchError(f"{error}; {remedy}") from error
    if model_fingerprint(loaded) != facts["model_fingerprint"]:
        raise SphereBenchError(
            f"model.path={config.model.path} is not the model that {run} edited: {remedy}"
        )
    return loaded
