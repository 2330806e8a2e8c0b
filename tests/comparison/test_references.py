"""The part of a text on which n-grams are counted."""

import numpy as np

from mu_sota.comparison.references import spread_over


def test_a_part_of_the_text_is_taken_from_all_over_it() -> None:
    text = np.arange(10_000)
    part = spread_over(text, 1600)
    assert len(part) in (1600, 1601)
    assert (np.diff(part) == 1).sum() >= len(part) - 16, "stretches"
    assert len(set(part)) == len(part)
    assert part[0] == 0
    assert part[-1] > 9_890
    assert len(spread_over(text, 9_999)) == 10_000
