"""Every step is looked at before it changes the weights: a loss or gradient that is not finite, or a spike of the loss.

The judgement is made on the device and read a step later on a GPU, which so never waits; the weights are safe all the
same, since the optimizer does nothing in a step that is judged bad.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.environment import autocast
from mu_sota.common.hooks import attached, without_compilation
from mu_sota.model.backend import plain_pytorch

_SETTLED = 20  # steps, from which on a usual loss is known
_NEW = 0.1  # weight of a new loss in the usual one
_SPIKE_TIMES, _SPIKE_MORE = 1.5, 1.0  # a spike is so many times the usual loss, and so many nats above it
MOST_IN_A_ROW = 10


class Judged(NamedTuple):
    """A step that was not as usual.

    Attributes:
        step: counted from 1.
        loss: nats a token.
        grad_norm: before clipping.
        finite: are both?
        skipped: did it leave the weights as they were?
        usual: recent loss of a step.
        batches: the micro-batches of this process.
    """

    step: int
    loss: float
    grad_norm: float
    finite: bool
    skipped: bool
    usual: float
    batches: list[dict[str, Any]]


class StepWatch:
    """Judges the steps of one run.

    Args:
        device: of the run.
        skips_spikes: True if a spike is to leave the weights as they are, too.
        scaled: True in fp16, where gradients that are not finite are the scaler's to handle.

    Attributes:
        sums: nll, right predictions and tokens of the step so far.
        batches: of the step so far.
        usual: recent loss of a step, a scalar tensor.
        seen: steps judged.
    """

    def __init__(self, device: torch.device, skips_spikes: bool, scaled: bool) -> None:
        self.skips_spikes, self.scaled = skips_spikes, scaled
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.usual = torch.zeros((), dtype=self.dtype, device=device)
        self.seen = 0
        self._waiting: deque[tuple[int, Tensor, Any, list[dict[str, Any]]]] = deque()
        self.begin(device)

    def begin(self, device: torch.device) -> None:
        """Begin a step."""
        self.sums = torch.zeros(3, dtype=self.dtype, device=device)
        self.batches: list[dict[str, Any]] = []

    def judge(self, step: int, sums: Tensor, grad_norm: Tensor) -> Tensor:
        """Whether the weights must stay as they are: a scalar tensor, 1 or 0.

        Args:
            step: counted from 1.
            sums: those of all processes.
            grad_norm: before clipping.
        """
        loss, norm = sums[0] / sums[2], grad_norm.detach().to(sums)
        finite = torch.isfinite(loss) & (torch.isfinite(norm) | self.scaled)
        high = (loss > _SPIKE_TIMES * self.usual) & (loss > self.usual + _SPIKE_MORE)
        spike = high if self.seen >= _SETTLED else torch.zeros_like(high)
        bad = ~finite | spike if self.skips_spikes else ~finite
        found = torch.stack([loss, norm, finite, bad, spike, self.usual])
        new = self.usual + _NEW * (loss - self.usual) if self.seen else loss
        self.usual = torch.where(~finite | spike, self.usual, new)
        self.seen += 1
        event = None
        if found.is_cuda:
            found = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((step, found, event, self.batches))
        return bad

    def found(self, all_of_them: bool) -> list[Judged]:
        """The steps so far that were not as usual, each once; on a GPU the last one only if all are asked for."""
        unusual = []
        while self._waiting and (all_of_them or self._waiting[0][2] is None or len(self._waiting) > 1):
            step, values, event, batches = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, finite, bad, spike, usual = values.tolist()
            if bad or spike:
                unusual.append(Judged(step, loss, norm, bool(finite), bool(bad), usual, batches))
        return unusual


def first_not_finite(model: nn.Module, batches: list[dict[str, Any]], precision: str) -> str | None:
    """Where in a model a value first is not finite, as a phrase; None where all are.

    Args:
        model: with the weights of the step, not wrapped.
        batches: the model's arguments.
        precision: as trained.
    """
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if not torch.isfinite(weight).all():
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(torch.isfinite(tensor).all() for tensor in _tensors(output)):
                found.append(name)

        return hook

    was_training = model.training
    model.eval()
    try:
        with without_compilation(), plain_pytorch():
            for batch in batches:
                hooks = (module.register_forward_hook(look(name)) for name, module in model.named_modules() if name)
                with attached(hooks), autocast(batch["input_ids"].device, precision):
                    loss = model(**batch).loss
                if found:
                    return f"the output of {found[0]}"
                if not torch.isfinite(loss):
                    return "the loss itself"
                parameters = dict(model.named_parameters())
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in reversed(list(zip(parameters, gradients, strict=True))):
                    if gradient is not None and not torch.isfinite(gradient).all():
                        return f"the gradient of {name}"
    finally:
        model.train(was_training)
    return None


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of what a module returned."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, tuple | list) else []
