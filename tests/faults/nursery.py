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
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.fast import hurry, hurry_loading

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
COMPOSED: dict[tuple[str, ...], Any] = {}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def serve() -> None:
    """Answer requests until there are no more."""
    hurry()
    # All forks share its usual lock: a child that is killed while it has it would stop the others.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
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
    hurry_loading()
    compose_config([])
    load_model("bundled", device="cpu")


def answer(
    arguments: list[str],
    faults: dict[str, Any],
    kill_after: float | None = None,
    roots: list[str] | None = None,
    processes: int = 1,
    folder: str | None = None,
) -> dict[str, Any]:
    """Run the command line in a child.

    Args:
        arguments: of the command line.
        faults: names and parameters of the functions in ``FAULTS``.
        kill_after: seconds until the child is killed from outside.
        roots: run the configuration that the arguments compose in each of these, one after the
            other, without the command line around it, which takes as long as a few steps.
        processes: fork as many children, which torchrun's variables tell of one another.
        folder: the children's working folder, if it is not this process's.

    Returns:
        The first child's ``pid`` and ``code`` (minus the signal's number if one ended it, ``None``
        if it is stopped), and the ``output`` and ``seconds`` of all.
    """
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        if roots is not None:
            composed(arguments)  # for all children
        teams = team(processes) if processes > 1 else [{}]
        children = [born(arguments, faults, roots, folder, output.fileno(), each) for each in teams]
        pid = children[0]
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, os.WUNTRACED)
        for child in children[1:]:
            os.waitpid(child, 0)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read().decode()
    code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
    return {"pid": pid, "code": code, "output": text, "seconds": seconds}


def team(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]


def born(
    arguments: list[str],
    faults: dict[str, Any],
    roots: list[str] | None,
    folder: str | None,
    output: int,
    environment: dict[str, str],
) -> int:
    """Fork a child that writes to a descriptor, and return its process id."""
    pid = os.fork()
    if not pid:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        if folder is not None:
            os.chdir(folder)
        os._exit(live(arguments, faults, roots))
    return pid


def live(arguments: list[str], faults: dict[str, Any], roots: list[str] | None) -> int:
    """What a child does: its exit code, if it lives to have one."""
    from sphere_bench.cli import main

    # A shell may have started the tests with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, parameters in faults.items():
        FAULTS[name](**parameters)
    code = main(arguments) if roots is None else run_each(arguments, roots)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def composed(arguments: list[str]) -> Any:
    """The configuration of the arguments, composed once for all roots."""
    from sphere_bench.config.composition import compose_config

    key = tuple(each for each in arguments[1:] if not each.startswith("run.root="))
    if key not in COMPOSED:
        COMPOSED[key] = compose_config(key)
    return COMPOSED[key]


def run_each(arguments: list[str], roots: list[str]) -> int:
    """Make a run in each root; the exit code is 1 once one of them fails."""
    from sphere_bench.commands.run import run

    config = composed(arguments)
    for root in roots:
        try:
            run(replace(config, run=replace(config.run, root=root)))
        except Exception:
            print(f"in {root}: {traceback.format_exc()}")
            return 1
    return 0


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


def keep_states(folder: str, into: str) -> None:
    """Copy ``folder`` before every change below it: what a kill at that moment leaves."""
    seen = 0

    def keep(event: str, path: Path) -> None:
        nonlocal seen
        shutil.copytree(folder, Path(into, str(seen), Path(folder).name))
        seen += 1

    watch(folder, keep)


def signal_before_change(folder: str, change: int, number: int) -> None:
    """Send the child a signal before its ``change``-th change below ``folder``, from 0 on."""
    seen = 0

    def count(event: str, path: Path) -> None:
        nonlocal seen
        if seen == change:
            os.kill(os.getpid(), number)
        seen += 1

    watch(folder, count)


def signal_in_call(target: str, call: int, number: int, times: int, pause: float = 0) -> None:
    """Send the child a signal, so many times, in the ``call``-th call of a function, from 0 on.

    Args:
        pause: seconds between two of them.
    """
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
            for sent in range(times):
                if sent:
                    time.sleep(pause)
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
    for function in (
        log,
        keep_states,
        signal_before_change,
        signal_in_call,
        full_disk,
        largest_file,
    )
}

if __name__ == "__main__":
    serve()
