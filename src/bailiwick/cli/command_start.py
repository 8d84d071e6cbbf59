"""`init`, `check`, `up`, `down`: from nothing to an installation, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Stop
from bailiwick.kernel.errors import CallerError

commands = typer.Typer(rich_markup_mode=None)


@commands.command("init", short_help="Write a starter configuration")
def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Writes a commented starter configuration, an agent to try it with, and a place for policies. Valid as written.

    \b
    bailiwick init
    bailiwick init my-agents && cd my-agents && bailiwick run hello "say hello"
    """
    import getpass

    from bailiwick.cli import starter

    try:
        operator = getpass.getuser()
    except (KeyError, OSError):
        operator = "root"
    files = {directory / path: content for path, content in starter.files(operator).items()}
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there and not force:
        raise CallerError(f"{', '.join(there)} exist{'s' if len(there) == 1 else ''} already; use --force to overwrite, or name another directory")
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a link is replaced, not written through
            path.write_text(content)
            terminal.say(f"wrote {terminal.shown(str(path))}")
    except OSError as error:
        raise CallerError(f"{error.filename} cannot be written: {error.strerror}; name another directory") from error
    terminal.note('next: bailiwick check, then bailiwick run hello "say hello"')


@commands.command("check", short_help="Validate the configuration")
def check(
    path: Annotated[Path | None, typer.Argument(metavar="[FILE|DIR]", help="The configuration, or its directory [here].")] = None,
    json: options.Json = False,
) -> None:
    """Validates the configuration and the policies beside it: every finding, with file, line, column, what was expected and the way out.

    \b
    bailiwick check
    bailiwick check /etc/bailiwick --json
    """
    from bailiwick.app.configuration import check as find

    file = path or options.configuration(None) or Path(options.CONFIGURATION)
    if file.is_dir():
        file /= options.CONFIGURATION
    if not file.exists():
        raise Stop(Exit.CONFIGURATION, f"{file} does not exist; name the configuration, or make one with `bailiwick init`")
    findings = find(file)
    if json:
        terminal.as_json([asdict(finding) for finding in findings])
    elif not findings:
        terminal.say(f"{terminal.shown(str(file))} is valid")
    else:
        for finding in findings:
            terminal.say(terminal.shown(str(finding)))
        terminal.note(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}")
    if findings:
        raise Stop(Exit.CONFIGURATION)


@commands.command("up", short_help="Run the installation")
def up(
    config: options.Config = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="Without a configuration: only commands can be run.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, max=64, help="Gateway workers [one a core, at most four].")] = None,
    idle_exit: Annotated[float | None, typer.Option("--idle-exit", metavar="SECONDS", min=0.0, help="Stop after so long without a run.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is up.")] = False,
    state: options.State = None,
) -> None:
    """Runs the installation: launcher, recorder, broker, governor and gateway workers, as one supervised group, until it is stopped.

    Ctrl-C or SIGTERM ends every run and then every process. `bailiwick run` starts a group by itself where none is up.

    \b
    bailiwick up
    bailiwick up --config /etc/bailiwick/bailiwick.yaml --workers 2
    bailiwick up --detach
    """
    chosen = None if no_config else options.configuration(config)
    if chosen is None and not no_config:
        raise Stop(Exit.CONFIGURATION, f"there is no {options.CONFIGURATION} here; `bailiwick init` makes one, or use --no-config")
    if chosen is not None and not chosen.exists():
        raise Stop(Exit.CONFIGURATION, f"{chosen} does not exist; name another with --config, or make one with `bailiwick init`")
    layout = options.layout(state)
    if detach:
        from bailiwick.app.detached import is_up, start_detached

        if is_up(layout):
            raise CallerError(f"an installation is up in {layout.root} already; `bailiwick status` shows it", code="conflict")
        with terminal.progress("starting the processes"):
            pid = start_detached(chosen, layout, workers=workers, idle_exit_seconds=idle_exit)
        terminal.say(f"up as process {pid}, state in {layout.root}")
        return
    from bailiwick.app.processes import up as run_group

    status = run_group(
        chosen,
        layout,
        workers=workers,
        idle_exit_seconds=idle_exit,
        ready=lambda: terminal.note(f"bailiwick: up, state in {layout.root}; Ctrl-C stops it"),
    )
    raise typer.Exit(status)


@commands.command("down", short_help="Stop the installation")
def down(state: options.State = None) -> None:
    """Ends every run and then every process, in order, and returns when they are gone.

    \b
    bailiwick down
    """
    from bailiwick.cli.command_run import stop_group

    layout = options.layout(state)
    with terminal.progress("stopping the processes"):
        stop_group(options.client(state), layout)
    terminal.say("down")
