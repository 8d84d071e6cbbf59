"""One event as a person reads it: a glyph, what was tried, and what came of it. A story of many events joins an action's beginning and end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bailiwick.cli import terminal

Event = dict[str, Any]

_INDENT = 12  # of what follows the first line: as wide as time, glyph and spaces before the verb
_GLYPHS = {"allow": ("✓", "green"), "deny": ("✗", "red"), "hold": ("◼", "alarm")}
_WORDS = {"allow": "allowed", "deny": "denied", "hold": "held"}
_QUIET = frozenset({"run.output", "lease.used", "hold.opened"})


@dataclass(frozen=True, slots=True)
class Line:
    """`head` is what was tried; `tail` are facts about it, most telling first. Text of others is visible already."""

    glyph: str
    style: str
    head: str
    tail: tuple[str, ...] = ()
    tail_style: str = "dim"


@dataclass(slots=True)
class Story:
    """Lines for the events of a run, in order. An allowed action is one line, told when it is finished; what is denied or held is told at once."""

    start: str = ""
    output: bool = False  # tell what the agent wrote, too
    _open: dict[str, Event] = field(default_factory=dict)
    _held: dict[str, str] = field(default_factory=dict)  # hold: when it was opened

    def tell(self, recorded: Event) -> Iterator[tuple[str, Line]]:
        """The time since the start, and the line."""
        for since, line in self._tell(recorded["event"]):
            yield since, _guarded(line)

    def _tell(self, event: Event) -> Iterator[tuple[str, Line]]:
        self.start = self.start or event["time"]
        kind = event["kind"]
        if kind == "hold.opened":
            self._held[str(_body(event).get("hold", ""))] = event["time"]
        if kind == "action.decided" and event.get("decision") == "allow" and not _body(event).get("observed"):
            self._open[event.get("action", "")] = event
            return
        if kind == "action.finished":
            begun = self._open.pop(event.get("action", ""), None)
            yield self._since(begun or event), _action(begun or event, event)
            return
        if kind in _QUIET and not (kind == "run.output" and self.output):
            return
        if kind == "run.ended":
            yield from self._rest()
        if kind == "action.decided":
            yield self._since(event), _action(event, None)
        elif kind == "hold.signed":
            yield self._since(event), self._signed(event)
        else:
            yield self._since(event), _told(event)

    def rest(self) -> Iterator[tuple[str, Line]]:
        """Actions that were allowed and of whose end nothing is known."""
        for since, line in self._rest():
            yield since, _guarded(line)

    def _rest(self) -> Iterator[tuple[str, Line]]:
        for event in self._open.values():
            line = _action(event, None)
            yield self._since(event), Line("?", "yellow", line.head, ("no end is recorded", *line.tail), "yellow")
        self._open.clear()

    def _since(self, event: Event) -> str:
        return f"{max(0.0, between(self.start, event['time'])):+9.3f}"

    def _signed(self, event: Event) -> Line:
        body = _body(event)
        hold, outcome = str(body.get("hold", "")), str(body.get("outcome", "signed"))
        after = [f"after {terminal.seconds(between(self._held[hold], event['time']))}"] if hold in self._held else []
        glyph, style = ("✓", "green") if outcome == "granted" else ("✗", "red")
        why = [f'"{terminal.shown(str(body["why"]))}"'] if body.get("why") else []
        return Line(glyph, style, f"{hold} {outcome} by {terminal.shown(str(body.get('operator', 'somebody')))}", (*why, *after))


def _guarded(line: Line) -> Line:
    """Whatever place it has, nothing of an event reaches a terminal as it came."""
    return replace(line, head=terminal.already_visible(line.head, lines=False), tail=tuple(terminal.already_visible(each, lines=False) for each in line.tail))


def lines(events: Iterable[Event], *, output: bool = False) -> Iterator[tuple[str, Line]]:
    story = Story(output=output)
    for event in events:
        yield from story.tell(event)
    yield from story.rest()


def rendered(since: str, line: Line, columns: int) -> str:
    """One line where it fits; else what was tried on the first, cut if it must be, and the facts below it."""
    glyph = terminal.styled(line.glyph, line.style)
    room = columns - _INDENT
    facts = " · ".join(line.tail)
    if not facts:
        return f"{since} {glyph} {_wrapped(line.head, room)}"
    if terminal.cells(line.head) + 2 + terminal.cells(facts) <= room:
        return f"{since} {glyph} {line.head}  {terminal.styled(facts, line.tail_style)}"
    below = "\n".join(" " * _INDENT + terminal.styled(part, line.tail_style) for part in _folded(line.tail, room))
    return f"{since} {glyph} {_wrapped(line.head, room)}\n{below}"


def between(earlier: str, later: str) -> float:
    """Seconds between two timestamps of the record."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _wrapped(text: str, room: int) -> str:
    """Long text over as many lines as it needs, at most four: a resource is evidence, and is not cut at the first line."""
    pieces = [*terminal.rows(text, room)]
    if len(pieces) > 4:
        pieces = [*pieces[:3], pieces[3][: terminal.fitting(pieces[3], room - 2)] + "…"]
    return ("\n" + " " * _INDENT).join(pieces)


