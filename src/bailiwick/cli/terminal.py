"""What a person sees. Text that an agent, a peer or a file name brought is made visible before it reaches a terminal: no escape of theirs is obeyed."""

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from bailiwick.cli.exits import Exit, Stop
from bailiwick.critic.visible import visible

_STYLES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "alarm": "1;33",
}  # fmt: skip
_WIDTH_MIN, _WIDTH_PLAIN = 40, 120
_NOTICED_SECONDS = 0.7
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def interactive() -> bool:
    """Whether a person can be asked: they see what is asked and can type."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def colour(stream: TextIO) -> bool:
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb" and is_terminal(stream)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and colour(stream or sys.stdout) else text


def width() -> int:
    """Columns to fill: the terminal's, or enough for a file to be read."""
    return max(_WIDTH_MIN, shutil.get_terminal_size((_WIDTH_PLAIN, 24)).columns)


def columns_of(stream: TextIO) -> int:
    """Of the terminal behind a stream, whatever a variable says."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def cells(text: str) -> int:
    """Columns that visible text takes at most: terminals differ over what is wide, and a row must never be longer than was reckoned."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    narrow = character.isascii() or (unicodedata.east_asian_width(character) in ("N", "Na", "H") and unicodedata.category(character)[0] in "LMNP")
    return 1 if narrow else 2


def fitting(text: str, columns: int) -> int:
    """How many characters from the beginning surely fit."""
    if text.isascii():
        return min(len(text), max(1, columns))
    left, count = columns, 0
    while count < len(text) and (left := left - _cells(text[count])) >= 0:
        count += 1
    return max(1, count)


def rows(text: str, columns: int) -> Iterator[str]:
    """Visible text over as many rows as it needs; at least one."""
    while True:
        at = fitting(text, columns)
        yield text[:at]
        text = text[at:]
        if not text:
            return


def shown(text: str, *, lines: bool = False) -> str:
    """Another's text as it may stand in a line of ours."""
    return visible(text, lines=lines)


def one_line(text: str) -> str:
    """A task or a command, which may have lines of its own, in a line of ours. Not for what is signed over."""
    return visible(" ↵ ".join(part.strip() for part in text.strip().splitlines()))


def already_visible(text: str, *, lines: bool = True) -> str:
    """Text whose hidden characters are written out already, as its sender says; any that are left are written out here."""
    return "".join(each if " " <= each <= "~" or (lines and each in "\n\t") else visible(each) for each in text)


def raw(text: str, stream: TextIO) -> None:
    """Another's text as a whole: unchanged into a file or a pipe, made visible on a terminal."""
    stream.write(visible(text, lines=True) if is_terminal(stream) else text)
    stream.flush()


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """To standard error: what was not asked for and is worth knowing."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def forget() -> None:
    """Standard streams that nobody reads any more lead nowhere from now on, so that what is left to do is not cut short by a write."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)  # an error and a hang-up are told unasked
        if poll.poll(0):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def error(message: str) -> None:
    for number, line in enumerate(message.splitlines() or [""]):
        note(styled("error:", "red", sys.stderr) + f" {shown(line)}" if number == 0 else f"  {shown(line)}")


def as_json(value: Any) -> None:
    say(json.dumps(value, indent=2, ensure_ascii=not _utf8(sys.stdout)))


def json_line(value: Any) -> None:
    sys.stdout.write(json.dumps(value, separators=(",", ":"), ensure_ascii=not _utf8(sys.stdout)) + "\n")
    sys.stdout.flush()


def ask(question: str) -> bool:
    """A yes, typed out; anything else, and the end of input, is a no. Stop where nobody can be asked."""
    if not interactive():
        raise Stop(Exit.USAGE, "no terminal to ask at; use --yes")
    note(f"{question} [y/N] ")
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Once it takes long enough to be noticed: a spinner on a terminal, one line elsewhere."""
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(text, done), daemon=True, name="progress")
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _tell(text: str, done: threading.Event) -> None:
    if done.wait(_NOTICED_SECONDS):
        return
    if not is_terminal(sys.stderr):
        note(f"{text} ...")
        return
    for frame in itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"):
        sys.stderr.write(f"\r{frame} {text}")
        sys.stderr.flush()
        if done.wait(0.1):
            break
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, flexible: int = -1, styles: Sequence[Sequence[str]] = ()) -> None:
    """Aligned columns within the width; the `flexible` one is cut where it must. Cells are visible already."""
    flexible %= len(columns)
    widths = [max(len(row[n]) for row in [columns, *rows]) for n in range(len(columns))]
    spare = width() - sum(widths) - 2 * (len(columns) - 1)
    if spare < 0:
        widths[flexible] = max(8, widths[flexible] + spare)
    say(styled(_row(columns, widths), "bold"))
    for number, row in enumerate(rows):
        style = styles[number] if styles else [""] * len(row)
        say(_row(row, widths, style))


def _row(cells: Sequence[str], widths: Sequence[int], style: Sequence[str] = ()) -> str:
    parts = []
    for number, (cell, size) in enumerate(zip(cells, widths, strict=True)):
        cut = cut_to(cell, size)
        padding = " " * (size - len(cut)) if number < len(cells) - 1 else ""
        parts.append((styled(cut, style[number]) if style else cut) + padding)
    return "  ".join(parts).rstrip()


def cut_to(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def plain(text: str) -> str:
    """Without our own colours."""
    return _ESCAPES.sub("", text)


def seconds(value: float) -> str:
    """A length of time for a person: 12 ms, 3.4 s, 2 min 05 s, 1 h 02 min."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = int(value)
    if value < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def dollars(microusd: int) -> str:
    return f"${microusd / 1_000_000:.4f}" if microusd < 1_000_000 else f"${microusd / 1_000_000:,.2f}"


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"
