"""Times, as they are written down."""

from datetime import UTC, datetime, timedelta, timezone

from bailiwick.kernel.clock import SystemClock, timestamp


def test_text_order_is_time_order() -> None:
    """Fixed width, in UTC, wherever the time came from."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert timestamp(moment) == "2026-01-02T03:04:05.000006Z"
    assert timestamp(moment.astimezone(timezone(timedelta(hours=-9)))) == timestamp(moment)
    assert datetime.fromisoformat(timestamp(moment)) == moment


def test_the_system_clock_is_aware_and_goes_on() -> None:
    """UTC, and a monotonic one that does not go back."""
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert clock.monotonic() <= clock.monotonic()