def _folded(facts: tuple[str, ...], room: int) -> Iterator[str]:
    """Between words where it can be."""
    rest = " · ".join(facts)
    while terminal.cells(rest) > room:
        fits = terminal.fitting(rest, room)
        at = rest.rfind(" ", fits // 2, fits + 1)
        at = fits if at < 0 else at
        yield rest[:at].rstrip(" ·")
        rest = rest[at:].lstrip(" ·")
    if rest:
        yield rest


def _body(event: Event) -> dict[str, Any]:
    body = event.get("body")
    return body if isinstance(body, dict) else {}


def _action(begun: Event, finished: Event | None) -> Line:
    body, end = _body(begun), _body(finished or {})
    verdict = begun.get("decision", "allow")
    glyph, style = _GLYPHS.get(verdict, ("·", ""))
    method = f"{body['method']} " if body.get("method") else ""
    head = _head(begun, method)
    tail = [f"would be {_WORDS.get(verdict, verdict)}" if body.get("observed") else _WORDS.get(verdict, str(verdict))]
    if verdict == "hold":
        tail.append(f"{body.get('hold', 'sign-off')} waits for {', '.join(_texts(body.get('approvers'))) or 'an approver'}")
    if verdict == "deny" and body.get("reason"):
        tail.append(terminal.shown(str(body["reason"])))
    if rules := _texts(body.get("rules")):
        tail.append("by " + ", ".join(rules))
    if finished is not None:
        tail += _outcome(finished, end)
        if end.get("result") in ("failed", "unknown") or end.get("error"):
            glyph, style = "!", "red" if end.get("result") == "unknown" else "yellow"
    return Line(glyph, style, head, tuple(tail), style if verdict != "allow" else "dim")


def _head(event: Event, method: str) -> str:
    return f"{event.get('verb') or '?':<10} {terminal.shown(method + str(event.get('resource') or ''))}"


def _outcome(event: Event, body: dict[str, Any]) -> list[str]:
    facts = []
    if body.get("result") not in (None, "answered"):
        facts.append(str(body["result"]))
    if body.get("status") is not None:
        facts.append(str(body["status"]))
    if body.get("duration_ms") is not None:
        facts.append(f"{_number(body['duration_ms']):,} ms")
    if event.get("input_tokens") is not None or event.get("output_tokens") is not None:
        facts.append(f"{_number(event.get('input_tokens')):,}+{_number(event.get('output_tokens')):,} tokens")
    if cost := _number(event.get("cost_microusd")):
        facts.append(terminal.dollars(cost))
    if event.get("credential"):
        facts.append(f"with {terminal.shown(str(event['credential']))}")
    if body.get("scrubbed"):
        facts.append("secret scrubbed from the answer")
    if body.get("error"):
        facts.append(terminal.shown(str(body["error"])))
    return facts


def _told(event: Event) -> Line:
    """Events that are a line of their own."""
    body = _body(event)
    text = {name: terminal.shown(str(value)) for name, value in body.items() if isinstance(value, str | int | bool)}
    by = f" by {text['operator']}" if "operator" in text else ""
    match event["kind"]:
        case "run.requested":
            return Line(
                "●", "bold", f"requested{by}: {terminal.one_line(str(body.get('task', '')))}".rstrip(": "), ("observe mode",) if body.get("observe") else ()
            )
        case "run.probed":
            findings = [each for each in _list(body.get("findings")) if isinstance(each, dict)]
            broken = [terminal.shown(str(each.get("check"))) for each in findings if not each.get("held")]
            if broken:
                return Line("✗", "red", f"the sandbox is open: {', '.join(broken)}", (), "red")
            return Line("●", "", f"sealed: {len(findings)} checks held", tuple(filter(None, [text.get("backend", "")])))
        case "run.started":
            return Line("▶", "bold", f"started {terminal.one_line(' '.join(map(str, _list(body.get('command')))))}".rstrip())
        case "run.output":
            return Line("│", "dim", terminal.shown(str(body.get("text", "")).rstrip("\n"), lines=False))
        case "run.ended":
            return _ended(body)
        case "run.killed":
            return Line("■", "red", f"killed{by}", tuple(filter(None, [text.get("cause", ""), text.get("detail", "")])))
        case "run.paused" | "run.resumed" as kind:
            return Line("‖" if kind == "run.paused" else "▶", "yellow", kind.removeprefix("run.") + by, tuple(filter(None, [text.get("reason", "")])))
        case "run.workspace":
            count = _number(body.get("changed", len(_list(body.get("changes")))))
            return Line("●", "", f"changed {_files(count)} in its workspace")
        case "run.applied":
            return Line("●", "", f"changes applied{by} to {text.get('directory', '?')}")
        case "attempt.refused":
            return Line("✗", "red", f"attempt    {text.get('where', '')}", tuple(filter(None, ["refused", text.get("why", ""), _also(body)])), "red")
        case "name.asked":
            return Line("·", "dim", f"asked for {terminal.shown(str(event.get('resource', '')))}")
        case "hold.redeemed" | "hold.closed" as kind:
            facts = [text[name] for name in ("state", "outcome", "reason") if name in text]
            return Line("·", "dim", f"{text.get('hold', 'hold')} {kind.removeprefix('hold.')}", tuple(facts))
        case "lease.granted" | "lease.revoked" as kind:
            facts = [text["reason"]] if "reason" in text else []
            return Line("·", "dim", f"lease of {terminal.shown(str(event.get('credential') or ''))} {kind.removeprefix('lease.')}", tuple(facts))
        case kind:
            facts = [f"{name} {value}" for name, value in text.items()][:6]
            return Line("·", "dim", terminal.shown(kind), tuple(facts))


def _ended(body: dict[str, Any]) -> Line:
    cause, status = str(body.get("cause", "")), body.get("status")
    good = cause == "exited" and status == 0
    used = body.get("used") if isinstance(body.get("used"), dict) else {}
    facts = [terminal.shown(str(body["detail"]))] if body.get("detail") else []
    if used:
        facts.append(f"{_number(used.get('calls')):,} calls, {_number(used.get('writes')):,} writes")
        if tokens := _number(used.get("tokens")):
            facts.append(f"{tokens:,} tokens")
        if cost := _number(used.get("microusd")):
            facts.append(terminal.dollars(cost))
    what = f"ended: exit status {status}" if cause == "exited" else f"ended: {terminal.shown(cause)}"
    return Line("■", "green" if good else "red", what, tuple(facts))


def _also(body: dict[str, Any]) -> str:
    return f"and {body['suppressed']} more like it" if body.get("suppressed") else ""


def _files(count: int) -> str:
    return "nothing" if not count else "1 file" if count == 1 else f"{count:,} files"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [terminal.shown(str(each)) for each in _list(value)]


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
