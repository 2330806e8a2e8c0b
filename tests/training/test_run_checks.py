"""The verdict on a run, from rows of its record."""

from typing import Any

from mu_sota.training.run_checks import as_text, judge_run

UNIGRAM = 100.0


def _rows(losses: list[float], texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "step": 10 * (number + 1),
            "complete": True,
            "train": {"loss": loss},
            "validation": {"loss": loss, "perplexity": 2**loss},
            "samples": [{"prompt": "a", "text": text}] if text else [],
        }
        for number, (loss, text) in enumerate(zip(losses, texts, strict=True))
    ]


def _failed(rows: list[dict[str, Any]], steps: int, loads: bool = True, unigram: float = UNIGRAM) -> list[str]:
    return [check.text for check in judge_run(rows, steps, loads, unigram) if not check.passed]


def test_a_good_run_passes() -> None:
    assert _failed(_rows([3.0, 2.0, 1.0], ["x", "y", "z"]), 30) == []


def test_each_warning_sign_is_found_with_its_advice() -> None:
    stuck = _rows([3.0, 3.0, 3.1], ["x", "y", "y"])
    assert len(_failed(stuck, 40, loads=False)) == 6
    assert "validation perplexity 8.00 against 7.00 of the unigram model" in _failed(
        _rows([3.0], ["x"]), 10, unigram=7.0
    )
    text = as_text(judge_run(stuck, 40, False, UNIGRAM))
    assert "[NO] 30 of 40 steps done, 3 whole epochs" in text
    assert "[NO] training loss, every epoch lower: 3.0000 > 3.0000 > 3.1000" in text
    assert "lower the learning rate (--set learning_rate=...)" in text
    assert "the model is not learning" in text
    assert "look for a full disk" in text


def test_one_epoch_or_no_prompts_are_judged_by_what_there_is() -> None:
    assert _failed(_rows([3.0], ["x"]), 10) == []
    assert _failed(_rows([3.0, 2.0], ["", ""]), 20) == []
