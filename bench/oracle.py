"""What a boundary means, a second time: plain Python and regular expressions over the rules as they are written, sharing no code with the critic."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

ESCAPED = re.compile(r"%2f|%5c|%00|%25[0-9a-f]{2}", re.IGNORECASE)


def outcome(rules: Sequence[Mapping[str, Any]], *, verb: str, host: str, port: int, method: str, path: str, ambiguous: bool = False) -> str:
    """`allow`, `hold` or `deny`: the strictest rule that matches, and deny if no allow or hold does."""
    unclear = ambiguous or unclear_path(path)
    refused = [rule for rule in rules if "deny" in rule and _is_about(rule, rule["deny"], verb, host, port, method, path, unclear, grants=False)]
    if refused:
        return "deny"
    allowed = any("allow" in rule and _is_about(rule, rule["allow"], verb, host, port, method, path, unclear, grants=True) for rule in rules)
    holding = any("hold" in rule and _is_about(rule, rule["hold"], verb, host, port, method, path, unclear, grants=True) for rule in rules)
    held = any("hold" in rule and _is_about(rule, rule["hold"], verb, host, port, method, path, unclear, grants=False) for rule in rules)
    if held and (allowed or holding):
        return "hold"
    return "allow" if allowed else "deny"


def unclear_path(path: str) -> bool:
    if not path.startswith("/") or "//" in path or "\\" in path or ESCAPED.search(path):
        return True
    plain = re.sub("%2e", ".", path, flags=re.IGNORECASE)
    return any(re.fullmatch(r"\.\.?(;.*)?", segment) for segment in plain.split("/"))


def _is_about(rule: Mapping[str, Any], verbs: Sequence[str], verb: str, host: str, port: int, method: str, path: str, unclear: bool, *, grants: bool) -> bool:
    if verb not in verbs or ("methods" in rule and method not in rule["methods"]):
        return False
    name, _, wanted_port = rule["http"].partition(":")
    if wanted_port:
        if port != int(wanted_port):
            return False
    elif grants and port not in (80, 443):
        return False
    name = name.lower().rstrip(".")
    if name.startswith("*."):
        if not re.fullmatch(r"[^.]+(\.[^.]+)*" + re.escape(name[1:]), host):
            return False
    elif name != host:
        return False
    if "path" not in rule:
        return True
    if unclear:
        return not grants
    return re.fullmatch(glob_regex(rule["path"]), path, re.DOTALL) is not None


def glob_regex(glob: str) -> str:
    parts = glob[1:].split("/")
    text = ""
    for index, part in enumerate(parts):
        if part == "**":
            text += "/.*" if index == len(parts) - 1 else "(?:/[^/]*)*"
        elif part == "*":
            text += "/[^/]+"
        else:
            text += "/" + "[^/]*".join(re.escape(piece) for piece in part.split("*"))
    return text
