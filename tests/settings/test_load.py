"""Settings: what wins, and one clear sentence for everything that cannot be used."""

from pathlib import Path

import pytest

from mu_sota import InputError
from mu_sota.model.configuration import MODEL_PRESETS
from mu_sota.settings.load import load_settings, parse_assignments
from mu_sota.settings.presets import RUN_PRESETS
from mu_sota.settings.run import RunSettings


def test_the_recipe_of_the_run_instructions_is_the_preset() -> None:
    run, model = load_settings("mu-sota")
    recipe = {
        "num_epochs": 5,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup_steps": 1000,
        "max_grad_norm": 1.0,
        "window": 512,
        "stride": 256,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "sample_tokens": 30,
        "prompts": ["The quick brown", "Once upon a time", "In the beginning"],
    }
    assert {key: getattr(run, key) for key in recipe} == recipe
    assert (model.vocab_size, model.num_hidden_layers, model.num_attention_heads, model.dropout) == (50_000, 24, 8, 0.1)


def test_overrides_win_over_the_file_which_wins_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("learning_rate: 5e-5\nbatch_size: 16\nmatrix_size: 12\n")
    run, model = load_settings("quickstart", file, parse_assignments(["batch_size=4", "dropout=0"]))
    assert (run.learning_rate, run.batch_size, model.matrix_size, model.dropout) == (5e-5, 4, 12, 0)
    assert run.window == RUN_PRESETS["quickstart"]["window"]


def test_every_preset_loads() -> None:
    assert MODEL_PRESETS.keys() == RUN_PRESETS.keys()
    for name in MODEL_PRESETS:
        load_settings(name)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("learnig_rate=1", "there is no setting 'learnig_rate'; did you mean 'learning_rate'?"),
        ("qqqq=1", "the settings are: num_epochs"),
        ("batch_size=many", "the setting batch_size is 'many': input should be a valid integer"),
        ("batch_size=0", "the setting batch_size is 0: input should be greater than or equal to 1"),
        ("precision=half", "the setting precision is 'half': input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
        ("matrix_size=10", "matrix_size is 10, but the 4 x 4 grid of blocks needs a multiple of 4"),
        ("matrix_size=wide", "the setting matrix_size is 'wide'"),
        ("num_attention_heads=7", "num_attention_heads is 7, but must divide the 64 values"),
        ("window=1024", "window is 1024, but the model has 512 positions"),
        ("stride=513", "must not exceed window (512)"),
        ("dropout=1", "dropout is 1"),
        ("batch_size=true", "the setting batch_size is True"),
        ("num_hidden_layers=yes", "the setting num_hidden_layers is True"),
        (
            "temperature=0.001",
            "the setting temperature is 0.001: input should be 0, for the likeliest token, or at least",
        ),
        ("temperature=.inf", "the setting temperature is inf: input should be a finite number"),
        ("repetition_penalty=.inf", "the setting repetition_penalty is inf: input should be a finite number"),
        ("temperature=.nan", "the setting temperature is nan"),
        ("batch_size", "--set takes key=value, such as --set batch_size=16, but got 'batch_size'"),
        ("prompts=[", "cannot be read"),
    ],
)
def test_a_wrong_setting_gets_a_sentence(assignment: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load_settings("mu-sota", None, parse_assignments([assignment]))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- a\n- b", "must hold lines of key: value"),
        ("a: [", "cannot be read as YAML"),
        ("seed: x", "the setting seed"),
    ],
)
def test_a_wrong_file_gets_a_sentence(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=says):
        load_settings("mu-sota", file)
    with pytest.raises(InputError, match="does not exist"):
        load_settings("mu-sota", tmp_path / "none.yaml")


def test_long_values_are_cut_in_the_sentence() -> None:
    for assignment in ("x" * 10_000 + "=1", "batch_size=" + "x" * 10_000):
        with pytest.raises(InputError) as error:
            load_settings("mu-sota", None, parse_assignments([assignment]))
        assert "xxx..." in str(error.value)
        assert len(str(error.value)) < 900


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n")
    assert load_settings("mu-sota", file).run == RunSettings()


def test_a_run_that_an_older_version_began_keeps_the_form_that_its_preset_had() -> None:
    """Its record holds all that was asked for then; fields that are newer are as they are by default."""
    run, model = load_settings("quickstart", recorded={"num_hidden_layers": 6, "learning_rate": 0.003, "stride": 128})
    assert (model.num_hidden_layers, run.learning_rate) == (6, 0.003)
    assert (model.position_encoding, model.pair_table_rows) == ("learned", 0)
    assert load_settings("quickstart").model.pair_table_rows > 0
