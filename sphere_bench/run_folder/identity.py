"""Whether a run is the one that its folder holds: by what decides its numbers, and by content."""

import json
import re
from collections.abc import Mapping
from typing import Any

from sphere_bench.config.identity import config_hash, flatten, identity
from sphere_bench.run_folder.folder import RunFolder

# What computes the numbers. The other packages carry them: a new pandas makes no other run.
DECISIVE_PACKAGES = ("torch", "transformers", "tokenizers")
_FACTS = ("model_fingerprint", "second_moments", "corpora", "sources", "sphere_bench", "contexts")
_SHOWN_DIGITS = 12


def differences(folder: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    """What makes the run that the folder already holds another one: old -> new.

    The records are compared apart from this: a run may go on with more of them.

    Args:
        folder: the run's folder.
        facts: of the run that is to be made, as ``provenance.json`` has them, or some of them.

    Raises:
        SphereBenchError: what the folder's numbers are from is not known any more.
    """
    if not folder.has_results:
        return []
    earlier = folder.provenance()
    before = decisive({key: earlier.get(key) for key in facts})
    now = decisive(facts)
    return [
        f"{key} {_shown(key, before.get(key))} -> {_shown(key, now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def decisive(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``facts`` decides a run's numbers, under dotted keys; the records apart."""
    found = flatten({key: facts[key] for key in _FACTS if key in facts})
    if "config" in facts:
        found.update(identity(facts["config"]))
    if "packages" in facts:
        found.update({name: facts["packages"].get(name) for name in DECISIVE_PACKAGES})
    # As a file gives it back.
    return dict(json.loads(json.dumps(found)))


def run_hash(facts: Mapping[str, Any]) -> str:
    """SHA-256 of all that decides a run's numbers; the records apart."""
    return config_hash(decisive(facts))


def shown(fingerprint: object) -> str:
    """The beginning of a fingerprint, which is enough to see that two differ."""
    return str(fingerprint)[:_SHOWN_DIGITS]


def _shown(key: str, value: object) -> str:
    if value is None:
        return "null"
    return shown(value) if re.fullmatch("[0-9a-f]{16,}", str(value)) else str(value)
