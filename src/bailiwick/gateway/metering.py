"""What a model call may use, set aside before it goes, and what it is charged with once it is over."""

from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from bailiwick.critic.budget import Reservation
from bailiwick.critic.decision import Deny
from bailiwick.critic.enforcement import ModelRoute, Usage
from bailiwick.gateway import pricing
from bailiwick.gateway.exchange import Exchange
from bailiwick.gateway.models import ModelCall, ModelUsage
from bailiwick.gateway.runs import Run
from bailiwick.gateway.usage import chargeable

TOOL_CALLS_SHOWN_MAX = 64


def reserve(run: Run, route: ModelRoute, call: ModelCall, *, egress_bytes: int) -> tuple[ModelCall, Reservation | Deny]:
    """The call with its bounds, and its ceiling set aside. A call that states no bound is bounded by what is left, so that it is refused only when its
    input and one token more do not fit: a budget is then passed by one call's ceiling at most, and a small one is of use."""
    given, written = call.input_tokens_ceiling, call.output_tokens_ceiling
    if call.stored_context:
        given += run.used.tokens  # what the provider stored of this run is at most all that the run has had
    cost_of = partial(pricing.ceiling_microusd, route.provider, call.model, service_tier=call.service_tier)
    cost = cost_of(given, written)
    if not call.output_stated:
        if (tokens := run.budget.left("tokens")) is not None:
            written = max(1, min(written, tokens - given))
        cost = cost_of(given, written)
        if (money := run.budget.left("microusd")) is not None:
            cost = max(cost_of(given, 1), min(cost, money))
    bounded = replace(call, input_tokens_ceiling=given, output_tokens_ceiling=written)
    return bounded, run.budget.reserve(calls=1, tokens=given + written, microusd=cost, egress_bytes=egress_bytes)


def charge(exchange: Exchange, route: ModelRoute, call: ModelCall, used: Usage) -> Usage:
    """`used` with the tokens and the money of a call that was sent; the outcome says what its answer told. What nobody told is charged at its ceiling."""
    outcome = exchange.outcome
    outcome.model = call.model
    usage = exchange.usage()
    if usage is None:
        if outcome.status is not None:
            return used  # the provider answered that it does not do it
        usage = ModelUsage(estimated=True, problem="no answer came")
    charged = chargeable(call, usage)
    charged = replace(charged, service_tier=charged.service_tier or call.service_tier)
    given, written = charged.input_tokens or 0, charged.output_tokens or 0
    cost = None if usage.input_tokens is None else pricing.cost_microusd(route.provider, call.model, charged)
    if cost is None:
        cost = pricing.ceiling_microusd(route.provider, call.model, given, written, service_tier=charged.service_tier)
    outcome.model = usage.model or call.model
    outcome.input_tokens, outcome.output_tokens, outcome.cost_microusd = usage.input_tokens, usage.output_tokens, cost
    outcome.usage = _shown(usage, charged)
    return msgspec.structs.replace(used, tokens=given + written, microusd=cost)


def _shown(usage: ModelUsage, charged: ModelUsage) -> dict[str, Any]:
    told = (usage.input_tokens, usage.output_tokens) == (charged.input_tokens, charged.output_tokens)
    shown = {
        "stop_reason": usage.stop_reason,
        "cached_input_tokens": usage.cached_input_tokens or None,
        "reasoning_tokens": usage.reasoning_tokens or None,
        "estimated": usage.estimated or None,
        "charged_input_tokens": None if told else charged.input_tokens,
        "charged_output_tokens": None if told else charged.output_tokens,
        "complete": usage.complete,
        "problem": usage.problem,
        "tool_calls": [call.shown() for call in usage.tool_calls[:TOOL_CALLS_SHOWN_MAX]] or None,
    }
    return {name: value for name, value in shown.items() if value is not None}
