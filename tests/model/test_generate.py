"""`generate` on a MU model: the cache, and all that users of `transformers` expect of it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import NEW_FORM, lively_model, reference_of, small_model
from torch import Tensor
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    StaticCache,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from mu_sota import MuForCausalLM
from mu_sota.model.backend import plain_pytorch
from mu_sota.saved.load_save import load_trained

LENGTHS = (6, 1, 3)


def prompts(seed: int = 1) -> tuple[Tensor, Tensor]:
    """A left-padded batch of prompts of several lengths, and its mask; what stands in the padding is noise."""
    ids = torch.randint(37, (len(LENGTHS), 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.stack([torch.arange(6) >= 6 - length for length in LENGTHS]).long()
    return ids, mask


def model_in_float32(**overrides: Any) -> MuForCausalLM:
    return lively_model(**overrides).float()


# --- A seed for one call ---------------------------------------------------------------------------------------------


def test_a_seed_in_the_generation_config_gives_its_text_and_leaves_the_random_state_alone() -> None:
    """The text is that of the same seed for the whole process; also for a batch, and not where nothing is drawn."""
    model = model_in_float32()
    ids, mask = prompts()
    how = {"do_sample": True, "top_k": 20, "temperature": 0.7, "max_new_tokens": 12}
    torch.manual_seed(5)
    expected = model.generate(ids, attention_mask=mask, **how)
    before = torch.random.get_rng_state()
    for seed, same in ((5, True), (6, False)):
        text = model.generate(ids, attention_mask=mask, generation_config=GenerationConfig(sampling_seed=seed, **how))
        assert torch.equal(text, expected) == same
    greedy = GenerationConfig(sampling_seed=5, max_new_tokens=12)
    likeliest = model.generate(ids, attention_mask=mask, max_new_tokens=12)
    assert torch.equal(model.generate(ids, attention_mask=mask, generation_config=greedy), likeliest)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- With the cache as without --------------------------------------------------------------------------------------


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0},
    "top-k, top-p, temperature": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.7},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "penalty": {"do_sample": False, "repetition_penalty": 1.6},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2, "eos_token_id": 36},  # 5.10 needs an end
}


FORMS = pytest.mark.parametrize("form", [{}, NEW_FORM], ids=["as specified", "new form"])


@FORMS
@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_no_token(way: str, form: dict[str, Any]) -> None:
    """Float32; a batch with padding, and one prompt alone."""
    model = model_in_float32(**form)
    ids, mask = prompts()
    if way != "prompt lookup":
        assert_same_text(model, ids, mask, **WAYS[way])
    assert_same_text(model, ids[:1], mask[:1], **WAYS[way])


def assert_same_text(model: MuForCausalLM, ids: Tensor, mask: Tensor, **how: Any) -> None:
    texts = []
    for use_cache in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            if "prompt_lookup_num_tokens" in how and not use_cache:
                how = {"do_sample": False, "eos_token_id": 36}  # what it must equal; it needs a cache itself
            texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=15, use_cache=use_cache, **how))
    assert torch.equal(*texts)
    assert texts[0][:, 6:].unique().numel() > 3  # not one token over and over


@FORMS
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_greedy_generation_is_the_argmax_loop(cache: str, form: dict[str, Any]) -> None:
    """Against the slow reference implementation, one whole pass for each token."""
    model = lively_model(**form)
    reference = reference_of(model)
    ids = prompts()[0][:1]
    expected = ids
    for _ in range(18):
        expected = torch.cat([expected, reference(expected).logits[:, -1:].argmax(-1)], dim=1)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=18, do_sample=False, cache_implementation=cache
    )
    assert torch.equal(made, expected)
    assert made.unique().numel() > 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own parts
@FORMS
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_with_a_static_cache_is_one_graph(padded: bool, form: dict[str, Any]) -> None:
    """As `generate` compiles it on a GPU: one graph for all tokens, and the same text."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    model = lively_model(**form)
    ids = prompts()[0] if padded else prompts()[0][:1]
    mask = prompts()[1] if padded else torch.ones_like(ids)
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, **how)
    compiling: Any = CompileConfig(backend=backend, fullgraph=True, mode="default")
    compiling._compile_all_devices = True
    torch.compiler.reset()
    with plain_pytorch():
        made = model.generate(ids, cache_implementation="static", compile_config=compiling, **how)
    assert torch.equal(made, expected)
    assert len(graphs) == 1


