"""What a person sees of a run while it goes on: a live view on a terminal, plain lines elsewhere, or the events themselves."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from bailiwick.cli import events, terminal
from bailiwick.cli.events import Event, Story

if TYPE_CHECKING:
    from bailiwick.governor.views import HoldView

_PARTIAL_MAX = 1 << 14  # of a line that does not end


class View(Protocol):
    def __enter__(self) -> "View": ...

    def __exit__(self, *_: object) -> None: ...

    def event(self, event: Event) -> None: ...

    def hold(self, hold: "HoldView", answerable: bool) -> None:
        """A hold was opened; `answerable` says that a key press answers it."""
        ...

    def note(self, text: str) -> None: ...


class Lasting:
    """A view that outlives its terminal: the first write that fails calls `gone`, and from then on nothing is shown."""

    def __init__(self, view: View, gone: Callable[[], None]) -> None:
        self._view = view
        self._gone = gone
        self._lost = False

    def __enter__(self) -> "Lasting":
        self._attempt(self._view.__enter__)
        return self

    def __exit__(self, *_: object) -> None:
        self._attempt(lambda: self._view.__exit__(None, None, None))

    def event(self, event: Event) -> None:
        self._attempt(lambda: self._view.event(event))

    def hold(self, hold: "HoldView", answerable: bool) -> None:
        self._attempt(lambda: self._view.hold(hold, answerable))

    def note(self, text: str) -> None:
        self._attempt(lambda: self._view.note(text))

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError:
            if not self._lost:
                self._lost = True
                terminal.forget()
                self._gone()


class Lines:
    """JSON lines for a program."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def event(self, event: Event) -> None:
        terminal.json_line(event)

    def hold(self, hold: "HoldView", answerable: bool) -> None:
        return

    def note(self, text: str) -> None:
        terminal.note(f"bailiwick: {text}")


class Output:
    """What an agent writes, as rows of a terminal: each of them begins with a bar, so that none can pass for a line of ours."""

    def __init__(self) -> None:
        self._partial: dict[str, str] = {}

    def rows(self, event: Event, columns: int) -> Iterator[str]:
        """Of the lines that are whole now, and of one that has grown too long to be kept."""
        stream = _stream(event)
        *whole, rest = (self._partial.get(stream, "") + str(event["event"].get("body", {}).get("text", ""))).split("\n")
        if len(rest) > _PARTIAL_MAX:
            whole, rest = [*whole, rest], ""
        self._partial[stream] = rest
        for line in whole:
            yield from barred(line, columns)

    def rest(self, stream: str, columns: int) -> Iterator[str]:
        if left := self._partial.pop(stream, ""):
            yield from barred(left, columns)


def barred(line: str, columns: int) -> Iterator[str]:
    """The bar may be drawn two columns wide."""
    for row in terminal.rows(terminal.shown(line), max(2, columns - 3)):
        yield f"│ {row}"


class Plain:
    """The agent's output where the agent's output goes, behind a bar where that is a terminal; what it did, and what was decided, on standard error."""

    def __init__(self) -> None:
        self._story = Story()
        self._output = Output()

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            for row in self._output.rest(name, terminal.columns_of(stream)):
                stream.write(row + "\n")
            stream.flush()

    def event(self, event: Event) -> None:
        if event["event"]["kind"] == "run.output":
            stream = sys.stderr if _stream(event) == "stderr" else sys.stdout
            if terminal.is_terminal(stream):
                stream.write("".join(f"{row}\n" for row in self._output.rows(event, terminal.columns_of(stream))))
                stream.flush()
                _say_dropped(event)
            else:
                write_output(event)
        for since, line in self._story.tell(event):
            terminal.note(terminal.plain(events.rendered(since, line, 160)))

    def hold(self, hold: "HoldView", answerable: bool) -> None:
        for line in held(hold):
            terminal.note(line)
        self.note(f"answer with `bailiwick approve {hold.hold}` or `bailiwick deny {hold.hold} --why ...`")

    def note(self, text: str) -> None:
        terminal.note(f"bailiwick: {text}")


