"""A session in a terminal: the model continues what is typed, token by token, under settings that can be changed."""

import difflib
import os
import re
import shutil
import sys
from dataclasses import dataclass
from io import TextIOWrapper

from transformers import PreTrainedTokenizerFast

from mu_sota.data.tokenizer import is_word_level, visible
from mu_sota.model.errors import InputError, cut
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Generation

from .continuation import continued, prompt_ids, text_of
from .token_stream import TokenStream, stopped_between_tokens
from .typed_lines import lines

COMMANDS = {
    "/more": "go on with the last text where it ended",
    "/again": "continue the last text anew, from the same place with the next seed",
    "/new": "begin a text without a prompt",
    "/set": "show the settings; /set NAME VALUE changes one, as in /set temperature 0.7",
    "/history": "list the texts of this session; /history N shows one, and /more and /again go on with it",
    "/help": "show this",
    "/quit": "leave, as Ctrl-D does",
}
_TAKE_AN_ARGUMENT = {"/set", "/history"}
_HELP = r"""
Type the beginning of a text, and the model continues it. It has learned to continue texts, not to answer.

{commands}

In a text, \n stands for a new line, \t for a tab, \\ for a backslash; // at the start for a slash.
Ctrl-C stops the model and keeps what has come. Tab completes commands and settings, arrow keys recall lines.
The same seed gives the same text; after each, the seed goes up by one. The one used stands below the text.
"""
_ECHO = 60  # characters of a text shown again where it is gone on with
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def converse(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Generation) -> None:
    """Continue the texts that standard input brings and obey its commands, until it ends or says `/quit`.

    What cannot be used is answered with a sentence on standard error. To be called from the main thread: Ctrl-C stops a
    generation and nothing else, unless standard input is no terminal.

    Raises:
        InputError: standard input or output is closed.
        KeyboardInterrupt: Ctrl-C where standard input is no terminal.
    """
    if sys.stdin is None or sys.stdout is None:
        name = "input" if sys.stdin is None else "output"
        raise InputError(f"standard {name} is closed, but an interactive session needs it; open it, or give --prompt")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer says what is wrong with such a text
    _Session(model, tokenizer, settings).run()


@dataclass(eq=False)
class _Text:
    start: list[int]  # ids at which it was last continued
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
        for line in lines(self.typed, {"": list(COMMANDS), "/set": list(Generation.model_fields)}):
            if line.rstrip() == "/quit":
                return
            try:
                if line.startswith("/") and not line.startswith("//"):
                    self._obey(line)
                elif line:
                    text = re.sub(r"\\([nt\\])", lambda found: _ESCAPES[found[1]], line.removeprefix("/"))
                    self._begin(text)
            except InputError as error:
                print(error, file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                print(flush=True)

    def _obey(self, line: str) -> None:
        command, *rest = line.split(maxsplit=1)
        argument = rest[0].strip() if rest else ""
        if command not in COMMANDS:
            close = difflib.get_close_matches(cut(command), COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "/help lists them"
            raise InputError(
                f"there is no command {cut(command)!r}; {hint} (a text that begins with / is typed with //)"
            )
        if argument and command not in _TAKE_AN_ARGUMENT:
            raise InputError(f"{command} stands alone, but is followed by {cut(argument)!r}")
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
                line = visible(text_of(self.tokenizer, text.ids), spaces=False).replace("\n", "\\n").expandtabs(1)
                print(f"{number:4} {line if len(line) <= width else line[: width - 3] + '...'}", flush=True)
            return
        if argument not in map(str, range(1, len(self.texts) + 1)):
            raise InputError(f"/history takes the number of a text, 1 to {len(self.texts)}, but got {cut(argument)!r}")
        self.last = self.texts[int(argument) - 1]
        print(visible(text_of(self.tokenizer, self.last.ids), spaces=False), flush=True)

    def _begin(self, prompt: str) -> None:
        ids = prompt_ids(self.tokenizer, prompt, 1, self.positions)
        self._continue(_Text(ids, ids), ids, whole=True)

    def _continue(self, text: _Text, start: list[int], whole: bool = False) -> None:
        """Stream what comes after `start`, keep it as `text`, and move to the next seed.

        Raises:
            InputError: there is no room, or the model cannot go on; in the latter case the text is kept first.
        """
        room = self.positions - len(start)
        if room < 1:
            raise InputError(f"the text fills the model's {self.positions} positions; type the beginning of another")
        asked, seed = self.settings.max_new_tokens, self.settings.seed
        stream = TokenStream(self.tokenizer, start)
        known = stream.text[: stream.shown]
        self._dim(visible(known if whole or len(known) <= _ECHO else "..." + known[-_ECHO:], spaces=False))
        stopped = False
        failed: InputError | None = None
        try:
            with stopped_between_tokens(stream):
                continued(self.model, self.tokenizer, start, self.settings, min(asked, room), seed, streamer=stream)
        except KeyboardInterrupt:
            if not self.typed:
                raise
            stopped = True
        except InputError as error:
            failed = error  # what has come is kept, and can be gone on with under other settings
        stream.end()
        made = len(stream.ids) - len(start)
        ended = made > 0 and stream.ids[-1] == self.tokenizer.eos_token_id
        if ended and not is_word_level(self.tokenizer):  # there it is a word, the end of a line
            stream.ids.pop()  # what comes with /more belongs to the same text
            made -= 1
        text.start, text.ids = start, stream.ids
        if text not in self.texts:
            self.texts.append(text)
        self.last = text
        self.settings = self.settings.changed("seed", (seed + 1) % 2**31)
        why = ""
        if stopped:
            why = ", stopped"
        elif failed:
            why = ", failed"
        elif ended:
            why = ", then the model ended the text"
        elif room < asked:
            why = f", all that fit into the model's {self.positions} positions"
        print(end="" if stream.text.endswith("\n") else "\n")
        self._dim(f"[seed {seed}, {made} token{'s' * (made != 1)}{why}]\n")
        if failed:
            raise failed

    def _dim(self, text: str) -> None:
        print(f"\x1b[2m{text}\x1b[22m" if self.dimmed else text, end="", flush=True)
