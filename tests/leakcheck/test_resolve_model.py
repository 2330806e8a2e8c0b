"""The model that each kind of name stands for, and the sentence for a name that stands for none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import VOCABULARY
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from mu_sota import InputError, MuConfig, MuForCausalLM
from mu_sota.leakcheck.resolve_model import Target, resolve

GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def target(name: str | Path, trust_remote_code: bool = False, **overrides: Any) -> Target:
    return resolve(str(name), overrides, trust_remote_code, torch.float32)


def config_of(built: Target) -> Any:
    model: Any = built.model
    return model.config


def same_weights(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def gpt2(tmp_path: Path) -> tuple[GPT2LMHeadModel, Path]:
    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(**GPT2))
    model.save_pretrained(tmp_path / "gpt2")
    return model, tmp_path / "gpt2"


def test_a_preset_is_built_with_random_weights_always_the_same() -> None:
    one, other = (target("quickstart", num_hidden_layers=2) for _ in range(2))
    assert isinstance(one.model, MuForCausalLM)
    assert one.model.config.num_hidden_layers == 2
    assert one.model.config.vocab_size == 4096
    assert same_weights(one.model, other.model)
    assert one.description == "preset quickstart, random weights"
    with pytest.raises(InputError, match="no field 'layers'"):
        target("quickstart", layers=2)


def test_a_folder_is_loaded_as_saved(gpt2: tuple[GPT2LMHeadModel, Path]) -> None:
    model, folder = gpt2
    loaded = target(folder)
    assert same_weights(loaded.model, model)
    assert loaded.description == f"{folder}, weights as saved"


def test_a_run_of_ours_is_its_best_epoch(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = MuForCausalLM(MuConfig(vocab_size=VOCABULARY, num_hidden_layers=1))
    model.save_pretrained(tmp_path / "run" / "best")
    assert same_weights(target(tmp_path / "run").model, model)
    assert same_weights(target(tmp_path / "run" / "best").model, model)


def test_a_configuration_gives_random_weights(gpt2: tuple[GPT2LMHeadModel, Path], tmp_path: Path) -> None:
    model, folder = gpt2
    for source in (folder / "config.json", folder):
        built = target(source, n_layer=2) if source is folder else target(source)
        assert isinstance(built.model, GPT2LMHeadModel)
        assert not same_weights(built.model, model)
        assert built.description == f"configuration {folder / 'config.json'}, random weights"
        assert built.model.config.n_layer == (2 if source is folder else 4)
    (folder / "model.safetensors").unlink()
    assert target(folder).description.endswith("random weights")


def test_a_model_type_is_built_small_if_asked() -> None:
    built = target("llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    assert type(built.model).__name__ == "LlamaForCausalLM"
    assert config_of(built).num_key_value_heads == 2  # as its class derives it
    with pytest.raises(InputError, match="a LlamaConfig has no field 'num_layers'; did you mean 'num_hidden_layers'"):
        target("llama", num_layers=2)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama", {"intermediate_size": 100_000_000, "num_hidden_layers": 1}),
        ("gpt2", {"n_layer": 10**6}),
        ("llama", {"num_hidden_layers": 10**12}),
        ("gpt2", {"vocab_size": 10**12}),
        ("gpt2", {"n_positions": 10**10}),
    ],
)
def test_sizes_beyond_memory_are_refused_before_building(name: str, overrides: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"parameters, [\d,]+ GiB, but only \d+ GiB of memory are free"):
        target(name, **overrides)
    with pytest.raises(InputError, match=r"would take more than [\d,]+ GiB"):
        target("gpt2", vocab_size=10**25)


def test_many_layers_in_a_configuration_file_are_refused(tmp_path: Path) -> None:
    GPT2Config(**GPT2 | {"n_layer": 10**7}).save_pretrained(tmp_path)
    for overrides in list[dict[str, Any]]([{}, {"vocab_size": 60}]):
        with pytest.raises(InputError, match=r"parameters, [\d,]+ GiB, but only \d+ GiB of memory are free"):
            target(tmp_path, **overrides)


def test_fewer_layers_keep_every_kind_of_layer(tmp_path: Path) -> None:
    config = Gemma2Config(**GEMMA2, layer_types=["sliding_attention"] * 5 + ["full_attention"])
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    built = target(tmp_path, num_hidden_layers=2)
    assert config_of(built).layer_types == ["sliding_attention", "full_attention"]
    assert built.rebuild is not None
    small: Any = built.rebuild()
    assert small.config.layer_types == ["sliding_attention", "full_attention"]
    assert config_of(target(tmp_path, num_hidden_layers=8)).num_hidden_layers == 8


def test_rebuilt_model_is_small_and_as_configured(gpt2: tuple[GPT2LMHeadModel, Path]) -> None:
    rebuild = target(gpt2[1]).rebuild
    assert rebuild is not None
    small: Any = rebuild()
    assert isinstance(small, GPT2LMHeadModel)
    assert (small.config.n_layer, small.config.n_embd, small.config.vocab_size) == (2, 16, VOCABULARY)
    preset = target("quickstart").rebuild
    assert preset is not None
    assert preset().config.vocab_size == 64  # type: ignore[union-attr]


MODELS = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.embedding = nn.Embedding(9, width)
        self.head = nn.Linear(width, 9)
    def forward(self, ids):
        return self.head(self.embedding(ids).cumsum(1))

def make(width=4):
    return Model(width)

def make_function():
    model = Model()
    return lambda ids: model(ids)

def function(ids):
    return torch.nn.functional.one_hot(ids, 9).float()

class Nest:
    instance = Model(6)

def broken():
    raise RuntimeError("no luck")

number = 3
"""


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "my_models", raising=False)


