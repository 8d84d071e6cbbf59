"""Quantities as people write them in a configuration: `512MiB`, `30m`, `200_000`. A bare number is bytes or seconds."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated

import pydantic

_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS: dict[str, int | Fraction] = {"": 1, "ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600, "d": 86400}
_QUANTITY = re.compile(r"\s*(\d{1,20}(?:_\d{1,20}){0,6}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_NUMBER_MAX = 2**63 - 1


def parse_bytes(value: object) -> int:
    """ValueError unless a non-negative number of bytes, bare or with one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB."""
    return round(_parse(value, _BYTES, "a size such as 512MiB"))


def parse_seconds(value: object) -> float:
    """ValueError unless a non-negative number of seconds, bare or with one of ms, s, m, h, d."""
    return float(_parse(value, _SECONDS, "a duration such as 30m"))


def _parse(value: object, units: Mapping[str, int | Fraction], expected: str) -> Fraction:
    """Exact: a float would lose the last bytes of a large number."""
    number = None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _NUMBER_MAX:
        number = Fraction(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value)) and match[2] in units:
        number = Fraction(match[1].replace("_", "")) * units[match[2]]
    if number is None or number > _NUMBER_MAX:
        known = ", ".join(unit for unit in units if unit)
        shown = "a number above 2**63" if isinstance(value, int) and value > _NUMBER_MAX else repr(value)[:80]
        raise ValueError(f"{shown} is not {expected}; must be a number, bare or with one of {known}")
    return number


Bytes = Annotated[int, pydantic.BeforeValidator(parse_bytes)]
Seconds = Annotated[float, pydantic.BeforeValidator(parse_seconds)]
