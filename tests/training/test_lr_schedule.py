"""The learning rate of every step."""

import pytest
import torch

from mu_sota.training.lr_schedule import Part, Schedule

PEAK = 1e-2


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])


def rates(warmup_steps: int, *parts: Part) -> list[float]:
    """The learning rate of each step of a run."""
    sgd = optimizer()
    schedule = Schedule(sgd, PEAK, warmup_steps, parts)
    found = []
    for _ in range(parts[-1].end):
        found.append(float(sgd.param_groups[0]["lr"]))
        sgd.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [4, 5, 7, 19, 24, 100, 1_310])
@pytest.mark.parametrize("warmup_steps", [0, 2, 3, 10, 1_000])
def test_a_cycle_is_that_of_pytorch(steps: int, warmup_steps: int) -> None:
    """To the last digit, so that runs of earlier versions go on as they began."""
    warmup = warmup_steps if warmup_steps < steps else round(0.3 * steps)
    sgd = optimizer()
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=PEAK, total_steps=steps, pct_start=max(warmup, 2) / steps, cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        sgd.step()
        if len(expected) < steps:
            theirs.step()
    assert rates(warmup_steps, Part(steps, "cycle")) == expected


@pytest.mark.parametrize(("steps", "warmup_steps"), [(24, 20), (100, 10), (7, 2)])
def test_a_cycle_rises_to_the_peak_and_falls(steps: int, warmup_steps: int) -> None:
    found = rates(warmup_steps, Part(steps, "cycle"))
    assert found[0] == pytest.approx(PEAK / 25)
    assert found.index(max(found)) == warmup_steps - 1
    assert max(found) == pytest.approx(PEAK)
    assert found[:warmup_steps] == sorted(found[:warmup_steps])
    assert found[warmup_steps - 1 :] == sorted(found[warmup_steps - 1 :], reverse=True)
    assert found[-1] == pytest.approx(PEAK / 250_000)


@pytest.mark.parametrize("steps", [10, 19, 20])
def test_a_run_within_the_warm_up_rises_for_30_percent_of_its_steps(steps: int) -> None:
    found = rates(20, Part(steps, "cycle"))
    assert found.index(max(found)) == round(0.3 * steps) - 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_shortest_schedules_begin_at_a_25th_of_the_peak(steps: int) -> None:
    assert rates(20, Part(steps, "cycle"))[0] == pytest.approx(PEAK / 25)


def test_a_constant_rate_is_constant_but_for_its_ends() -> None:
    found = rates(10, Part(100, "constant"))
    assert found[:10] == pytest.approx([PEAK * (step + 1) / 11 for step in range(10)])
    assert found[10:80] == [PEAK] * 70
    assert found[80:] == sorted(found[80:], reverse=True)
    assert found[-1] == pytest.approx(PEAK * (1 - (20 / 21) ** 0.5))


@pytest.mark.parametrize("shape", ["cycle", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_rate_of_the_shortest_parts_is_between_nothing_and_the_peak(shape: str, steps: int) -> None:
    assert all(0 < rate <= PEAK for rate in rates(20, Part(steps, shape)))


def test_what_a_run_is_made_longer_by_has_a_warm_up_and_an_end_of_its_own() -> None:
    first, second = Part(40, "cycle"), Part(100, "cycle")
    found = rates(10, first, second)
    assert found[:40] == rates(10, first)
    assert found[40:] == rates(10, Part(60, "cycle"))
    assert rates(10, first, Part(100, "constant"))[40:] == rates(10, Part(60, "constant"))


def test_a_checkpoint_of_a_run_made_longer_goes_on_with_the_new_part() -> None:
    """The optimizer's own record says the rate that the old schedule ended with."""
    sgd = optimizer()
    old = Schedule(sgd, PEAK, 2, [Part(8, "cycle")])
    for _ in range(8):
        sgd.step()
        old.step()
    again = Schedule(sgd, PEAK, 2, [Part(8, "cycle"), Part(20, "cycle")])
    again.load_state_dict(old.state_dict())
    assert sgd.param_groups[0]["lr"] == pytest.approx(PEAK / 25)
    assert again.get_last_lr() == [sgd.param_groups[0]["lr"]]
