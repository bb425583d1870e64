"""What a calibration says of itself: what it optimised, on what, and what came of it."""

from sphere_bench import __version__
from sphere_bench.calibration.choice import EQUAL, TOLERANCE, reaches
from sphere_bench.calibration.records import KeptOut
from sphere_bench.calibration.search import Found
from sphere_bench.calibration.settings import Scores, Trial
from sphere_bench.config.schema.calibration import CalibrateConfig


def account(
    config: CalibrateConfig, kept_out: KeptOut, unedited: Scores, found: Found
) -> list[str]:
    """Paragraphs of plain text.

    Args:
        config: of the calibration.
        kept_out: the records that were edited.
        unedited: the scores before all edits.
        found: what was chosen.
    """
    efficacy = config.calibration.efficacy
    alphas = [
        f"{config.sphere_of(editor).alpha:g} for {editor.name}"
        for editor in (config.editor, config.calibration.null_space_editor)
    ]
    projected = "without SPHERE"
    if config.sphere.enabled:
        projected = f"with SPHERE, alpha {' and '.join(alphas)}"
    return [
        f"Found by sphere-bench calibrate {__version__}. Optimised: efficacy "
        f"({kept_out.dataset.headline}) of at least {efficacy:g}; of the settings that reach it, "
        f"that generalize within {TOLERANCE:g} points of the best of them, and that cost within "
        f"{EQUAL:g} of the least (points of specificity and percent of perplexity), those with "
        "about the least drift of the weights, and of them the one that costs least.",
        f"Edited in one batch, {projected}: {kept_out}.",
        f"Key statistics: {config.statistics.path or config.statistics.corpus}. Another corpus "
        "asks for another lambda.",
        f"Unedited: {unedited}.",
        _outcome("MEMIT", found.memit, efficacy),
        _outcome("AlphaEdit", found.alphaedit, efficacy),
        "Not searched: steps, kl_factor, loss_threshold, and what ROME, EMMET, FT and UltraEdit "
        "ask for below editors.",
    ]


def _outcome(editor: str, trial: Trial | None, efficacy: float) -> str:
    if trial is None:
        return f"{editor}: no setting that was tried could be edited, so it has no numbers."
    failed = "" if reaches(trial, efficacy) else f"no setting reaches {efficacy:g}, the highest is "
    return f"{editor}: {failed}{trial.setting}: {trial.scores}."
