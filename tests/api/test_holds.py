from typing import Any


def test_a_hold_is_approved_by_who_may(api: Any) -> None:
    """An approver's yes reaches the governor with their name and reason; a viewer's does not."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    hold = api.do(api.governance.open_hold, run).hold
    assert [held["hold"] for held in api("GET", "/v1/holds?state=pending")[1]] == [hold]
    api.roles = "viewer"
    assert api("POST", f"/v1/holds/{hold}/approve", {})[0] == 403
    assert api("GET", f"/v1/holds/{hold}")[1]["state"] == "pending"
    api.roles, api.name = "approver", "bo"
    settled = api("POST", f"/v1/holds/{hold}/approve", {"why": "checked"})[1]
    assert (settled["state"], settled["signed"][0]["operator"], settled["signed"][0]["why"]) == ("granted", "bo", "checked")
    assert api("POST", f"/v1/holds/{hold}/approve", {"why": "late"})[0] == 409


def test_a_denial_says_why(api: Any) -> None:
    """A refusal without a reason is not taken."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    hold = api.do(api.governance.open_hold, run).hold
    assert api("POST", f"/v1/holds/{hold}/deny", {})[0] == 422
    assert api("POST", f"/v1/holds/{hold}/deny", {"why": ""})[0] == 422
    assert api("POST", f"/v1/holds/{hold}/deny", {"why": "no"})[1]["state"] == "denied"


def test_who_is_in_no_group_may_not(api: Any) -> None:
    """The boundary's approver groups are the governor's to check; its no comes back as one."""
    run = api("POST", "/v1/runs", {"agent": "deployer"})[1]["run"]
    hold = api.do(api.governance.open_hold, run).hold
    api.name = "stranger"
    status, problem = api("POST", f"/v1/holds/{hold}/approve", {})
    assert (status, problem["code"]) == (403, "forbidden")
    assert "oncall" in problem["detail"]
