"""Ctrl-C and SIGTERM."""

import signal

import pytest

from mu_sota.training.interrupt import Interrupt


def test_a_second_ctrl_c_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt = Interrupt()
    with interrupt.listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "Stopped without saving: --resume goes on from the last checkpoint." in capsys.readouterr().err


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = Interrupt()
    with interrupt.listening():
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.received
    assert signal.getsignal(signal.SIGTERM) == before
