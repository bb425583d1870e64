"""Bundled facts with few prompts, for runs whose scores are not the question."""

import json
import os
from functools import cache
from pathlib import Path

from sphere_bench.assets import facts_counterfact_path
from sphere_bench.files import atomic_file

RECORDS = 130


@cache
def few_prompts() -> str:
    """The override that takes them: two prompts of a neighbourhood in place of ten."""
    file = Path(os.environ["SPHERE_BENCH_CACHE"]).with_name("few-prompts.json")
    if not file.exists():
        records = json.loads(facts_counterfact_path().read_text(encoding="utf-8"))[:RECORDS]
        for record in records:
            del record["neighborhood_prompts"][2:]
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(records), encoding="utf-8")
    return f"dataset.path='{file}'"
