"""The arguments of a verb."""

import argparse
from typing import NoReturn

from sphere_bench.errors import SphereBenchError


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        raise SphereBenchError(f"{message}; see `{self.prog} --help`")
