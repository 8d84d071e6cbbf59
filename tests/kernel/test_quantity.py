"""Quantities, as people write them."""

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.kernel.quantity import Bytes, Seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (0, 0), (7, 7), ("7", 7), ("512MiB", 512 << 20), ("1.5GiB", 3 << 29), ("1_000 kB", 10**6), (" 2 TB ", 2 * 10**12), ("1KiB", 1024), ("3B", 3),
        ("1TiB", 1 << 40), (2**63 - 1, 2**63 - 1),
        ("1MB", 10**6), ("1GB", 10**9), (1.0, 1),
    ],
)  # fmt: skip
def test_sizes(text: object, number: int) -> None:
    """Binary and decimal units, bare bytes, underscores."""
    assert parse_bytes(text) == number
    assert isinstance(parse_bytes(text), int)


@pytest.mark.parametrize(
    ("text", "number"), [(0, 0.0), (1.5, 1.5), ("30m", 1800.0), ("250ms", 0.25), ("2 h", 7200.0), ("1d", 86400.0), ("10s", 10.0), ("0.5h", 1800.0)]
)
def test_durations(text: object, number: float) -> None:
    """Bare seconds, ms to d."""
    assert parse_seconds(text) == number


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "MiB", "1 mib", "1Mib", "1MIB", "-1", "-1s", -1, "1e9", "1__0", "_1", "1_", "1.", ".5", "1 2", "0x10", "1mm", "inf", "nan", "1kb", None,
     True, [], {}, b"1", "9" * 5000, 2**63, "8388608TiB", float("nan"), float("inf"), "\u0661\u0662", "\uff11", "1\u00a0s"],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_the_units(wrong: object) -> None:
    """Every other text and type is a ValueError that lists what is taken."""
    with pytest.raises(ValueError, match="KiB, MiB"):
        parse_bytes(wrong)
    with pytest.raises(ValueError, match="ms, s, m, h, d"):
        parse_seconds(wrong)


@given(st.text(max_size=20) | st.floats() | st.integers())
def test_any_value_is_a_finite_quantity_or_a_value_error(value: object) -> None:
    """Never negative, never infinite, never another exception."""
    for parse in (parse_bytes, parse_seconds):
        try:
            number = parse(value)
        except ValueError:
            continue
        assert 0 <= number < float("inf")


@given(st.integers(0, 2**63 - 1))
def test_bytes_are_exact(number: int) -> None:
    """A number of bytes is that number, however large."""
    assert parse_bytes(number) == parse_bytes(str(number)) == number


def test_in_a_model_both_validate() -> None:
    """As fields of a configuration."""

    class Model(pydantic.BaseModel):
        memory: Bytes
        wall: Seconds

    assert Model.model_validate({"memory": "1MiB", "wall": "1m"}) == Model(memory=1 << 20, wall=60.0)
    with pytest.raises(pydantic.ValidationError):
        Model.model_validate({"memory": "lots", "wall": "long"})


def test_a_number_too_large_to_be_written_out_is_refused() -> None:
    """Python itself refuses to write it; the error does not."""
    with pytest.raises(ValueError, match="a number above"):
        parse_bytes(10**5000)
