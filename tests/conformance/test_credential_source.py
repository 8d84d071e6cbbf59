"""What every source of credentials does, and its fake: the broker's port, one suite."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bailiwick.broker.sources.environment import EnvironmentSource, read_variables
from bailiwick.broker.sources.file import FileSource
from bailiwick.broker.sources.port import SECRET_BYTES_MAX, CredentialSource, SourceError, accepted
from bailiwick.kernel.secret import Secret

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeSource:
    """For the broker's tests: a value that a test sets, or none."""

    def __init__(self, credential: str, value: bytes | None) -> None:
        self.credential = credential
        self.value = value

    async def fetch(self) -> Secret:
        if self.value is None:
            raise SourceError(f"credential {self.credential!r}: the fake has no value; set one")
        return accepted(self.value, credential=self.credential, place="the fake")


@dataclass
class Given:
    """A source whose backend holds `value`, or (None) nothing at all."""

    name: str
    make: Callable[[Path, bytes | None], CredentialSource]


def environment(directory: Path, value: bytes | None) -> CredentialSource:
    descriptor = os.memfd_create("environment")
    try:
        os.write(descriptor, b"PATH=/bin\0" + (b"TOKEN=" + value + b"\0" if value is not None else b"") + b"OTHER=x\0")
        return EnvironmentSource("token", "TOKEN", read_variables(descriptor, {"TOKEN"}).get("TOKEN"))
    finally:
        os.close(descriptor)


def file(directory: Path, value: bytes | None) -> CredentialSource:
    path = directory / "token"
    if value is not None:
        path.write_bytes(value)
        path.chmod(0o600)
    return FileSource("token", path)


def opened_file(directory: Path, value: bytes | None) -> CredentialSource:
    source = file(directory, value)
    assert isinstance(source, FileSource)
    source.open()
    OPEN.append(source)
    return source


OPEN: list[FileSource] = []
SOURCES = [
    Given("environment", environment),
    Given("file", file),
    Given("file, opened", opened_file),
    Given("fake", lambda _, value: FakeSource("token", value)),
]


@pytest.fixture(params=SOURCES, ids=lambda given: given.name)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes | None], CredentialSource]]:
    given: Given = request.param
    yield lambda value: given.make(tmp_path, value)
    while OPEN:
        OPEN.pop().close()


Make = Callable[[bytes | None], CredentialSource]


async def test_the_value_is_fetched_each_time(make: Make) -> None:
    """Fetching is repeatable and gives the bytes as they are."""
    source = make(b"s3cret with \xff and spaces inside")
    assert (await source.fetch()).reveal() == (await source.fetch()).reveal() == b"s3cret with \xff and spaces inside"


@pytest.mark.parametrize(("held", "value"), [(b"a\n", b"a"), (b"a\r\n", b"a"), (b"a", b"a"), (b"a\n\n", b"a\n"), (b"a ", b"a ")])
async def test_one_line_end_is_no_part_of_it(make: Make, held: bytes, value: bytes) -> None:
    """`echo secret > file` means the secret; nothing else is taken off in silence."""
    assert (await make(held).fetch()).reveal() == value


async def test_the_largest_value_is_taken(make: Make) -> None:
    """The bound is the value's, not that of the value with its line end."""
    assert len((await make(b"x" * SECRET_BYTES_MAX + b"\r\n").fetch()).reveal()) == SECRET_BYTES_MAX


@pytest.mark.parametrize("held", [None, b"", b"\n", b"\r\n", b"s3cret" * SECRET_BYTES_MAX], ids=["missing", "empty", "newline", "crlf", "too large"])
async def test_a_failure_names_the_credential_and_the_way_out_and_no_value(make: Make, held: bytes | None) -> None:
    """SourceError says which credential, what is wrong and what is expected."""
    source = make(held)
    with pytest.raises(SourceError, match=r"^credential 'token': ") as caught:
        await source.fetch()
    assert ";" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.code == "source"


async def test_the_value_has_no_text(make: Make) -> None:
    """What is fetched is a Secret, and the source's own text holds none."""
    source = make(b"s3cret")
    assert "s3cret" not in f"{await source.fetch()!r} {await source.fetch()} {source!r}"
