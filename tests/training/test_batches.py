"""The order of windows, which must not depend on how a batch is divided."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mu_sota.training.batches import WindowOrder


def _windows(order: WindowOrder) -> list[int]:
    return [window for batch in order for window in batch if window >= 0]


@given(
    windows=st.integers(1, 60),
    batch_size=st.integers(1, 16),
    micro=st.integers(1, 16),
    world=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_every_window_once_and_the_same_global_batches_however_divided(
    windows: int, batch_size: int, micro: int, world: int, epoch: int
) -> None:
    whole = WindowOrder(windows, batch_size, batch_size, seed=3, rank=0, world=1)
    whole.epoch = epoch
    shares = [WindowOrder(windows, batch_size, micro, seed=3, rank=rank, world=world) for rank in range(world)]
    for share in shares:
        share.epoch = epoch
    batches = [list(share) for share in shares]
    assert Counter(w for share in shares for w in _windows(share)) == Counter(range(windows))
    assert {len(batch) for batch in batches} == {len(shares[0])}, "all processes take part in every micro-batch"
    # A step is `accumulation` micro-batches, or what is left in the epoch's last; `Trainer` counts them like that.
    accumulation = shares[0].accumulation
    for step, expected in enumerate(whole):
        part = slice(step * accumulation, (step + 1) * accumulation)
        taken = Counter(w for batch in batches for group in batch[part] for w in group if w >= 0)
        assert taken == Counter(expected)
    assert shares[0].steps == len(list(whole)) == -(-len(shares[0]) // accumulation)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = WindowOrder(50, 8, 8, seed, 0, 1)
        sampler.epoch = epoch
        return _windows(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
