"""Sizes: counted as published arithmetic says, and met within half a percent."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, PreTrainedConfig

from mu_sota import MuConfig
from mu_sota.comparison.baselines import FAMILIES, Gpt2Style, LlamaStyle, Shape
from mu_sota.comparison.size_matching import TOLERANCE, count_flops, count_parameters, fit
from mu_sota.model.errors import InputError

TABLES: dict[str, Any] = {"pair_table_rows": 500, "induction_tables": 2}
LIKE = MuConfig(vocab_size=300, num_hidden_layers=2, max_position_embeddings=32, **TABLES)


def small(name: str) -> PreTrainedConfig:
    return FAMILIES[name].config(Shape(layers=2, width=64, inner=96), LIKE)


def test_parameters_of_the_preset_are_those_of_its_arithmetic() -> None:
    layer_without_table = 1_280 + 16_640 + 33_088 + 256 + (801_376 - 800_000)
    counted = count_parameters(MuConfig.from_preset("mu-sota"))
    assert counted == (26_946_256, 24 * layer_without_table + 128, 24 * 800_000)


def test_parameters_of_gpt2_are_the_published_ones() -> None:
    """124 M, and 85 M without the embeddings."""
    total, non_embedding, tables = count_parameters(GPT2Config())
    assert (total, non_embedding, tables) == (124_439_808, 124_439_808 - (50_257 + 1_024) * 768, 0)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("gpt2", 4 * 64 * 64 + 2 * 64 * 96),
        ("llama", 4 * 64 * 64 + 3 * 64 * 96),
        ("llama-tables", 4 * 64 * 64 + 3 * 64 * 96),
    ],
)
def test_flops_are_six_a_weight_and_twelve_for_attention(name: str, weights: int) -> None:
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T a token. The backward pass of fused attention makes the
    scores again, which adds half of its forward pass."""
    layers, length = 2, 32
    attention = layers * 64 * length
    counted = count_flops(small(name), length)
    expected = 6 * (layers * weights + 64 * 300) + 12 * attention + 2 * attention
    assert counted == pytest.approx(expected, rel=1e-4)  # older releases multiply matrices for Llama's rotations, too


def test_tables_are_embeddings_and_cost_no_flops() -> None:
    """500 rows for pairs and 300 in either induction table, of 64 values."""
    with_tables, without = (count_parameters(small(name)) for name in ("llama-tables", "llama"))
    assert with_tables == (without.total + 64 * (500 + 2 * 300), without.non_embedding, 0)
    assert count_flops(small("llama-tables"), 32) == count_flops(small("llama"), 32)


MEASURES: dict[str, Callable[[PreTrainedConfig], int]] = {
    "total": lambda config: count_parameters(config).total,
    "non-embedding": lambda config: count_parameters(config).non_embedding,
    "flops": lambda config: count_flops(config, 32),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fitted_model_is_within_half_a_percent_when_counted_again(name: str, measure: str) -> None:
    count = MEASURES[measure]
    like = MuConfig(vocab_size=2000, num_hidden_layers=4, max_position_embeddings=32, **TABLES)
    config = fit(FAMILIES[name], like, count, count(like))
    assert abs(count(config) / count(like) - 1) <= TOLERANCE == 0.005
    kind: Any = Gpt2Style if name == "gpt2" else LlamaStyle
    real = kind(config)
    if measure == "total":
        assert abs(real.num_parameters() / MEASURES["total"](like) - 1) <= TOLERANCE
    assert (config.vocab_size, config.max_position_embeddings) == (2000, 32)
    assert config.bos_token_id == like.bos_token_id
    assert real.get_output_embeddings().weight is real.get_input_embeddings().weight, "tied"


@settings(max_examples=12)
@given(target=st.integers(300_000, 30_000_000), name=st.sampled_from(sorted(FAMILIES)))
def test_any_size_can_be_met_in_a_usual_shape(target: int, name: str) -> None:
    config: Any = fit(FAMILIES[name], LIKE, MEASURES["non-embedding"], target)
    assert abs(count_parameters(config).non_embedding / target - 1) <= TOLERANCE
    inner = config.n_inner if name == "gpt2" else config.intermediate_size
    assert 0.7 < inner / config.hidden_size / FAMILIES[name].usual_inner < 1.5
    assert 8 < config.hidden_size / config.num_hidden_layers < 128


def test_a_size_too_small_for_a_standard_transformer_is_refused() -> None:
    with pytest.raises(InputError, match=r"no size of GPT-2 .* 0\.5% of 100 .* larger MU model"):
        fit(FAMILIES["gpt2"], LIKE, MEASURES["total"], 100)
