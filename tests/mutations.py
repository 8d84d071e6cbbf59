"""What happens when a protection is gone: for each invariant of SECURITY-INVARIANTS.md small edits that remove one, and the tests that must then fail.

    python -m tests.mutations [--only NAME]      (`make mutate`)

Each edit is made in a copy of the tree, never here, and its tests are run there: they must be green before it and red after. Prints one JSON line;
`survived` names the edits that a test did not notice, and ends with 1 when there is one.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "src/bailiwick"
SECONDS_MAX = 240.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """`text` stands once in `file` and becomes `becomes`; every one of `tests` must fail then (of a parametrised one, some case)."""

    invariant: int
    name: str
    file: str
    text: str
    becomes: str
    tests: tuple[str, ...]
    root: bool = False  # only root can run its tests


def _m(invariant: int, name: str, file: str, text: str, becomes: str, *tests: str, root: bool = False) -> Mutation:
    return Mutation(invariant, name, f"{SOURCE}/{file}", text, becomes, tuple(f"tests/{test}" for test in tests), root)


SERVER = "gateway/test_server.py::"

MUTATIONS = (
    # 1. No way around
    _m(1, "an IPv6 address is not local to the sandbox", "sandbox/netlink.py", ', (socket.AF_INET6, "local ::/0")', ",",
       "sandbox/test_bubblewrap.py::test_every_address_is_ours"),
    _m(1, "a name may lead to a private or metadata address", "gateway/addresses.py",
       "return _ipv4(parsed) if isinstance(parsed, IPv4Address) else _ipv6(parsed)", "return None",
       "gateway/test_upstream.py::test_a_name_at_a_special_address_is_refused"),
    _m(1, "a device may be shown in a sandbox", "sandbox/spec.py", "if not (real.is_file() or real.is_dir()):", "if False:",
       "sandbox/test_spec.py::test_sockets_devices_and_state"),
    _m(1, "the governor starts an agent whose sandbox was found open", "governor/dispatch.py",
       "if broken:\n            raise BackendError(f\"the probe", "if False:\n            raise BackendError(f\"the probe",
       "governor/test_dispatch.py::test_a_probe_that_found_the_sandbox_open_means_no_start"),
    _m(1, "the launcher starts an agent whose sandbox was found open", "sandbox/launcher.py",
       "if broken:\n                raise Conflict(", "if False:\n                raise Conflict(",
       "sandbox/test_refusal_to_start.py::test_a_failed_probe_means_no_start"),
    _m(1, "any socket family may be opened", "kernel/seccomp.py", "Step(RET, _refuse(errno.EAFNOSUPPORT)),\n        Label(\"socket ip\"),",
       "Step(RET, _ALLOW),\n        Label(\"socket ip\"),", "kernel/test_seccomp.py::test_sockets_are_unix_and_ip_streams_and_datagrams"),
    # 2. Default deny, fail closed
    _m(2, "a silent governor stops nothing", "gateway/runs.py", "if not self.house.governor.fresh:", "if False:",
       f"{SERVER}test_a_dead_part_denies_and_is_named", "gateway/test_worker.py::test_a_silent_governor_denies_everything_and_keeps_the_listeners"),
    _m(2, "a recorder that hangs stops nothing", "record/client.py", "if self._events and now - self._oldest_at > GRACE_SECONDS:", "if False:",
       "record/test_faults.py::test_a_recorder_that_hangs_fails_closed"),
    _m(2, "a dead broker lends nothing and the request goes on", "gateway/server.py",
       'raise dead("broker", "lends nothing for this host") from error', "return None",
       f"{SERVER}test_a_dead_broker_denies_for_leased_hosts_and_is_named"),
    _m(2, "a critic that fails allows", "critic/evaluate.py", "return error.deny()  # not remembered: the next may be decided", "return Allow(rules=())",
       "critic/test_evaluate.py::test_a_policy_engine_that_fails_is_a_deny"),
    _m(2, "a policy that errs is passed over", "critic/evaluate.py", "if answer is not None and answer.errors:", "if False:",
       "critic/test_evaluate.py::test_an_evaluation_error_is_a_deny_that_names_it"),
    _m(2, "what no rule speaks of is allowed", "critic/evaluate.py",
       "return Deny(rules=(), reason=f\"no rule of {self.boundary.agent} allows {what}{note}\")", "return Allow(rules=())",
       f"{SERVER}test_nothing_is_allowed_by_default", "critic/test_evaluate.py::test_what_has_no_rules_is_denied"),
    _m(2, "runs go on without a governor", "sandbox/launcher.py", "if stale != self._stale or stale:", "if False:",
       "sandbox/test_launcher.py::test_silence_of_the_governor_freezes_every_run"),
    # 3. Intent before act
    _m(3, "an effect does not wait for its intent", "gateway/server.py", "if action.verb.is_effect or exchange.hold is not None:", "if False:",
       f"{SERVER}test_an_effect_waits_for_its_intent"),
    _m(3, "an intent that is refused is forwarded all the same", "gateway/server.py",
       'raise dead("recorder", "did not take the intent of this action") from error', "pass",
       f"{SERVER}test_a_recorder_that_dies_between_decision_and_intent_denies"),
    _m(3, "an agent is started before that is on file", "governor/dispatch.py", 'await self.record(live, "run.started", command=live.definition.spec.command)',
       "pass", "governor/test_dispatch.py::test_what_cannot_be_recorded_does_not_happen"),
    _m(3, "a lease lives before its grant is on file", "broker/server.py",
       "await self._record_grant(lease, terms)\n        self._book.grant(lease, self._moment())",
       "self._book.grant(lease, self._moment())\n        await self._record_grant(lease, terms)",
       "broker/test_server.py::test_the_grant_is_on_file_before_it_is_answered_and_before_it_lives"),
    # 4. The agent holds no secret
    _m(4, "answers are not scrubbed", "gateway/layers/scrub.py", "if not patterns or not data:", "if True:",
       f"{SERVER}test_a_lease_is_injected_last_and_scrubbed_from_the_answer", "gateway/layers/test_scrub.py::test_no_form_of_a_secret_comes_out"),
    _m(4, "the head of an answer is not scrubbed", "gateway/layers/scrub.py", "if not self._patterns or not self._patterns.occur_in(data):", "if True:",
       "gateway/layers/test_scrub.py::test_no_form_of_a_secret_comes_out"),
    _m(4, "a compressed answer is passed on", "gateway/exchange.py", 'if head.framing != "none" and (head.first(b"content-encoding")',
       'if head.framing == "?" and (head.first(b"content-encoding")', f"{SERVER}test_an_answer_that_cannot_be_scrubbed_is_not_given"),
    _m(4, "the agent's own credentials are forwarded", "broker/inject.py", "(lower := name.lower()) not in _DROPPED",
       "(lower := name.lower()) not in HOP_BY_HOP", "broker/test_inject.py::test_the_agent_s_own_credentials_go"),
    _m(4, "a secret has a text", "kernel/secret.py", 'def __repr__(self) -> str:\n        return "(secret)"',
       "def __repr__(self) -> str:\n        return repr(self.__value)", "kernel/test_secret.py::test_it_has_no_text"),
    _m(4, "a secret in the environment is given to the sandbox", "sandbox/spec.py", "if secret_by_name or _SECRET_VALUE.search(value):", "if False:",
       "sandbox/test_spec.py::test_what_looks_like_a_secret_is_refused_and_not_shown"),
    _m(4, "an error repeats a credential that stands in the wrong place", "kernel/document.py", "for word in _TOKEN_LIKE.findall(repr(given)):",
       "for word in ():", "kernel/test_document.py::test_a_credential_where_a_name_belongs_is_not_repeated"),
    _m(4, "our processes may leave a core", "kernel/confine.py", "_prctl(_PR_SET_DUMPABLE, 0)\n    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", "pass",
       "kernel/test_confine.py::test_hardened_process_gets_no_new_privileges_and_leaves_no_core"),
    # 5. Identity is position
    _m(5, "a peer has every role", "kernel/accounts.py", "return frozenset(member.role for member in self.members if member.uid == uid)",
       "return frozenset(member.role for member in self.members)", "kernel/test_accounts.py::test_as_root_a_uid_has_one_role"),
    _m(5, "a run may call the API", "api/operators.py", "if peer.uid in _OUR_UIDS:", "if False:",
       "api/test_operators.py::test_a_run_or_a_process_of_ours_is_never_an_operator"),
    _m(5, "a worker speaks for any run", "governor/service.py", "if live is None or live.worker != worker:", "if False:",
       "governor/test_service.py::test_a_worker_speaks_for_its_own_runs_only"),
    _m(5, "a worker uses the leases of any run", "broker/lease.py", "if any(lease.terms.worker not in workers for lease in leases):", "if False:",
       "broker/test_server.py::test_a_worker_uses_the_leases_of_its_own_runs_only"),
    # 6. Authority is what was connected to
    _m(6, "Host decides", "gateway/target.py", "if name != door.name or (port is not None and port != door.port):", "if False:",
       "gateway/test_connection.py::test_what_is_no_request_for_this_host_is_refused_and_recorded"),
    _m(6, "the server name decides", "gateway/layers/tls.py", "if asked is not None and asked != authorised:", "if False:",
       "gateway/layers/test_tls.py::test_the_certificate_is_for_what_was_authorised"),
    _m(6, "an upstream's certificate may name another", "gateway/upstream.py", "context.set_alpn_protocols([\"http/1.1\"])\n    return context",
       "context.set_alpn_protocols([\"http/1.1\"])\n    context.check_hostname = False\n    return context",
       "gateway/test_upstream.py::test_an_upstream_certified_for_another_name_is_not_spoken_to"),
    _m(6, "a lease is for any host", "broker/lease.py", "if host in lease.terms.hosts and verb in lease.terms.verbs]\n        found",
       "if verb in lease.terms.verbs]\n        found", "broker/test_lease.py::test_a_lease_for_one_host_is_never_given_for_another"),
    # 7. Deny is final
    _m(7, "anybody's role signs", "critic/signoff.py", "if not roles & SIGNING_ROLES:", "if False:",
       "critic/test_signoff.py::test_only_an_approver_or_admin_signs"),
    _m(7, "who is in no group signs", "critic/signoff.py", "if not any(operator in groups[name].operators for name in held.approvers if name in groups):",
       "if False:", "critic/test_signoff.py::test_only_who_is_named_signs"),
    _m(7, "who dispatched the run signs it off", "critic/signoff.py", "if held.four_eyes and operator == held.dispatched_by:", "if False:",
       "critic/test_signoff.py::test_four_eyes_bar_who_dispatched"),
    _m(7, "a grant is for any bytes", "critic/signoff.py", "if held.digest != digest:", "if False:",
       "critic/test_signoff.py::test_a_grant_is_for_one_run_one_action_one_boundary_and_a_time"),
    _m(7, "a grant is for any run", "critic/signoff.py", "if held.run != run:", "if False:",
       "critic/test_signoff.py::test_a_grant_is_for_one_run_one_action_one_boundary_and_a_time"),
    _m(7, "a grant has no end", "critic/signoff.py", "if now >= held.expires:", "if False:",
       "critic/test_signoff.py::test_a_grant_is_for_one_run_one_action_one_boundary_and_a_time"),
    _m(7, "policy is not evaluated again at release", "gateway/holds.py", "if not isinstance(decision, Allow):", "if False:",
       f"{SERVER}test_a_grant_does_not_outlive_the_boundary_it_was_given_under"),
    _m(7, "an allow goes before a hold", "critic/evaluate.py", "if signed is None or not signed.allowed:\n            return self._refusal",
       "if signed and signed.allowed:\n            return Allow(rules=())\n        if signed is None or not signed.allowed:\n            return self._refusal",
       "critic/test_evaluate.py::test_a_deny_wins_and_a_hold_goes_before_an_allow"),
    # 8. Containment is confirmed
    _m(8, "a run ends with its leases alive", "governor/dispatch.py",
       'await self._until_done(live, "broker", lambda: self._near.broker.call(RevokeLeases(run=live.run, reason=ending.cause)))', "pass",
       "governor/test_dispatch.py::test_a_start_that_fails_is_undone_whole"),
    _m(8, "a run ends with its sandbox there", "governor/dispatch.py",
       'await self._until_done(live, "launcher", lambda: self._near.launcher.call(DestroySandbox(run=live.run)))', "pass",
       "governor/test_dispatch.py::test_a_start_that_fails_is_undone_whole"),
    _m(8, "an end that fails once is given up", "governor/dispatch.py", "trying again\", flush=True)  # noqa: T201\n            await",
       "trying again\", flush=True)  # noqa: T201\n                return\n            await",
       "governor/test_dispatch.py::test_an_end_is_never_given_up"),
    _m(8, "a revoked lease lives", "broker/lease.py", "lease.after(LeaseEvent.REVOKE)", "pass", "broker/test_lease.py::test_a_revoked_lease_is_dead"),
    _m(8, "a closed run keeps its connections", "gateway/runs.py", "connection.cut(reason)  # ends its exchange", "pass  # ends its exchange",
       f"{SERVER}test_closing_a_run_cuts_everything_and_records_unknown"),
    _m(8, "a run is said to be paused before it stands still", "governor/dispatch.py", "await self._near.launcher.call(FreezeRun(run=live.run))", "pass",
       "governor/test_dispatch.py::test_pause_and_resume_are_read_back_and_recorded"),
    # 9. Nothing is lost
    _m(9, "a write is sent twice", "gateway/server.py",
       'if failure.code != "no-answer" or action.verb is not Verb.READ or exchange.head.framing != "none":', "if False:",
       f"{SERVER}test_a_kept_connection_that_closed_is_tried_once_more_for_a_read_and_never_for_a_write"),
    _m(9, "what was sent and not acknowledged is forgotten", "record/client.py", "self._unsent.extendleft(reversed(self._sent.values()))", "pass",
       "record/test_faults.py::test_kill_9_loses_nothing_that_was_acknowledged"),
    _m(9, "an event that is sent again is written again", "record/commit.py",
       "if known is not None and event.id in known:\n                    append", "if False:\n                    append",
       "record/test_loop.py::test_one_id_is_one_event"),
    _m(9, "processes outlive their parent", "kernel/supervise.py", "confine.die_with_parent(parent)  # once more", "pass  # once more",
       "kernel/test_supervise.py::test_members_with_accounts_of_their_own_die_with_a_parent_that_is_killed", root=True),
    _m(9, "a run whose launcher died goes on in the books", "governor/dispatch.py",
       "elif sandbox is None and live.state in (RunState.RUNNING, RunState.PAUSED):", "elif False:",
       "governor/test_dispatch.py::test_what_a_restarted_launcher_does_not_hold_is_lost"),
    _m(9, "a broker's restart loses the leases of a run that another governor began", "governor/dispatch.py",
       "live.leases.update(self._near.leases(live.run))", "pass",
       "governor/test_dispatch.py::test_a_broker_restarted_after_its_governor_is_granted_what_stands_in_the_record"),
    # 10. The record cannot be quietly changed
    _m(10, "an event need not have its hash", "record/verify.py", "if actual.hex() != hashed:", "if False:",
       "record/test_verify.py::test_any_changed_byte_is_found"),
    _m(10, "the tree need not have the signed root", "record/verify.py",
       "if checkpoint.size != self._tree.size or checkpoint.root != self._tree.root():", "if False:",
       "record/test_verify.py::test_a_forged_history_is_found_between_two_checkpoints"),
    _m(10, "a second history is signed", "broker/signer.py", "verify_consistency(self._last.size, asked.size, proof,",
       "(lambda *_: None)(self._last.size, asked.size, proof,", "broker/test_signer.py::test_another_history_is_not_signed"),
    _m(10, "the database lets an event be changed", "record/migrations/0001_pre_events.sql",
       "CREATE TRIGGER events_never_change BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'an event is never changed'); END;", "",
       "record/test_repository.py::test_the_database_itself_refuses_changes"),
)  # fmt: skip


class Copy:
    """The tree, elsewhere, readable by every account a test may take on."""

    def __init__(self) -> None:
        self._whole = Path(tempfile.mkdtemp(prefix="bailiwick-mutate-"))
        self._whole.chmod(0o755)
        self.root = self._whole / "tree"
        ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
        self.root.mkdir()
        for path in ROOT.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, self.root / path.name, ignore=ignored, symlinks=True)
            else:
                shutil.copy2(path, self.root / path.name)

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._whole, ignore_errors=True)

    def failed(self, tests: tuple[str, ...]) -> set[str]:
        """Which of the tests fail there. RuntimeError when one of them did not run."""
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfExs", "-W", "default", "--color=no", *tests]
        environment = os.environ | {"PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
        done = subprocess.run(command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS_MAX)
        said = set(re.findall(r"^(?:FAILED|ERROR) (tests/[^\s\[]+)", done.stdout, re.MULTILINE))
        if done.returncode not in (0, 1) and not said:
            raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return {test for test in tests if test in said}


def tried(copy: Copy, mutation: Mutation) -> set[str]:
    """The tests that did not notice."""
    path = copy.root / mutation.file
    whole = path.read_text()
    if whole.count(mutation.text) != 1:
        raise RuntimeError(f"{mutation.file} holds {whole.count(mutation.text)} times: {mutation.text!r}; must be once")
    path.write_text(whole.replace(mutation.text, mutation.becomes))
    try:
        return set(mutation.tests) - copy.failed(mutation.tests)
    finally:
        path.write_text(whole)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description="remove each protection and see that a test notices")
    parser.add_argument("--only", help="edits whose name holds this")
    chosen = parser.parse_args()
    mutations = [each for each in MUTATIONS if (chosen.only or "") in each.name and (os.getuid() == 0 or not each.root)]
    begun = time.monotonic()
    survived: list[str] = []
    with Copy() as copy:
        tests = tuple(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
        if red := copy.failed(tests):
            print(f"red before anything was changed: {', '.join(sorted(red))}", file=sys.stderr)
            return 2
        for number, mutation in enumerate(mutations, 1):
            for test in sorted(tried(copy, mutation)):
                survived.append(f"{mutation.name} ({test})")
                print(f"\nsurvived: {mutation.name}: {test} is green", file=sys.stderr)
            print(f"\r{number} of {len(mutations)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    counted = len({mutation.invariant for mutation in mutations})
    print(json.dumps({"invariants": counted, "mutations": len(mutations), "survived": survived, "seconds": round(time.monotonic() - begun)}))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
