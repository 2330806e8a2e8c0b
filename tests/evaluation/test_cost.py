"""The cost of a model, against arithmetic done by hand."""

from typing import Any

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.evaluation.cost import activation_bytes, flops_per_token, parameter_table


def _model(**more: Any) -> MuForCausalLM:
    return MuForCausalLM(MuConfig(vocab_size=100, num_hidden_layers=3, max_position_embeddings=64, **more))


def test_flops_are_those_of_the_products_and_the_attention() -> None:
    """Per token: 2 for each weight of a linear map, and 2 x 2 x T x K for each head of size K."""
    length = 64
    block = 16 * 4 * (3 * 4 + 4)
    cross = 64 * (3 * 64 + 64)
    feed_forward = 2 * 64 * 256
    sensitivity = 16 * 16 + 17 * 32 + 32 * 16
    linear = 2 * (3 * (block + cross + feed_forward + sensitivity) + 64 * 100)
    # Keys and values of the cross-block attention carry as many columns again, for the entropy.
    attention = 3 * 4 * length * (64 + 2 * 64)
    forward, both = flops_per_token(_model(), length)
    assert forward == linear + attention
    assert 2.5 * forward < both < 4 * forward


def test_saved_activations_grow_linearly_with_length_and_hold_no_attention_matrix() -> None:
    short, long = (activation_bytes(_model(), length) for length in (32, 64))
    assert 1.9 * short < long < 2.1 * short, "attention matrices would grow with the square"
    assert long > 4 * 64 * 64 * 3, "at least the states"


def test_the_table_holds_every_parameter() -> None:
    model = _model(pair_table_rows=11, induction_tables=2)
    table = parameter_table(model)
    assert (table["lookups: pairs"], table["lookups: induction"]) == (11 * 64, 2 * 64 * model.config.vocab_size)
    assert sum(parameter_table(model).values()) == sum(p.numel() for p in model.parameters())
