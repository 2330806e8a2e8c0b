"""The first lines of a run: what is trained, on what, where."""

import torch
from accelerate import PartialState

from mu_sota.common.environment import HALF_PRECISION
from mu_sota.data.corpus import Corpus
from mu_sota.data.description import describe
from mu_sota.model import kernels
from mu_sota.model.configuration import MuConfig
from mu_sota.model.gpu import gpu_kernels_work
from mu_sota.settings.run import RunSettings


def heading(
    preset: str, config: MuConfig, corpus: Corpus, settings: RunSettings, precision: str, process: PartialState
) -> str:
    """The model and the machine; the data and the batches; what there is to say of the data."""
    where = process.device.type
    if process.num_processes > 1:
        where = f"{process.num_processes} x {where}"
    elif torch.cuda.device_count() > 1:
        where += f" (1 of {torch.cuda.device_count()}; all of them: torchrun --nproc-per-node gpu -m mu_sota ...)"
    return "\n".join(
        [
            f"MU-SOTA, preset {preset}: {config.num_parameters:,} parameters, {config.num_hidden_layers} layers, "
            f"{config.matrix_size}x{config.matrix_size} state, {config.vocab_size:,} tokens, on {where} in {precision}"
            f"{_kernels(process.device, precision)}",
            f"Data {corpus.source}: {corpus.train.n_predicted:,} training tokens, "
            f"{corpus.validation.n_predicted:,} validation tokens; windows of {settings.window}, "
            f"batch {settings.batch_size}",
            *describe(corpus),
        ]
    )


def _kernels(device: torch.device, precision: str) -> str:
    """Which kernels run."""
    if device.type == "cuda":
        dtype = HALF_PRECISION.get(precision, torch.float32)
        if gpu_kernels_work(device.index or 0, dtype):
            return ", kernels for GPUs"
        return ", PyTorch's kernels"
    if device.type != "cpu":
        return ""
    if precision != "fp32":
        return ", PyTorch's kernels (those of mu-sota, several times as fast, are for fp32)"
    if kernels.library() is None:
        return ", PyTorch's kernels (a C++ compiler, such as g++, makes training several times as fast)"
    return ", compiled kernels"
