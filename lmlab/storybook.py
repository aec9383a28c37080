"""The built-in corpus: a probabilistic grammar of short children's stories whose probability is known exactly.

Names, objects and places chosen early come back later, so a model has to use its context. Every story can be derived in
one way only, so -ln p of a text is computed, and no model can do better on average. The notation is explained in
`lmlab.storybook_grammar`, the words are in `lmlab.storybook_words`, the sentences in `lmlab.storybook_plots`.
`tests/test_storybook.py` proves that no text has two derivations and that no story is the beginning of another, so a
story needs no end mark beyond the blank line between stories. Imports neither torch nor numpy.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lmlab.errors import DataError
from lmlab.storybook_grammar import SENTENCE_END, Bindings, Branch, Grammar, Items, Node, Place
from lmlab.storybook_plots import PLOTS
from lmlab.storybook_things import THINGS
from lmlab.storybook_words import WORDS

SEPARATOR = "\n\n"


def generate(n_characters: int = 1_000_000, seed: int = 0) -> str:
    """Whole stories with a blank line between them: at least `n_characters`, ending with the story that reaches them.

    The same bytes on every machine and Python: only `random.Random(seed).random()` is used, whose sequence Python
    promises to keep. `generate(m, seed)` begins with `generate(n, seed)` for m > n, but for the newline at the end.
    """
    uniform = random.Random(seed).random
    stories: list[str] = []
    missing = n_characters + 1  # the text ends in one newline, not in a blank line
    while missing > 0 or not stories:
        story, _ = _grammar().tell(uniform)
        stories.append(story)
        missing -= len(story) + len(SEPARATOR)
    return SEPARATOR.join(stories) + "\n"


def log_probability(text: str) -> float:
    """ln p, in nats, of the whole stories in `text`: the sum of ln p(story).

    The number of stories is taken as given, so there is no probability of stopping, and the blank lines cost nothing,
    because no story is the beginning of another. Raises DataError where a story is not one of the grammar.
    """
    total = []
    for number, start, story in _stories(text):
        branches, logs = read_story(story)
        if branches is None:
            raise _not_a_story(text, number, start, start + len(logs))
        total += [math.log(branch.probability) for branch in branches]
    return math.fsum(total)


def log_probability_by_character(text: str) -> list[float]:
    """ln p, in nats, of each character of `text` given the story before it: a prefix probability over the one before.

    Sums to `log_probability(text)`; blank lines are 0. A story that is cut off at the beginning or the end of the text
    is 0 throughout, as in `floor`. Raises DataError as `floor` does.
    """
    by_character = [0.0] * len(text)
    for start, _, logs in _whole_stories(text):
        by_character[start : start + len(logs)] = logs
    return by_character


def floor(text: str) -> tuple[float, int]:
    """(-ln p of the whole stories in `text`, number of all its characters), for a text cut out of a longer one.

    A story cut off at the beginning or the end of the text counts 0 nats. Raises DataError where a story between
    them is not one of the grammar, or where the last one is not even the beginning of one.
    """
    nats = -math.fsum(math.log(branch.probability) for _, branches, _ in _whole_stories(text) for branch in branches)
    return nats, len(text)


def loss_floor(text: str) -> float:
    """The least loss to expect on `text`, in nats per character, given the grammar: `floor` as a ratio."""
    if not text:
        raise DataError("the floor of an empty text: there are no characters to divide by; give a longer text")
    nats, n_characters = floor(text)
    return nats / n_characters


def parsed_share(text: str) -> float:
    """The share of the sentences in `text` that the grammar can say in some story; 0.0 when there is none.

    A sentence must agree with itself (the same name twice, the right pronoun), not with those before it. What is cut
    off at the end of a paragraph counts only if the grammar cannot go on from there. Takes any text, never raises.
    """
    verdicts: list[bool] = []
    seen: dict[str, bool | None] = {}
    for paragraph in filter(None, map(str.strip, text.splitlines())):
        *sentences, last = SENTENCE_END.split(paragraph)
        for sentence in (*sentences, last):
            if sentence not in seen:
                seen[sentence] = _is_sentence(sentence)
        verdicts += [seen[sentence] is True for sentence in sentences]
        verdicts += [seen[last] is True] if seen[last] is not None else []
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


def read_story(text: str, grammar: Grammar | None = None) -> tuple[list[Branch] | None, list[float]]:
    """The branches that make `text`, or None where it is not a whole story, and ln p of each character that fits."""
    grammar = grammar or _grammar()
    readers, logs = follow(grammar, _enter_all(grammar, [grammar.start]), text)
    ends = [reader.trail for reader in readers if reader.at is None] if len(logs) == len(text) else []
    if not ends:
        return None, logs
    branches: list[Branch] = []
    trail = ends[0]
    while trail is not None:
        branch, trail = trail
        branches.append(branch)
    return branches[::-1], logs


class Reader(NamedTuple):
    """One derivation of the text read so far.

    `at` is the text being said, from `offset` on, or a tree of words, or None when the story is over; `then` is the
    place after it, `trail` the branches taken, the last one first, as nested pairs.
    """

    weight: float
    at: str | Node | None
    offset: int
    then: Place
    bindings: Bindings
    trail: Any


def follow(grammar: Grammar, readers: list[Reader], text: str) -> tuple[list[Reader], list[float]]:
    """Read `text` as far as a derivation goes on: the readers then left, and ln p of each character that was read.

    The probability of the text so far is the sum of the readers' weights, whatever the derivations; dividing by the
    sum before makes it conditional. A lone reader inside a text has nothing to choose, so it reads it in one go.
    """
    logs: list[float] = []
    mass = math.fsum(reader.weight for reader in readers)
    while readers and len(logs) < len(text):
        at = readers[0].at
        if len(readers) == 1 and type(at) is str:
            _, _, offset, then, bindings, trail = readers[0]
            length = min(len(at) - offset, len(text) - len(logs))
            if text.startswith(at[offset : offset + length], len(logs)):
                mass = 1.0
                readers = [Reader(mass, at, offset + length, then, bindings, trail)]
                if offset + length == len(at):
                    readers = []
                    _enter(grammar, readers, mass, then, bindings, trail)
                logs += [0.0] * length
                continue
        ahead = _advance(grammar, readers, text[len(logs)])
        if not ahead:
            return [], logs
        readers, before = ahead, mass
        mass = sum([reader[0] for reader in readers])
        logs.append(math.log(mass / before))
    return readers, logs


@functools.cache
def _grammar() -> Grammar:
    return Grammar(WORDS + THINGS, PLOTS)


@functools.cache
def _sentence_readers() -> list[Reader]:
    """Readers that stand at the beginning of every sentence of the grammar and know nothing of its story."""
    return _enter_all(_grammar(), _grammar().sentences)


def _enter_all(grammar: Grammar, beginnings: Iterable[Items]) -> list[Reader]:
    readers: list[Reader] = []
    for items in beginnings:
        _enter(grammar, readers, 1.0, (items, 0, None), {}, None)
    return readers


def _enter(
    grammar: Grammar, readers: list[Reader], weight: float, place: Place, bindings: Bindings, trail: Any
) -> None:
    """Append to `readers` those that stand before their next character, going on from `place`."""
    while place is not None:
        items, index, after = place
        if index == len(items):
            place = after
            continue
        item, place = items[index], (items, index + 1, after)
        if type(item) is str:
            readers.append(Reader(weight, item, 0, place, bindings, trail))
            return
        choice = grammar.choice(item, bindings)
        if choice.is_plain:
            readers.append(Reader(weight, choice.tree, 0, place, bindings, trail))
            return
        if len(choice.branches) > 1:
            for branch in choice.branches:
                known = {**bindings, **branch.bindings}
                _enter(grammar, readers, weight * branch.probability, (branch.items, 0, place), known, (branch, trail))
            return
        branch = choice.branches[0]
        bindings = {**bindings, **branch.bindings} if branch.bindings else bindings
        place = (branch.items, 0, place)
    readers.append(Reader(weight, None, 0, None, bindings, trail))


def _advance(grammar: Grammar, readers: list[Reader], character: str) -> list[Reader]:
    """The readers that can say `character` next, and those that they turn into by saying it."""
    ahead: list[Reader] = []
    for weight, at, offset, then, bindings, trail in readers:
        if type(at) is str:
            if at[offset] == character:
                if offset + 1 < len(at):
                    ahead.append(Reader(weight, at, offset + 1, then, bindings, trail))
                else:
                    _enter(grammar, ahead, weight, then, bindings, trail)
        elif at is not None:
            child = at.children.get(character)  # type: ignore[union-attr]
            if child is not None:
                weight /= at.below  # type: ignore[union-attr]
                if child.branch is not None:
                    known = {**bindings, **child.branch.bindings} if child.branch.bindings else bindings
                    _enter(grammar, ahead, weight * child.own, then, known, (child.branch, trail))
                if child.children:
                    ahead.append(Reader(weight * child.below, child, 0, then, bindings, trail))
    return ahead


def _is_sentence(text: str) -> bool | None:
    """Whether the grammar can say the sentence `text`; None where it is only the beginning of one."""
    readers, logs = follow(_grammar(), _sentence_readers(), text)
    if len(logs) < len(text):
        return False
    return True if any(reader.at is None for reader in readers) else None


def _stories(text: str) -> Iterator[tuple[int, int, str]]:
    """Number from 1, position in `text`, and text of each story; newlines around the whole are left out."""
    stripped = text.strip("\n")
    start = len(text) - len(text.lstrip("\n"))
    for number, story in enumerate(stripped.split(SEPARATOR) if stripped else [], 1):
        yield number, start, story
        start += len(story) + len(SEPARATOR)


def _whole_stories(text: str) -> Iterator[tuple[int, list[Branch], list[float]]]:
    """Position, branches and ln p by character of the stories in `text` that are not cut off at its edges."""
    stories = list(_stories(text))
    for number, start, story in stories:
        branches, logs = read_story(story)
        if branches is not None:
            yield start, branches, logs
        elif number != 1 and (number != len(stories) or len(logs) < len(story)):
            raise _not_a_story(text, number, start, start + len(logs))


def _not_a_story(text: str, number: int, start: int, end: int) -> DataError:
    return DataError(
        f"story {number}, at character {start}, is not one of the storybook: it goes wrong at character {end}, "
        f"{text[max(start, end - 20) : end + 10]!r}; give text made by lmlab.storybook.generate"
    )
