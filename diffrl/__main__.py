"""The command line: ``python -m diffrl <command> …``; each command is a function of some room.

Only the chosen room is imported, and tyro reads the function's signature and docstring: there is
no second list of parameters. A command may return an exit code.
"""

import contextlib
import difflib
import functools
import importlib
import inspect
import os
import select
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from diffrl.base.errors import UserError, refused_by_the_machine
from diffrl.base.scale import RAY, StageError

PIPE = 141  # exit code of a shell's own tools whose reader went away: 128 + SIGPIPE

COMMANDS = {  # name: (module:function, one line of help)
    "doctor": ("diffrl.doctor:main", "check versions, renderer, LIBERO's files, the simulator"),
    "plan": ("diffrl.plan.work:main", "say what a preset will take: hours, disk, wall time"),
    "dry-run": ("diffrl.dryrun:main", "do every kind of work once on each task of a preset"),
    "reproduce": ("diffrl.reproduce:main", "run the notebooks 01-05 headlessly"),
    "status": ("diffrl.status:main", "show what of a preset is waiting, running, done, failed"),
    "tasks": ("diffrl.sim.scene:tasks_command", "list LIBERO's tasks"),
    "train": ("diffrl.rl.stage:main", "clone a policy and improve it by RL"),
    "experiment": ("diffrl.experiments:main", "train the variants of a controlled experiment"),
    "operator": ("diffrl.demonstrator.stage:main", "try the scripted operator on tasks"),
    "generate": ("diffrl.generation.stage:main", "roll out an expert into a data set"),
    "validate": ("diffrl.data.validate:main", "check data-set files"),
    "reseal": ("diffrl.data.reseal:main", "seal data-set files again that you changed yourself"),
    "export": ("diffrl.data.export:main", "convert a data set for other tools"),
    "quality": ("diffrl.quality:main", "measure the trajectories of data-set files"),
    "view": ("diffrl.explore.view:main", "look at an episode: a page with a slider, or a film"),
    "train-vla": ("diffrl.vla.stage:main", "train a compact VLA on data-set files"),
    "evaluate": ("diffrl.evaluation.stage:main", "evaluate a policy by LIBERO's protocol"),
    "evidence": ("diffrl.evidence:main", "pack a finished run into results/ and figures/"),
    "benchmark": ("diffrl.benchmark:main", "measure how fast everything is here"),
}


GO_ON = {  # they work on a preset's run: what git keeps of an unfinished one is restored first
    *("train", "experiment", "operator", "generate", "train-vla", "evaluate", "status"),
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<10} {help_}" for name, (_, help_) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m diffrl COMMAND [options]   (COMMAND --help lists its options)",
            *lines,
            "Every command takes --ray [ADDRESS]: its jobs then run on a Ray cluster.",
        ]
    )


def resolve(command: str) -> Callable:
    """Import and return the function behind `command`.

    Raises:
        UserError: there is no such command.
    """
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=2)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"There is no command {command!r}: {hint}Known: {', '.join(COMMANDS)}.")
    module, function = COMMANDS[command][0].split(":")
    return getattr(importlib.import_module(module), function)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    A `UserError`, and what the machine refuses, becomes one paragraph on stderr. A reader of our
    output that goes away (``… | head``) ends the command without a word.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows "?"
            stream.reconfigure(errors="replace")
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a pipe that is closed can still be met
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]
        if not unread:
            raise
        for stream in unread:
            _discard(stream)
        return PIPE
    except (OSError, MemoryError, RuntimeError) as error:
        told = refused_by_the_machine(error)
        if told is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            _discard(sys.stdout)  # perhaps its disk is full
        return _tell(told)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    try:
        arguments = _cluster(arguments)
        import tyro

        function = resolve(arguments[0])
        prog = f"python -m diffrl {arguments[0]}"
        flags = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json
        rules = _rules()
        if arguments[0] in GO_ON:
            function = _going_on(function)
        result = tyro.cli(function, prog=prog, args=arguments[1:], config=flags, registry=rules)
        return int(result or 0)
    except UserError as error:
        return _tell(str(error))
    except StageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # mujoco, when it is imported
        if "MUJOCO_GL" not in str(error):
            raise
        return _tell(f"MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}: unset it, or use egl, osmesa.")
    except KeyboardInterrupt:
        forced = "--force" in arguments
        how = "without --force; with it, everything begins anew" if forced else ""
        told = f"The same command continues this work {how}".strip()
        print(f"Interrupted. {told}.", file=sys.stderr)
        return 130


def _going_on(function: Callable) -> Callable:
    """A command that first restores what git keeps of its preset's unfinished run."""

    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> Any:
        from diffrl.evidence import go_on

        given = inspect.signature(function).bind(*args, **options)
        given.apply_defaults()
        if (preset := given.arguments["preset"]) is not None:
            go_on(preset)
        return function(*args, **options)

    return command


def _cluster(arguments: list[str]) -> list[str]:
    """Take ``--ray [ADDRESS]``, which every command knows, out of the arguments."""
    if "--ray" not in arguments:
        return arguments
    place = arguments.index("--ray")
    given = arguments[place + 1 : place + 2]
    named = bool(given) and not given[0].startswith("-")
    os.environ[RAY] = given[0] if named else "auto"
    return arguments[:place] + arguments[place + 1 + named :]


def _unread(stream: TextIO | None) -> bool:
    """Whether nobody reads `stream`, a pipe, any more."""
    if stream is None:
        return False
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in watch.poll(0))
    except (AttributeError, OSError, ValueError):  # no file is behind it
        return False


def _discard(stream: TextIO | None) -> None:
    """Let what `stream` still holds go nowhere; else Python complains of it when it ends."""
    if stream is None:
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _rules():
    """Read every path as a shell would: ~ is a home folder, also in ``--out=~/x``."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    from diffrl.base.artifacts import user_path

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def path(info):
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: user_path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _tell(message: str) -> int:
    paragraph = f"Error: {' '.join(message.split())}"
    filled = textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)
    print(filled, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
