"""How rows are cut into requests and batches."""

import pytest
from m2ost_contract import spans


@pytest.mark.parametrize(
    ("rows", "usual", "most", "sizes"),
    [
        (0, 4, 4, []), (1, 4, 4, [1]), (4, 4, 4, [4]), (5, 4, 4, [3, 2]), (6, 4, 4, [4, 2]), (33, 32, 32, [31, 2]),
        (256, 32, 32, [32] * 8), (3, 2, 2, [2, 1]), (5, 2, 32, [2, 3]), (1, 2, 32, [1]), (9, 4, 5, [4, 5]),
    ],
)  # fmt: skip
def test_no_row_of_several_is_run_alone(rows, usual, most, sizes):
    found = spans(rows, usual, most)
    assert [span.stop - span.start for span in found] == sizes
    assert [row for span in found for row in range(span.start, span.stop)] == list(range(rows))