@FORMS
def test_a_left_padded_batch_generates_what_each_prompt_does_alone(form: dict[str, Any]) -> None:
    """Positions count from each row's first token, and padding is not read; with the cache, as `generate` does."""
    model = model_in_float32(**form)
    ids, mask = prompts()
    for cache in ("dynamic", "static"):
        how = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": cache}
        together = model.generate(ids, attention_mask=mask, **how)
        for row, length in enumerate(LENGTHS):
            prompt = ids[row : row + 1, 6 - length :]
            alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
            assert torch.equal(together[row, 6:], alone[0, length:])


@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 1, 1, 4, 1), (11, 1), (6, 6)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fixed", [False, True], ids=["growing cache", "fixed cache"])
@FORMS
def test_a_text_in_pieces_is_the_text(pieces: tuple[int, ...], padded: bool, fixed: bool, form: dict[str, Any]) -> None:
    """Logits, states, sensitivities and entropies of every new token are those of the whole pass."""
    model = lively_model(**form)
    ids = torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :7], mask[2, :2] = 0, 0
    wanted = {"output_hidden_states": True, "output_sensitivities": True, "output_entropies": True}
    whole = model(ids, attention_mask=mask, **wanted)
    cache: Any = StaticCache(config=model.config, max_cache_len=14) if fixed else DynamicCache(config=model.config)
    end = 0
    for piece in pieces:
        start, end = end, end + piece
        new = model(
            ids[:, start:end],
            attention_mask=mask[:, :end] if padded else None,
            past_key_values=cache,
            use_cache=True,
            shift_labels=ids[:, start:end],
            **wanted,
        )
        real = mask[:, start:end].bool()
        assert new.past_key_values is cache
        loss = F.cross_entropy(whole.logits[:, start:end][real], ids[:, start:end][real], reduction="sum")
        torch.testing.assert_close(new.loss * real.sum().clamp(min=1), loss, rtol=1e-5, atol=1e-5)
        for name in ("logits", "hidden_states", "sensitivities", "entropies"):
            ours, theirs = getattr(new, name), getattr(whole, name)
            for one, other in [(ours, theirs)] if name == "logits" else zip(ours, theirs, strict=True):
                torch.testing.assert_close(one[real], other[:, start:end][real], rtol=1e-5, atol=1e-5)
    assert cache.get_seq_length() == 12
    assert len(cache.layers) == 2 * model.config.num_hidden_layers + bool(form)


def test_a_cache_is_made_only_when_asked_for() -> None:
    """A training or evaluation pass keeps nothing."""
    model = small_model()
    ids, _ = prompts()
    assert model(ids).past_key_values is None
    cache = model(ids, use_cache=True).past_key_values
    assert cache.get_seq_length() == 6
    keys = [tuple(layer.keys.shape) for layer in cache.layers]
    assert keys == [(3, 16, 6, 4), (3, 4, 6, 16)] * 2  # block attention, cross-block attention, of each layer


# --- What generate offers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0], ids=["negative logits", "both signs", "positive logits"])
def test_a_penalised_token_never_becomes_more_likely(shift: float) -> None:
    """Whatever the sign of its logit; the earlier implementation divided negative ones, which rewards them."""
    model = model_in_float32()
    with torch.no_grad():
        model.lm_head.bias += shift
    ids, mask = prompts()
    plain = model(ids, attention_mask=mask).logits[:, -1].log_softmax(-1)
    made = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=1,
        do_sample=True,
        top_k=0,
        repetition_penalty=1.3,
        output_scores=True,
        return_dict_in_generate=True,
    )
    penalised = made.scores[0].log_softmax(-1)
    for row, length in enumerate(LENGTHS):
        seen = ids[row, -length:].unique()
        unseen = torch.tensor([token for token in range(37) if token not in ids[row]])
        # All others keep their odds among each other; beside them a penalised token loses.
        change = penalised[row] - plain[row]
        assert change[unseen].max() - change[unseen].min() < 1e-4
        assert (change[seen] < change[unseen].min() - 1e-3).all()


