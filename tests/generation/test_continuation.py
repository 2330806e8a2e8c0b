"""A sampled continuation of a prompt, and the settings that a model's folder brings."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import TINY_SETTINGS
from transformers import GenerationConfig, PreTrainedTokenizerFast, logging

from mu_sota import InputError, MuForCausalLM, cli
from mu_sota.generation.continuation import continued, prompt_ids, sampling_of
from mu_sota.generation.terminal import converse
from mu_sota.saved.load_save import load_trained, save_trained
from mu_sota.settings.sampling import Generation, Sampling


@pytest.fixture(scope="module")
def with_tokenizer(trained: tuple[Path, Path]) -> tuple[MuForCausalLM, PreTrainedTokenizerFast]:
    return load_trained(trained[1])


def test_every_setting_of_sampling_acts(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast],
) -> None:
    """At temperature 0 the likeliest token, whatever the seed; the global random state is left alone."""
    model, tokenizer = with_tokenizer
    greedy = Sampling(temperature=0, repetition_penalty=1)
    ids = prompt_ids(tokenizer, "the state", 8, 32)
    plain = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 8}  # the model comes with a penalty
    expected = model.generate(torch.tensor([ids]), **plain)[0].tolist()
    before = torch.random.get_rng_state()
    assert continued(model, tokenizer, ids, greedy, 8, seed=1) == continued(model, tokenizer, ids, greedy, 8, seed=2)
    assert continued(model, tokenizer, ids, greedy, 8, seed=1) == expected
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}):
        sampling = Sampling(repetition_penalty=1).model_copy(update=narrow)
        assert continued(model, tokenizer, ids, sampling, 8, seed=1) == expected
    strict = Sampling(temperature=0, repetition_penalty=50)
    new = {rule: continued(model, tokenizer, ids, rule, 20, seed=1)[len(ids) :] for rule in (greedy, strict)}
    assert len(set(new[strict])) == 20 > len(set(new[greedy]))
    drawn = [continued(model, tokenizer, ids, Sampling(), 20, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_text_of_a_seed_is_that_of_the_library_also_in_parallel(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast],
) -> None:
    """`generate` of transformers, seeded, gives the same; threads that draw at once leave each other's text alone."""
    model, tokenizer = with_tokenizer
    sampling = Sampling(temperature=5, top_k=40, top_p=0.95)
    ids = prompt_ids(tokenizer, "the state", 20, 32)
    expected = []
    for seed in range(12):
        torch.manual_seed(seed)
        how = {**sampling.model_dump(), "do_sample": True, "max_new_tokens": 20}
        expected.append(model.generate(torch.tensor([ids]), eos_token_id=tokenizer.eos_token_id, **how)[0].tolist())
    assert len(set(map(tuple, expected))) == 12
    with ThreadPoolExecutor(4) as pool:
        drawn = pool.map(lambda seed: continued(model, tokenizer, ids, sampling, 20, seed), range(12))
        assert list(drawn) == expected


def test_predictions_that_are_not_numbers_are_refused(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = with_tokenizer
    broken = deepcopy(model)
    broken.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="predictions are not numbers"):
        continued(broken, tokenizer, [5, 6], Sampling(), 3, seed=0)


# --- The settings in a model's folder ---------------------------------------------------------------------------------


def test_a_session_starts_with_the_sampling_settings_of_the_run(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(trained[0]), "--out", str(tmp_path / "run"), *TINY_SETTINGS]
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    verbosity = logging.get_verbosity()
    with pytest.raises(SystemExit, match="0"):
        cli.main([*arguments, "--set=max_steps=1", "--set=temperature=0.5"])
    logging.set_verbosity(verbosity)  # the command line silences the library for its whole process
    logging.enable_progress_bar()
    capsys.readouterr()
    model, tokenizer = load_trained(tmp_path / "run")
    monkeypatch.setattr("sys.stdin", io.StringIO("/set\n"))
    converse(model, tokenizer, sampling_of(model))
    assert re.search(r"^  temperature +0.5 ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.5, top_k=7, top_p=0.6, repetition_penalty=1.5),
        Sampling(temperature=0, repetition_penalty=1.1),
        Sampling(),
    ],
    ids=["other values", "always the likeliest token", "defaults"],
)
def test_sampling_settings_of_a_saved_model_are_those_it_was_saved_with(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast], tmp_path: Path, sampling: Sampling
) -> None:
    model, tokenizer = with_tokenizer
    save_trained(deepcopy(model), tokenizer, sampling, tmp_path / "saved")
    found = sampling_of(load_trained(tmp_path / "saved")[0])
    drawn = {"temperature", "repetition_penalty"} if sampling.temperature == 0 else set(Sampling.model_fields)
    assert found.model_dump(include=drawn) == sampling.model_dump(include=drawn)
    assert (found.max_new_tokens, found.seed) == (Generation().max_new_tokens, Generation().seed)


def test_sampling_settings_that_are_missing_or_out_of_range_have_the_default(
    with_tokenizer: tuple[MuForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model = deepcopy(with_tokenizer[0])
    model.generation_config = GenerationConfig()
    assert sampling_of(model) == Generation()
    model.generation_config = GenerationConfig(do_sample=True, temperature=1000.0, top_k=3, repetition_penalty=0.5)
    assert sampling_of(model) == Generation(top_k=3)
