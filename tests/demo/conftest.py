from collections.abc import Iterator

import pytest

from bailiwick.cli.demo import scripts
from bailiwick.cli.demo.world import Keys, World


@pytest.fixture
def keys() -> Keys:
    return Keys.fresh()


@pytest.fixture
def world(keys: Keys) -> Iterator[World]:
    """The demo's servers, told a story whose stranger and direct dials are on loopback: outside a sandbox they are really reached."""
    with World(keys) as running:
        doors = running.doors
        here = "127.0.0.1"
        dials = [scripts.Dial(here, doors.stranger_http), scripts.Dial(here, doors.stranger_https), scripts.Dial(here, doors.stranger_udp, "udp")]
        running.model.follow("gpt-5.2", scripts.deployment(f"https://localhost:{doors.stranger_https}/upload", dials))
        yield running
