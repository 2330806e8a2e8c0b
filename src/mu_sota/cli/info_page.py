"""The page that `mu-sota info` prints."""

from mu_sota.evaluation.cost import activation_bytes, flops_per_token, parameter_table
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.load import Settings
from mu_sota.settings.presets import MODEL_KEYS
from mu_sota.settings.run import RunSettings


def info_page(settings: Settings) -> str:
    """Parameters part by part, FLOPs per token, memory of a training step, and all settings."""
    run, config = settings
    model = MuForCausalLM(config)
    table = parameter_table(model)
    total = sum(table.values())
    forward, both = flops_per_token(model, run.window)
    activations = activation_bytes(model, run.window)
    state = 16 * total  # weights, gradients and two moments of AdamW in float32
    lines = [
        f"State {config.matrix_size} x {config.matrix_size}: 16 blocks of {config.block_size} values",
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads of cross-block attention",
        "",
        "Parameters (at the full vocabulary; a smaller text gives a smaller one)",
        *(f"  {part:30} {count:>12,}  {count / total:6.1%}" for part, count in table.items()),
        f"  {'total':30} {total:>12,}",
        "",
        f"FLOPs per token at {run.window} tokens: {forward / 1e6:.1f} M forward, {both / 1e6:.1f} M with backward",
        "Memory of training in float32 (estimates)",
        f"  weights, gradients, AdamW      {state / 2**30:8.2f} GiB",
        f"  saved activations, a sequence  {activations / 2**20:8.1f} MiB",
        "",
        "Settings of the model (change with --set key=value or a YAML file)",
        *(f"  {key:23} {getattr(config, key)}" for key in MODEL_KEYS),
        "",
        "Settings of the run (the same way)",
        *(
            f"  {key:20} {value!s:34} {RunSettings.model_fields[key].description}"
            for key, value in run.model_dump().items()
        ),
    ]
    return "\n".join(lines)
