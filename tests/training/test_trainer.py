"""What `MuTrainer` decides and `transformers.Trainer` does not."""

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.training.trainer import MuTrainer


def test_decay_is_on_weights_alone() -> None:
    model = MuForCausalLM(MuConfig(vocab_size=50, num_hidden_layers=1))
    decayed = MuTrainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    left = {name.rpartition(".")[2] for name, _ in model.named_parameters() if name not in decayed}
    assert left == {"bias", "weight", "base"}
    assert all(
        "norm" in name for name, _ in model.named_parameters() if name not in decayed and name.endswith("weight")
    )
