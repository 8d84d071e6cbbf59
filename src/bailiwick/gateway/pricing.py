"""What tokens cost: a dated table of list prices, in millionths of a US dollar for a million tokens.

The table is what the providers' public price pages said on READ_ON. It prices what the record shows and what the budget reserves; it is not the bill. A
model that it does not know has no cost, and a ceiling that is the dearest known.
"""

import re
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Final, Protocol

READ_ON: Final = date(2026, 11, 24)
_MILLION = 1_000_000
_DATED = re.compile(r"(?P<model>.+?)(?:-\d{4}-\d{2}-\d{2}|-\d{8}|@\d{8}|-latest)")  # a snapshot costs what its model costs


class Priced(Protocol):
    """The part of a model call's usage that has a price."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def cached_input_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def cache_write_hour_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def service_tier(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens, as written on the page, in thousandths so that they are whole. `cached` is a read from the prompt cache, `written`
    a write to it, `written_hour` one that stays for an hour. Above `long_from` input tokens the whole call costs `long`."""

    input: int
    cached: int
    output: int
    written: int
    written_hour: int
    long_from: int | None = None
    long: "Price | None" = None

    @property
    def dearest_input(self) -> int:
        return max(self.input, self.written, self.written_hour)


@dataclass(frozen=True, slots=True)
class _Row:
    provider: str
    model: str
    since: date
    price: Price


