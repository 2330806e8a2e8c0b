"""The learning rate of every step."""

import pytest
import torch

from mu_sota.training.lr_schedule import one_cycle

PEAK = 1e-2


def rates(steps: int, warmup_steps: int) -> list[float]:
    """The learning rate of each step of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = one_cycle(optimizer, PEAK, steps, warmup_steps)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("steps", "warmup_steps"), [(24, 20), (100, 10), (7, 2)])
def test_it_rises_to_the_peak_and_falls(steps: int, warmup_steps: int) -> None:
    found = rates(steps, warmup_steps)
    assert found[0] == pytest.approx(PEAK / 25)
    assert found.index(max(found)) == warmup_steps - 1
    assert max(found) == pytest.approx(PEAK)
    assert found[:warmup_steps] == sorted(found[:warmup_steps])
    assert found[warmup_steps - 1 :] == sorted(found[warmup_steps - 1 :], reverse=True)
    assert found[-1] == pytest.approx(PEAK / 250_000)


@pytest.mark.parametrize("steps", [10, 19, 20])
def test_a_run_within_the_warm_up_rises_for_30_percent_of_its_steps(steps: int) -> None:
    found = rates(steps, warmup_steps=20)
    assert found.index(max(found)) == round(0.3 * steps) - 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_shortest_schedules_begin_at_a_25th_of_the_peak(steps: int) -> None:
    assert rates(steps, warmup_steps=20)[0] == pytest.approx(PEAK / 25)
