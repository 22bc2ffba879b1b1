"""The app and its error handling. Commands import what they need when they run, so help is instant."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from prunekit_cli import console, signals
from prunekit_cli.failures import report
from prunekit_cli.formats import Format
from prunekit_cli.streams import lasting

app = typer.Typer(
    name="prunekit",
    help="Prune neural networks using a model of how their loss will change.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
plugins_app = typer.Typer(help="List what is installed, from where, and what failed to load.")
app.add_typer(plugins_app, name="plugins", invoke_without_command=True)

_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A results file.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a value in the spec, such as prune.scheduler.steps=14. Repeatable.",
    ),
]
Block = Annotated[
    list[str] | None, typer.Option("--block", metavar="PLUGIN", help="Ignore this plugin. Repeatable.")
]
NoCode = Annotated[
    bool,
    typer.Option(
        "--no-code",
        help="Reject a spec that names Python code to run: factories, plugins that are not built in.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Columns = Annotated[
    int | None,
    typer.Option(
        "--columns",
        metavar="1|2",
        min=1,
        max=2,
        help="With --plot: the width of one or two columns of a paper, without a title.",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a self-contained page for a browser."),
]
Form = Annotated[
    Format | None,
    typer.Option("--format", help="Print the tables in this format, for papers or other programs."),
]


@app.command()
def run(
    spec: Spec,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Results file. Default: the spec's name with .h5, in the current folder.",
        ),
    ] = None,
    set_: Set = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="Device: cpu, cuda, cuda:1 or auto.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run; start one if there is none.")
    ] = False,
    overwrite: Overwrite = False,
    block: Block = None,
    no_code: NoCode = False,
) -> None:
    """Train, prune, fine-tune and probe as the spec says; write a results file."""
    from prunekit_cli.run import run as command

    command(spec, out, set_ or [], device, resume, overwrite, block or [], not no_code)


@app.command()
def prune(
    spec: Spec,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The new folder.")],
    set_: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the expected time and memory; write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with the next block after an interrupted call.")
    ] = False,
    overwrite: Overwrite = False,
    block: Block = None,
    no_code: NoCode = False,
) -> None:
    """Prune a Hugging Face folder into another, block by block, without ever loading the whole network."""
    from prunekit_cli.prune import prune as command

    command(spec, out, set_ or [], dry_run, resume, overwrite, block or [], not no_code)


@app.command()
def inspect(
    file: File,
    as_json: AsJSON = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show the sparsity of every layer.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG|PDF|SVG", help="Draw the run to this file.")
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            "--figure",
            metavar="NAME",
            help="What to draw: run (the default), loss, honesty, layers, or the findings of this probe.",
        ),
    ] = None,
    columns: Columns = None,
    html: Page = None,
    probe: Annotated[
        str | None, typer.Option("--probe", metavar="NAME", help="Show all findings of this probe.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check all checksums: is the file complete and undamaged?")
    ] = False,
    form: Form = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow the run until it ends; exit code 1 if it fails.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show a results file, even while its run is in progress."""
    from prunekit_cli.inspect import inspect as command

    if not command(
        file, as_json, layers, plot, figure, probe, verify, form, follow, columns, html, overwrite
    ):
        raise typer.Exit(1)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep, a YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Folder for the runs. Default: the sweep's name, beside its file."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their status; run nothing.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Number of workers. Default: one per GPU, or one per core."
        ),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            "--executor",
            metavar="NAME",
            help="How workers are started: inline, process, submitit, ray, or one from a plugin.",
        ),
    ] = None,
    retry: Annotated[
        str | None, typer.Option("--retry", metavar="failed", help="Run failed runs again.")
    ] = None,
    as_json: AsJSON = False,
    block: Block = None,
    no_code: NoCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
) -> None:
    """Run every combination of some values of a spec; several such commands can share the work on one folder."""
    from prunekit_cli.sweep import sweep as command

    if not command(file, out, dry_run, workers, executor, retry, as_json, block or [], not no_code, quiet):
        raise typer.Exit(1)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(metavar="ID", help="The paper: 2006.12279.")],
    tier: Annotated[
        str,
        typer.Option(
            "--tier", metavar="T", help="smoke: digits, two minutes; cpu: MNIST, hours; gpu: all in full."
        ),
    ],
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder of the data.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Folder for the results. Default: ID-TIER, in the current folder."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished reproduction.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="As for sweep.")
    ] = None,
    executor: Annotated[str | None, typer.Option("--executor", metavar="NAME", help="As for sweep.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Run a paper's grid, set its tables beside the published ones, and judge each claim: pass, fail or undecided."""
    from prunekit_cli.reproduce import reproduce as command

    if not command(paper, tier, data, out, resume, workers, executor, as_json):
        raise typer.Exit(1)


@app.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results files, or folders of sweeps.")
    ],
    as_json: AsJSON = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG|PDF|SVG", help="Draw them to this file.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare even if the runs followed different protocols.")
    ] = False,
    form: Form = None,
    columns: Columns = None,
    html: Page = None,
    overwrite: Overwrite = False,
) -> None:
    """Show runs side by side: changes of the loss, errors, error budgets, overlap of masks, differences."""
    from prunekit_cli.compare import compare as command

    command(files, as_json, plot, anyway, form, columns, html, overwrite)


