"""The terminal session: its output for typed lines."""

import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from terminal_model import CORPUS, FEW, shown, small
from transformers import PreTrainedTokenizerFast

from mu_sota import MuForCausalLM
from mu_sota.data.tokenizer import encode, train_bpe, train_words
from mu_sota.generation import terminal as interactive
from mu_sota.generation.continuation import continued, sample, text_of
from mu_sota.generation.terminal import converse
from mu_sota.generation.token_stream import TokenStream
from mu_sota.model.errors import InputError
from mu_sota.settings.sampling import Generation

POSITIONS = 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([CORPUS], 300)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MuForCausalLM:
    return small(tokenizer, POSITIONS)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run with it ignored, as under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Written(io.StringIO):
    """Standard output that keeps the text written so far at every flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = [""]

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


class Typed(io.StringIO):
    """Standard input that says that a person types it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def session(
    model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs a session on lines: its first line of output, the rest, the lines of errors, and the text at every flush."""

    def run(*lines: str, settings: Generation = FEW, typed: bool = False, **other: Any) -> Any:
        out, errors = Written(), io.StringIO()
        monkeypatch.setattr(sys, "stdin", (Typed if typed else io.StringIO)("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", errors)
        converse(other.get("model", model), other.get("tokenizer", tokenizer), settings)
        first, _, rest = out.getvalue().partition("\n")
        return SimpleNamespace(first=first, out=rest, errors=errors.getvalue().splitlines(), flushed=out.flushed)

    return run


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[list[int], int]]]:
    """Makes the model write these token ids, one list for each continuation; None is a Ctrl-C, -1 a failure.

    Returns a list that every continuation adds to: its ids to start from, and how many more are asked for.
    """

    def prepare(answers: list[list[int | None]]) -> list[tuple[list[int], int]]:
        asked = []

        def fake(_: Any, __: Any, ids: list[int], ___: Any, more: int, ____: int, streamer: Any) -> None:
            asked.append((ids, more))
            streamer.put(torch.tensor([ids]))
            for token in answers.pop(0):
                if token is None:
                    signal.raise_signal(signal.SIGINT)
                elif token < 0:
                    raise InputError("the model has no probabilities")
                else:
                    streamer.put(torch.tensor([token]))
            streamer.end()

        monkeypatch.setattr(interactive, "continued", fake)
        return asked

    return prepare


# --- Texts ----------------------------------------------------------------------------------------------------------


def test_a_text_is_continued_as_generate_does_and_each_time_with_the_next_seed(
    session: Any, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    result = session("the state", "the state", "/set seed 5", "the state", settings=FEW.changed("seed", 4))
    four, five = (shown(sample(model, tokenizer, "the state", FEW, 6, seed)) for seed in (4, 5))
    assert four != five
    assert result.out == (
        f"{four}\n[seed 4, 6 tokens]\n{five}\n[seed 5, 6 tokens]\n"
        f"  seed               5      same seed, same text\n{five}\n[seed 5, 6 tokens]\n"
    )
    assert result.errors == []
    assert result.first == f"{model.num_parameters():,} parameters, {POSITIONS} positions. " + (
        "Type the beginning of a text, or /help."
    )


def test_every_token_is_on_the_screen_before_the_next_one_is_made(
    session: Any, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    flushed = session("the").flushed
    made = continued(model, tokenizer, encode(tokenizer, "the").tolist(), FEW, 6, 0)
    for end in range(len(made) - 6, len(made) + 1):
        text = shown(text_of(tokenizer, made[:end]).removesuffix("\ufffd"))
        assert any(written.endswith(f"\n{text}") for written in flushed), text


def test_more_continues_from_the_end_and_again_from_the_same_start_with_the_next_seed(
    session: Any, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    result = session("the state", "/more", "/again", "/more", "/history", "/history 1", "/history 2")
    first = continued(model, tokenizer, encode(tokenizer, "the state").tolist(), FEW, 6, 0)
    ways = [continued(model, tokenizer, first, FEW, 6, seed) for seed in (1, 2)]
    ways[1] = continued(model, tokenizer, ways[1], FEW, 6, 3)
    one, two = (shown(text_of(tokenizer, way)) for way in ways)
    assert result.out.endswith(f"{one}\n{two}\n")
    assert len(re.findall(r"^ +\d ", result.out, re.MULTILINE)) == 2
    assert [int(seed) for seed in re.findall(r"\[seed (\d)", result.out)] == [0, 1, 2, 3]


def test_more_continues_a_text_chosen_from_the_history(session: Any, says: Any, tokenizer: Any) -> None:
    says([encode(tokenizer, word).tolist() for word in (" one", " two", " three")])
    result = session("a", "b", "/history 1", "/more", "/history")
    assert "   1 a one three\n   2 b two\n" in result.out


def test_equal_texts_are_two(session: Any, says: Any, tokenizer: Any) -> None:
    says([encode(tokenizer, word).tolist() for word in (" one", " one", " more")])
    result = session("a", "a", "/history", "/more", "/history").out
    assert "\n   1 a one\n   2 a one\na one more\n" in result
    assert result.endswith("\n   1 a one\n   2 a one more\n")


def test_a_long_text_takes_one_line_of_the_list_and_is_cut_where_it_goes_on(
    session: Any, says: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    says([encode(tokenizer, "\nb\tc" + "d" * 70).tolist(), encode(tokenizer, "!").tolist()])
    result = session("a", "/history", "/more", model=small(tokenizer, 200))
    line = re.search(r"^   1 .*$", result.out, re.MULTILINE)
    assert line is not None
    assert line[0] == r"   1 a\nb c" + "d" * 15 + "..."
    assert f"\n...{'d' * 60}!\n" in result.out


def test_escapes_in_a_typed_text(session: Any, says: Any) -> None:
    says([[]] * 5)
    result = session("//etc", r"a\nb\tc\\n\d", " /x", "", "/new")
    assert result.out == "".join(
        f"{text}\n[seed {n}, 0 tokens]\n" for n, text in enumerate(["/etc", "a\nb\tc\\n\\d", " /x", ""])
    )
    assert result.errors == []


def test_the_seed_used_is_on_a_line_of_its_own(session: Any, says: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    says([encode(tokenizer, "b\n").tolist(), encode(tokenizer, "c").tolist()])
    assert session("a", "/more").out == "ab\n[seed 0, 2 tokens]\nab\nc\n[seed 1, 1 token]\n"


def test_new_begins_a_text_without_a_prompt(
    session: Any, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert session("/new").out.startswith(shown(sample(model, tokenizer, "", FEW, 6, 0)) + "\n[seed 0")


def test_only_whole_characters_are_printed(session: Any, says: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """A character cut off at the end is shown as such, and complete once /more has added the rest."""
    ids = encode(tokenizer, "x🙂y→").tolist()
    assert len(ids) == 9  # one for each byte
    says([ids[:8], ids[8:]])
    result = session("a", "/more", "/history 1")
    assert result.out == "ax🙂y\ufffd\n[seed 0, 8 tokens]\nax🙂y→\n[seed 1, 1 token]\nax🙂y→\n"
    until_the_end = [written for written in result.flushed if written.endswith(("x", "🙂", "y"))]
    assert len(until_the_end) >= 3
    assert not any("\ufffd" in written for written in until_the_end[:3])


def test_control_characters_of_the_model_are_printed_as_codes(
    session: Any, says: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    says([encode(tokenizer, "\x1b[2J\r\x07\x7f\x9b1m\t\n.").tolist()])
    result = session("\x1b[1mx", "/history", "/history 1")
    escaped = r"\x1b[1mx\x1b[2J\x0d\x07\x7f\x9b1m"
    assert result.out == f"{escaped}\t\n.\n[seed 0, 14 tokens]\n   1 {escaped} \\n.\n{escaped}\t\n.\n"


def test_the_model_cannot_turn_or_hide_what_is_on_the_screen(
    session: Any, says: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Characters that change the direction of writing or cannot be seen are shown by their codes."""
    says([encode(tokenizer, "\u202e\u2066\u200b\u2028").tolist()])
    result = session("\u202ex 漢\u3000é 👩\u200d👧", "/history", "/history 1").out
    text = "\\u202ex 漢\u3000é 👩\u200d👧\\u202e\\u2066\\u200b\\u2028"
    assert result == f"{text}\n[seed 0, 12 tokens]\n   1 {text}\n{text}\n"


def test_tokens_before_a_failure_are_kept_and_more_continues_them(session: Any, says: Any, tokenizer: Any) -> None:
    says([[*encode(tokenizer, " b").tolist(), -1], [-1], encode(tokenizer, " c").tolist()])
    result = session("a", "/more", "/more", "/history")
    tokens = len(encode(tokenizer, " b"))
    assert result.out.startswith(
        f"a b\n[seed 0, {tokens} token{'s' * (tokens != 1)}, failed]\na b\n[seed 1, 0 tokens, f"
    )
    assert result.out.endswith("   1 a b c\n")
    assert result.errors == ["the model has no probabilities"] * 2


def test_a_text_that_the_model_ends(session: Any, says: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """The end mark is not shown, and /more adds to the same text."""
    asked = says([[*encode(tokenizer, " b").tolist(), tokenizer.eos_token_id], encode(tokenizer, " c").tolist()])
    result = session("a", "/more", "/history")
    assert re.search(r"^a b\n\[seed 0, \d tokens?, then the model ended the text\]$", result.out, re.MULTILINE)
    assert result.out.endswith("   1 a b c\n")
    assert asked[1][0] == encode(tokenizer, "a b").tolist()


def test_in_the_word_vocabulary_the_end_of_a_line_is_a_word(session: Any, says: Any) -> None:
    words = train_words([CORPUS])
    says([encode(words, "block\n").tolist(), encode(words, "model").tolist()])
    result = session(r"the\nstrange", "/more", "/history", model=small(words, POSITIONS), tokenizer=words)
    assert "the <eos> <unk> block <eos>\n[seed 0, 2 tokens, then the model ended the text]\n" in result.out
    assert result.out.endswith("   1 the <eos> <unk> block <eos> model\n")


def test_the_seed_after_the_last_is_the_first(session: Any, says: Any) -> None:
    says([[], []])
    result = session("a", "a", settings=FEW.changed("seed", 2**31 - 1))
    assert re.findall(r"seed \d+", result.out) == [f"seed {2**31 - 1}", "seed 0"]


def test_a_text_ends_at_the_last_position(
    session: Any, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = FEW.changed("max_new_tokens", 100)
    prompt = "the state of a block"
    result = session(prompt, "/more", "the " * POSITIONS, "/again", settings=asked)
    room = POSITIONS - len(encode(tokenizer, prompt))
    full = f", {room} tokens, all that fit into the model's {POSITIONS} positions]"
    text = shown(sample(model, tokenizer, prompt, asked, room, 0))
    assert result.out.startswith(f"{text}\n[seed 0{full}\n")
    assert result.out.endswith(f"[seed 1{full}\n")  # a refused line uses no seed
    assert result.errors[0] == f"the text fills the model's {POSITIONS} positions; type the beginning of another"
    assert re.match(r"the prompt 'the the .* tokens .* 40 positions; shorten the prompt", result.errors[1])
    assert len(result.errors) == 2


def test_no_more_tokens_are_asked_of_the_model_than_fit(
    session: Any, says: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The model would cut it too, but with a warning."""
    asked = says([[], [], []])
    session("the", "the", settings=FEW.changed("max_new_tokens", 100))
    session("/set max_new_tokens 5", "the")
    room = POSITIONS - len(encode(tokenizer, "the"))
    assert [more for _, more in asked] == [room, room, 5]


# --- Commands -------------------------------------------------------------------------------------------------------


def test_set_shows_and_changes_settings(session: Any) -> None:
    result = session("/set temperature 0.5", "/set top_k=7", "/set  top_p = 1", "/set", "/set seed 9 ")
    lines = result.out.splitlines()
    table = {line.split()[0]: line.split()[1] for line in lines[3:-1]}
    assert list(table) == list(Generation.model_fields)
    assert list(table.values()) == ["0.5", "7", "1.0", "1.2", "6", "0"]
    assert lines[0].split()[:2] == ["temperature", "0.5"]
    assert lines[0].endswith(str(Generation.model_fields["temperature"].description))
    assert result.errors == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set temperatur 1", "there is no setting 'temperatur'; did you mean 'temperature'?"),
        ("/set x 1", "there is no setting 'x'; the settings are: temperature, top_k"),
        ("/set temperature warm", "the setting temperature is 'warm': input should be a valid number"),
        ("/set top_p 2", "the setting top_p is '2': input should be less than or equal to 1"),
        ("/set temperature", "/set takes a name and a value, as in /set temperature 0.7, but got 'temperature'"),
        ("/set =", "/set takes a name and a value"),
        ("/mroe", "there is no command '/mroe'; did you mean '/more'? (a text that begins with / is typed with //)"),
        ("/", "there is no command '/'; /help lists them"),
        ("/more 5", "/more takes no argument, but got '5'"),
        ("/quit now", "/quit takes no argument, but got 'now'"),
        ("/more", "/more needs a text, and there is none yet"),
        ("/again", "/again needs a text"),
        ("/history", "/history needs a text"),
        ("caf\udce9", "The text has the lone surrogate '\\udce9'"),
    ],
)
def test_a_line_that_cannot_be_used_gets_a_sentence_and_the_session_goes_on(session: Any, line: str, says: str) -> None:
    result = session(line, "the")
    assert result.errors[0].startswith(says)
    assert len(result.errors) == 1
    assert re.fullmatch(r"the.*\n\[seed 0, 6 tokens\]\n", result.out, re.DOTALL), "and nothing was changed"


@pytest.mark.parametrize("start", ["/", "/more ", "/set ", "/history "])
def test_an_error_shows_only_the_start_of_a_very_long_line(session: Any, start: str) -> None:
    result = session("the", start + "x" * 1_000_000)
    assert len(result.errors) == 1
    assert "xxx..." in result.errors[0]
    assert len(result.errors[0]) < 200


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_without_standard_input_or_output_there_is_no_session(
    model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As Python has it where the program was started with `<&-` or `>&-`."""
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(InputError, match=f"standard {name[3:]}put is closed"):
        converse(model, tokenizer, FEW)


@pytest.mark.parametrize("number", ["0", "2", "-1", "x"])
def test_history_refuses_a_number_that_no_text_has(session: Any, number: str) -> None:
    assert session("the", f"/history {number}").errors == [
        f"/history takes the number of a text, 1 to 1, but got {number!r}"
    ]


def test_help_names_every_command_and_quit_leaves(session: Any) -> None:
    result = session("/help", "/quit", "the")
    for command in interactive.COMMANDS:
        assert f"\n  {command} " in result.out
    assert "not to answer" in result.out
    assert "seed" not in result.out.splitlines()[-1]


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_after_the_token_and_loses_none(
    session: Any, says: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = encode(tokenizer, "bcd").tolist()
    says([[ids[0], None, ids[1], ids[2]], [ids[2]]])
    handler = signal.getsignal(signal.SIGINT)
    result = session("a", "/more", "/history", typed=True)
    assert result.out == ("> abc\n[seed 0, 2 tokens, stopped]\n> abcd\n[seed 1, 1 token]\n>    1 abcd\n> \n")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_character_that_ctrl_c_cut_off_can_still_be_completed(session: Any, says: Any, tokenizer: Any) -> None:
    ids = encode(tokenizer, "🙂").tolist()
    says([[ids[0], None, ids[1]], ids[2:]])
    result = session("a", "/more", typed=True)
    assert result.out == "> a\ufffd\n[seed 0, 2 tokens, stopped]\n> a🙂\n[seed 1, 2 tokens]\n> \n"


def test_a_second_ctrl_c_does_not_wait_for_the_token(
    session: Any, says: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = encode(tokenizer, "bcd").tolist()
    says([[ids[0], None, None, ids[1]], [ids[2]]])
    assert session("a", "/more", "/history", typed=True).out.endswith("   1 abd\n> \n")


def test_ctrl_c_leaves_model_and_random_numbers_as_they_were(
    session: Any, model: MuForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = TokenStream.put

    def interrupted(stream: Any, value: torch.Tensor) -> None:
        if len(stream.ids) > 6:
            signal.raise_signal(signal.SIGINT)
        put(stream, value)

    torch.manual_seed(11)
    before, state = torch.random.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(TokenStream, "put", interrupted)
        result = session("the", typed=True, settings=FEW.changed("max_new_tokens", 20))
    assert ", stopped]" in result.out
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert session("the", settings=FEW).out == session("the", settings=FEW).out


def test_ctrl_c_in_a_long_list_leads_back_to_the_prompt(
    session: Any, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    says([[]])
    monkeypatch.setattr(interactive.shutil, "get_terminal_size", lambda: signal.raise_signal(signal.SIGINT))
    assert session("a", "/history", "/history 1", typed=True).out.endswith("> \n> a\n> \n")


def test_in_a_pipe_ctrl_c_ends_the_program(session: Any, says: Any) -> None:
    says([[5, None, 6, 7]])
    with pytest.raises(KeyboardInterrupt):
        session("the", "the")
