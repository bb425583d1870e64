"""What makes a test process fast and changes nothing that a test can see."""

import os
from functools import cache

import omegaconf._utils
import omegaconf.base
import yaml
from hydra._internal.hydra import Hydra
from omegaconf.grammar_parser import parse


def hurry() -> None:
    """Leave out what hundreds of small runs spend their time on.

    Half of a small run is the composition of its configuration: Hydra composes it once more to read
    `hydra.mode`, which no test sets, reads YAML in Python, and parses the same interpolations again
    and again. No test takes the power away, so nothing has to be on the disk itself.
    """
    Hydra.get_mode = lambda *arguments, **keywords: None  # type: ignore[method-assign]
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[assignment, misc]
    omegaconf.base.parse = omegaconf._utils.parse = cache(parse)
    os.fsync = lambda descriptor: None
