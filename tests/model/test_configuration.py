"""`MuConfig`: presets, validation, JSON."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from mu_sota import InputError, MuConfig, MuForCausalLM, MuModel
from mu_sota.model.configuration import MODEL_PRESETS


def test_the_defaults_are_the_model_of_the_run_instructions() -> None:
    """Sizes of `RUN_INSTRUCTIONS.md` and `model.md`."""
    for config in (MuConfig(), MuConfig.from_preset("mu-sota")):
        assert (config.matrix_size, config.hidden_size, config.block_size) == (8, 64, 4)
        assert (config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (24, 8, 256)
        assert (config.vocab_size, config.max_position_embeddings, config.dropout) == (50_000, 512, 0.1)
        assert not config.tie_word_embeddings


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_every_preset_makes_a_model(name: str) -> None:
    """Preset fields take effect, an override wins over them, and the model can be built."""
    config = MuConfig.from_preset(name)
    assert {field: getattr(config, field) for field in MODEL_PRESETS[name]} == MODEL_PRESETS[name]
    assert MuConfig.from_preset(name, vocab_size=11).vocab_size == 11
    with torch.device("meta"):
        model = MuForCausalLM(config)
    assert len(model.model.layers) == config.num_hidden_layers


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    """One sentence, for the command line to print."""
    with pytest.raises(InputError) as raised:
        MuConfig.from_preset("mu-soda")
    assert str(raised.value) == f"no preset is named 'mu-soda'; choose one of: {', '.join(MODEL_PRESETS)}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "many"),
        ("vocab_size", 50.5),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("num_attention_heads", 128),
        ("intermediate_size", -1),
        ("max_position_embeddings", 0),
        ("matrix_size", 0),
        ("matrix_size", -8),
        ("matrix_size", 2),
        ("matrix_size", 10),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", float("nan")),
        ("dropout", "some"),
    ],
)
def test_an_invalid_value_is_named(field: str, value: Any) -> None:
    """The message names the field and the value that it was given."""
    with pytest.raises((ValueError, StrictDataclassError)) as raised:
        MuConfig(**dict[str, Any]({field: value}))
    assert field in str(raised.value)
    assert str(value) in str(raised.value)


@pytest.mark.parametrize("field", ["vocab_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"])
def test_one_is_enough(field: str) -> None:
    """The smallest valid value is not refused."""
    assert getattr(MuConfig(**dict[str, Any]({field: 1})), field) == 1


@pytest.mark.parametrize("matrix_size", [4, 8, 12, 16, 24, 32])
def test_the_matrix_scales_in_fours(matrix_size: int) -> None:
    """Always 16 blocks, which grow."""
    config = MuConfig(matrix_size=matrix_size)
    assert config.hidden_size == matrix_size**2 == 16 * config.block_size


def test_json_round_trip(tmp_path: Path) -> None:
    """What is saved is what is loaded, every field, none of them at its default."""
    config = MuConfig(
        vocab_size=101,
        matrix_size=12,
        num_hidden_layers=3,
        num_attention_heads=9,
        intermediate_size=77,
        max_position_embeddings=33,
        dropout=0.25,
        layer_norm_eps=1e-6,
        pad_token_id=None,
        bos_token_id=5,
        eos_token_id=[6, 7],
    )
    config.save_pretrained(tmp_path)
    loaded = MuConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.vocab_size, loaded.matrix_size, loaded.dropout, loaded.eos_token_id) == (101, 12, 0.25, [6, 7])


def test_a_saved_invalid_value_is_refused_on_loading(tmp_path: Path) -> None:
    """Validation guards files too, not only calls."""
    MuConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"matrix_size": 8', '"matrix_size": 6'))
    with pytest.raises((ValueError, StrictDataclassError), match="matrix_size"):
        MuConfig.from_pretrained(tmp_path)


# --- Beyond reason ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [{}, {"matrix_size": 12, "num_hidden_layers": 3}, {"vocab_size": 301, "intermediate_size": 7}]
)
def test_parameters_are_counted_without_a_model(sizes: dict[str, Any]) -> None:
    config = MuConfig(**sizes)
    with torch.device("meta"):
        assert MuForCausalLM(config).num_parameters() == config.num_parameters


@pytest.mark.parametrize(
    ("field", "value", "memory"),
    [
        ("num_hidden_layers", 10**6, "3,176 GiB"),
        ("matrix_size", 4000, "97,281,522 GiB"),
        ("vocab_size", 10**12, "1,911,073 GiB"),
        ("max_position_embeddings", 10**11, "23,841 GiB"),
        ("intermediate_size", 10**400, "..."),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_size_beyond_reason_is_refused_with_the_memory_it_would_take(field: str, value: int, memory: str) -> None:
    with pytest.raises(StrictDataclassError) as error:
        MuConfig(**dict[str, Any]({field: value}))
    said = str(error.value.__cause__)
    assert said.startswith(f"{field} is {value:,}"[:50])
    assert memory in said
    assert len(said) < 300
    with pytest.raises(InputError, match=field):
        MuConfig.from_preset("mu-sota", **{field: value})


def test_layers_alone_can_be_too_many() -> None:
    """Their weights would fit a large machine, but Python would be at them for hours."""
    with pytest.raises(StrictDataclassError, match="num_hidden_layers"):
        MuConfig(num_hidden_layers=10**6, vocab_size=1, matrix_size=4, intermediate_size=1, num_attention_heads=1)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**30 // 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    config = MuConfig(vocab_size=10**6)
    for kind in (MuModel, MuForCausalLM):
        with pytest.raises(InputError, match="takes 2 GiB, but this machine has 1 GiB of memory"):
            kind(config)
    with torch.device("meta"):
        MuModel(config)  # takes none
    MuModel(MuConfig(num_hidden_layers=1, vocab_size=100))


@pytest.mark.parametrize("field", ["dropout", "layer_norm_eps"])
def test_an_integer_is_the_float_it_says(field: str) -> None:
    value = 0 if field == "dropout" else 1
    for config in (
        MuConfig(**dict[str, Any]({field: value})),
        MuConfig.from_dict(MuConfig().to_dict() | {field: value}),
    ):
        assert type(getattr(config, field)) is float


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 10**400, 1e-50, 1e50])
def test_an_epsilon_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(StrictDataclassError, match="layer_norm_eps"):
        MuConfig(layer_norm_eps=value)
