"""Tolerances: by number format, by the scale of the logits, and by the rounding of the model at hand."""

import math

import pytest
import torch
from planted import CLEAN, VOCABULARY, WIDTH, TinyLM, planted, results, running_mean
from torch import Tensor, nn

from mu_sota import InputError
from mu_sota.leakcheck.checks import check


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_change_does_not_depend_on_the_scale_of_the_logits(factor: float) -> None:
    model = planted("weak")
    expected = results(check(model))["future"].change
    assert results(check(lambda ids: factor * model(ids)))["future"].change == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fill", [-1e4, -1e9, -math.inf, torch.finfo(torch.float32).min])
def test_a_masked_part_of_the_vocabulary_does_not_hide_a_leak(fill: float) -> None:
    model, clean = planted("weak"), CLEAN["attention"]()
    expected = results(check(model))["future"].change
    masked = check(lambda ids: nn.functional.pad(model(ids), (0, 14), value=fill), VOCABULARY)
    assert results(masked)["future"].change == pytest.approx(expected, rel=1e-3)
    assert check(lambda ids: nn.functional.pad(clean(ids), (0, 14), value=fill), VOCABULARY).clean


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tolerance_depends_on_the_number_format(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    report = check(CLEAN["Llama"]().to(dtype))
    assert report.clean, report
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert not check(planted("symmetric convolution").to(dtype)).clean
    assert results(report)["future"].tolerance != 1e-4


def test_amplified_rounding_is_no_leak() -> None:
    """A sharp function of a sum that another shape takes in another order: far above rounding, and still no leak."""

    class Amplifying(nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            products = (
                state @ torch.ones(WIDTH, WIDTH) if len(state) > 1 else state.sum(-1, keepdim=True).expand_as(state)
            )
            return torch.sin(1e3 * products)

    torch.manual_seed(0)
    report = check(TinyLM(Amplifying(), strength=1.0))
    found = results(report)["row alone"]
    assert found.verdict == "ok", report
    assert found.change is not None
    assert found.change > 1e-4
    assert report.rounding is not None
    assert report.rounding > 1e-4
    assert found.tolerance == pytest.approx(10 * report.rounding)
    assert results(report)["future"].tolerance == 1e-4


def test_bfloat16_that_rounds_too_coarsely_skips_passes_of_other_shapes() -> None:
    torch.manual_seed(0)
    model = CLEAN["Llama"]()
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.q_proj.weight.data *= 30
    report = check(model.to(torch.bfloat16))
    assert results(report)["length"].verdict == "skipped"
    assert "in bfloat16 may be a leak or nothing but rounding; check it in float32" in results(report)["length"].meaning
    assert results(report)["future"].change == 0.0
    assert results(report)["batch"].change == 0.0


def test_small_change_in_bfloat16_is_not_called_clean() -> None:
    weak = planted("weak")
    assert not check(weak).clean
    with pytest.raises(InputError, match=r"'future' could not be finished: it moved by .* check it in float32"):
        check(weak.to(torch.bfloat16))


def test_masked_logits_of_minus_infinity_are_no_leak_unless_the_future_masks() -> None:
    def masked(ids: Tensor) -> Tensor:
        return running_mean(ids).masked_fill(torch.arange(VOCABULARY) > 40, -math.inf)

    assert check(masked).clean

    def masked_by_the_future(ids: Tensor) -> Tensor:
        return running_mean(ids).masked_fill((ids.roll(-1, 1) > 25)[..., None], -math.inf)

    assert results(check(masked_by_the_future))["future"].change == math.inf
