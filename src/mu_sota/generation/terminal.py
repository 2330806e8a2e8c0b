"""A session in a terminal: the model continues each typed text, token by token, with settings that can be changed."""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from io import TextIOWrapper

from transformers import PreTrainedTokenizerFast

from mu_sota.common.text import visible
from mu_sota.data.tokenizer import is_word_level
from mu_sota.model.errors import InputError, cut, suggestion
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Generation

from .continuation import continued, prompt_ids, text_of
from .token_stream import TokenStream, ctrl_c_between_tokens
from .typed_lines import lines

COMMANDS = {
    "/more": "continue the last text from its end",
    "/again": "continue the last text again, from the same token with the next seed",
    "/new": "begin a text without a prompt",
    "/set": "show the settings; /set NAME VALUE changes one, as in /set temperature 0.7",
    "/history": "list the texts of this session; /history N shows one, and /more and /again continue it",
    "/help": "show this",
    "/quit": "leave, as Ctrl-D does",
}
_TAKE_AN_ARGUMENT = {"/set", "/history"}
_HELP = r"""
Type the beginning of a text, and the model continues it. It has learned to continue texts, not to answer.

{commands}

In a text, \n is a new line, \t a tab, \\ a backslash; // at its start is a slash.
Ctrl-C stops the model and keeps the text so far. Tab completes commands and settings, arrow keys recall lines.
The same seed gives the same text; after each, the seed goes up by one. The seed used is printed below the text.
"""
_COMPLETIONS = {"": list(COMMANDS), "/set": list(Generation.model_fields)}
_ECHO = 60  # characters of a text shown again before /more adds to it
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def converse(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Generation) -> None:
    """Continue each text that standard input brings and run its commands, until it ends or says `/quit`.

    A line that cannot be used gets a sentence on standard error. Call it from the main thread: Ctrl-C stops the text
    and nothing else, unless standard input is no terminal.

    Args:
        settings: at the start; `/set` changes them.

    Raises:
        InputError: standard input or output is closed.
        KeyboardInterrupt: Ctrl-C where standard input is no terminal.
    """
    if sys.stdin is None or sys.stdout is None:
        name = "input" if sys.stdin is None else "output"
        raise InputError(f"standard {name} is closed, but an interactive session needs it; open it, or give --prompt")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer's error names the bytes that are not UTF-8
    _Session(model, tokenizer, settings).run()


@dataclass(eq=False)
class _Text:
    start: list[int]  # ids from which it was last continued
    ids: list[int]


