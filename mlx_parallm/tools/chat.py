"""The command `mlx_parallm_chat`: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from rich.console import Console
from rich.text import Text

from mlx_parallm.models.places import cache_folder
from mlx_parallm.tools.conversation import Conversation, ConversationError, Piece
from mlx_parallm.tools.own_server import ServerStartError, running_server

PROGRAM = "mlx_parallm_chat"
HELP = """\
/system TEXT  what the model is told before everything else; nothing: forget it
/logprobs     colour each token by its probability, or stop doing so
/save FILE    write the conversation as JSON
/new          begin a new conversation
/help         this
Ctrl-C stops an answer, Ctrl-D leaves."""
_COLOURS = ((0.9, "green"), (0.5, "yellow"), (0.0, "red"))
_SHOWN = 5  # tokens that the model was least sure of


def main(argv: list[str] | None = None) -> int:
    """Talk until Ctrl-D.

    Returns:
        The exit code: 0, 1 where there is no server to talk to, 2 for wrong options.
    """
    options, for_server = _parser().parse_known_args(argv)
    if options.url and (for_server or options.model_path):
        sys.stderr.write(f"{PROGRAM}: error: --url takes no options of a server\n")
        return 2
    if options.model_path:
        for_server = ["--model-path", options.model_path, *for_server]
    try:
        with running_server(options.url, for_server) as url:
            conversation = Conversation(url, options.api_key, _settings(options), options.system)
            Chat(conversation, Console(highlight=False)).run()
    except (ConversationError, ServerStartError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    return 0


def _settings(options: argparse.Namespace) -> dict[str, float]:
    found = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    return {name: value for name, value in found.items() if value is not None}


class Chat:
    """The loop: a line is a message, or a command that begins with a slash."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self._conversation = conversation
        self._console = console
        self._logprobs = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/logprobs": self._switch_logprobs,
            "/save": self._save,
            "/new": self._begin_anew,
            "/help": lambda _: self._tell(HELP),
        }

    def run(self) -> None:
        """Until the end of the input.

        Raises:
            ConversationError: the server cannot be asked at all.
        """
        self._tell(f"{self._conversation.model()} at {self._conversation.url}; /help says more")
        for line in _lines():
            name, _, rest = line.strip().partition(" ")
            if not name:
                continue
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/"):
                self._tell(f"there is no command {name}; /help says which there are")
            else:
                self._ask(line.strip())

    def _ask(self, text: str) -> None:
        scores: list[tuple[str, float]] = []
        try:
            with closing(self._conversation.ask(text, logprobs=self._logprobs)) as answer:
                for piece in answer:
                    self._show(piece)
                    scores += piece.logprobs
        except KeyboardInterrupt:
            self._console.print(" [stopped]", style="dim", markup=False)
            return
        except ConversationError as error:
            self._console.print(str(error), style="red", markup=False)
            return
        self._console.print()
        if scores:
            self._tell(_least_sure(scores))

    def _show(self, piece: Piece) -> None:
        shown = Text(piece.text)
        if piece.logprobs:
            worst = math.exp(min(score for _, score in piece.logprobs))
            shown.stylize(next(colour for least, colour in _COLOURS if worst >= least))
        self._console.print(shown, end="", soft_wrap=True)

    def _set_system(self, text: str) -> None:
        self._conversation.system = text
        self._tell("system prompt set" if text else "no system prompt any more")

    def _switch_logprobs(self, _: str) -> None:
        self._logprobs = not self._logprobs
        self._tell(f"probabilities {'on' if self._logprobs else 'off'}")

    def _save(self, name: str) -> None:
        if not name:
            self._tell("/save needs the name of a file")
            return
        try:
            self._conversation.save(Path(name))
        except OSError as error:
            self._tell(f"{name} cannot be written: {error.strerror}")
            return
        self._tell(f"saved as {name}")

    def _begin_anew(self, _: str) -> None:
        self._conversation.messages = []
        self._tell("a new conversation")

    def _tell(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)


def _least_sure(scores: list[tuple[str, float]]) -> str:
    mean = math.exp(sum(score for _, score in scores) / len(scores))
    worst = sorted(scores, key=lambda pair: pair[1])[:_SHOWN]
    listed = ", ".join(f"{token!r} {math.exp(score):.0%}" for token, score in worst)
    return f"{len(scores)} tokens, {mean:.0%} each on average; least sure: {listed}"


def _lines() -> Iterator[str]:
    """What the user enters, with a history that outlives the program; or lines of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    history = FileHistory(str(cache_folder("chat") / "history"))
    session: PromptSession[str] = PromptSession(history=history)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue  # the line is thrown away
        except EOFError:
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Talk to a model: to that of a server, or to one that is started for it.",
        epilog="Other options go to the server that is started, as for mlx_parallm_serve.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", help="a running server, such as http://127.0.0.1:8000")
    parser.add_argument("--model-path", metavar="PATH", help="serve this one; default: bundled")
    parser.add_argument("--api-key", metavar="KEY", help="of the server at --url")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system prompt")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer at most")
    return parser


if __name__ == "__main__":
    sys.exit(main())
