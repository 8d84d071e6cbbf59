"""A YAML file read into a typed, frozen model, with file, line and column of everything that is wrong in it: all of it, at once.

YAML 1.1 by PyYAML's safe loader, without its surprises: duplicate keys, anchors and aliases (a bomb's fuse), and tags are errors. The model is
pydantic's; its errors are placed on the node they speak of.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError

_DOCUMENT_BYTES_MAX = 4 * limits.MIB
_DEPTH_MAX = 40

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Section(pydantic.BaseModel):
    """Base of every part of a configuration: frozen, and an unknown key is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong: `file:line:column: field: what, what was expected, the way out`."""

    file: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class Invalid(CallerError):
    """A document with findings; the text is every one of them, a line each."""

    code = "invalid"

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = sorted(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file that can still say where each of its values stands."""

    file: str
    value: Any
    _root: yaml.Node | None

    def place(self, path: tuple[str | int, ...]) -> tuple[int, int]:
        """Line and column (from 1) of the value at `path`, or of the nearest ancestor that the file holds."""
        node, mark = self._root, self._root.start_mark if self._root else None
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            node, mark = found
        return (mark.line + 1, mark.column + 1) if mark else (1, 1)

    def finding(self, path: tuple[str | int, ...], message: str) -> Finding:
        line, column = self.place(path)
        return Finding(self.file, line, column, _dotted(path), message)


def read(path: Path, *, shown_as: str | None = None) -> Document:
    """The file's document. Raises Invalid for what cannot be read, is not UTF-8, or is not YAML as described above."""
    file = shown_as or str(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Invalid([Finding(file, 1, 1, "", f"cannot be read: {error.strerror}")]) from error
    return parse(raw, file=file)


def parse(raw: bytes, *, file: str) -> Document:
    if len(raw) > _DOCUMENT_BYTES_MAX:
        raise Invalid([Finding(file, 1, 1, "", f"is {len(raw)} bytes; must be at most {_DOCUMENT_BYTES_MAX}")])
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = len(raw[raw.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")) + 1
        raise Invalid([Finding(file, line, column, "", f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8")]) from error
    composer = None
    try:
        composer = _Composer(decoded, file)
        root = composer.get_single_node()
        _inspect(root, file, composer.findings, ())
        if composer.findings:
            raise Invalid(composer.findings)
        value = yaml.constructor.SafeConstructor().construct_document(root) if root is not None else None
    except yaml.reader.ReaderError as error:
        line = decoded.count("\n", 0, error.position) + 1
        column = error.position - decoded.rfind("\n", 0, error.position)
        raise Invalid([Finding(file, line, column, "", f"is not YAML: character U+{ord(decoded[error.position]):04X} is not taken; remove it")]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise Invalid([*(composer.findings if composer else []), Finding(file, line, column, "", f"is not YAML: {what}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Invalid([Finding(file, 1, 1, "", f"is not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}")]) from error
    return Document(file, value, root)


def validate(document: Document, model: type[Model]) -> Model:
    """The document as `model`. Raises Invalid with every error, each at the line of the value it speaks of."""
    value = {} if document.value is None else document.value
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise Invalid(
            [document.finding(_inside(document, item["loc"]), _covered(_say(item), item["input"])) for item in error.errors(include_url=False)]
        ) from error


class _Composer(yaml.SafeLoader):
    """Nodes only. Notes what stands for something else or goes too deep while it is where it stands; PyYAML's C loader cannot be told to, and a
    configuration is small."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.findings: list[Finding] = []
        self._file = file
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            message = f"is an alias (*{event.anchor}); aliases are not taken, write the value out"
            self.findings.append(Finding(self._file, mark.line + 1, mark.column + 1, "", message))
            return yaml.ScalarNode("tag:yaml.org,2002:null", "", mark)
        if self._depth > _DEPTH_MAX:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEPTH_MAX} deep", mark)
        self._depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node


_TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/=_-]{20,}")
_TOKEN_DIGITS_MIN = 3
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")}
_TEXT = "tag:yaml.org,2002:str"


def _inspect(node: yaml.Node | None, file: str, findings: list[Finding], path: tuple[str | int, ...]) -> None:
    """What a configuration does not take though YAML does, and scalars that are not what their form or tag says."""

    def wrong(message: str, at: yaml.Node) -> None:
        findings.append(Finding(file, at.start_mark.line + 1, at.start_mark.column + 1, _dotted(path), message))

    if node is None:
        return
    if node.tag not in _PLAIN:
        wrong(f"has the tag {node.tag}; tags are not taken", node)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _inspect(item, file, findings, (*path, index))
    elif isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag == "tag:yaml.org,2002:merge":
                wrong("merge keys (<<) are not taken, write the values out", key)
            elif not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
                wrong("has a key that is not plain text; quote it", key)
            else:
                if key.value in keys:
                    wrong(f"key {key.value[:80]!r} stands here a second time; keep one", key)
                keys.add(key.value)
                _inspect(value, file, findings, (*path, key.value))
    else:
        try:
            yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, OverflowError, RecursionError):
            wrong(f"is not the {node.tag.rpartition(':')[2]} that it looks like; correct it, or quote it if it is text", node)


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Mark] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == str(step):
                return value, key.start_mark
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step].start_mark
    return None


def _inside(document: Document, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A pydantic location without the steps it adds for unions and validators, which the file does not hold (the last step may be a missing key)."""
    node = document._root if document.value is not None else None
    path: list[str | int] = []
    for index, step in enumerate(location):
        found = _child(node, step)
        if found is not None:
            node = found[0]
            path.append(step)
        elif index == len(location) - 1 and (node is None or isinstance(node, yaml.MappingNode)) and isinstance(step, str) and "[" not in step:
            path.append(step)
    return tuple(path)


def _dotted(path: tuple[str | int, ...]) -> str:
    shown = ""
    for step in path:
        shown += f"[{step}]" if isinstance(step, int) else f".{step}" if shown else str(step)
    return shown


def _covered(message: str, given: object) -> str:
    """A value that stands where it does not belong may be a credential: what looks like one is not repeated, though the rest of the message is."""
    for word in _TOKEN_LIKE.findall(repr(given)):
        if sum(map(str.isdigit, word)) >= _TOKEN_DIGITS_MIN:
            message = message.replace(word, "(not shown: it looks like a secret)")
    return message


def _say(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return "is not a known key; see docs/reference/configuration.md for those that are"
        case "missing":
            return "is missing; it must be given"
        case "value_error":
            return str(context.get("error", item["msg"]))
        case "string_type":
            return "is not text; quote it if it is meant as text"
        case "list_type" | "tuple_type" | "set_type" | "frozen_set_type":
            return "is not a list; write it as [a, b], or a line each with `- `"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "is not a mapping; write it as `key: value` lines, or {key: value}"
        case "union_tag_not_found":
            return f"has no {context.get('discriminator', 'kind')}; it must be given"
        case "union_tag_invalid":
            return f"{context.get('discriminator', 'kind')} is {context.get('tag')!r}; must be one of {context.get('expected_tags')}"
        case _:
            message: str = item["msg"]
            return message[:1].lower() + message[1:]
