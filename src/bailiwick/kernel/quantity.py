"""Quantities as people write them in a configuration: `512MiB`, `30m`, `200_000`. A bare number is bytes or seconds."""

import re
from typing import Annotated

import pydantic

_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(value: object) -> int:
    """ValueError unless a non-negative number of bytes, bare or with one of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB."""
    return round(_parse(value, _BYTES, "a size such as 512MiB"))


def parse_seconds(value: object) -> float:
    """ValueError unless a non-negative number of seconds, bare or with one of ms, s, m, h, d."""
    return _parse(value, _SECONDS, "a duration such as 30m")


def _parse(value: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)) and match[2] in units:
        return float(match[1].replace("_", "")) * units[match[2]]
    known = ", ".join(unit for unit in units if unit)
    raise ValueError(f"{value!r} is not {expected}; must be a number, bare or with one of {known}")


Bytes = Annotated[int, pydantic.BeforeValidator(parse_bytes)]
Seconds = Annotated[float, pydantic.BeforeValidator(parse_seconds)]
