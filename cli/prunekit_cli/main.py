"""The app and its error handling. Commands import what they need when they run, so help is instant."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit_cli import console, signals

app = typer.Typer(
    name="prunekit",
    help="Prune neural networks by a model of how their loss will change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="List what is installed, from where, and what failed to load.")
app.add_typer(plugins_app, name="plugins", invoke_without_command=True)

_INTERRUPTED = 130

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A results file.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Set one value, such as prune.scheduler.steps=14. Repeatable."
    ),
]
Block = Annotated[
    list[str] | None, typer.Option("--block", metavar="PLUGIN", help="Leave a plugin out. Repeatable.")
]
NoCode = Annotated[
    bool,
    typer.Option(
        "--no-code", help="Refuse a spec that names Python to run: factories, plugins that are not built in."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    spec: Spec,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Results file. Default: the spec's name with .h5, here."),
    ] = None,
    set_: Set = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1 or auto.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished output; start one that is absent.")
    ] = False,
    overwrite: Overwrite = False,
    block: Block = None,
    no_code: NoCode = False,
) -> None:
    """Train, prune, fine-tune and probe as the spec says; write a results file."""
    from prunekit_cli.run import run as command

    command(spec, out, set_ or [], device, resume, overwrite, block or [], not no_code)


@app.command()
def inspect(
    file: File,
    as_json: AsJSON = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show the sparsity of every layer.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG|PDF|SVG", help="Draw the run into this file.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything and say whether the file is whole.")
    ] = False,
) -> None:
    """Show a results file, also while its run goes on."""
    from prunekit_cli.inspect import inspect as command

    command(file, as_json, layers, plot, verify)


@app.command()
def validate(spec: Spec, set_: Set = None, block: Block = None, no_code: NoCode = False) -> None:
    """Check a spec and report every problem with its place."""
    from prunekit_cli.spec import validate as command

    command(spec, set_ or [], block or [], not no_code)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, with every installed plugin's options, for editors."""
    from prunekit_cli.spec import schema as command

    command()


@app.command()
def export(
    file: File,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="F", help="Write weights here.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="F", help="Write masks here, True = kept.")
    ] = None,
    phase: Annotated[
        str | None, typer.Option("--phase", help="dense, pruned or finetuned. Default: the last there is.")
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", help="Masks after this step. Default: the last.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write weights and masks of a results file as safetensors."""
    from prunekit_cli.export import export as command

    command(file, weights, masks, phase, step, overwrite)


@plugins_app.callback()
def plugins(context: typer.Context, as_json: AsJSON = False) -> None:
    """List what is installed, from where, and what failed to load."""
    if context.invoked_subcommand is None:
        from prunekit_cli.plugins import listing

        listing(as_json)


@plugins_app.command("show")
def show(name: Annotated[str, typer.Argument(metavar="NAME")], as_json: AsJSON = False) -> None:
    """Show one component: where it comes from and its options with types and defaults."""
    from prunekit_cli.plugins import show as command

    command(name, as_json)


@app.command()
def check(
    component: Annotated[str, typer.Argument(metavar="KIND:NAME", help="Such as criterion:qm.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Set one of its options. Repeatable."),
    ] = None,
    as_json: AsJSON = False,
    block: Block = None,
) -> None:
    """Check what a component of some plugin promises, a verdict a line."""
    from prunekit_cli.check import check as command

    if not command(component, set_ or [], as_json, block or []):
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        from prunekit import __version__

        print(f"prunekit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: run the app and turn what happens into an exit code."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: list[str]) -> int:
    """Run the app on some arguments.

    Returns:
        0 done; 2 for what the user can mend (usage, spec, data, file); 1 a failed run or a bug of ours; 130
        interrupted.
    """
    from prunekit.distributed import speaks

    _open_standard_streams()
    signals.install()
    # What all processes of a run have to say, one says.
    silent = arguments[:1] == ["run"] and not speaks()
    warnings.formatwarning = console.warning
    if silent:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a λ must not end a run on a terminal that has none
            stream.reconfigure(errors="backslashreplace")
    command: Any = typer.main.get_command(app)
    try:
        result = command.main(arguments, prog_name="prunekit", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        result = _INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # The reader of our output is gone (`| head`); nothing is left to say to it. Typer makes it an exit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
        return 0
    except Exception as error:
        return _report(error, silent)
    if result == _INTERRUPTED and not silent:
        print("interrupted" + ("; go on with --resume" if arguments[0] == "run" else ""), file=sys.stderr)
    return result if isinstance(result, int) else 0


def _open_standard_streams() -> None:
    """Give a process that has none (a daemon, ``>&-``) streams that lead nowhere, before a file takes their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _report(error: Any, silent: bool) -> int:
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error of the parser
        if not silent:
            error.show()
        return int(error.exit_code)
    from prunekit.errors import PrunekitError

    if isinstance(error, PrunekitError):
        if not silent:
            console.say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f"{error.filename or 'output'}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    console.say("".join(traceback.format_exception(error)).rstrip())
    print("this is a bug in prunekit or a plugin; please report it with the lines above", file=sys.stderr)
    return 1
