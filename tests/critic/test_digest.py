"""The digest of a compiled boundary is what both ends of a channel agree on."""

import pytest

from bailiwick.critic.boundary import CompiledBoundary, compile_boundary
from bailiwick.critic.rules import ApproverGroup, Rule


@pytest.mark.parametrize("wait", [{}, {"wait": "90s"}, {"wait": 90}], ids=["default", "text", "number"])
def test_a_boundary_that_was_sent_has_the_digest_it_had(wait: dict) -> None:
    """Else a hold under it could never be released: the governor and the worker would speak of two boundaries."""
    rule = Rule.model_validate({"hold": ["write"], "http": "config.internal", "approvers": ["oncall"], **wait})
    compiled = compile_boundary("deployer", [rule], [], {"oncall": ApproverGroup(operators=["ana"])})
    assert CompiledBoundary.from_json(compiled.to_json()).digest == compiled.digest
