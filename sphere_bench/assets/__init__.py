"""The bundled tiny GPT-2 and its facts, written by `scripts/train_tiny_gpt2.py`."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def tiny_gpt2_path() -> Path:
    """The folder of the tiny GPT-2, for `from_pretrained`."""
    return _FOLDER / "tiny-gpt2"


def facts_counterfact_path() -> Path:
    """All facts in CounterFact's original format, shuffled."""
    return _FOLDER / "counterfact.json"


def facts_zsre_path() -> Path:
    """Some of the facts in MEND's ZsRE format; `answers` holds the counterfactual answer."""
    return _FOLDER / "zsre.json"


def facts_qaedit_path() -> Path:
    """Some of the facts as questions in QAEdit's format; `target` is the counterfactual answer."""
    return _FOLDER / "qaedit.json"


def snippets_path() -> Path:
    """Texts about the subjects that share an object, as in CounterFact's attribute snippets."""
    return _FOLDER / "snippets.json"


def corpus_path() -> Path:
    """Plain text of the tiny GPT-2's world for key statistics, one short text a line."""
    return _FOLDER / "corpus.txt"
