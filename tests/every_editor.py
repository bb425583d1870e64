"""Every editor of the configuration, for the tests that run them all."""

import pytest

from sphere_bench.config.composition import groups
from sphere_bench.editing.methods import lora

needs_peft = pytest.mark.skipif(not lora.is_installed(), reason="lora needs the extra lora")
EDITORS = [
    pytest.param(name, marks=needs_peft if name == "lora" else ()) for name in groups()["editor"]
]
