"""The table of `make mutate` fits the tree: every edit can be made, every test it names is there, every invariant has one. (Running it takes minutes.)"""

import ast
import re
from pathlib import Path

import pytest
from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_an_edit_removes_a_protection_that_is_there(mutation: Mutation) -> None:
    """Its text stands exactly once in its file, and the tests that must notice exist."""
    assert (ROOT / mutation.file).read_text().count(mutation.text) == 1
    assert mutation.becomes != mutation.text
    for test in mutation.tests:
        file, _, name = test.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, test


def test_every_invariant_has_an_edit() -> None:
    """Ten promises, and for each something that is noticed when it is broken."""
    headings = re.findall(r"^## (\d+)\. ", (Path(ROOT) / "SECURITY-INVARIANTS.md").read_text(), re.MULTILINE)
    assert sorted({mutation.invariant for mutation in MUTATIONS}) == [int(number) for number in headings] == list(range(1, 11))


def test_names_are_unique() -> None:
    """`--only` and the report speak of an edit by its name."""
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
