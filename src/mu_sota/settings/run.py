"""How a run trains, evaluates and samples."""

from typing import Literal

from pydantic import Field

from .sampling import CheckedSettings, Sampling


class Training(CheckedSettings):
    """How a run trains and evaluates, and what it continues after every epoch."""

    num_epochs: int = Field(5, ge=1, description="passes over the training windows")
    max_steps: int | None = Field(
        None, ge=1, description="stop after so many optimizer steps, whatever num_epochs says"
    )
    batch_size: int = Field(32, ge=1, description="sequences per optimizer step, over all processes")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences at once per process; the rest is accumulated. Default: chosen by device"
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak of the schedule")
    warmup_steps: int = Field(
        1000, ge=0, description="steps up to the peak; in a run that has no more than these, 30 % of its steps"
    )
    schedule: Literal["cycle", "constant"] = Field(
        "cycle",
        description="cycle: half a cosine up to the peak and another down; constant: up, level, down in the last fifth",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW, on weight matrices and tables only")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    window: int = Field(512, ge=1, description="input tokens of a training or evaluation window")
    stride: int = Field(256, ge=1, description="tokens between the starts of two training windows")
    eval_stride: int | None = Field(
        None, ge=1, description="tokens between the starts of two evaluation windows. Default: no overlap"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, window order, dropout and samples")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, fp16 with loss scaling on others, fp32 on CPU"
    )
    compile: Literal["always", "never"] = Field(
        "never", description="torch.compile of the layers: not faster on the machines measured so far"
    )
    log_steps: int = Field(10, ge=1, description="optimizer steps between two rows of metrics.jsonl")
    checkpoint_minutes: float = Field(10, gt=0, description="minutes between checkpoints within an epoch")
    eval_steps: int | None = Field(
        None, ge=1, description="optimizer steps between two validations within an epoch. Default: at its end alone"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations in a row that bring no lower loss. Default: never"
    )
    bad_steps: Literal["stop", "skip"] = Field(
        "stop",
        description="a loss or gradient that is not finite. stop: the run ends; skip: the batch is left out, as is one "
        "whose loss jumps",
    )
    trackers: list[str] = Field(
        ["tensorboard"], description="as `report_to` of transformers: wandb, mlflow, ..., or []"
    )
    grounding: float = Field(
        0.0, ge=0, description="weight of what single blocks are taught: what their names say. 0: nothing is taught"
    )
    labels: str | None = Field(
        None, description="folder of labelled texts (.conllu, .conll): legibility of the blocks after every epoch"
    )
    prompts: list[str] = Field(
        ["The quick brown", "Once upon a time", "In the beginning"], description="continued after every epoch"
    )
    sample_tokens: int = Field(30, ge=1, description="new tokens per prompt")


class Text(CheckedSettings):
    """How the text is read and tokenized; docs/data.md says more."""

    tokenizer: str = Field(
        "bpe",
        min_length=1,
        description="bpe: byte-level, trained on the text; word: the closed vocabulary of the text; or folder or hub "
        "name of a trained fast tokenizer",
    )
    text_column: str | None = Field(
        None, description="of tables and JSON records. Default: text, or messages, or the only one with strings"
    )
    text_suffixes: list[str] | None = Field(
        None, description="endings of files that are one document each. Default: .txt, .md, .py and others"
    )
    splits: Literal["names", "content"] = Field(
        "names", description="names: as names of files and folders say; content: all of it is divided anew"
    )
    overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="a validation or test split that stands in the training text as a whole"
    )
    data_config: str | None = Field(None, description="of a data set of the hub that has several")
    text_bytes: int | None = Field(None, ge=1, description="the most of the training text; later text is not read")


class RunSettings(Sampling, Text, Training):
    """How a run trains, evaluates and samples. The defaults are the recipe of the preset `mu-sota`."""


CHANGEABLE = ("micro_batch_size", "compile", "log_steps", "checkpoint_minutes", "labels", "patience", "bad_steps")
"""Settings that may be others when a run is gone on with."""

EXTENDABLE = ("num_epochs", "max_steps", "schedule")
"""Settings that say how long a run is; they may make it longer."""
