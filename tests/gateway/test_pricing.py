from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.gateway import pricing
from bailiwick.gateway.pricing import ceiling_microusd, cost_microusd, price_of
from bailiwick.gateway.usage import ModelUsage

TOKENS = st.integers(0, 2_000_000)
MODELS = st.sampled_from([(row.provider, row.model) for row in pricing._TABLE])


def test_a_call_costs_its_tokens() -> None:
    """A million in and a million out of gpt-5.2: 1.75 and 14 dollars; what was cached costs a tenth."""
    assert cost_microusd("openai", "gpt-5.2", ModelUsage(input_tokens=1_000_000, output_tokens=1_000_000)) == 15_750_000
    assert cost_microusd("openai", "gpt-5.2", ModelUsage(input_tokens=1_000_000, cached_input_tokens=1_000_000, output_tokens=0)) == 175_000
    assert (
        cost_microusd("anthropic", "claude-opus-5-5", ModelUsage(input_tokens=100, cache_write_tokens=100, cache_write_hour_tokens=40, output_tokens=0)) == 620
    )


def test_a_snapshot_costs_what_its_model_costs() -> None:
    """Dated names and `-latest` are the model's; another model's name that begins alike is not."""
    for name in ("gpt-5.2-2025-12-11", "gpt-5.2-latest"):
        assert price_of("openai", name) == price_of("openai", "gpt-5.2")
    assert price_of("anthropic", "claude-haiku-4-5-20251001") == price_of("anthropic", "claude-haiku-4-5")
    assert price_of("openai", "gpt-5.2-pro") != price_of("openai", "gpt-5.2")
    assert price_of("openai", "gpt-5.2-unheard-of") is None
    assert price_of("anthropic", "gpt-5.2") is None


def test_prices_have_dates() -> None:
    """A price that changed is the old one before its day."""
    before, after = price_of("openai", "gpt-5.6-luna", date(2026, 7, 29)), price_of("openai", "gpt-5.6-luna", date(2026, 7, 30))
    assert before is not None
    assert after is not None
    assert before.input == 5 * after.input
    assert price_of("openai", "gpt-5.6-luna", date(2025, 1, 1)) is None


def test_an_unknown_model_has_a_ceiling_and_no_cost() -> None:
    """What is not known is not called free: nothing is said of its cost, and the dearest is reserved."""
    assert cost_microusd("openai", "gpt-99", ModelUsage(input_tokens=1, output_tokens=1)) is None
    dearest = max(ceiling_microusd(row.provider, row.model, 1_000, 1_000) for row in pricing._TABLE)
    assert ceiling_microusd("unknown", "unknown", 1_000, 1_000) >= dearest


def test_untold_tokens_have_no_cost() -> None:
    """A call whose input nobody told has no cost, so that the reservation stands."""
    assert cost_microusd("openai", "gpt-5.2", ModelUsage(output_tokens=5)) is None


def test_long_prompts_cost_more() -> None:
    """Above the threshold the whole call has the long price."""
    short, long = (cost_microusd("openai", "gpt-6-sol", ModelUsage(input_tokens=tokens, output_tokens=1_000)) for tokens in (272_000, 272_001))
    assert short == 272_000 * 2 + 10_000
    assert long == 272_001 * 4 + 15_000


@given(MODELS, TOKENS, TOKENS, TOKENS, TOKENS, TOKENS, st.sampled_from([None, "default", "priority", "flex", "fast"]))
def test_a_cost_is_within_its_ceiling(model: tuple[str, str], given_in: int, cached: int, written: int, hour: int, out: int, tier: str | None) -> None:
    """Whatever the usage says, a call that keeps to the tokens it reserved costs at most what it reserved."""
    usage = ModelUsage(
        input_tokens=given_in, cached_input_tokens=cached, cache_write_tokens=written, cache_write_hour_tokens=hour, output_tokens=out, service_tier=tier
    )
    cost = cost_microusd(*model, usage)
    assert cost is not None
    assert 0 <= cost <= ceiling_microusd(*model, given_in, out, service_tier=tier)


@pytest.mark.parametrize("row", pricing._TABLE, ids=lambda row: row.model)
def test_every_row_is_a_price(row: pricing._Row) -> None:
    """Reading the cache is never dearer than not having one, and a long prompt never cheaper."""
    price = row.price
    assert 0 <= price.cached <= price.input <= price.dearest_input
    assert row.since <= pricing.READ_ON
    if price.long is not None:
        assert price.long.input >= price.input
        assert price.long.output >= price.output