class _Session:
    def __init__(self, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Generation) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.positions = model.config.max_position_embeddings
        self.texts: list[_Text] = []
        self.last: _Text | None = None
        self.typed = sys.stdin.isatty()
        self.dimmed = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")

    def run(self) -> None:
        self._dim(
            f"{self.model.num_parameters():,} parameters, {self.positions:,} positions. "
            "Type the beginning of a text, or /help.\n"
        )
        for line in lines(self.typed, _COMPLETIONS):
            if line.rstrip() == "/quit":
                return
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self._run_command(*_parse_command(line))
                elif line:
                    self._begin(re.sub(r"\\([nt\\])", lambda found: _ESCAPES[found[1]], line.removeprefix("/")))
            except InputError as error:
                print(error, file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                print(flush=True)

    def _run_command(self, command: str, argument: str) -> None:
        if command == "/help":
            commands = "\n".join(f"  {name:10} {meaning}" for name, meaning in COMMANDS.items())
            print(_HELP.format(commands=commands), flush=True)
        elif command == "/set":
            self._set(argument)
        elif command == "/new":
            self._begin("")
        elif self.last is None:
            raise InputError(f"{command} needs a text, and there is none yet; type the beginning of one, or /new")
        elif command == "/history":
            self._history(argument)
        elif command == "/more":
            self._continue(self.last, self.last.ids)
        else:
            self._continue(_Text(self.last.start, self.last.start), self.last.start)

    def _set(self, argument: str) -> None:
        name, value = re.fullmatch(r"([^\s=]*)\s*=?\s*(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
        if value:
            self.settings = self.settings.changed(name, value)
        elif argument:
            raise InputError(f"/set takes a name and a value, as in /set temperature 0.7, but got {cut(argument)!r}")
        for key, field in Generation.model_fields.items():
            if key == name or not name:
                print(f"  {key:18} {getattr(self.settings, key):<6} {field.description}", flush=True)

    def _history(self, argument: str) -> None:
        if not argument:
            width = shutil.get_terminal_size().columns - 6
            for number, text in enumerate(self.texts, start=1):
                line = self._shown(text).replace("\n", "\\n").expandtabs(1)
                print(f"{number:4} {line if len(line) <= width else line[: width - 3] + '...'}", flush=True)
            return
        if argument not in map(str, range(1, len(self.texts) + 1)):
            raise InputError(f"/history takes the number of a text, 1 to {len(self.texts)}, but got {cut(argument)!r}")
        self.last = self.texts[int(argument) - 1]
        print(self._shown(self.last), flush=True)

    def _begin(self, prompt: str) -> None:
        ids = prompt_ids(self.tokenizer, prompt, 1, self.positions)
        self._continue(_Text(ids, ids), ids, echo_all=True)

    def _continue(self, text: _Text, start: list[int], echo_all: bool = False) -> None:
        """Print `start` and stream its continuation; keep both as `text`; move to the next seed.

        Raises:
            InputError: `start` fills all positions, or the model fails; the text so far is kept before that is raised.
        """
        free, asked, seed = self.positions - len(start), self.settings.max_new_tokens, self.settings.seed
        if free < 1:
            raise InputError(f"the text fills the model's {self.positions} positions; type the beginning of another")
        stream = TokenStream(self.tokenizer, start)
        known = stream.text[: stream.shown]
        self._dim(visible(known if echo_all or len(known) <= _ECHO else "..." + known[-_ECHO:], spaces=False))
        ending, failure = "", None
        try:
            with ctrl_c_between_tokens(stream):
                continued(self.model, self.tokenizer, start, self.settings, min(asked, free), seed, streamer=stream)
        except KeyboardInterrupt:
            if not self.typed:
                raise
            ending = ", stopped"
        except InputError as error:
            ending, failure = ", failed", error
        stream.end()
        made = len(stream.ids) - len(start)
        ended = made > 0 and stream.ids[-1] == self.tokenizer.eos_token_id
        if ended and not is_word_level(self.tokenizer):  # there it is a word, the end of a line
            stream.ids.pop()  # /more adds to the same text
            made -= 1
        if not ending and ended:
            ending = ", then the model ended the text"
        elif not ending and free < asked:
            ending = f", all that fit into the model's {self.positions} positions"
        self._keep(text, start, stream.ids)
        print(end="" if stream.text.endswith("\n") else "\n")
        self._dim(f"[seed {seed}, {made} token{'s' * (made != 1)}{ending}]\n")
        if failure:
            raise failure

    def _keep(self, text: _Text, start: list[int], ids: list[int]) -> None:
        text.start, text.ids = start, ids
        if text not in self.texts:
            self.texts.append(text)
        self.last = text
        self.settings = self.settings.changed("seed", (self.settings.seed + 1) % 2**31)

    def _shown(self, text: _Text) -> str:
        return visible(text_of(self.tokenizer, text.ids), spaces=False)

    def _dim(self, text: str) -> None:
        print(f"\x1b[2m{text}\x1b[22m" if self.dimmed else text, end="", flush=True)


def _parse_command(line: str) -> tuple[str, str]:
    """Command and argument of a line that begins with a slash.

    Raises:
        InputError: there is no such command, or it takes no argument.
    """
    command, *rest = line.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or "/help lists them"
        raise InputError(f"there is no command {cut(command)!r}; {hint} (a text that begins with / is typed with //)")
    if argument and command not in _TAKE_AN_ARGUMENT:
        raise InputError(f"{command} takes no argument, but got {cut(argument)!r}")
    return command, argument