@app.command()
def verify(
    file: File,
    as_json: AsJSON = False,
    set_: Set = None,
    device: Annotated[
        str, typer.Option("--device", metavar="D", help="Device to compute on: cpu, cuda, cuda:1 or auto.")
    ] = "cpu",
    block: Block = None,
    no_code: NoCode = False,
) -> None:
    """Recompute the claims of a results file from its stored weights and the data, one line per claim."""
    from prunekit_cli.verify import verify as command

    if not command(file, as_json, set_ or [], device, block or [], not no_code):
        raise typer.Exit(1)


@app.command()
def validate(
    spec: Spec,
    set_: Set = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="Also build the network, load the data, and show which weights would be pruned."
        ),
    ] = False,
    block: Block = None,
    no_code: NoCode = False,
) -> None:
    """Check a spec and report every problem with its line and column."""
    from prunekit_cli.spec import validate as command

    command(spec, set_ or [], block or [], not no_code, build)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, including the options of all installed plugins, for editors."""
    from prunekit_cli.spec import schema as command

    command()


@app.command()
def export(
    file: File,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="With --hf: the folder to write.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="F", help="File for the weights.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="F", help="File for the masks; True = kept.")
    ] = None,
    phase: Annotated[
        str | None,
        typer.Option("--phase", help="Network to export: dense, pruned or finetuned. Default: the last one."),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", help="Export the masks after this step. Default: the last.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="F", help="Format of the weights: dense, csr, 2:4 or compressed-tensors."
        ),
    ] = "dense",
    hf: Annotated[
        Path | None,
        typer.Option("--hf", metavar="SOURCE", help="Write OUT like SOURCE, a Hugging Face folder."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write weights and masks of a results file as safetensors, or the network as a Hugging Face folder."""
    from prunekit_cli.export import export as command
    from prunekit_cli.export import pretrained

    if hf is not None or out is not None:
        pretrained(file, hf, out, [weights, masks, step, None if form == "dense" else form], phase, overwrite)
    else:
        command(file, weights, masks, phase, step, overwrite, form)


@plugins_app.callback()
def plugins(context: typer.Context, as_json: AsJSON = False) -> None:
    """List what is installed, from where, and what failed to load."""
    if context.invoked_subcommand is None:
        from prunekit_cli.plugins import listing

        listing(as_json)


@plugins_app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a component or a plugin.")],
    as_json: AsJSON = False,
) -> None:
    """Show a component's origin and its options with types and defaults."""
    from prunekit_cli.plugins import show as command

    command(name, as_json)


@app.command()
def check(
    component: Annotated[str, typer.Argument(metavar="KIND:NAME", help="Component, such as criterion:qm.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Set one of its options. Repeatable."),
    ] = None,
    as_json: AsJSON = False,
    block: Block = None,
) -> None:
    """Check that a component keeps the promises of its kind, one verdict per line."""
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
    code = signals.INTERRUPTED
    try:
        with signals.interrupting():
            code = invoke(sys.argv[1:])
            signals.settle(code)
    except KeyboardInterrupt:  # on the way out
        signals.say()
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run the app on some arguments.

    Returns:
        0 done; 2 for what the user can mend (usage, spec, data, file); 1 a failed run or a bug of ours; 130
        interrupted.
    """
    # pydantic and torch look for plugins of their own, and any distribution whose entry points cannot be read stops them.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    from prunekit.distributed import speaks

    # What all processes of a run have to say, one says.
    silent = arguments[:1] == ["run"] and not speaks()
    warnings.formatwarning = console.warning
    with lasting(), signals.interrupting():
        if silent:
            warnings.simplefilter("ignore")
        try:
            code = _called(arguments)
            if code != signals.INTERRUPTED and not signals.received():  # which some versions of typer return
                return code
        except (KeyboardInterrupt, typer.Abort):
            pass
        except BrokenPipeError:
            # The reader of our output is gone (`| head`); nothing is left to say to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at exit
            return 0
        except BaseException as error:
            from prunekit.errors import was_interrupted

            if not was_interrupted(error):
                return report(error, silent)
        if not silent:
            signals.say("; continue it with --resume" if arguments[:1] == ["run"] else "")
        return signals.INTERRUPTED


def _completes(arguments: list[str]) -> bool:
    """Whether a shell asks, or asks how to ask, what may come next: the parser then ends by itself."""
    asked = "_PRUNEKIT_COMPLETE" in os.environ
    return asked or arguments[:1] in (["--install-completion"], ["--show-completion"])


def _shows_completion(shell: str) -> int:
    """Print the script of a shell that is named, also where it is not the one that asks."""
    from importlib import import_module

    if shell not in _SHELLS:
        raise typer.BadParameter(f"{shell}: accepted: {', '.join(_SHELLS)}", param_hint="--show-completion")
    script = import_module("typer.completion").get_completion_script  # not among those that typer lists
    print(script(prog_name="prunekit", complete_var="_PRUNEKIT_COMPLETE", shell=shell))
    return 0


def _called(arguments: list[str]) -> int:
    if arguments[:1] == ["--show-completion"] and len(arguments) == 2:
        return _shows_completion(arguments[1])
    command = typer.main.get_command(app)
    try:
        result = command.main(arguments, prog_name="prunekit", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # which rich makes an exit
            raise error.__context__ from None
        if error.code in (0, None) and _completes(arguments):
            return 0
        raise
    return result if isinstance(result, int) else 0
