"""Runs the command line in processes to which bad things happen.

A process of its own, spoken to in lines of JSON: it imports everything, reads a configuration and
loads the model once, and forks a child for every request, which costs a second instead of five.
Nothing here is known to the package: what a child changes on the disk is seen through Python's
audit hooks.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = (
    "sphere_bench.run_folder.checkpoints",
    "sphere_bench.build",
    "sphere_bench.editing.methods.ultraedit",
    "sphere_bench.evaluation.teacher_forced",
    "sphere_bench.run_folder.folder",
    "sphere_bench.commands.run",
    "sphere_bench.stream.runner",
    "sphere_bench.run_folder.summary",
    "transformers.models.gpt2.modeling_gpt2",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def serve() -> None:
    """Answer requests until there are no more."""
    for name in IMPORTS:
        importlib.import_module(name)
    warm_up()
    gc.freeze()  # no child has to go through what was there before it
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)


def warm_up() -> None:
    """Fill the caches of Hydra's grammar and of transformers' names of weights."""
    import torch

    from sphere_bench.config.composition import compose_config
    from sphere_bench.models.loading import load_model

    # A child of a process that has started threads waits for them without end.
    torch.set_num_threads(1)
    compose_config([])
    load_model("bundled", device="cpu")


def answer(
    arguments: list[str],
    faults: dict[str, Any],
    kill_after: float | None = None,
    composed: bool = False,
) -> dict[str, Any]:
    """Run the command line in a child.

    Args:
        arguments: of the command line.
        composed: run the configuration that they compose, without the command line around it,
            which takes as long as a few steps.
        faults: names and parameters of the functions in ``FAULTS``.
        kill_after: seconds until the child is killed from outside.

    Returns:
        The child's ``pid``, ``code`` (minus the signal's number if one ended it, ``None`` if it is
        stopped), ``output`` and ``seconds``.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os._exit(live(arguments, faults, composed))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, os.WUNTRACED)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read().decode()
    code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
    return {"pid": pid, "code": code, "output": text, "seconds": seconds}


def live(arguments: list[str], faults: dict[str, Any], composed: bool) -> int:
    """What a child does: its exit code, if it lives to have one."""
    from sphere_bench.cli import main
    from sphere_bench.commands.run import run
    from sphere_bench.config.composition import compose_config

    config = compose_config(arguments[1:]) if composed else None

    # A shell may have started the tests with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, parameters in faults.items():
        FAULTS[name](**parameters)
    if config is None:
        code = main(arguments)
    else:
        run(config)
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def watch(folder: str, act: Callable[[str, Path], None]) -> None:
    """Call ``act(event, path)`` before every change of a name or a file below ``folder``."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | Path) or not flags & WRITING:
                return
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"):
            path = arguments[1 if event == "os.rename" else 0]
        else:
            return
        # shutil removes what is in a folder by names without one.
        if str(path).startswith(folder) or not os.path.dirname(path):
            act(event, Path(path))

    sys.addaudithook(hook)


def log(folder: str, file: str) -> None:
    """Write every change below ``folder`` into a file, one a line."""

    def append(event: str, path: Path) -> None:
        os.write(descriptor, f"{event} {path}\n".encode())

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch(folder, append)


def signal_before_change(folder: str, change: int, number: int) -> None:
    """Send the child a signal before its ``change``-th change below ``folder``, from 0 on."""
    seen = 0

    def count(event: str, path: Path) -> None:
        nonlocal seen
        if seen == change:
            os.kill(os.getpid(), number)
        seen += 1

    watch(folder, count)


def signal_in_call(target: str, call: int, number: int, times: int) -> None:
    """Send the child a signal, so many times, in the ``call``-th call of a function, from 0 on."""
    module, _, attributes = target.partition(":")
    *parents, name = attributes.split(".")
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, name)
    seen = 0

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal seen
        if seen == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        seen += 1
        return function(*arguments, **keywords)

    setattr(owner, name, interrupted)


def full_disk(folder: str, change: int, code: int) -> None:
    """From the ``change``-th change on nothing can be written below ``folder`` any more."""
    seen = 0

    def refuse(event: str, path: Path) -> None:
        nonlocal seen
        if seen >= change and event not in ("os.remove", "os.rmdir"):
            raise OSError(code, os.strerror(code), str(path))
        seen += 1

    watch(folder, refuse)


def largest_file(size: int) -> None:
    """Make writes past ``size`` bytes fail in the kernel, whichever language they come from."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


FAULTS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (log, signal_before_change, signal_in_call, full_disk, largest_file)
}

if __name__ == "__main__":
    serve()
