import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.neighbourhood import neighbourhood

from bailiwick.gateway import outputs
from bailiwick.gateway.outputs import OutputReader, _unfinished
from bailiwick.kernel import limits


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.mark.anyio
async def test_output_is_recorded_whole_and_in_order(tmp_path: Path) -> None:
    """Characters cut by a write are joined, bytes that are no text are written out, the end flushes."""
    async with neighbourhood(tmp_path) as place:
        read, write = os.pipe()
        OutputReader(place.run, read, "stderr")
        euro = "€".encode()
        os.write(write, b"a" + euro[:1])
        await place.until(lambda: len(place.recorder.of("run.output")) == 1)
        os.write(write, euro[1:] + b"\xff\n" + euro[:2])
        os.close(write)
        await place.until(lambda: len(place.recorder.of("run.output")) == 3)
        assert "".join(event.body["text"] for event in place.recorder.of("run.output")) == "a€\\xff\n\\xe2\\x82"


@pytest.mark.anyio
async def test_a_fast_writer_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its rate a stream is not read: its pipe fills, and nothing is lost."""
    monkeypatch.setattr(outputs, "BYTES_BURST", 64 * limits.KIB)
    monkeypatch.setattr(outputs, "BYTES_PER_SECOND", 1)
    monkeypatch.setattr(outputs, "_GATHER_SECONDS", 0.0)
    async with neighbourhood(tmp_path) as place:
        read, write = os.pipe()
        os.set_blocking(write, False)
        reader = OutputReader(place.run, read, "stdout")
        sent = 0

        def full() -> bool:
            nonlocal sent
            try:
                sent += os.write(write, b"x" * 4096)
            except BlockingIOError:
                return sum(len(event.body["text"]) for event in place.recorder.of("run.output")) >= 64 * limits.KIB
            return False

        await place.until(full)
        taken = sum(len(event.body["text"]) for event in place.recorder.of("run.output"))
        assert taken <= 64 * limits.KIB + outputs.CHUNK_BYTES_MAX
        os.close(write)
        reader.close()
        assert sum(len(event.body["text"]) for event in place.recorder.of("run.output")) == sent


@pytest.mark.anyio
async def test_output_waits_for_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recorder does not take is kept and told again."""
    monkeypatch.setattr(outputs, "_RETRY_SECONDS", 0.01)
    async with neighbourhood(tmp_path) as place:
        place.recorder.healthy = False
        read, write = os.pipe()
        OutputReader(place.run, read, "stdout")
        os.write(write, b"first line\n")
        loop = asyncio.get_running_loop()
        later = loop.time() + 0.1
        await place.until(lambda: loop.time() > later)
        assert place.recorder.events == []
        place.recorder.healthy = True
        os.write(write, b"second\n")
        os.close(write)
        await place.until(lambda: "".join(event.body["text"] for event in place.recorder.of("run.output")) == "first line\nsecond\n")


@given(st.text(min_size=1), st.integers(0, 3))
def test_a_cut_character_is_held_back_whole(text: str, cut: int) -> None:
    """Whatever is left of a character at the end is kept, and nothing else."""
    raw = text.encode("utf-8", "surrogatepass")
    piece = raw[: max(0, len(raw) - cut)]
    keep = _unfinished(piece)
    assert 0 <= keep <= 3
    if text[-1] < "\ud800" or text[-1] > "\udfff":
        whole = piece[: len(piece) - keep]
        assert whole.decode("utf-8", "surrogatepass") == text[: len(whole.decode("utf-8", "surrogatepass"))]