def test_top_k_and_top_p_cut_the_tail() -> None:
    """Sampling never leaves the k likeliest tokens, nor those that reach the share p; temperature 0+ is greedy."""
    model = model_in_float32()
    ids, mask = prompts()
    likeliest = model(ids, attention_mask=mask).logits[:, -1].softmax(-1).sort(descending=True)
    torch.manual_seed(0)
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 1, "do_sample": True, "num_return_sequences": 200}
    drawn = model.generate(ids, top_k=3, **how)[:, -1].view(3, 200)
    for row in range(3):
        assert set(drawn[row].tolist()) == set(likeliest.indices[row, :3].tolist())
    drawn = model.generate(ids, top_k=0, top_p=0.5, **how)[:, -1].view(3, 200)
    for row in range(3):
        kept = int((likeliest.values[row].cumsum(-1) < 0.5).sum()) + 1
        assert set(drawn[row].tolist()) <= set(likeliest.indices[row, :kept].tolist())
    cold = model.generate(ids, top_k=0, temperature=1e-4, **how)[:, -1].view(3, 200)
    assert (cold == likeliest.indices[:, :1]).all()


def test_sampling_follows_the_seed() -> None:
    model = model_in_float32()
    ids, mask = prompts()
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=True))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_beam_search_finds_what_is_at_least_as_likely_as_greedy() -> None:
    """The score of the best of 5 beams, held against the model's own log-probabilities."""
    model = model_in_float32()
    ids = prompts()[0][:1]
    how: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}

    def likelihood(text: Tensor) -> float:
        logs = model(text).logits.log_softmax(-1)[:, :-1].gather(-1, text[:, 1:, None])
        return logs[0, ids.shape[1] - 1 :].sum().item()

    greedy = model.generate(ids, **how)
    beams = model.generate(
        ids, num_beams=5, length_penalty=0.0, **how, output_scores=True, return_dict_in_generate=True
    )
    assert likelihood(beams.sequences) >= likelihood(greedy)
    assert float(beams.sequences_scores[0]) == pytest.approx(likelihood(beams.sequences), abs=1e-4)


def test_tokens_are_streamed_as_they_come() -> None:
    """The prompt first, then one token at a time."""

    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.parts: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.parts.append(value.flatten())

        def end(self) -> None:
            self.ended = True

    model, collected = model_in_float32(), Collect()
    ids = prompts()[0][:1]
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, streamer=collected)
    assert [len(part) for part in collected.parts] == [6] + [1] * 7
    assert torch.equal(torch.cat(collected.parts), made[0])
    assert collected.ended


# --- With a tokenizer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_tokenizer(trained: tuple[Path, Path]) -> tuple[MuForCausalLM, PreTrainedTokenizerFast]:
    return load_trained(trained[1])


def test_generation_stops_at_a_string(with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast]) -> None:
    """As soon as it stands in the text, even where tokens do not end with it."""
    model, tokenizer = with_tokenizer
    inputs = tokenizer("the state", return_tensors="pt")
    free = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs.input_ids.shape[1] :]
    text = str(tokenizer.decode(free))
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    made = model.generate(**inputs, do_sample=False, max_new_tokens=20, stop_strings=[stop], tokenizer=tokenizer)
    new = str(tokenizer.decode(made[0, inputs.input_ids.shape[1] :]))
    assert text.startswith(new)
    assert stop in new
    before_last = tokenizer.decode(made[0, inputs.input_ids.shape[1] : -1])
    assert stop not in before_last


