"""What a visitor of the page changes in the model: blocks that are off, and blocks that are moved."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mu_sota.inspection.ablation import blocks_off
from mu_sota.inspection.steering import recorded_directions, steered
from mu_sota.model.blocks import BLOCKS
from mu_sota.model.modeling import MuForCausalLM

from .html_views import minus

NO_STEERING: Mapping[str, Any] = {"place": 0, "directions": []}
"""The record of steering where there is none."""
_NAMED_BLOCKS = 4  # more blocks that are off are counted, not named


@dataclass(frozen=True)
class Change:
    """A change of the model; false if the model is as trained.

    Attributes:
        off: names of blocks that read as 0 everywhere.
        moves: strengths, by the name of the block.
    """

    off: tuple[str, ...] = ()
    moves: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.off or self.moves)

    @property
    def title(self) -> str:
        """In few words, as in `without C2, with E +2`; empty if the model is as trained."""
        moved = ", ".join(f"{name} {minus(f'{strength:+g}')}" for name, strength in self.moves.items())
        parts = {"without": _named(self.off) if self.off else "", "with": moved}
        return ", ".join(f"{word} {blocks}" for word, blocks in parts.items() if blocks)

    @contextmanager
    def applied(self, model: MuForCausalLM, steering: Mapping[str, Any]) -> Iterator[None]:
        """Within the context, the model is changed.

        Args:
            steering: of the record that `mu-sota inspect` made of the model.

        Raises:
            InputError: there is no such block, or no direction to move it in.
        """
        known = recorded_directions(steering)
        with steered(model, steering["place"], known, self.moves), blocks_off(model, self.off):
            yield


def chosen(on: Sequence[str], strengths: Mapping[str, float]) -> Change:
    """The change that switches and sliders stand for. A block that is off stays off, wherever its slider is."""
    off = tuple(block.name for block in BLOCKS if block.name not in on)
    return Change(off, {name: strength for name, strength in strengths.items() if strength and name not in off})


def _named(off: Sequence[str]) -> str:
    if len(off) <= _NAMED_BLOCKS:
        return ", ".join(off)
    return "any block" if len(off) == len(BLOCKS) else f"{len(off)} blocks"