@pytest.mark.parametrize(
    ("name", "trainable"),
    [("Model", True), ("make", True), ("make_function", False), ("function", False), ("Nest.instance", True)],
)
def test_imported_class_function_or_model_is_resolved(importable: None, name: str, trainable: bool) -> None:
    found = target(f"my_models:{name}")
    assert found.model(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 9)
    assert (found.rebuild is not None) == trainable
    if found.rebuild:
        assert found.rebuild() is not found.model
        assert isinstance(found.rebuild(), nn.Module)


def test_set_gives_arguments_to_an_imported_function(importable: None) -> None:
    model: Any = target("my_models:make", width=8).model
    assert model.head.in_features == 8
    with pytest.raises(
        InputError, match=r"my_models:function takes the arguments \(ids\); not those given with --set \(width\)"
    ):
        target("my_models:function", width=8)


def test_set_on_an_imported_model_is_refused(importable: None) -> None:
    with pytest.raises(InputError, match=r"my_models:Nest\.instance is there already, so --set cannot change it"):
        target("my_models:Nest.instance", width=8)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_models:broken", "my_models:broken made no model: RuntimeError: no luck"),
        ("my_models:absent", "my_models:absent cannot be imported: AttributeError"),
        ("my_models.py", r"my_models.py is a Python file; write my_models:NAME"),
        ("no_such_module:make", "no_such_module:make cannot be imported: ModuleNotFoundError"),
    ],
)
def test_failing_import_is_refused(importable: None, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        target(name)


def test_unknown_name_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network is needed for a refusal
    with pytest.raises(InputError, match=r"no folder or file 'no/such-model' here.*from the Hugging Face hub"):
        target("no/such-model")
    with pytest.raises(InputError, match=r"did you mean 'llama'\?"):
        target("lama")


def test_folders_that_hold_no_usable_model_are_refused(gpt2: tuple[GPT2LMHeadModel, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        target(tmp_path / "empty")
    folder = gpt2[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 5}))
    with pytest.raises(InputError, match=r"lack what its config\.json asks for: transformer\.h\.4"):
        target(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    with pytest.raises(InputError, match=r"cannot be used: ValueError: .*unheard-of"):
        target(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be used"):
        target(folder)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="no causal model can be made from a T5Config"):
        target(tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be loaded: SafetensorError"):
        target(folder)


CUSTOM = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

open(__file__ + ".ran", "w").close()

class OwnConfig(PreTrainedConfig):
    model_type = "own"
    vocab_size: int = 20
    width: int = 8

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.head = nn.Linear(config.width, config.vocab_size)
        self.post_init()
    def forward(self, input_ids):
        return CausalLMOutput(logits=self.head(self.embedding(input_ids).cumsum(1)))
"""


def test_code_of_a_folder_runs_only_if_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(CUSTOM)
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    with pytest.raises(InputError, match="its own code runs only with --trust-remote-code"):
        target(folder)
    assert not list(tmp_path.rglob("*.ran"))
    assert type(target(folder, trust_remote_code=True, width=4).model).__name__ == "OwnModel"
    assert list(tmp_path.rglob("*.ran"))