def _claude(base: int, output: int, cached: int | None = None) -> Price:
    """Anthropic's cache: writes at 1.25 times the input price for five minutes, twice for an hour; reads at a tenth unless stated."""
    return Price(input=base, cached=base // 10 if cached is None else cached, output=output, written=base * 5 // 4, written_hour=2 * base)


def _gpt(base: int, cached: int, output: int, *, written: int | None = None, long: bool = False) -> Price:
    """OpenAI: writing the cache is free on older models, 1.25 times on newer; above 272,000 input tokens twice the input and 1.5 times the output."""
    written = base if written is None else written
    plain = Price(input=base, cached=cached, output=output, written=written, written_hour=written)
    if not long:
        return plain
    above = Price(input=2 * base, cached=2 * cached, output=output * 3 // 2, written=2 * written, written_hour=2 * written)
    return replace(plain, long_from=272_000, long=above)


_HAIKU_5_5 = replace(_claude(100, 500), long_from=100_000, long=_claude(500, 2_500))

# Sources: platform.claude.com/docs/en/about-claude/pricing; developers.openai.com/api/docs/pricing and /models. Thousandths of a dollar for a million.
_ANTHROPIC: Final = (
    ("claude-fable-5-1", date(2026, 9, 1), _claude(10_000, 50_000, 250)),
    ("claude-mythos-5-1", date(2026, 9, 1), _claude(10_000, 50_000, 250)),
    ("claude-fable-5", date(2026, 1, 1), _claude(10_000, 50_000)),
    ("claude-mythos-5", date(2026, 1, 1), _claude(10_000, 50_000)),
    ("claude-opus-5-5", date(2026, 9, 22), _claude(4_000, 20_000, 200)),
    ("claude-opus-5", date(2026, 7, 24), _claude(5_000, 25_000)),
    ("claude-opus-4-8", date(2026, 1, 1), _claude(5_000, 25_000)),
    ("claude-opus-4-7", date(2026, 1, 1), _claude(5_000, 25_000)),
    ("claude-opus-4-6", date(2026, 1, 1), _claude(5_000, 25_000)),
    ("claude-opus-4-5", date(2025, 11, 1), _claude(5_000, 25_000)),
    ("claude-opus-4-1", date(2025, 8, 1), _claude(15_000, 75_000)),
    ("claude-opus-4-0", date(2025, 5, 1), _claude(15_000, 75_000)),
    ("claude-opus-4", date(2025, 5, 1), _claude(15_000, 75_000)),
    ("claude-sonnet-5-5", date(2026, 9, 28), _claude(2_000, 10_000)),
    ("claude-sonnet-5-5", date(2026, 10, 7), _claude(2_000, 10_000, 100)),
    ("claude-sonnet-5", date(2026, 1, 1), _claude(2_000, 10_000)),
    ("claude-sonnet-4-6", date(2026, 1, 1), _claude(3_000, 15_000)),
    ("claude-sonnet-4-5", date(2025, 9, 1), _claude(3_000, 15_000)),
    ("claude-sonnet-4-0", date(2025, 5, 1), _claude(3_000, 15_000)),
    ("claude-sonnet-4", date(2025, 5, 1), _claude(3_000, 15_000)),
    ("claude-3-7-sonnet", date(2025, 2, 1), _claude(3_000, 15_000)),
    ("claude-haiku-5-5", date(2026, 10, 7), _HAIKU_5_5),
    ("claude-haiku-4-5", date(2025, 10, 1), _claude(1_000, 5_000)),
    ("claude-3-5-haiku", date(2024, 11, 1), _claude(800, 4_000)),
)
_OPENAI: Final = (
    ("gpt-6-astra", date(2026, 9, 3), _gpt(10_000, 1_000, 50_000, written=12_500, long=True)),
    ("gpt-6.1-sol", date(2026, 9, 29), _gpt(2_000, 100, 10_000, written=2_500, long=True)),
    ("gpt-6.1-terra", date(2026, 10, 26), _gpt(1_000, 50, 5_000, written=1_250, long=True)),
    ("gpt-6-sol", date(2026, 9, 22), _gpt(2_000, 200, 10_000, written=2_500, long=True)),
    ("gpt-6-luna", date(2026, 9, 22), _gpt(100, 10, 500, written=125, long=True)),
    ("gpt-5.6", date(2026, 7, 9), _gpt(5_000, 500, 30_000, written=6_250, long=True)),
    ("gpt-5.6-sol", date(2026, 7, 9), _gpt(5_000, 500, 30_000, written=6_250, long=True)),
    ("gpt-5.6", date(2026, 9, 3), _gpt(4_000, 400, 20_000, written=5_000, long=True)),
    ("gpt-5.6-sol", date(2026, 9, 3), _gpt(4_000, 400, 20_000, written=5_000, long=True)),
    ("gpt-5.6-terra", date(2026, 7, 9), _gpt(2_500, 250, 15_000, written=3_125, long=True)),
    ("gpt-5.6-terra", date(2026, 7, 30), _gpt(2_000, 200, 12_000, written=2_500, long=True)),
    ("gpt-5.6-luna", date(2026, 7, 9), _gpt(1_000, 100, 6_000, written=1_250, long=True)),
    ("gpt-5.6-luna", date(2026, 7, 30), _gpt(200, 20, 1_200, written=250, long=True)),
    ("gpt-5.5-pro", date(2026, 4, 1), _gpt(30_000, 30_000, 180_000, long=True)),
    ("gpt-5.5", date(2026, 4, 1), _gpt(5_000, 500, 30_000, long=True)),
    ("gpt-5.4-pro", date(2026, 3, 1), _gpt(30_000, 30_000, 180_000, long=True)),
    ("gpt-5.4", date(2026, 3, 1), _gpt(2_500, 250, 15_000, long=True)),
    ("gpt-5.4-mini", date(2026, 3, 1), _gpt(750, 75, 4_500)),
    ("gpt-5.4-nano", date(2026, 3, 1), _gpt(200, 20, 1_250)),
    ("gpt-5.3-codex", date(2026, 2, 1), _gpt(1_750, 175, 14_000)),
    ("gpt-5.2-pro", date(2025, 12, 1), _gpt(21_000, 21_000, 168_000)),
    ("gpt-5.2", date(2025, 12, 1), _gpt(1_750, 175, 14_000)),
    ("gpt-5.2-codex", date(2025, 12, 1), _gpt(1_750, 175, 14_000)),
    ("gpt-5.2-chat", date(2025, 12, 1), _gpt(1_750, 175, 14_000)),
    ("gpt-5.1", date(2025, 11, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5.1-codex", date(2025, 11, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5.1-codex-max", date(2025, 11, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5.1-chat", date(2025, 11, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5-pro", date(2025, 10, 1), _gpt(15_000, 15_000, 120_000)),
    ("gpt-5", date(2025, 8, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5-codex", date(2025, 9, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5-chat", date(2025, 8, 1), _gpt(1_250, 125, 10_000)),
    ("gpt-5-mini", date(2025, 8, 1), _gpt(250, 25, 2_000)),
    ("gpt-5-nano", date(2025, 8, 1), _gpt(50, 5, 400)),
    ("gpt-4.1", date(2025, 4, 1), _gpt(2_000, 500, 8_000)),
    ("gpt-4.1-mini", date(2025, 4, 1), _gpt(400, 100, 1_600)),
    ("gpt-4.1-nano", date(2025, 4, 1), _gpt(100, 25, 400)),
    ("gpt-4o", date(2024, 10, 1), _gpt(2_500, 1_250, 10_000)),
    ("gpt-4o-mini", date(2024, 7, 1), _gpt(150, 75, 600)),
    ("o1", date(2024, 12, 1), _gpt(15_000, 7_500, 60_000)),
    ("o1-pro", date(2025, 3, 1), _gpt(150_000, 150_000, 600_000)),
    ("o3", date(2025, 6, 1), _gpt(2_000, 500, 8_000)),
    ("o3-mini", date(2025, 1, 1), _gpt(1_100, 550, 4_400)),
    ("o3-pro", date(2025, 6, 1), _gpt(20_000, 20_000, 80_000)),
    ("o4-mini", date(2025, 4, 1), _gpt(1_100, 275, 4_400)),
    ("text-embedding-3-small", date(2024, 1, 1), _gpt(20, 20, 0)),
    ("text-embedding-3-large", date(2024, 1, 1), _gpt(130, 130, 0)),
)
_TABLE: Final = tuple(
    _Row(provider, model, since, price) for provider, rows in (("anthropic", _ANTHROPIC), ("openai", _OPENAI)) for model, since, price in rows
)
_TIERS: Final = {"priority": 2, "fast": 6}  # at most so many times the price; `flex` and `batch` cost half, and are not credited


@lru_cache(maxsize=512)
def price_of(provider: str, model: str, on: date | None = None) -> Price | None:
    """The price in force on that day (by default the newest); None for a model that the table does not know."""
    dated = _DATED.fullmatch(model)
    names = {model, dated["model"]} if dated else {model}
    rows = [row for row in _TABLE if row.provider == provider and row.model in names and (on is None or row.since <= on)]
    return max(rows, key=lambda row: (len(row.model), row.since)).price if rows else None


def cost_microusd(provider: str, model: str, usage: Priced, *, on: date | None = None) -> int | None:
    """What the call cost, rounded up; None for an unknown model, or when the provider did not tell how many tokens went in."""
    price = price_of(provider, model, on)
    if price is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    if price.long is not None and price.long_from is not None and usage.input_tokens > price.long_from:
        price = price.long
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    written = min(usage.cache_write_tokens, usage.input_tokens - cached)
    hour = min(usage.cache_write_hour_tokens, written)
    fresh = usage.input_tokens - cached - written
    thousandths = fresh * price.input + cached * price.cached + (written - hour) * price.written + hour * price.written_hour
    thousandths += usage.output_tokens * price.output
    return _rounded_up(thousandths * _TIERS.get(usage.service_tier or "", 1))


def ceiling_microusd(provider: str, model: str, input_tokens: int, output_tokens: int, *, service_tier: str | None = None) -> int:
    """What a call of so many tokens costs at the very most: nothing read from the cache, all of it written there; for an unknown model at the dearest price
    of the provider, for an unknown provider at the dearest of all. `service_tier` is the call's own wish (ModelCall.service_tier)."""
    price = price_of(provider, model)
    if price is None:
        dearest_input, dearest_output = _dearest(provider)
    else:
        if price.long is not None and price.long_from is not None and input_tokens > price.long_from:
            price = price.long
        dearest_input, dearest_output = price.dearest_input, price.output
    return _rounded_up(_TIERS.get(service_tier or "", 1) * (input_tokens * dearest_input + output_tokens * dearest_output))


@lru_cache(maxsize=8)
def _dearest(provider: str) -> tuple[int, int]:
    rows = [row.price for row in _TABLE if row.provider == provider] or [row.price for row in _TABLE]
    every = rows + [row.long for row in rows if row.long is not None]
    return max(price.dearest_input for price in every), max(price.output for price in every)


def _rounded_up(thousandths: int) -> int:
    """Tokens times thousandths of a dollar for a million of them, in millionths of a dollar."""
    return -(-thousandths * 1_000 // _MILLION)
