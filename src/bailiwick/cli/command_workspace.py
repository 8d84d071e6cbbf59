"""`diff`, `apply`: what a run changed in its workspace, and bringing it back."""

import difflib
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bailiwick.cli import options, terminal
from bailiwick.cli.exits import Exit, Stop
from bailiwick.kernel.errors import BackendError, BailiwickError, CallerError, PeerError

if TYPE_CHECKING:
    from bailiwick.cli.changeset import Archive, Change
    from bailiwick.cli.client import Client
    from bailiwick.governor.views import ChangesView, RunView

DIFF_BYTES_MAX = 1 << 20  # of a file; a larger one is named and not shown

_SIGNS = {"added": ("A", "green"), "modified": ("M", "yellow"), "deleted": ("D", "red"), "mode": ("m", "yellow")}

To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="The directory, when not the run's own workspace.")]


commands = typer.Typer(rich_markup_mode=None)


@commands.command("diff", short_help="What a run changed in its workspace")
def diff(
    run: options.Run,
    to: To = None,
    names: Annotated[bool, typer.Option("--names", help="Only which files, and how.")] = False,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Shows what a run changed in its workspace, against the directory as it is now.

    \b
    bailiwick diff last
    bailiwick diff last --names
    bailiwick diff last | less
    """
    import msgspec

    api = options.client(state)
    run_view, changes = _changes(api, run)
    if json:
        terminal.as_json(msgspec.to_builtins(changes))
        return
    if not changes.changes:
        terminal.note(_nothing(run_view))
    for entry in changes.changes:
        sign, style = _SIGNS.get(str(entry.get("change")), ("?", ""))
        count = f" ({terminal.size(int(entry['size']))})" if entry.get("size") else ""
        terminal.note(f"{terminal.styled(sign, style, sys.stderr)} {terminal.shown(str(entry.get('path')))}{count}")
    for reason in changes.refused:
        terminal.note(f"not brought back: {terminal.shown(reason)}")
    if names or not changes.changes:
        return
    from bailiwick.cli import changeset

    with _archive(api, run_view.run, changes) as archive, changeset.opened(_target(changes, to)) as root:
        for change in archive.changes:
            for line in _unified(root, archive, change):
                _say(line)


@commands.command("apply", short_help="Apply what a run changed, all or nothing")
def apply(run: options.Run, to: To = None, yes: options.Yes = False, json: options.Json = False, state: options.State = None) -> None:
    """Applies what a run changed to its workspace, or to another directory: all of it, or, where anything stands in the way, nothing.

    A file that was changed here since the run was asked for is a conflict; every conflict is named. Links are never followed. Asks first; without a
    terminal to ask at it needs --yes.

    \b
    bailiwick diff last && bailiwick apply last
    bailiwick apply last --to ../other --yes
    """
    from bailiwick.cli import applying, changeset

    api = options.client(state)
    run_view, changes = _changes(api, run)
    if run_view.state != "ended":
        raise CallerError(f"{run_view.run} is {run_view.state}; its changes are there once it has ended", code="conflict")
    if not changes.changes:
        raise Stop(Exit.OK if not changes.refused else Exit.REFUSED, _nothing(run_view) if changes.refused else "")
    target = _target(changes, to)
    if not yes:
        counts = [f"{sum(entry.get('change') == word for entry in changes.changes)} {word}" for word in _SIGNS]
        if not terminal.ask(f"apply to {terminal.shown(str(target))}: {', '.join(counts)}?"):
            terminal.note("nothing is applied")
            raise Stop(Exit.REFUSED)
    since = datetime.fromisoformat(run_view.requested).astimezone(UTC)
    with _archive(api, run_view.run, changes) as archive, changeset.opened(target) as root:
        count = applying.apply(root, archive, int(since.timestamp() * 1_000_000) * 1_000)
    if count or changes.applied is None:
        _note_applied(api, run_view.run, target)
    if json:
        terminal.as_json({"run": run_view.run, "directory": str(target), "changes": len(changes.changes), "made": count, "refused": changes.refused})
        return
    terminal.say(f"{count} of {len(changes.changes)} changes made in {terminal.shown(str(target))}" + ("" if count else ": all were there already"))
    for reason in changes.refused:
        terminal.note(f"not brought back: {terminal.shown(reason)}")


def _note_applied(api: "Client", run: str, target: Path) -> None:
    try:
        api.tell(f"/v1/runs/{run}/applied", {"directory": str(target)})
    except BailiwickError as error:
        raise BackendError(f"the changes are in {target}, and that could not be recorded: {error}; `bailiwick apply` again records it") from error


def _changes(api: "Client", named: str) -> "tuple[RunView, ChangesView]":
    from bailiwick.governor.views import ChangesView, RunView

    run = options.run_id(api, named)
    return api.get(f"/v1/runs/{run}", RunView), api.get(f"/v1/runs/{run}/changes", ChangesView)


def _nothing(run: "RunView") -> str:
    return f"{run.run} changed nothing" if run.state == "ended" else f"{run.run} is {run.state}; its changes are there once it has ended"


def _target(changes: "ChangesView", to: Path | None) -> Path:
    if to is not None:
        return to.absolute()
    if changes.workspace is None:
        raise CallerError(f"{changes.run} had no workspace; name a directory with --to")
    return Path(changes.workspace)


@contextmanager
def _archive(api: "Client", run: str, changes: "ChangesView") -> "Iterator[Archive]":
    from bailiwick.cli.changeset import Archive

    if all(entry.get("change") == "deleted" for entry in changes.changes):
        yield Archive(changes.changes, changes.refused, None)
        return
    with tempfile.TemporaryFile() as file:
        with terminal.progress("fetching what the run left"):
            api.download(f"/v1/runs/{run}/changes.tar", file)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield Archive(changes.changes, changes.refused, tar)
        except tarfile.TarError as error:
            raise PeerError(f"the archive of {run} is not a tar: {error}") from error


def _unified(root: int, archive: "Archive", change: "Change") -> Iterator[str]:
    """The lines of a unified diff; for what is no text, what can be said of it."""
    from bailiwick.cli import changeset

    if change.kind == "directory":
        return
    if change.kind == "link":
        yield f"link {change.shown} -> {change.target.decode('utf-8', 'backslashreplace')}"
        return
    before = changeset.read(root, change.path, DIFF_BYTES_MAX)
    after = b"" if change.kind == "deleted" else b"".join(archive.content(change)) if change.size <= DIFF_BYTES_MAX else None
    old, new = _text(before if before is not None else b""), _text(after)
    if old is None or new is None:
        yield f"binary or large file {change.shown} {change.change}"
        return
    names = ("/dev/null" if before is None else f"a/{change.shown}", "/dev/null" if change.kind == "deleted" else f"b/{change.shown}")
    for line in difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), *names):
        yield from (line.removesuffix("\n"), *([] if line.endswith("\n") or line.startswith(("---", "+++", "@@")) else ["\\ No newline at end of file"]))


def _text(raw: bytes | None) -> str | None:
    if raw is None or b"\0" in raw:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _say(line: str) -> None:
    if not terminal.is_terminal(sys.stdout):
        sys.stdout.write(line + "\n")
        return
    style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "bold" if line.startswith(("---", "+++")) else "")
    terminal.say(terminal.styled(terminal.shown(line), style))