class Live:
    """A line of state at the bottom, the story above it."""

    def __init__(self, run: str, name: str) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.spinner import Spinner

        self._run = run
        self._name = terminal.shown(name)
        self._story = Story()
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._spinner = Spinner("dots")
        self._started = time.monotonic()
        self._state_word = "starting"
        self._counts = {"allow": 0, "deny": 0, "hold": 0}
        self._tokens = 0
        self._output = Output()
        self._waiting = ""
        self._live = RichLive(get_renderable=self._state, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> "Live":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for stream in ("stdout", "stderr"):
            self._print_rows(self._output.rest(stream, terminal.columns_of(sys.stdout)))
        self._live.__exit__(None, None, None)

    def event(self, event: Event) -> None:
        self._count(event["event"])
        if event["event"]["kind"] == "run.output":
            self._print_rows(self._output.rows(event, terminal.columns_of(sys.stdout)))
            if dropped := event["event"].get("body", {}).get("dropped_bytes"):
                self.note(_lost(dropped))
            return
        for since, told in self._story.tell(event):
            self._print(events.rendered(since, told, self._console.width))

    def hold(self, hold: "HoldView", answerable: bool) -> None:
        for line in held(hold):
            self._print(line)
        self._waiting = f"{hold.hold}: y approves, n denies" if answerable else f"{hold.hold}: bailiwick approve {hold.hold}"

    def note(self, text: str) -> None:
        self._print(terminal.styled(text, "yellow"))

    def answered(self) -> None:
        self._waiting = ""

    def _print_rows(self, rows: Iterable[str]) -> None:
        for row in rows:
            self._print(terminal.styled(row[:1], "dim") + row[1:])

    def _print(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(text))

    def _count(self, event: dict[str, Any]) -> None:
        words = {
            "run.probed": "sealed", "run.started": "running", "run.paused": "paused", "run.resumed": "running", "run.killed": "being killed",
            "run.ended": "ended",
        }  # fmt: skip
        self._state_word = words.get(event["kind"], self._state_word)
        if event["kind"] == "action.decided" and event.get("decision") in self._counts:
            self._counts[event["decision"]] += 1
        if event["kind"] in ("hold.signed", "hold.closed"):
            self._waiting = ""
        self._tokens += (event.get("input_tokens") or 0) + (event.get("output_tokens") or 0)

    def _state(self) -> Any:
        from rich.text import Text

        counts = self._counts
        facts = [self._name, self._state_word, terminal.seconds(time.monotonic() - self._started), f"{counts['allow']} allowed"]
        facts += [f"{counts['deny']} denied"] if counts["deny"] else []
        facts += [f"{counts['hold']} held"] if counts["hold"] else []
        facts += [f"{self._tokens:,} tokens"] if self._tokens else []
        text = Text(" · ".join([self._run, *facts]), style="bold", no_wrap=True, overflow="ellipsis")
        if self._waiting:
            text = Text(f"waits for you · {self._waiting}", style="bold yellow", no_wrap=True, overflow="ellipsis")
        self._spinner.update(text=text)
        return self._spinner


def view(run: str, name: str, *, as_json: bool) -> View:
    if as_json:
        return Lines()
    return Live(run, name) if terminal.is_terminal(sys.stdout) and terminal.colour(sys.stdout) else Plain()


def write_output(event: Event) -> None:
    """What the agent wrote, on the stream it wrote it to."""
    body = event["event"].get("body", {})
    terminal.raw(str(body.get("text", "")), sys.stderr if body.get("stream") == "stderr" else sys.stdout)
    _say_dropped(event)


def _stream(event: Event) -> str:
    return "stderr" if event["event"].get("body", {}).get("stream") == "stderr" else "stdout"


def _say_dropped(event: Event) -> None:
    if dropped := event["event"].get("body", {}).get("dropped_bytes"):
        terminal.note(f"bailiwick: {_lost(dropped)}")


def _lost(dropped: int) -> str:
    return f"{dropped} bytes of output came faster than the record takes them and are lost"


def held(hold: "HoldView") -> list[str]:
    """What is shown of a hold to who decides it: everything that was signed over."""
    shown = hold.shown
    resource, body = shown.get("resource", {}), shown.get("body", {})
    found = [
        terminal.styled(f"◼ {hold.hold} {'waits for sign-off' if hold.state == 'pending' else hold.state}", "alarm"),
        *_field("run", f"{hold.run} of {hold.agent}"),
        *_field("action", f"{shown.get('verb', '?')} {_resource(resource)}"),
    ]
    if shown.get("arguments"):
        import json

        found += _field("arguments", json.dumps(shown["arguments"], ensure_ascii=False))
    for header in shown.get("fields", []):
        if not body.get("size") or header != {"name": "content-type", "value": body.get("content_type")}:  # which stands beside the body
            found += _field("field", f"{header['name']}: {_value_of(header)}")
    if body.get("size"):
        found += _field("body", f"{terminal.size(int(body['size']))} of {body.get('content_type') or 'no type'}")
        for line in terminal.already_visible(hold.body_text).split("\n"):
            found += _wrapped("", line)
        found += _field("sha256", str(body.get("sha256")))
    found += _field("rules", ", ".join(hold.rules))
    found += _field("approvers", f"{', '.join(hold.approvers)}, {hold.quorum} of them{', not who dispatched it' if hold.four_eyes else ''}")
    found += _field("expires", hold.expires)
    found += _field("digest", hold.digest.removeprefix("sha256:"))
    for signature in hold.signed:
        why = f': "{signature["why"]}"' if signature.get("why") else ""
        found += _field("signed", f"{signature.get('outcome', '')} by {signature.get('operator', '')}{why}")
    return found


def _value_of(header: dict[str, Any]) -> str:
    return f"({header['size']} bytes of SHA-256 {header['sha256']})" if "sha256" in header else str(header.get("value", ""))


def _field(label: str, text: str) -> list[str]:
    return _wrapped(label, terminal.shown(text))


def _wrapped(label: str, text: str) -> list[str]:
    """Over as many lines as it needs: nothing of what is signed is cut."""
    columns = max(20, terminal.width() - 12)
    return [f"  {label if number == 0 else '':<10}{piece}".rstrip() for number, piece in enumerate(terminal.rows(text, columns))]


def _resource(resource: dict[str, Any]) -> str:
    if "path" in resource:
        port = {"http": 80, "https": 443}.get(str(resource.get("scheme"))) == resource.get("port")
        authority = f"{resource.get('host')}" if port else f"{resource.get('host')}:{resource.get('port')}"
        query = f"?{resource['query']}" if resource.get("query") else ""
        return f"{resource.get('method')} {resource.get('scheme')}://{authority}{resource['path']}{query}"
    return " ".join(f"{name}={value}" for name, value in resource.items())
