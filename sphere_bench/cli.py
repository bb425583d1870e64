"""The command line: `sphere-bench VERB ...`.

A verb's module is imported when the verb is called, and imports torch only after it has checked its
arguments: help and errors appear at once.
"""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from sphere_bench import __version__
from sphere_bench.commands.error_messages import complain
from sphere_bench.errors import SphereBenchError
from sphere_bench.signals import Stopped, handled_by, stop

SIGNALLED = 128

# Each is the module of that name in `commands`, with a `main(arguments) -> exit code`.
VERBS = {
    "run": "edit a model batch by batch, evaluate after every batch, resume what was stopped",
    "report": "show what happened in one or several runs: tables, figures, a page",
    "stats": "compute the key statistics of a run's configuration once, ahead of its runs",
    "export": "write the edited model of a run, for transformers to load",
    "calibrate": "find the numbers of a new model, and write its YAML file",
}

USAGE = """\
usage: sphere-bench VERB ...
       sphere-bench --help | --version

A benchmark harness for sequential model editing.

verbs:
{verbs}

`sphere-bench VERB --help` explains a verb. `sphere-bench run` needs no arguments: it edits the
bundled tiny GPT-2.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the arguments name.

    Args:
        argv: the arguments; ``None`` takes those of the process.

    Returns:
        The exit code: 0, 1 for an error of the program, 2 for one of the user, 130 when stopped
        by Ctrl-C, 143 by SIGTERM, 129 when the terminal was closed.
    """
    # Threads that spin while they wait make every process crawl once cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # No traceback when the log cannot be written, such as on a full disk.
    logging.raiseExceptions = False
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with handled_by(stop):
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has ended; Python would flush once more and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        with suppress(OSError):  # the terminal may be gone
            print("sphere-bench: stopped; run the same command again to go on", file=sys.stderr)
        return SIGNALLED + (interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)
    except Exception as error:
        return complain(error)


def _dispatch(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb in ("--help", "-h", "help"):
        print(_usage(), end="")
        return 0
    if verb == "--version":
        print(f"sphere-bench {__version__}")
        return 0
    if verb not in VERBS:
        problem = f"no verb '{verb}'" if verb else "a verb is missing"
        raise SphereBenchError(f"{problem}: there are {', '.join(VERBS)}; see sphere-bench --help")
    code: int = importlib.import_module(f"sphere_bench.commands.{verb}").main(arguments[1:])
    return code


def _usage() -> str:
    width = max(map(len, VERBS))
    return USAGE.format(verbs="\n".join(f"  {verb:<{width}}  {VERBS[verb]}" for verb in VERBS))
