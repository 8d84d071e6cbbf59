"""`record verify`, `record export`, `record key`: taking the record away, and proving it without us."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Stop
from bailiwick.kernel.errors import CallerError

commands = typer.Typer(rich_markup_mode=None)
record = typer.Typer(help="The tamper-evident record: export it, verify it offline.", no_args_is_help=True, rich_markup_mode=None)
commands.add_typer(record, name="record")


@record.command("verify", short_help="Verify an export offline")
def verify(
    file: Annotated[Path, typer.Argument(metavar="EXPORT", help="A file made by `bailiwick record export`.")],
    key: Annotated[str | None, typer.Option("--key", metavar="VKEY|FILE", help="The public key, from a place the export did not come from.")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="FILE", help="A checkpoint that was kept elsewhere.")] = None,
    json: options.Json = False,
) -> None:
    """Verifies an export offline: every event, its order, and the signature over all of them. Names the first event that is wrong.

    Needs no installation, no network and no database. Without --key the key in the export is taken, which shows only that the file agrees with
    itself. The exit status is 7 when the record was changed.

    \b
    bailiwick record verify run.bailiwick --key record.vkey
    bailiwick record verify run.bailiwick --key "example.org/record+9d1c...+AZ..." --json
    """
    import msgspec

    from bailiwick.record.verify import Tampered, verify_export

    kept = _content(checkpoint) if checkpoint is not None else None
    try:
        with terminal.progress(f"verifying {terminal.shown(str(file))}"):
            verified = verify_export(file, _key(key), kept=kept)
    except Tampered as tampered:
        if json:
            terminal.as_json({"verified": False, "what": tampered.what, "sequence": tampered.sequence})
        raise Stop(Exit.NOT_VERIFIED, f"{file} is not what was recorded: {tampered}") from None
    if json:
        terminal.as_json({"verified": True, **msgspec.to_builtins(verified)})
        return
    about = f"run {verified.run}: {verified.events} events" if verified.run else f"{verified.events} events"
    terminal.say(f"{terminal.styled('verified', 'green')} {about} of {verified.size}, as signed {verified.checkpoints} times by {verified.origin}")
    terminal.say(f"  root      {verified.root}")
    terminal.say(f"  received  {verified.first_received} to {verified.last_received}")
    terminal.say(f"  key       {verified.key}")
    for finding in verified.findings:
        terminal.say(f"  lacks     event {finding.sequence}: {terminal.shown(finding.what)}")
    if not verified.pinned:
        terminal.note("bailiwick: the key came with the export; give --key from elsewhere (`bailiwick record key`) to prove who signed it")


@record.command("export", short_help="Write the record to a file")
def export(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="One run; all of the record without it.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to [RUN.bailiwick]; - is standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    state: options.State = None,
) -> None:
    """Writes the record, or one run of it, to a file that `record verify` proves offline.

    \b
    bailiwick record export last
    bailiwick record export --output everything.bailiwick
    """
    api = options.client(state)
    name = options.run_id(api, run) if run is not None else None
    target = output or Path(f"{name or 'record'}.bailiwick")
    if str(target) == "-":
        api.download("/v1/record/export", sys.stdout.buffer, run=name)
        return
    if target.exists() and not force:
        raise CallerError(f"{target} exists; name another with --output, or use --force")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("xb") as file, terminal.progress(f"writing {terminal.shown(str(target))}"):
            count = api.download("/v1/record/export", file, run=name)
        draft.replace(target)
    except OSError as error:
        raise CallerError(f"{target} cannot be written: {error.strerror}; name another with --output") from error
    finally:
        draft.unlink(missing_ok=True)
    terminal.say(f"{target}: {terminal.size(count)}")


@record.command("key", short_help="Print the public key of the record")
def key(state: options.State = None) -> None:
    """Prints the public key that verifies the record. Keep it where the record is not.

    \b
    bailiwick record key > record.vkey
    """
    terminal.say(options.client(state).text("/v1/record/key").strip())


def _key(given: str | None) -> str | None:
    """A vkey, or the content of the file that holds it."""
    if given is None or (given.count("+") >= 2 and not Path(given).exists()):
        return given
    return _content(Path(given)).strip()


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CallerError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}; give a file or the key itself") from error
