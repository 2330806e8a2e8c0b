"""`MuForCausalLM`: its size, its gradients, its causality, padding, generation, saving."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import NEW_FORM, gradients_of, lively_model, reference_of, small_config, small_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import mu_sota.model.layers
from mu_sota import MuConfig, MuForCausalLM, MuModel
from mu_sota.model.attention import causal_attention, causal_attention_with_entropy

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # float64, but for the entropy, which is taken in float32
LENGTH = 12
CUTS = (1, 5, LENGTH - 1)


def random_ids(model: MuForCausalLM, rows: int = 4, length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator)


# --- Size ---------------------------------------------------------------------------------------------------------


def test_the_preset_has_the_parameters_of_the_specification() -> None:
    """The table of `model.md`, part by part, and its total."""
    with torch.device("meta"):
        model = MuForCausalLM(MuConfig.from_preset("mu-sota", vocab_size=50_000, max_position_embeddings=512))

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    body = model.model
    assert count(body.token_embedding) == 3_200_000
    assert count(body.position_embedding) == 32_768
    assert len(body.layers) == 24
    assert count(body.affinity) == 24 * 800_000
    for layer in body.layers:
        assert count(layer.block_attention) == 16 * (60 + 20) == 1_280
        assert count(layer.cross_attention) == 16_640
        assert count(layer.feed_forward) == 33_088
        assert count(layer.attention_norm) + count(layer.feed_forward_norm) == 256
        sensitivity = layer.sensitivity
        assert sensitivity.base.numel() == 16
        assert sensitivity.interaction.numel() == 256
        assert count(sensitivity.up) + count(sensitivity.down) == 1_104
        assert count(sensitivity) == 801_376 - 800_000
        assert count(layer) == 852_640 - 800_000
    assert count(body.norm) == 128
    assert count(model.lm_head) == 3_250_000
    assert count(model) == model.num_parameters() == 26_946_256


# --- Initialisation ------------------------------------------------------------------------------------------------


def test_initial_weights_are_fixed_by_the_seed() -> None:
    """The same seed, the same weights; another seed, others."""
    weights, again, other = (small_model(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["lm_head.weight"], other["lm_head.weight"])


def test_initial_values() -> None:
    """Base near a half as specified, the gate neither open nor shut, and predictions near uniform."""
    model = small_model(matrix_size=8)
    for layer in model.model.layers:
        torch.testing.assert_close(layer.sensitivity.base, torch.full((16,), 0.5), rtol=0, atol=0.05)
        assert layer.sensitivity.interaction.det().abs() > 0.1
        for norm in (layer.attention_norm, layer.feed_forward_norm):
            assert (norm.weight == 1).all()
            assert (norm.bias == 0).all()
    with torch.no_grad():
        loss = model(random_ids(model), labels=random_ids(model)).loss
    assert abs(loss - torch.tensor(float(model.config.vocab_size)).log()) < 0.1


# --- Gradients -----------------------------------------------------------------------------------------------------


def gradients_at_the_start() -> tuple[MuForCausalLM, Tensor, dict[str, Tensor]]:
    """A model as training starts from it, a batch, and the gradients of its loss."""
    model = small_model(num_hidden_layers=3).double()
    ids = random_ids(model, length=24)
    ids[ids == 0] = 1  # token 0 is not used
    model(ids, labels=ids).loss.backward()
    return model, ids, gradients_of(model)


def assert_alive(part: Tensor, whole: Tensor, what: str) -> None:
    """The part gets a gradient that is more than the rounding of the whole."""
    assert part.isfinite().all(), what
    assert part.norm() > 1e-5 * whole.norm() > 0, what


def test_every_parameter_receives_a_gradient() -> None:
    """From the first step on, in every tensor, and in every part that a fused tensor holds.

    Softmax does not change when all scores of a row move together, and a key's bias moves them together: the gradient
    of the key biases is zero by mathematics (torch.nn.MultiheadAttention has them too). It is asserted to be just that.
    """
    model, ids, gradients = gradients_at_the_start()
    config = model.config
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert_alive(gradient, gradient, name)

    used = ids.unique()
    unused = torch.tensor([token for token in range(config.vocab_size) if token not in used])
    inputs = ids[:, :-1].unique()
    for name in ("model.token_embedding.weight", "model.affinity.weight"):
        assert (gradients[name][unused] == 0).all()
    # The last position predicts nothing: 23 positions of 24 learn.
    assert (gradients["model.position_embedding.weight"][:23] != 0).all()
    assert (gradients["model.token_embedding.weight"][inputs] != 0).all()
    assert (gradients["lm_head.weight"] != 0).all()
    affinity = gradients["model.affinity.weight"][inputs].unflatten(-1, (3, 16))
    for index in range(3):
        assert_alive(affinity[:, index], affinity, f"affinity of layer {index}")
        assert (affinity[:, index] != 0).all()

    for index in range(3):
        layer = f"model.layers.{index}"
        for kind in ("weight", "bias"):
            # [block, q k v, ...] and [q k v, head, ...]
            blocks = gradients[f"{layer}.block_attention.qkv.{kind}"].unflatten(1, (3, -1))
            heads = gradients[f"{layer}.cross_attention.qkv.{kind}"].unflatten(0, (3, config.num_attention_heads, -1))
            for unit, fused in [("block", blocks.transpose(0, 1)), ("head", heads)]:
                for name, gradient in zip(("query", "key", "value"), fused, strict=True):
                    for number, part in enumerate(gradient):
                        what = f"{layer}: {name} {kind} of {unit} {number}"
                        if (name, kind) == ("key", "bias"):
                            assert part.abs().max() < 1e-7 * fused.abs().max(), what
                        else:
                            assert_alive(part, gradient, what)
            out = gradients[f"{layer}.block_attention.out.{kind}"]
            for block in range(16):
                assert_alive(out[block], out, f"{layer}: output {kind} of block {block}")
        for name in ("base", "interaction", "down.weight", "down.bias", "up.bias"):
            assert (gradients[f"{layer}.sensitivity.{name}"] != 0).all(), f"{layer}: {name}"
        into_network = gradients[f"{layer}.sensitivity.up.weight"]
        assert_alive(into_network[:, :16], into_network, f"{layer}: affinities into the network")
        assert_alive(into_network[:, 16], into_network, f"{layer}: entropy into the network")


# --- Causality -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def leak_of_values(model: MuForCausalLM, cut: int) -> float:
    """How far logits before `cut` move when all tokens from `cut` on change, in standard deviations of the logits."""
    ids, other = random_ids(model), random_ids(model, seed=2)
    changed = torch.cat([ids[:, :cut], (ids[:, cut:] + 1 + other[:, cut:] % 30) % model.config.vocab_size], dim=1)
    assert (changed[:, cut:] != ids[:, cut:]).all()
    before, after = model(ids).logits, model(changed).logits
    assert (before[:, cut:] - after[:, cut:]).abs().amax(-1).min() > 1e-3  # what comes after does move
    return float((before - after)[:, :cut].abs().max() / before.std())


def leak_of_gradients(model: MuForCausalLM, time: int) -> float:
    """Largest gradient of the logits at `time` to anything read at a later position, relative to the largest of all."""
    read: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        expanded = output.expand(4, -1, -1).clone()  # positions are shared by the batch otherwise
        expanded.retain_grad()
        read.append(expanded)
        return expanded

    body = model.model
    hooks = [
        module.register_forward_hook(keep) for module in (body.token_embedding, body.position_embedding, body.affinity)
    ]
    logits = model(random_ids(model)).logits
    for hook in hooks:
        hook.remove()
    logits[:, time].square().sum().backward()
    assert len(read) == 3
    leak = 0.0
    for tensor in read:
        gradient = tensor.grad
        assert gradient is not None
        assert (gradient[:, time] != 0).any(-1).all()
        leak = max(leak, float(gradient[:, time + 1 :].abs().max() / gradient.abs().max()))
    return leak


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cut", CUTS)
def test_the_future_does_not_move_the_past(cut: int, dtype: torch.dtype) -> None:
    """The defect behind every number of the earlier implementation: whole model, several rows, every later token."""
    model: Any = lively_model()
    assert leak_of_values(model.to(dtype), cut) < 1e-6


@pytest.mark.parametrize("time", [0, 4, LENGTH - 2])
def test_no_gradient_comes_from_the_future(time: int) -> None:
    """Exactly none: not to embeddings, positions or affinities of later positions."""
    assert leak_of_gradients(lively_model(), time) == 0


def open_block_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        return causal_attention(query, key, value, query.new_zeros(query.shape[-2], query.shape[-2]))

    monkeypatch.setattr(mu_sota.model.layers, "causal_attention", attend)


def open_cross_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        everything = query.new_zeros(1, 1, query.shape[-2], query.shape[-2])
        return causal_attention_with_entropy(query, key, value, everything)

    monkeypatch.setattr(mu_sota.model.layers, "causal_attention_with_entropy", attend)


def open_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        everything = query.new_zeros(1, 1, query.shape[-2], query.shape[-2])
        output, _ = causal_attention_with_entropy(query, key, value, bias)
        return output, causal_attention_with_entropy(query, key, value, everything)[1]

    monkeypatch.setattr(mu_sota.model.layers, "causal_attention_with_entropy", attend)


@pytest.mark.parametrize("open_mask", [open_block_attention, open_cross_attention, open_entropy])
def test_the_causality_tests_find_a_leak(
    open_mask: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the places where the future could come in, opened on its own, fails both tests, at the start too."""
    open_mask(monkeypatch)
    assert max(leak_of_values(lively_model(), cut) for cut in CUTS) > 1e-2
    assert leak_of_gradients(lively_model(), 4) > 1e-3
    assert leak_of_values(small_model().double(), 5) > 1e-5


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Each row alone is that row in the batch."""
    model = lively_model()
    ids = random_ids(model)
    together = model(ids).logits
    for row in range(len(ids)):
        torch.testing.assert_close(model(ids[row : row + 1]).logits, together[row : row + 1], **CLOSE)


def test_a_prefix_does_not_depend_on_what_follows() -> None:
    """A prefix alone, of any length, gives the logits it has at the start of a longer sequence."""
    model = lively_model()
    ids = random_ids(model, length=24)
    whole = model(ids).logits
    for length in (1, 2, 11, 23):
        torch.testing.assert_close(model(ids[:, :length]).logits, whole[:, :length], **CLOSE)


# --- Padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_move_real_positions(side: str) -> None:
    """Rows of several lengths, padded with tokens of any kind: logits and loss are those of the rows alone.

    A row's first token has no label: on the left, the position before it is padding, which has nothing to predict from.
    """
    model = lively_model()
    ids, labels = random_ids(model), torch.full((4, LENGTH), -100)
    mask = torch.zeros(4, LENGTH, dtype=torch.long)
    places = []
    for row, length in enumerate((12, 1, 7, 4)):
        places.append(slice(LENGTH - length, LENGTH) if side == "left" else slice(0, length))
        mask[row, places[row]] = 1
        labels[row, places[row]] = ids[row, places[row]]
        labels[row, places[row].start] = -100
    padded = model(ids, attention_mask=mask, labels=labels)
    assert padded.logits.isfinite().all()
    losses = []
    for row, place in enumerate(places):
        alone = model(ids[row : row + 1, place]).logits[0]
        torch.testing.assert_close(padded.logits[row, place], alone, **CLOSE)
        losses.append(F.cross_entropy(alone[:-1], ids[row, place][1:], reduction="none"))
    torch.testing.assert_close(padded.loss, torch.cat(losses).mean(), **CLOSE)


def test_a_mask_of_ones_changes_nothing() -> None:
    """Nor do positions that count from 0, as `generate` passes them; positions that do not are heeded."""
    model = lively_model()
    ids = random_ids(model)
    expected = model(ids).logits
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, expected)
    assert torch.equal(model(ids, position_ids=torch.arange(LENGTH)[None]).logits, expected)
    assert not torch.allclose(model(ids, position_ids=torch.arange(LENGTH)[None] + 3).logits, expected, atol=1e-3)


def test_bfloat16_autocast_is_close_to_float32() -> None:
    """Mixed precision works, with padding and without, and gradients stay finite."""
    model = small_model()
    ids = random_ids(model)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for attention_mask in (None, mask):
        labels = ids if attention_mask is None else ids.masked_fill(attention_mask == 0, -100)
        exact = model(ids, attention_mask=attention_mask, labels=labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(ids, attention_mask=attention_mask, labels=labels)
        assert abs(mixed.loss - exact.loss) < 0.01
        assert mixed.loss.dtype == torch.float32
        real = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        assert (mixed.logits.float() - exact.logits)[real].abs().max() < 0.15 * exact.logits.std()
        model.zero_grad()
        mixed.loss.backward()
        assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_loaded_in_half_precision_works(dtype: torch.dtype) -> None:
    """Weights and all: logits near those of float32, a loss with gradients, and text from the cache."""
    model = small_model()
    ids = random_ids(model)
    exact = model(ids, labels=ids)
    halved: Any = small_model()
    halved.to(dtype)
    output = halved(ids, labels=ids)
    assert output.logits.dtype == dtype
    assert (output.logits.float() - exact.logits).abs().max() < 0.15 * exact.logits.std()
    assert abs(output.loss.float() - exact.loss) < 0.02
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in halved.parameters())
    mask = torch.ones_like(ids)
    mask[1:, :3] = 0
    made = halved.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert made.shape == (4, LENGTH + 4)


# --- Loss ----------------------------------------------------------------------------------------------------------


def test_labels_are_shifted_inside() -> None:
    """`labels` line up with `input_ids`; `shift_labels` are the same, shifted; both are the loss of full logits."""
    model = lively_model()
    ids = random_ids(model)
    labels = ids.clone()
    labels[2, 3:6] = -100
    shifted = torch.cat([labels[:, 1:], torch.full((4, 1), -100)], dim=1)
    by_labels, by_shifted = model(ids, labels=labels), model(ids, shift_labels=shifted)
    assert torch.equal(by_labels.loss, by_shifted.loss)
    assert by_labels.num_correct == by_shifted.num_correct
    expected = F.cross_entropy(by_labels.logits.flatten(0, 1), shifted.flatten(), ignore_index=-100)
    torch.testing.assert_close(by_labels.loss, expected, rtol=1e-10, atol=0)

    # The sum over tokens divided by their number in the whole of an accumulated batch, as `Trainer` gives it.
    by_count = model(ids, labels=labels, num_items_in_batch=100).loss
    torch.testing.assert_close(by_count, expected * (shifted != -100).sum() / 100, rtol=1e-10, atol=0)


def test_logits_are_computed_where_they_are_wanted() -> None:
    """Not in training beside a loss; in evaluation yes; only the last positions if so asked."""
    model = small_model()
    ids = random_ids(model)
    full = model(ids).logits
    assert full.shape == (4, LENGTH, model.config.vocab_size)
    assert torch.equal(model(ids, labels=ids).logits, full)
    assert model(ids, labels=ids, skip_logits=True).logits is None
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, full[:, -1:])
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:])
    model.train()
    trained = model(ids, labels=ids)
    assert trained.logits is None
    assert trained.loss.requires_grad
    assert model(ids).logits is not None
    assert model(ids, labels=ids, skip_logits=False).logits is not None


def test_dropout_acts_in_training_alone() -> None:
    """In the feed-forward and in the sensitivity network; evaluation is repeatable."""
    model = small_model(dropout=0.5)
    ids = random_ids(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    for part in ("feed_forward", "sensitivity"):
        model.eval()
        getattr(model.model.layers[0], part).train()
        assert not torch.equal(model(ids).logits, model(ids).logits), part


def test_a_few_steps_learn_a_pattern() -> None:
    """Everything together: the model learns a fixed successor for each token."""
    model = small_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = 0.0
    for step in range(30):
        start = torch.randint(0, 10, (8, 1), generator=torch.Generator().manual_seed(step))
        ids = (start + torch.arange(LENGTH)) % 10
        loss = model(ids, labels=ids).loss
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


# --- No loop over blocks -------------------------------------------------------------------------------------------


class CountOperations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def of(self, *words: str) -> int:
        return sum(count for name, count in self.counts.items() if any(word in name for word in words))


@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and backward"])
def test_a_layer_makes_two_attention_calls(training: bool) -> None:
    """One for all blocks and one across them, however many layers; the products do not go by block either."""
    counted = []  # attention calls, matrix products
    for layers in (1, 3):
        model = small_model(num_hidden_layers=layers).train(training)
        ids = random_ids(model)
        with CountOperations() as operations:
            loss = model(ids, labels=ids).loss
            if training:
                loss.backward()
        counted.append((operations.of("attention"), operations.of("mm", "matmul", "linear", "softmax")))
    (attention_of_1, products_of_1), (attention_of_3, products_of_3) = counted
    calls = 4 if training else 2
    assert (attention_of_1, attention_of_3) == (calls, 3 * calls)
    # 9 products a layer forward, 27 in all; a loop over blocks would need 16 for one step alone.
    assert (products_of_3 - products_of_1) / 2 < 16 * (3 if training else 1)


# --- Length ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_mask", [False, True])
def test_too_long_an_input_is_said(use_mask: bool) -> None:
    """Both numbers; the longest input that fits is taken."""
    model = small_model()
    fits, too_long = random_ids(model, length=24), random_ids(model, length=25)
    assert model(fits).logits.shape[1] == 24
    with pytest.raises(ValueError, match="the input has 25 tokens, but this model has 24 positions"):
        model(too_long, attention_mask=torch.ones_like(too_long) if use_mask else None)


# --- The parts transformers asks for -------------------------------------------------------------------------------


def test_hidden_states_are_recorded() -> None:
    """The embeddings and every layer's state; the last is normalised, as everywhere in `transformers`."""
    model = lively_model(num_hidden_layers=3)
    ids = random_ids(model)
    output = model(ids, output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(4, LENGTH, 64)] * 4
    assert model(ids).hidden_states is None
    body = model.model(ids)
    torch.testing.assert_close(model.lm_head(body.last_hidden_state), output.logits)


