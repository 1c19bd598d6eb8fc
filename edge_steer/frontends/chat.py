"""`edge-steer chat`: a conversation in the terminal, whose steering changes by a command between two answers."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import click

from edge_steer.core.errors import EdgeSteerError, need
from edge_steer.terminal.answers import WRONG, print_piece, print_reply, side_by_side
from edge_steer.terminal.group import interrupts_call
from edge_steer.terminal.options import (
    MODEL,
    SamplingChanges,
    conversation_engine_options,
    named_vectors_option,
    quant_option,
    sampling_options,
)
from edge_steer.terminal.parameters import PHASE
from edge_steer.terminal.progress import NOTES

if TYPE_CHECKING:
    from edge_steer.chat.conversation import Conversation
    from edge_steer.chat.figures import ChatFigures
    from edge_steer.core.backend import Completion, EngineOptions
    from edge_steer.core.vector import Phase
    from edge_steer.vectors.named import Applied

SEQUENCES = 4  # two for a comparison, and what other strengths have cached
COMMAND = re.compile(r"(/\w+)(?:\s+(.*))?", re.DOTALL)  # "/usr/bin holds ..." is a message


@click.command()
@click.argument("model", type=MODEL)
@quant_option
@named_vectors_option("A vector to steer by; at STRENGTH 0 it waits until /vector asks for it.")
@click.option("--system", default="", help="A system message.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Most tokens of an answer."
)
@sampling_options
@conversation_engine_options
def chat(
    model: str,
    quant: str | None,
    vectors: tuple[str, ...],
    system: str,
    max_tokens: int,
    sampling: SamplingChanges,
    engine: "EngineOptions",
) -> None:
    """Chat with MODEL and change its steering between two answers; /help lists how.

    Standard input that is no terminal is taken line by line: a message or a command each.
    """
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        need("chat")
    from edge_steer.chat.conversation import Conversation
    from edge_steer.core.sampling import GREEDY
    from edge_steer.models.load import load
    from edge_steer.vectors.named import NamedFile, NamedVectors

    engine = replace(engine, parallel=SEQUENCES, keep_cache=True)
    with load(model, quant, options=engine, progress=NOTES) as loaded:
        named = NamedVectors.of(map(NamedFile.parse, vectors), loaded.model)
        conversation = Conversation(loaded, named, system=system, sampling=sampling.over(GREEDY), max_tokens=max_tokens)
        with suppress(EOFError):
            if interactive:
                _in_terminal(conversation, loaded.model.name)
            else:
                _in_pipe(conversation)


def _in_pipe(conversation: "Conversation") -> None:
    """Each line of standard input is a turn; the first that is wrong is an error."""
    try:
        for line in sys.stdin.buffer:  # as text it would be decoded by the locale
            _turn(conversation, line.decode().rstrip())
    except UnicodeDecodeError:
        raise EdgeSteerError("standard input is not UTF-8; convert it first") from None


def _in_terminal(conversation: "Conversation", model: str) -> None:
    """Until Ctrl-D or /quit. What is wrong is said in a line; Ctrl-C stops an answer and nothing else."""
    from edge_steer.storage.files import cache_folder
    from edge_steer.terminal.prompt import quiet_keys, reader

    commands = {f"/{name}": command for name, command in COMMANDS.items()}
    commands["/vector"] = replace(commands["/vector"], words=tuple(one.name for one in conversation.vectors))
    read = reader(commands, cache_folder() / "chat-history", lambda: f"{model}: {_steering(conversation)}")
    print_reply(f"{model}: {_steering(conversation)}. /help lists the commands; Ctrl-D ends.")
    with interrupts_call(conversation.stop):
        while True:
            try:
                text = read().rstrip()
                with quiet_keys():
                    _turn(conversation, text)
            except KeyboardInterrupt:
                print_reply("Ctrl-D or /quit ends the chat")
            except EdgeSteerError as error:
                print_reply(str(error), WRONG)


def _turn(conversation: "Conversation", text: str) -> None:
    """Answer a message or do what a command says; nothing for a blank line. Errors: EdgeSteerError."""
    if not text:
        return
    command = COMMAND.fullmatch(text)
    if not command:
        _answer(conversation, text.strip())
        return
    name, argument = command[1][1:], (command[2] or "").strip()
    if name not in COMMANDS:
        raise EdgeSteerError(f"no command /{name}; /help lists them")
    if reply := COMMANDS[name].run(conversation, argument):
        print_reply(reply)


def _answer(conversation: "Conversation", text: str) -> None:
    completion = conversation.say(text, print_piece)
    click.echo()
    _print_end(conversation, completion)


def _print_end(conversation: "Conversation", completion: "Completion") -> None:
    """Why an answer ends where the model did not end it."""
    if completion.finish == "cancelled":
        print_reply("stopped")
    elif completion.finish == "length":
        full = len(completion.tokens) < conversation.max_tokens
        print_reply("cut off: " + ("the context is full; /clear empties it" if full else "--max-tokens allows no more"))


def _strength(conversation: "Conversation", argument: str) -> str:
    if argument:
        conversation.steer(strength=_number(argument, "/strength 3"))
    return _steering(conversation)


def _vector(conversation: "Conversation", argument: str) -> str:
    """No name: all of them. A name: as it was at the start. A name and a number: with that strength."""
    name, _, strength = argument.partition(" ")
    if not name:
        return "\n".join(map(_setting, conversation.vectors)) or "no vectors; name their files with --vector"
    if strength:
        conversation.steer(name, strength=_number(strength, "/vector dense 0.5"))
    else:
        conversation.restore(name)
    return _steering(conversation)


def _layers(conversation: "Conversation", argument: str) -> str:
    from edge_steer.core.vector import parse_layers

    if argument:
        conversation.steer(layers=parse_layers(argument))
    return _steering(conversation)


def _phase(conversation: "Conversation", argument: str) -> str:
    if argument:
        conversation.set_phase(cast("Phase", argument))
    return _steering(conversation)


def _compare(conversation: "Conversation", argument: str) -> str:
    steered = ", ".join(f"{one.steering.strength:g} {one.name}" for one in conversation.steering)
    with side_by_side(["unsteered", f"steered by {steered}"]) as grow:
        comparison = conversation.compare(argument or None, grow)
    _print_end(conversation, comparison.steered)
    return ""


def _system(conversation: "Conversation", argument: str) -> str:
    if argument:
        conversation.system = "" if argument == "off" else argument
    return f"system message: {conversation.system or 'none'}"


def _clear(conversation: "Conversation", _argument: str) -> str:
    conversation.clear()
    return "a new conversation"


def _save(conversation: "Conversation", argument: str) -> str:
    return f"saved: {conversation.save(_file(argument, '/save talk.json'))}"


def _load(conversation: "Conversation", argument: str) -> str:
    conversation.load(_file(argument, "/load talk.json"))
    return f"{len(conversation.exchanges)} messages with their answers; {_steering(conversation)}"


def _stats(conversation: "Conversation", _argument: str) -> str:
    steering = [f"{_setting(one)}, digest {one.steering.vector.digest}" for one in conversation.steering]
    last, total = conversation.last, conversation.total
    figures = [f"last: {_figures(last)}", f"all {total.answers} answers: {_figures(total)}"] if total.answers else []
    return "\n".join([*figures, *(steering or ["unsteered"])])


def _help(_conversation: "Conversation", _argument: str) -> str:
    usages = {f"/{name} {command.usage}".strip(): command.line for name, command in COMMANDS.items()}
    column = max(map(len, usages)) + 2
    keys = "Alt-Enter begins a new line; Ctrl-C stops an answer; Ctrl-D ends the chat."
    return "\n".join([*(f"{usage:{column}}{line}" for usage, line in usages.items()), keys])


def _quit(_conversation: "Conversation", _argument: str) -> NoReturn:
    raise EOFError


@dataclass(frozen=True)
class ChatCommand:
    """A command of the chat. run: does it and gives what there is to say, "" for nothing. usage: what follows its name.

    words: that may follow it. takes_file: a path follows it.
    """

    run: "Callable[[Conversation, str], str]"
    usage: str
    line: str
    words: tuple[str, ...] = ()
    takes_file: bool = False


_PHASES = tuple(PHASE.choices)
COMMANDS = {
    "strength": ChatCommand(_strength, "[NUMBER]", "How strongly the vector steers; 0 is not at all."),
    "vector": ChatCommand(_vector, "[NAME [NUMBER]]", "Put a vector to use, as tuned or so strongly; alone: list all."),
    "layers": ChatCommand(_layers, "[LAYERS]", "Which layers are steered, as 3 or 10-14 or 1,2,7-9."),
    "phase": ChatCommand(_phase, "[PHASE]", "Steer the prompt too (all), answers, or their blank lines.", _PHASES),
    "compare": ChatCommand(_compare, "[MESSAGE]", "Answer unsteered and steered; alone: the last message again."),
    "system": ChatCommand(_system, "[TEXT|off]", "The system message.", ("off",)),
    "clear": ChatCommand(_clear, "", "Begin a new conversation; the steering stays."),
    "save": ChatCommand(_save, "FILE", "Write the conversation and its steering.", takes_file=True),
    "load": ChatCommand(_load, "FILE", "Go on with a saved conversation.", takes_file=True),
    "stats": ChatCommand(_stats, "", "Tokens, speed, and what steers."),
    "help": ChatCommand(_help, "", "This list."),
    "quit": ChatCommand(_quit, "", "End the chat."),
}


def _number(text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EdgeSteerError(f"{text!r} is no number; write {example}") from None


def _file(argument: str, example: str) -> Path:
    if not argument:
        raise EdgeSteerError(f"name a file, as in {example}")
    return Path(argument).expanduser()


def _setting(applied: "Applied") -> str:
    from edge_steer.core.vector import spans

    one = applied.steering
    return f"{applied.name} {one.strength:g}, layers {spans(one.layers or ())}, phase {one.phase}"


def _steering(conversation: "Conversation") -> str:
    """What steers the next answer."""
    return "; ".join(map(_setting, conversation.steering)) or "unsteered"


def _figures(figures: "ChatFigures") -> str:
    return (
        f"{figures.generated} tokens, {figures.tokens_per_second:.3g} a second; prompt: {figures.computed} computed "
        f"in {figures.prompt_seconds:.2g} s, {figures.reused} from the cache"
    )
