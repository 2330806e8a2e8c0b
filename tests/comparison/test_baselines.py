"""The standard Transformers: their loss and their predictions are the library's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.comparison.baselines import (
    FAMILIES,
    Gpt2Style,
    LlamaStyle,
    Shape,
    build,
    config_from_dict,
    load,
    tables_of,
)
from mu_sota.leakcheck.checks import assert_causal, check
from mu_sota.model import lookups
from mu_sota.model.arguments import CACHE_NAME, named_cache

LIKE = MuConfig(vocab_size=300, num_hidden_layers=2, max_position_embeddings=32, pair_table_rows=41, induction_tables=2)


def small(name: str) -> PreTrainedConfig:
    return FAMILIES[name].config(Shape(layers=2, width=64, inner=96), LIKE)


def pair(name: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """A new baseline and the library's own model with the same weights, but for tables, which change nothing yet."""
    torch.manual_seed(0)
    ours = build(small(name), dropout)
    library: Any = GPT2LMHeadModel if name == "gpt2" else LlamaForCausalLM
    theirs = library(ours.config)
    theirs.load_state_dict({key: value for key, value in ours.state_dict().items() if "lookups" not in key})
    return ours, theirs


def lively(name: str, dropout: float = 0.0) -> Any:
    """A baseline in eval mode whose tables, if it has some, have learned something."""
    torch.manual_seed(0)
    model: Any = build(small(name), dropout).eval()
    if name == "llama-tables":
        for table in model.model.lookups.tables:
            torch.nn.init.normal_(table.weight, std=0.1)
    return model


