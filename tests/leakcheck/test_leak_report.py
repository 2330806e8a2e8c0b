"""The report as a sentence, a table and a record."""

import json
import math
import re

import pytest
from planted import planted, running_mean
from torch import Tensor

from mu_sota.leakcheck.checks import assert_causal, check
from mu_sota.leakcheck.report import LeakError, Result


def test_leak_error_is_one_sentence() -> None:
    expected = (
        r"the model is not causal, so its perplexity would mean nothing: later tokens change earlier predictions "
        r"\(most when those from position \d+ on are replaced\) "
        r"\(check 'future': 0\.\d+ std of the logits, tolerance 1e-04\); "
        r"it arises in mixer\.norm \(GroupNorm\); path: mixer\.norm -> after -> head -> logits"
    )
    with pytest.raises(LeakError, match=f"^{expected}$"):
        assert_causal(planted("GroupNorm over time"))


def test_report_as_table_and_as_json() -> None:
    seen: list[Result] = []
    report = check(planted("mean over the batch"), seen=seen.append)
    assert seen == report.results
    text = str(report)
    assert "TinyLM: 5 rows of 61 tokens below 50, float32 on cpu" in text
    assert re.search(r"LEAK \(row alone\): row \d alone gives other predictions than the same row among others", text)
    assert "    arises in mixer (OverBatch); path: mixer -> after -> head -> logits" in text
    assert "cache                      -          -  not checked: the model has no generate method" in text
    record = report.as_dict()
    assert record["clean"] is False
    assert {"check", "verdict", "change", "tolerance", "unit", "meaning", "location"} == record["checks"][0].keys()
    assert record["checks"][1]["location"]["module"] == "mixer"
    assert "no leak found within 2 tokens in float32 by 4 checks: future, batch, row alone, length" in str(
        check(running_mean, rows=4, length=2)
    )


def test_record_has_no_infinity() -> None:
    def masked_by_the_future(ids: Tensor) -> Tensor:
        return running_mean(ids).masked_fill((ids.roll(-1, 1) > 25)[..., None], -math.inf)

    record = check(masked_by_the_future).as_dict()
    assert record["checks"][0]["change"] is None
    assert "the change is infinite, or not a number" in record["checks"][0]["meaning"]
    json.dumps(record, allow_nan=False)
