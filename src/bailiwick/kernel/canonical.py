"""Canonical JSON (RFC 8785, JCS) for the values we write: what was hashed can be written again, byte for byte, by anybody.

Within I-JSON as we use it (no floats, integers within 2**53, keys in ASCII, text that is valid Unicode) sorting keys and dropping white space is all
that JCS asks for; anything else is refused here rather than written in a form another implementation would hash differently.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

JsonValue = Any  # null, boolean, integer, text, list or object of these; `canonical` checks

_INTEGER_MAX = 2**53 - 1  # RFC 7493, section 2.2
_DEPTH_MAX = 200  # below every parser's own limit, which are not the same
_SURROGATES = re.compile("[\ud800-\udfff]")


def canonical(value: Any) -> bytes:
    """The RFC 8785 form; ValueError for a float, an integer beyond 2**53, a key that is not ASCII text, a lone surrogate, or nesting too deep."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """`sha256:` and the hex digest of the canonical form."""
    return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"


def text(raw: bytes) -> str:
    """Bytes of a peer as text that can be recorded: what is not UTF-8 is written as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")


def _check(value: Any, where: str, depth: int = 0) -> None:
    if depth > _DEPTH_MAX:
        raise ValueError(f"{where[:200]} is nested more than {_DEPTH_MAX} deep")
    match value:
        case None | bool():
            return
        case int():
            if abs(value) > _INTEGER_MAX:
                raise ValueError(f"{where} is {value}; an integer must be within 2**53 to survive JSON")
        case str():
            if _SURROGATES.search(value):
                raise ValueError(f"{where} holds a lone surrogate; decode bytes with kernel.canonical.text")
        case Mapping():
            for key, item in value.items():
                if not isinstance(key, str) or not key.isascii():
                    raise ValueError(f"{where} has the key {key!r}; keys must be ASCII text")
                _check(item, f"{where}.{key}", depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                _check(item, f"{where}[{index}]", depth + 1)
        case _:
            raise ValueError(f"{where} is a {type(value).__name__}; must be null, boolean, integer, text, list or object")
