# SPDX-License-Identifier: Apache-2.0
"""Which tests `make test` runs, and which only `make test-all` does."""

from types import SimpleNamespace

import pytest

from support import runs


class Item:
    def __init__(self, name, case, mark, **indices):
        self.path, self.originalname, self.case = "f.py", name, case
        self.callspec = SimpleNamespace(indices=indices)
        self.get_closest_marker = lambda _: mark


def items_of(name, cases, count):
    mark = runs.sampled(count).mark if count else None
    return [Item(name, case, mark, only=case) for case in range(cases)]


@pytest.mark.parametrize(
    ("count", "cases", "chosen"),
    [
        (1, 5, [0]), (2, 5, [0, 4]), (4, 10, [0, 3, 6, 9]), (3, 3, [0, 1, 2]), (8, 2, [0, 1]),
        (None, 3, [0, 1, 2]),
    ],
)  # fmt: skip
def test_of_a_sampled_test_some_cases_are_run_the_first_and_the_last_among_them(
    monkeypatch, count, cases, chosen
):
    items = [*items_of("test_it", cases, count), *items_of("test_other", 2, None)]
    monkeypatch.setattr(runs, "ALL", False)
    kept, left_out = runs.without_most(items)
    assert [item.case for item in kept if item.originalname == "test_it"] == chosen
    assert [item.case for item in kept if item.originalname == "test_other"] == [0, 1]
    assert {*kept, *left_out} == {*items}
    monkeypatch.setattr(runs, "ALL", True)
    assert runs.without_most(items) == (items, [])


@pytest.mark.parametrize(("count", "rows", "columns"), [(3, 2, 3), (4, 4, 4), (5, 3, 5), (8, 4, 4)])
def test_of_a_sampled_test_each_value_of_each_argument_is_run(monkeypatch, count, rows, columns):
    mark = runs.sampled(count).mark
    grid = [(row, column) for row in range(rows) for column in range(columns)]
    items = [Item("test_it", (i, j), mark, row=i, column=j) for i, j in grid]
    monkeypatch.setattr(runs, "ALL", False)
    kept = [item.case for item in runs.without_most(items)[0]]
    assert len(set(kept)) == len(kept) == count
    times = count // max(rows, columns)
    assert all(sum(row == i for row, _ in kept) >= times for i in range(rows))
    assert all(sum(column == j for _, column in kept) >= times for j in range(columns))