def test_streamed_text_is_the_text(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast], capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = with_tokenizer
    inputs = tokenizer("the state é", return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=8, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == f"{tokenizer.decode(made[0])}\n"


def test_prompts_of_several_lengths_as_a_tokenizer_pads_them(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast],
) -> None:
    """On the left without being told; each goes on as it does alone."""
    model, tokenizer = with_tokenizer
    texts = ["the state of the block", "a", "model reads"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    made = model.generate(**batch, do_sample=False, max_new_tokens=6)
    for row, text in zip(made, texts, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, max_new_tokens=6)
        assert tokenizer.decode(row, skip_special_tokens=True) == tokenizer.decode(alone[0], skip_special_tokens=True)


# --- The end of the learned positions -------------------------------------------------------------------------------


def test_generation_ends_at_the_last_learned_position(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than fits is cut, and said; the part that fits is not touched by it."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = model_in_float32()
    ids, mask = prompts()
    exact = model.generate(ids, attention_mask=mask, max_new_tokens=18, do_sample=False)
    assert exact.shape[1] == 24
    assert not caplog.messages
    for too_many in ({"max_new_tokens": 19}, {"max_new_tokens": 5_000}, {"max_length": 25}):
        for use_cache in (True, False):
            caplog.clear()
            made = model.generate(ids, attention_mask=mask, do_sample=False, use_cache=use_cache, **too_many)
            assert torch.equal(made, exact)
            assert "this model has 24 positions: generation ends after 18" in caplog.text


@pytest.mark.parametrize("length", [8, 17, 22, 23])
def test_guesses_end_there_too(length: int) -> None:
    """Prompt lookup, and an assistant, propose several tokens at once."""
    model = model_in_float32()
    ids = torch.tensor([[3, 1, 4, 1, 5] * 5])[:, :length]
    how: dict[str, Any] = {"max_new_tokens": 24 - length, "do_sample": False, "eos_token_id": 36}
    expected = model.generate(ids, **how)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=5, **how), expected)
    for positions in (24, 48):
        assistant = model_in_float32(max_position_embeddings=positions)
        assistant.generation_config.num_assistant_tokens = 7
        assert torch.equal(model.generate(ids, assistant_model=assistant, **how), expected)
        assert model.generate(ids, assistant_model=assistant, **{**how, "do_sample": True}).shape[1] <= 24


def test_a_prompt_in_chunks_is_the_prompt() -> None:
    """For caches that grow and for those of a fixed size, whose layers are of two shapes."""
    model = model_in_float32()
    ids, mask = prompts()
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    expected = model.generate(ids, **how)
    for cache in ("dynamic", "static"):
        made = model.generate(ids, cache_implementation=cache, prefill_chunk_size=4, **how)
        assert torch.equal(made, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_that_fills_all_positions_gets_one_token(use_cache: bool) -> None:
    """The model predicts it, and never has to read it."""
    model = model_in_float32()
    ids = 1 + torch.arange(24)[None] % 7
    made = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=use_cache, eos_token_id=-1)
    assert made[:, :-1].equal(ids)
    assert made[0, -1] == model(ids).logits[0, -1].argmax()


def test_a_prompt_without_room_is_said() -> None:
    model = small_model()
    ids = torch.ones(1, 25, dtype=torch.long)
    with pytest.raises(ValueError, match="the prompt has 25 tokens, but this model has 24 positions"):
        model.generate(ids, max_new_tokens=1)
    cache = model(ids[:, :20], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the input has 25 tokens, but this model has 24 positions"):
        model(ids[:, :5], past_key_values=cache)


# --- What would go wrong unsaid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [False, True], ids=["growing cache", "fixed cache"])
def test_a_mask_of_another_length_is_said(fixed: bool) -> None:
    """Positions are counted from the mask, so one of the new tokens alone would give other predictions."""
    model, ids = small_model(), torch.ones(2, 6, dtype=torch.long)
    cache: Any = StaticCache(config=model.config, max_cache_len=14) if fixed else DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    for length in (1, 6, 8, 14):
        with pytest.raises(ValueError, match=f"covers {length} tokens, but the cache holds 6 and 1 are new"):
            model(ids[:, :1], attention_mask=torch.ones(2, length), past_key_values=cache)
    with pytest.raises(ValueError, match="covers 10 tokens, but the cache holds 0 and 6 are new"):
        model(ids, attention_mask=torch.ones(2, 10))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_cache_of_another_model_is_refused(layers: int) -> None:
    ids = torch.ones(1, 6, dtype=torch.long)
    cache = small_model(num_hidden_layers=layers)(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=f"the cache has {2 * layers} layers, but this model fills 4"):
        small_model()(ids, past_key_values=cache)


def test_attention_matrices_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="attention matrices are never held"):
        small_model()(torch.ones(1, 3, dtype=torch.long), output_attentions=True)


def test_an_empty_prompt_is_said() -> None:
    """Attention over no tokens ends the process with a signal; so a server would be gone after one empty prompt."""
    model, empty = small_model(), torch.ones(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="the input has no tokens"):
        model(empty)
    with pytest.raises(ValueError, match="the input has no tokens"):
        model.generate(empty, max_new_tokens=1)


def test_continuous_batching_is_refused() -> None:
    """Left to itself it warns, and then makes every token from the one before it alone."""
    with pytest.raises(NotImplementedError, match="continuous batching does not work with this model"):
        model_in_float32().generate_batch([[1, 2, 3]])