def test_input_embeddings_can_be_replaced() -> None:
    """What `resize_token_embeddings` and adapters use."""
    model = small_model()
    assert model.get_input_embeddings() is model.model.token_embedding
    other = nn.Embedding(model.config.vocab_size, 64)
    model.set_input_embeddings(other)
    assert model.model.token_embedding is other


def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    """Every weight through a safetensors folder, found by model type alone."""
    model = lively_model().float()
    ids = random_ids(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()

    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MuConfig
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MuForCausalLM
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(loaded(ids).logits, model(ids).logits)

    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is MuModel
    assert torch.equal(body(ids).last_hidden_state, model.model(ids).last_hidden_state)

    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(small_config())
    assert torch.equal(fresh(ids).logits, small_model()(ids).logits)


def test_a_model_with_rotary_positions_loads_with_more_of_them(tmp_path: Path) -> None:
    """None is learned, so a longer text is read as if the model had been made for it."""
    lively_model(**NEW_FORM | {"block_inputs": "token"}).save_pretrained(tmp_path)
    longer = MuForCausalLM.from_pretrained(tmp_path, max_position_embeddings=48).double()
    ids = torch.randint(37, (2, 48))
    torch.testing.assert_close(longer(ids).logits, reference_of(longer)(ids).logits, rtol=1e-5, atol=1e-5)
