"""The model inside code that is not ours: every release of `transformers`, its Trainer, PEFT, collators, quantisers.

`make test-versions` runs these tests on the lowest and on the newest releases that `pyproject.toml` admits.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import WORDS, examples
from reference import lively_model, small_config, small_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DynamicCache,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from mu_sota import InputError, MuConfig, MuForCausalLM, MuModel
from mu_sota.data.tokenizer import train_bpe
from mu_sota.model import versions
from mu_sota.model.arguments import CACHE_NAME
from mu_sota.saved.load_save import load_trained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([" ".join(WORDS)], 300)


def sentences(count: int) -> list[str]:
    return [" ".join(WORDS[(7 * row + k) % len(WORDS)] for k in range(3 + row % 6)) for row in range(count)]


def mu(**overrides: Any) -> MuForCausalLM:
    return small_model(vocab_size=300, max_position_embeddings=32, **overrides)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 300, "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=3)).eval()


def some_ids(rows: int = 2, length: int = 10) -> Tensor:
    return torch.randint(4, 300, (rows, length), generator=torch.Generator().manual_seed(1))


# --- Releases --------------------------------------------------------------------------------------------------------


def test_the_ranges_are_said_once() -> None:
    """`versions.py`, which an exported folder carries, and `pyproject.toml`."""
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, (lowest, untested) in {"transformers": versions.TRANSFORMERS, "torch": versions.TORCH}.items():
        assert f'"{name}>={lowest},<{untested}"' in wanted


@pytest.mark.parametrize("installed", ["4.57.6", "5.9.0", "6.0.0", "6.1.0.dev0"])
def test_a_release_outside_is_refused_in_one_sentence(installed: str) -> None:
    lowest, untested = versions.TRANSFORMERS
    with pytest.raises(ImportError) as error:
        versions.require("transformers", installed, lowest, untested)
    expected = f"needs 'transformers>={lowest},<{untested}', but transformers {installed} is installed: pip install"
    assert expected in str(error.value)


def test_releases_within_are_taken_and_newer_ones_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions.logger, "warning_once", versions.logger.warning)
    monkeypatch.setattr(versions.logger, "propagate", True)
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    for installed in ("2.7.0", "2.13.0+cpu", "2.11.0a0+git1234"):
        versions.require("torch", installed, "2.7", "2.16")
    assert not caplog.messages
    said: list[str] = []
    monkeypatch.setattr(versions.logger, "warning_once", said.append)
    versions.require("torch", "2.16.0+cu130", "2.7", "2.16")
    assert "was tested with 'torch>=2.7,<2.16', and torch 2.16.0+cu130 is installed" in said[0]


# --- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [small_model(), small_model().model], ids=["with loss", "without"])
def test_an_unknown_argument_is_an_error_that_names_it(model: PreTrainedModel) -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    for name, hint in {
        "past_key_value": "past_key_values",
        "kv": "there are input_ids",
        "atention_mask": "attention",
    }.items():
        with pytest.raises(TypeError, match=f"has no argument '{name}'.*{hint}"):
            model(ids, **{name: None})


def test_generate_names_an_unknown_argument() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    for value in (1, None):
        with pytest.raises((ValueError, TypeError), match="temprature"):
            small_model().generate(ids, temprature=value, max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_token"):
        small_model().generate(ids, max_new_token=1)


@pytest.mark.parametrize(
    ("name", "harmless", "asked"),
    [
        ("inputs_embeds", None, torch.zeros(1, 3, 64)),
        ("output_attentions", False, True),
        ("output_router_logits", None, True),
        ("is_causal", True, False),
        ("cu_seq_lens_q", None, torch.tensor([0, 3])),
        ("seq_idx", None, torch.zeros(1, 3)),
    ],
)
def test_what_transformers_passes_on_is_taken_where_it_asks_for_nothing(name: str, harmless: Any, asked: Any) -> None:
    """Packed texts, embeddings and the like would be a wrong result if they were swallowed."""
    model, ids = small_model(), torch.ones(1, 3, dtype=torch.long)
    assert torch.equal(model(ids, **{name: harmless}).logits, model(ids).logits)
    with pytest.raises(ValueError, match=f"{name} cannot be used"):
        model(ids, **{name: asked})


def test_texts_packed_in_one_row_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """Their positions begin anew; a model that took no notice would read each text after the ones before it."""
    rows = [{"input_ids": tokenizer(text).input_ids} for text in sentences(3)]
    batch = DataCollatorWithFlattening(return_tensors="pt")(rows)
    with pytest.raises(ValueError, match="position_ids begin anew within a row: texts packed in one row"):
        mu()(**batch)
    # Padding on the left, as `generate` counts it, is no packing.
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    assert mu()(torch.ones_like(positions), position_ids=positions).logits.shape[1] == 5


def test_unknown_fields_of_the_configuration() -> None:
    unknown: dict[str, Any] = {"vocab_sise": 300}
    with pytest.raises(TypeError, match="MuConfig has no field 'vocab_sise'; did you mean 'vocab_size'"):
        MuConfig(**unknown)
    for name in ("max_length", "to_dict", "from_preset", "num_parameters"):
        with pytest.raises(TypeError, match=name):
            MuConfig(**dict[str, Any]({name: 20}))
        with pytest.raises(InputError, match=name):
            MuConfig.from_preset("quickstart", **{name: 20})
    with pytest.raises(TypeError, match="'hidden_size' of its own: set matrix_size"):
        MuConfig(**dict[str, Any](hidden_size=64))
    assert MuConfig(**small_config().to_dict()).vocab_size == 37
    # A file can be of another version.
    assert MuConfig(**small_config().to_dict() | {"of_another_version": 1}).vocab_size == 37


def test_loading_names_an_unknown_argument(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="vocab_sise"):
        MuForCausalLM.from_pretrained(tmp_path, vocab_sise=3)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_by_both_names(name: str) -> None:
    """In and out, whatever the installed `transformers` calls it; both at once are refused."""
    model, ids = lively_model(), torch.arange(8)[None]
    expected = model(ids).logits
    for part in (model, model.model):
        cache = DynamicCache(config=model.config)
        first = part(ids[:, :5], **{name: cache})
        assert first.cache is first.past_key_values is cache
        second = part(ids[:, 5:], **{name: cache})
        if part is model:
            torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), expected)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(ids, cache=DynamicCache(), past_key_values=DynamicCache())


def test_generate_fills_the_cache_that_it_made() -> None:
    """A renamed argument would leave it empty, or make every token the first of its text."""
    model, ids = small_model().eval(), torch.arange(6)[None]
    made = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, eos_token_id=-1)
    cache = getattr(made, "cache", None) or made.past_key_values
    assert cache.get_seq_length() == 10  # the last token is not read
    assert len(cache.layers) == 2 * model.config.num_hidden_layers
    assert all(layer.get_seq_length() == 10 for layer in cache.layers)
    given = DynamicCache(config=model.config)
    again = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=-1, **{CACHE_NAME: given})
    assert torch.equal(made.sequences, again)
    assert given.get_seq_length() == 10


# --- Vocabulary ------------------------------------------------------------------------------------------------------


def tables(model: MuForCausalLM) -> list[Tensor]:
    """Everything that has a row a token."""
    body = model.model
    return [body.token_embedding.weight, body.affinity.weight, model.lm_head.weight, model.lm_head.bias]


@pytest.mark.parametrize(("size", "multiple", "expected"), [(303, None, 303), (303, 64, 320), (290, None, 290)])
def test_a_vocabulary_is_resized_in_every_table(tmp_path: Path, size: int, multiple: int | None, expected: int) -> None:
    model = mu()
    before = [table.detach().clone() for table in tables(model)]
    model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    assert model.config.vocab_size == expected
    for old, table in zip(before, tables(model), strict=True):
        assert len(table) == expected
        assert torch.equal(table[:290], old[:290])
    ids = torch.tensor([[5, expected - 1, 9, expected - 2]])
    output = model(ids, labels=ids)
    assert output.logits.shape[-1] == expected
    output.loss.backward()
    assert all(table.grad is not None for table in tables(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert torch.equal(loaded.generate(ids, max_new_tokens=4), model.generate(ids, max_new_tokens=4))


def test_the_body_alone_is_resized_too() -> None:
    body = MuModel(small_config())
    body.resize_token_embeddings(50)
    assert len(body.affinity.weight) == len(body.token_embedding.weight) == 50
    assert body.affinity.weight[37:].std() < 0.1  # as the table began, not as an embedding does


def test_new_tokens_are_trained_and_come_back(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """All weights, on texts with tokens that were added to a tokenizer, and by our own loader afterwards."""
    more = train_bpe([" ".join(WORDS)], 300)
    more.add_tokens(["<left>", "<right>"])
    model = mu().train()
    model.resize_token_embeddings(len(more))
    ids = more("<left> the state <right> a block <left>", return_tensors="pt").input_ids
    assert ids.max() == 301
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        losses.append(model(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path)
    more.save_pretrained(tmp_path)
    loaded, again = load_trained(tmp_path)
    assert again("<left> the state").input_ids == more("<left> the state").input_ids
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


# --- Loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mu, gpt2])
@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)], ids=["not counted", "0", "tensor"])
def test_a_batch_without_a_target_leaves_finite_weights(make: Callable[[], Any], items: Any) -> None:
    """As for GPT-2, whose loss is then not a number; here it is 0."""
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    given = {} if items is None else {"num_items_in_batch": items}
    output = model(input_ids=some_ids(), labels=torch.full((2, 10), -100), **given)
    output.loss.backward()
    optimizer.step()
    assert all(weight.isfinite().all() for weight in model.parameters())
    if make is mu:
        assert output.loss == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_at_padding_count_for_nothing(side: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """`labels=input_ids`, padding and all, gives the loss of the texts, on either side."""
    model = lively_model(vocab_size=300, max_position_embeddings=32)
    texts = ["the state of a block", "a token", "the model reads and writes the block of a token"]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        total += F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    output = model(**batch, labels=batch.input_ids)
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5, abs=1e-5)
    shifted = F.pad(batch.input_ids[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(**batch, shift_labels=shifted).loss, output.loss)


def test_labels_of_another_shape_are_refused() -> None:
    model, ids = small_model(), torch.ones(2, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"labels have the shape \[2, 5\], but must have \[2, 6\]"):
        model(ids, shift_labels=ids[:, 1:])


def test_logits_of_chosen_positions() -> None:
    model, ids = lively_model(), torch.arange(10)[None]
    every = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([2, 7])).logits, every[:, [2, 7]])
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, every[:, -3:])


# --- Trainer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("make", [mu, gpt2])
def test_the_trainer_of_transformers_as_it_comes(
    make: Callable[[], Any], accumulation: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """One script for both models: evaluation, its metrics, the best model at the end, an early stop."""
    rows = [{"input_ids": tokenizer(text).input_ids} for text in sentences(24)]
    seen: list[tuple[int, ...]] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        guesses, labels = prediction.predictions.argmax(-1)[:, :-1], prediction.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=3,
        learning_rate=0.01,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer: Any = Trainer(
        make().train(),
        arguments,
        train_dataset=rows,
        eval_dataset=rows[:6],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        compute_metrics=metrics,
        callbacks=[EarlyStoppingCallback(1)],
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)
    assert 0 < after["eval_accuracy"] <= 1
    assert {shape[0] for shape in seen} == {6}
    assert {shape[-1] for shape in seen} == {300}
    assert trainer.predict(rows[:3]).metrics["test_loss"] > 0


def run_trainer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, **how: Any) -> Trainer:
    """`Trainer` on texts of several lengths, with the collator of `transformers`; not trained yet."""
    rows = [{"input_ids": tokenizer(text).input_ids} for text in sentences(8)]
    usual = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    return Trainer(
        model,
        TrainingArguments(output_dir=str(out), **{**usual, **how}),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )


@pytest.mark.parametrize("accumulation", [2, 4])
def test_however_a_batch_is_cut_it_takes_the_same_step(accumulation: int, tmp_path: Path) -> None:
    """Texts of different lengths: every token counts the same."""
    tokenizer = train_bpe([" ".join(WORDS)], 300)
    tokenizer.padding_side = "right"
    weights = []
    for parts in (1, accumulation):
        # Not Adam, which takes steps of one size, be the gradient rounding or not.
        how = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "gradient_accumulation_steps": parts}
        model = mu().train()
        run_trainer(model, tokenizer, tmp_path, per_device_train_batch_size=8 // parts, **how).train()
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_label_smoothing_trains_the_next_token_not_the_one_that_is_read(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """`Trainer` shifts labels itself then, but only for classes that it knows to need it."""
    model = mu()
    how = {"learning_rate": 0.01, "max_steps": 60, "label_smoothing_factor": 0.1}
    run_trainer(model.train(), tokenizer, tmp_path, **how).train()
    ids = tokenizer(sentences(1)[0] + " " + sentences(2)[1], return_tensors="pt").input_ids
    guesses = model.eval()(ids).logits.argmax(-1)[0, :-1]
    assert (guesses == ids[0, 1:]).float().mean() > (guesses == ids[0, :-1]).float().mean()
    smoothed, plain = (
        run_trainer(mu(), tokenizer, tmp_path, label_smoothing_factor=factor).evaluate()["eval_loss"]
        for factor in (1e-9, 0.0)
    )
    assert smoothed == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("batch_size", [8, 2])
def test_the_side_of_padding_changes_no_loss_of_the_trainer(batch_size: int, tmp_path: Path) -> None:
    """It counts the labels itself, the first token of a text among them where padding stands before it."""
    losses = []
    for side in ("left", "right"):
        tokenizer = train_bpe([" ".join(WORDS)], 300)
        tokenizer.padding_side = side
        trainer = run_trainer(mu(), tokenizer, tmp_path, per_device_eval_batch_size=batch_size)
        step = run_trainer(mu(), tokenizer, tmp_path, per_device_train_batch_size=8, max_steps=1, logging_steps=1)
        step.train()
        losses.append((trainer.evaluate()["eval_loss"], step.state.log_history[0]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_generate_takes_a_cache_under_both_names(name: str) -> None:
    model, ids = small_model(), torch.arange(6)[None]
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    cache = DynamicCache(config=model.config)
    assert torch.equal(model.generate(ids, **how, **{name: cache}), model.generate(ids, **how))
    assert cache.get_seq_length() == 10


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    """Dropout and all; a cache, which would be filled twice, is refused, and `generate` works."""
    ids = some_ids(4, 16)
    gradients = []
    for checkpointing in (False, True):
        model = mu(dropout=0.2).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        model(ids, labels=ids).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="a cache cannot be filled under gradient checkpointing"):
        model(ids, use_cache=True)
    assert model.eval().generate(ids, max_new_tokens=2).shape == (4, 18)


# --- Pipelines -------------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_cuts_texts_at_the_last_position(trained: tuple[Path, Path]) -> None:
    best = trained[1] / "best"
    saved = AutoTokenizer.from_pretrained(best)
    assert saved.model_max_length == 32
    long = "the state of a block " * 40
    assert len(saved(long, truncation=True).input_ids) == 32
    model = AutoModelForCausalLM.from_pretrained(best)
    assert model(**saved(long, truncation=True, return_tensors="pt")).logits.shape[1] == 32


def test_a_pipeline_truncates(trained: tuple[Path, Path]) -> None:
    """A prompt that fills all positions gets one token more; with `hole` there is room for all that are asked for."""
    generate = pipeline("text-generation", model=str(trained[1] / "best"))
    long = "the state of a block " * 40
    how = {"max_new_tokens": 5, "do_sample": False, "return_tensors": True}
    made = generate(long, truncation=True, **how)
    assert len(made[0]["generated_token_ids"]) == 33
    made = generate(long, handle_long_generation="hole", **how)
    assert len(made[0]["generated_token_ids"]) == 32
    with pytest.raises(ValueError, match="this model has 32 positions: give at most the last 32"):
        generate(long, **how)


# --- PEFT, compiling, quantising -------------------------------------------------------------------------------------

# PEFT 0.21 asks transformers 5.24 under a name that it has renamed.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@PEFT_WARNS
def test_every_example_with_peft_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/using.md: adapters on everything, on one kind of layer, on the blocks, on new tokens."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    mu().save_pretrained("runs/mine/best")
    tokenizer = train_bpe([" ".join(WORDS)], 300)
    tokenizer.save_pretrained("runs/mine/best")
    found = examples("python", "peft")
    assert len(found) >= 2
    for example in found:
        exec(example, {})


@PEFT_WARNS
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["cross_attention.qkv", "up", "down"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["cross_attention.qkv"], "target_parameters": ["block_attention.qkv.weight"]},
    ],
    ids=str,
)
def test_an_adapter_learns_generates_is_saved_and_merged(how: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    ids = some_ids()
    model = peft.get_peft_model(mu(), peft.LoraConfig(r=4, task_type="CAUSAL_LM", **how)).train()
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora" in name for name in learned)
    optimizer = torch.optim.AdamW(learned.values(), lr=0.02)
    losses = []
    for _ in range(6):
        losses.append(model(input_ids=ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in learned.values())
    assert losses[-1] < losses[0] - 0.01
    expected = model.eval()(input_ids=ids)
    assert expected.logits.sub(mu()(ids).logits).abs().max() > 0.01
    shifted = F.cross_entropy(expected.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, shifted)
    text = {
        use: model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)
    }
    assert torch.equal(text[True], text[False])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = peft.PeftModel.from_pretrained(mu(), tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected.logits)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own parts, other ones in every release
def test_compiled_it_computes_the_same() -> None:
    model, ids = mu(), some_ids()
    expected = model(ids, labels=ids)
    compiled = torch.compile(model)(ids, labels=ids)
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.loss, expected.loss)


def test_a_device_map_loads_it(tmp_path: Path) -> None:
    """Layers that lie on the disk are used through their hooks, never as the empty weights they are."""
    model, ids = mu(), some_ids()
    model.save_pretrained(tmp_path / "model")
    parts = ["token_embedding", "position_embedding", "affinity", "layers.0", "norm"]
    places = {f"model.{part}": "cpu" for part in parts} | {"model.layers.1": "disk", "lm_head": "disk"}
    for where in ("auto", places):
        folder = str(tmp_path / "offloaded")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map=where, offload_folder=folder)
        torch.testing.assert_close(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(loaded.generate(ids, max_new_tokens=4, do_sample=False), expected)


class EightBits(nn.Parameter):
    """A weight of another class, as quantisers leave them; what PyTorch does with it stays right."""


def test_a_weight_of_another_class_never_reaches_a_kernel() -> None:
    """A kernel reads memory as float32; a quantised weight holds something else."""
    model, ids = mu(), some_ids()
    expected = model(ids, labels=ids)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = EightBits(module.weight.detach())
    read: list[str] = []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(function)
            if "mu_sota" in name and any(isinstance(one, EightBits) for one in args):
                read.append(name)
            return function(*args, **(kwargs or {}))

    with Watched():
        output = model(ids, labels=ids)
    assert not read
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, expected.loss)


def test_int8_weights_of_torchao(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, ids = mu(), some_ids()
    expected = model(ids, labels=ids)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    output = model(ids, labels=ids)
    assert 0 < (output.logits - expected.logits).abs().max() < 0.1 * expected.logits.std()
    assert abs(output.loss - expected.loss) < 0.01
    text = {use: model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)}
    assert torch.equal(text[True], text[False])


def test_the_cache_is_named_nowhere_else() -> None:
    """One place knows what the installed release calls it."""
    for path in (ROOT / "src" / "mu_sota").glob("*.py"):
        if path.stem not in ("model", "config"):
            assert not re.search(r"past_key_values", path.read_text(encoding="utf-8")), path.name