def recurring(rows: int = 2, length: int = 20) -> torch.Tensor:
    """Ids [rows, length] of so few tokens that pairs of them recur."""
    return torch.randint(4, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_from_chunks_is_that_of_the_library(name: str) -> None:
    ours, theirs = pair(name)
    tokens = torch.randint(300, (3, 33), generator=torch.Generator().manual_seed(1))
    ids, labels = tokens[:, :-1], tokens[:, 1:].clone()
    labels[0, :5] = -100
    output = ours.train()(input_ids=ids, labels=labels, shift_labels=labels, skip_logits=True)
    logits = theirs.train()(input_ids=ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert output.num_correct == ((logits.argmax(-1) == labels) & (labels != -100)).sum()
    summed = ours(input_ids=ids, shift_labels=labels, num_items_in_batch=7).loss
    assert summed.item() == pytest.approx(expected.item() * (labels != -100).sum().item() / 7, rel=1e-5)

    output.loss.backward()
    expected.backward()
    for key, other in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(key).grad, other.grad, atol=1e-6, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_gets_a_gradient_padding_too(name: str) -> None:
    """Llama of the library leaves out the padding token, which in a vocabulary of words is the end of a line."""
    torch.manual_seed(0)
    model: Any = build(FAMILIES[name].config(Shape(2, 64, 96), MuConfig(vocab_size=9, pad_token_id=3)), 0.0)
    with torch.no_grad():
        assert model.get_input_embeddings().weight.abs().sum(1).min() > 0
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(9, 64))  # untied, to see the input's alone
    ids = torch.arange(9)[None]
    model(input_ids=ids, shift_labels=ids.flip(1)).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_without_labels_a_baseline_is_the_library_s_model(name: str) -> None:
    ours, theirs = (model.eval() for model in pair(name, dropout=0.5))
    ids = torch.arange(20)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert torch.equal(
        ours.generate(ids, max_new_tokens=5, do_sample=False), theirs.generate(ids, max_new_tokens=5, do_sample=False)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_acts_on_the_embedding_and_on_both_parts_of_every_layer(name: str) -> None:
    """In the mean, by as many zeros as asked for, and in training alone."""
    model = build(small(name), dropout=0.25).train()
    stream = model.base_model
    first = (stream.h if name == "gpt2" else stream.layers)[0]
    embedded = stream.drop if name == "gpt2" else stream.embed_tokens
    shares = []

    def note(module: Any, arguments: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        shares.append((output == 0).float().mean().item())

    attention = first.attn.resid_dropout if name == "gpt2" else first.self_attn.o_proj
    for module in (embedded, attention, first.mlp):
        module.register_forward_hook(note)
    ids = torch.randint(300, (8, 32), generator=torch.Generator().manual_seed(0))
    model(ids)
    assert shares == pytest.approx([0.25] * 3, abs=0.02)
    shares.clear()
    model.eval()(ids)
    assert max(shares) < 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_the_leak_check_runs_the_same_checks_on_a_baseline_as_on_mu(name: str) -> None:
    """The padding check needs a model that takes a mask by name."""
    checks = {result.check for result in assert_causal(build(small(name), 0.1)).results if result.verdict == "ok"}
    assert checks == {result.check for result in assert_causal(build(LIKE, 0.1)).results if result.verdict == "ok"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_baseline_is_loaded_with_its_class_and_weights(name: str, tmp_path: Path) -> None:
    model = lively(name, dropout=0.1)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is (Gpt2Style if name == "gpt2" else LlamaStyle)
    assert torch.equal(loaded(recurring()).logits, model(recurring()).logits)
    assert tables_of(loaded.config) == tables_of(model.config)
    again = config_from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


def test_a_llama_of_the_library_has_no_dropout_in_its_configuration() -> None:
    """Where that changes, the hooks of `LlamaStyle` would act twice."""
    assert not hasattr(LlamaConfig(), "dropout")
    config: Any = small("llama")
    assert not [m for m in LlamaForCausalLM(config).modules() if isinstance(m, torch.nn.Dropout)]


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_a_llama_has_the_tables_that_its_configuration_asks_for() -> None:
    assert tables_of(small("llama-tables")) == {"pair_table_rows": 41, "induction_tables": 2}
    assert tables_of(small("llama")) == {"pair_table_rows": 0, "induction_tables": 0}
    with_tables, without = (set(build(small(name), 0.0).state_dict()) for name in ("llama-tables", "llama"))
    names = ("pairs", "induction.0", "induction.1")
    assert with_tables - without == {f"model.lookups.{name}.weight" for name in names}


@pytest.mark.parametrize("table", range(3))
def test_every_table_changes_what_is_predicted(table: int) -> None:
    model: Any = build(small("llama-tables"), 0.0).eval()
    before = model(recurring()).logits
    torch.nn.init.normal_(model.model.lookups.tables[table].weight)
    assert (model(recurring()).logits - before).abs().amax(-1).max() > 0.1


def test_a_llama_adds_to_its_embedding_the_rows_that_mu_looks_up() -> None:
    """With padding on the left, too; dropout acts on the token's own embedding, and on its rows as in MU."""
    llama, mu = lively("llama-tables", dropout=0.5).train(), MuForCausalLM(LIKE).eval()
    assert llama.model.lookups.dropout.p == 0.5
    llama.model.lookups.eval()
    mu.model.lookups.load_state_dict(llama.model.lookups.state_dict())
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, arguments, output: seen.update({name: output})

    mu.model.lookups.register_forward_hook(note("rows of mu"))
    llama.model.lookups.register_forward_hook(note("rows"))
    llama.model.embed_tokens.register_forward_hook(note("embedded"))
    llama.model.layers[0].register_forward_pre_hook(lambda module, arguments: seen.update({"state": arguments[0]}))
    ids, mask = recurring(), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    for padding in ({}, {"attention_mask": mask}):
        mu(ids, **padding)
        llama(ids, **padding)
        assert torch.equal(seen["rows"], seen["rows of mu"])
        assert torch.equal(seen["state"], seen["embedded"] + seen["rows"])
        assert (seen["embedded"] == 0).float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, ids = lively(name), recurring(rows=1)
    padded, mask = F.pad(ids, (5, 0), value=1), F.pad(torch.ones_like(ids), (5, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(found, model(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_a_cache_changes_no_generated_token(name: str, how: dict[str, Any]) -> None:
    """Also behind padding, and where beams reorder the cache."""
    model, ids = lively(name), recurring(length=12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    asked: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    asked |= {"eos_token_id": None}
    uncached = model.generate(ids, **asked, use_cache=False, **{**how, "cache_implementation": None})
    assert torch.equal(model.generate(ids, **asked, **how), uncached)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_read_in_pieces_is_the_text(name: str) -> None:
    """Through the cache that a first call without one leaves, by the configuration's default."""
    model, ids = lively(name), recurring()
    first = model(ids[:, :8])
    second = model(ids[:, 8:15], **named_cache(first[CACHE_NAME]))
    third = model(ids[:, 15:], **named_cache(second[CACHE_NAME]))
    pieces = torch.cat([first.logits, second.logits, third.logits], dim=1)
    torch.testing.assert_close(pieces, model(ids, use_cache=False).logits, atol=1e-5, rtol=1e-4)
    assert CACHE_NAME not in model(ids, use_cache=False)


@pytest.mark.parametrize("mistake", ["tokens_before", "followers"])
def test_a_row_of_the_next_token_is_found_in_an_untrained_model(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    """As a comparison checks it: its tables are zero still."""
    right = getattr(lookups, mistake)

    def one_too_late(known: torch.Tensor, positions: torch.Tensor, of: int) -> torch.Tensor:
        return right(known, (positions + 1).clamp(max=known.shape[1] - 1), of)

    monkeypatch.setattr(lookups, mistake, one_too_late)
    report = check(build(small("llama-tables"), 0.1))
    assert not report.clean
    assert "future" in report.summary()
