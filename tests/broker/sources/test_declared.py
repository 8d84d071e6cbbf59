"""Sources are made from the configuration before rights are dropped, and none keeps the others from starting."""

import os
from pathlib import Path

import pytest

from bailiwick.broker.configuration import CredentialConfiguration, EnvironmentCredential, FileCredential
from bailiwick.broker.sources.declared import from_configuration
from bailiwick.broker.sources.environment import read_variables
from bailiwick.broker.sources.port import SourceError
from bailiwick.kernel.errors import BackendError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_each_credential_has_its_source_and_failures_wait(tmp_path: Path) -> None:
    """A missing variable or file is told when it is asked for; a relative path starts at the configuration's directory."""
    (tmp_path / "key").write_bytes(b"k")
    (tmp_path / "key").chmod(0o600)
    credentials: dict[str, CredentialConfiguration] = {
        "token": EnvironmentCredential(source="environment", variable="TOKEN"),
        "gone": EnvironmentCredential(source="environment", variable="GONE"),
        "key": FileCredential(source="file", path="key"),
        "lost": FileCredential(source="file", path="lost"),
    }
    descriptor = os.memfd_create("environment")
    os.write(descriptor, b"TOKEN=t\0")
    for _ in range(2):  # a restarted broker reads the same descriptor
        sources = from_configuration(credentials, directory=tmp_path, environment_descriptor=descriptor)
        assert (await sources["token"].fetch()).reveal() == b"t"
        assert (await sources["key"].fetch()).reveal() == b"k"
        for name, said in (("gone", "variable GONE is not set"), ("lost", "lost cannot be opened")):
            with pytest.raises(SourceError, match=said):
                await sources[name].fetch()
    os.close(descriptor)
    without = from_configuration(credentials, directory=tmp_path, environment_descriptor=None)
    with pytest.raises(SourceError, match="variable TOKEN is not set"):
        await without["token"].fetch()


def test_an_environment_is_read_as_getenv_would() -> None:
    """The first of two, values with `=` and bytes that are not UTF-8 whole, names whole; nothing that was not asked for."""
    descriptor = os.memfd_create("environment")
    os.write(descriptor, b"A=1=2\0A=3\0B\xff=4\0C=\xff\0AA=5\0NOEQUALS\0\0D=" + b"x" * 600_000 + b"\0")
    found = read_variables(descriptor, {"A", "C", "D", "NOEQUALS", "GONE"})
    assert {name: value.reveal()[:5] for name, value in found.items()} == {"A": b"1=2", "C": b"\xff", "D": b"xxxxx"}
    assert len(found["D"].reveal()) == 600_000
    os.close(descriptor)


def test_an_environment_that_cannot_be_read_is_told() -> None:
    """A closed descriptor, or one that never ends, is a BackendError."""
    with pytest.raises(BackendError, match="cannot be read"):
        read_variables(os.open("/", os.O_RDONLY), {"A"})
    zero = os.open("/dev/zero", os.O_RDONLY)
    with pytest.raises(BackendError, match="larger than"):
        read_variables(zero, {"A"})
    os.close(zero)
