"""The model against the slow, obvious implementation of its specification."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import NEW_FORM, gradients_of, lively_model, reference_of, to_reference
from reference.model import GRID, cut
from torch import Tensor

from mu_sota.model.blocks import cells, to_matrix

# Everything runs in float64, but the model takes the value of the entropy in float32: 1e-7, which later layers amplify.
TOLERANCE = 1e-4

CONFIGS = {
    "as the preset, 3 layers": {"matrix_size": 8, "num_hidden_layers": 3, "num_attention_heads": 8},
    "one value a block": {"matrix_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2},
    "16 values a block": {"matrix_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40},
    "one head, one layer": {"matrix_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
    "one value a head": {"matrix_size": 8, "num_hidden_layers": 1, "num_attention_heads": 64},
    "rotary positions": {"position_encoding": "rotary", "num_attention_heads": 8},
    "rotary positions, 9 values a block": {"matrix_size": 12, "position_encoding": "rotary", "num_attention_heads": 4},
    "norm before each part": {"norm_placement": "before"},
    "a table of pairs": {"pair_table_rows": 29},
    "induction tables": {"induction_tables": 2},
    "sources": {"block_inputs": "by_name"},
    "sources, 9 values a block": {"block_inputs": "by_name", "matrix_size": 12, "position_encoding": "rotary"},
    "all of that": NEW_FORM,
}
CASES = pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)


def assert_near(ours: Tensor, theirs: Tensor, what: str = "") -> None:
    """Every value equal but for TOLERANCE times the largest."""
    assert ours.shape == theirs.shape, what
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max(), what


@CASES
def test_logits_gates_loss_and_all_gradients_equal_the_reference(overrides: dict[str, Any]) -> None:
    """The fast model is the specified one: every value it computes and every gradient it sends back."""
    model = lively_model(**overrides)
    reference = reference_of(model)
    ids = torch.randint(model.config.vocab_size, (3, 24))
    ids[:, 16:] = ids[:, 3:11]  # so that tokens and pairs of them recur
    labels = ids.clone()
    labels[1, 7:11] = -100

    ours = model(ids, labels=labels, output_sensitivities=True, output_entropies=True)
    theirs = reference(ids)
    logits = theirs.logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    assert_near(ours.logits, logits)
    assert_near(ours.loss, loss)
    for kind in ("sensitivities", "entropies"):
        for layer, (mine, other) in enumerate(zip(getattr(ours, kind), getattr(theirs, kind), strict=True)):
            assert_near(mine, other, f"{kind} of layer {layer}")
    hits = logits[:, :-1].argmax(-1) == labels[:, 1:]
    assert ours.num_correct == hits.sum()

    ours.loss.backward()
    loss.backward()
    gradients = to_reference(gradients_of(model), reference.matrix_size)
    expected = gradients_of(reference)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_near(gradients[name], gradient, name)


@CASES
def test_the_cases_are_not_easy(overrides: dict[str, Any]) -> None:
    """Held against near-uniform attention or equal sensitivities, a wrong entropy or a swapped block would pass."""
    model = lively_model(**overrides)
    theirs = reference_of(model)(torch.randint(model.config.vocab_size, (3, 24)))
    uniform = torch.arange(1, 25, dtype=torch.float64).log()
    for entropy, sensitivity in zip(theirs.entropies, theirs.sensitivities, strict=True):
        assert (uniform - entropy)[:, 12:].mean() > 0.1
        assert entropy[:, 12:].std() > 0.03
        assert sensitivity.std(dim=-1).min() > 0.02  # across blocks
        assert sensitivity.std(dim=(0, 1)).min() > 0.005  # across tokens


def test_layout_shows_the_states_of_the_reference() -> None:
    """Under every block's name, `to_matrix` and `cells` show the values that the reference cut out of its matrices."""
    model = lively_model(matrix_size=8)
    ids = torch.randint(model.config.vocab_size, (2, 9))
    first, *_ = model(ids, output_hidden_states=True).hidden_states
    after = model.model.layers[0](first, model.model.affinity(ids)[..., :16], None)
    states = reference_of(model)(ids).states
    names = [name for row in GRID for name in row]
    for ours, theirs in ((to_matrix(first), states[0]), (to_matrix(after), states[1])):
        for index, name in enumerate(names):
            rows, columns = cells(name, 8)
            assert_near(ours[..., rows, columns].flatten(-2), cut(theirs, index), name)
