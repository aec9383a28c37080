"""How the storybook is written: sentences with slots, lists of words, and the choice points they make.

Slots, the notation inside `lmlab.storybook_words` and `lmlab.storybook_plots`:
    {Want}             a sentence chosen from the section [Want]; {Want?} is that and a space or, half the time, nothing
    {:colors}          a word chosen from the list [colors]
    {color:colors}     the same, and remembered as `color`
    {color}            what was remembered
    {hero.his}         an attribute of it; where the attribute has several values, one is chosen
    {spot:place.spots} the same, and remembered as `spot`
    {a color}          with its article: "a red", "an orange"; {^color} begins with a capital
    {he} {his} {him}   short for {hero.he}, {hero.his}, {hero.him}
"""

from __future__ import annotations

import functools
import itertools
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SLOT = re.compile(r"\{(?P<form>\^|a )?(?:(?P<variable>\w+)?:)?(?P<source>\w+)(?:\.(?P<attribute>\w+))?(?P<maybe>\?)?\}")
SENTENCE_END = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))\s+(?=["A-Z])')
SOUNDS_LIKE_A_VOWEL = re.compile(r"(?!one|uni|use)[aeiou]|hon|hour")
PRONOUNS = {"he", "his", "him"}

Items = tuple[Any, ...]  # what a sentence is made of: text (str), a Slot, or a Rule
Place = tuple[Items, int, Any] | None  # where in a derivation we are: items, index of the next one, the Place after them


@dataclass(frozen=True, eq=False)
class Entry:
    """One word or phrase of a list, with its weight and its attributes, each a list of entries."""

    text: str
    weight: int = 1
    attributes: dict[str, tuple[Entry, ...]] = field(default_factory=dict)


Bindings = dict[str, tuple[Entry, ...]]  # what each variable can stand for: one entry once it is chosen


class Slot(NamedTuple):
    """A place in a sentence to fill: from the list `source`, or from what the variable `source` stands for."""

    form: str
    variable: str
    source: str
    attribute: str
    from_list: bool


class Branch(NamedTuple):
    """One of the ways on at a choice point: its index there, its probability, what it says and what it binds."""

    index: int
    probability: float
    items: Items
    bindings: Bindings


class Node:
    """A set of words that begin alike. mass = own (the word that ends here) + below (those that go on)."""

    __slots__ = ("below", "branch", "children", "mass", "own")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.branch: Branch | None = None
        self.mass = self.own = self.below = 0.0

    def add(self, word: str, branch: Branch) -> None:
        node = self
        for character in word:
            node.mass += branch.probability
            node.below += branch.probability
            node = node.children.setdefault(character, Node())
        node.branch, node.own = branch, branch.probability
        node.mass += branch.probability


class Choice:
    """A choice point: its branches, and their words as a tree of characters where all of them are plain words."""

    def __init__(self, weighted: list[tuple[int, Items, Bindings]]) -> None:
        self.total = sum(weight for weight, _, _ in weighted)
        self.branches = [
            Branch(index, weight / self.total, items, bindings)
            for index, (weight, items, bindings) in enumerate(weighted)
        ]
        self.cumulative = list(itertools.accumulate(weight for weight, _, _ in weighted))
        self.is_plain = len(weighted) > 1 and all(len(items) == 1 and type(items[0]) is str for _, items, _ in weighted)

    @functools.cached_property
    def tree(self) -> Node:
        root = Node()
        for branch in self.branches:
            root.add(branch.items[0], branch)
        return root


class Rule(NamedTuple):
    """A reference from one sentence to another section of sentences."""

    name: str
    maybe: bool


def _with_form(text: str, form: str) -> str:
    """`text` with a capital (form "^") or with its article (form "a")."""
    if form == "^":
        return text[0].upper() + text[1:]
    if form == "a":
        return ("an " if SOUNDS_LIKE_A_VOWEL.match(text) else "a ") + text
    return text


def _sections(notation: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Name, attributes in the header, and lines of each section, continued lines joined."""
    for section in re.split(r"^\[", notation, flags=re.MULTILINE)[1:]:
        header, *lines = re.sub(r"\n +", " ", section.strip()).split("\n")
        name, *attributes = re.split(r"\]? ?(?=\b\w+=)|\]", header)
        yield name, dict(attribute.split("=") for attribute in attributes if attribute), [line for line in lines if line]


class Grammar:
    """The grammar written in `words` and `plots`. Its choice points are `choice(item, bindings)`."""

    def __init__(self, words: str, plots: str) -> None:
        sections = [*_sections(words), *_sections(plots)]
        self.lists: dict[str, tuple[Entry, ...]] = {}
        for name, header, lines in sections:
            if name[0].islower():
                self.lists[name] = self._read_list(header, lines)
        self._compiled: dict[str, Items] = {}
        self._choices: dict[Any, Choice] = {}
        self.rules = {name: self._read_rule(lines) for name, _, lines in sections if name[0].isupper()}
        self.start: Items = (Rule("Story", False),)

    def _read_list(self, header: dict[str, str], lines: list[str]) -> tuple[Entry, ...]:
        """The entries of a list, first the common ones (Zipf and Mandelbrot: weight 1 / (rank + size / 8))."""
        groups: list[tuple[Entry, ...]] = []
        words = [word for line in lines for word in ([line] if ";" in line else line.split(", "))]
        for rank, word in enumerate(words):
            text, *fields = (part.strip() for part in word.split(";"))
            if text.startswith("@"):
                groups.append(self.lists[text[1:]])
                continue
            weight = 1000 * len(words) // (8 * rank + len(words))
            if match := re.match(r"(\d+)\*(.*)", text):
                weight, text = 1000 * int(match[1]), match[2]
            pairs = {**header, **dict(field.split(": ", 1) for field in fields)}
            groups.append((Entry(text, weight, {key: self._values(value) for key, value in pairs.items()}),))
        mixed = itertools.chain.from_iterable(itertools.zip_longest(*groups))
        return tuple(entry for entry in mixed if entry is not None)

    def _values(self, value: str) -> tuple[Entry, ...]:
        """The values of an attribute: those of another list, or the ones written here, equally likely."""
        return self.lists[value[1:]] if value.startswith("@") else tuple(Entry(text) for text in value.split(", "))

    def _read_rule(self, lines: list[str]) -> Choice:
        weighted = []
        for line in lines:
            weight, text = re.fullmatch(r"(?:(\d+) )?(.*)", line).groups()  # type: ignore[union-attr]
            weighted.append((int(weight or 1), self.compile(text), {}))
        return Choice(weighted)

    def compile(self, text: str) -> Items:
        """Text with slots, as items."""
        if text not in self._compiled:
            items: list[Any] = []
            position = 0
            for match in SLOT.finditer(text):
                items += [text[position : match.start()]] if match.start() > position else []
                items.append(self._slot(match, ":" in match[0]))
                position = match.end()
            items += [text[position:]] if position < len(text) else []
            self._compiled[text] = tuple(items)
        return self._compiled[text]

    def _slot(self, match: re.Match[str], has_colon: bool) -> Slot | Rule:
        form, source, attribute = (match["form"] or "").strip(), match["source"], match["attribute"] or ""
        if source[0].isupper():
            return Rule(source, match["maybe"] is not None)
        if source in PRONOUNS:
            source, attribute = "hero", source
        return Slot(form, match["variable"] or "", source, attribute, has_colon and not attribute)

    @functools.cached_property
    def sentences(self) -> list[Items]:
        """Every sentence that some story may hold, as items."""
        found: list[list[Any]] = [[]]
        for branch in itertools.chain.from_iterable(rule.branches for rule in self.rules.values()):
            for item, following in itertools.zip_longest(branch.items, branch.items[1:]):
                if type(item) is Rule:
                    found.append([])
                    continue
                parts = self._split(item, following) if type(item) is str else [item]
                found[-1].append(parts[0])
                found.extend([part] for part in parts[1:])
            found.append([])
        cleaned = (tuple(item for item in items if item) for items in found)
        return list(dict.fromkeys(items for items in cleaned if any(type(item) is str and item.strip() for item in items)))

    def _split(self, text: str, following: Any) -> list[str]:
        """`text` cut where a sentence ends, also at its own end if what is `following` begins with a capital."""
        first = self.choice(following, {}).branches[0].items[0] if type(following) is Slot else "A"
        *parts, last = SENTENCE_END.split(text + first[0])
        return [*parts, last[:-1]]

    @functools.cached_property
    def domains(self) -> Bindings:
        """Everything that each variable can stand for anywhere: what is known of it where a story's start is missing."""
        texts = [items for rule in self.rules.values() for _, _, items, _ in rule.branches]
        slots = {item for items in texts for item in items if type(item) is Slot and item.variable}
        domains: Bindings = {}
        changed = True
        while changed:
            changed = False
            for slot in slots:
                found = self.lists.get(slot.source, ()) if slot.from_list else domains.get(slot.source, ())
                if slot.attribute:
                    found = tuple(value for entry in found for value in entry.attributes.get(slot.attribute, ()))
                merged = tuple(dict.fromkeys((*domains.get(slot.variable, ()), *found)))
                changed = changed or len(merged) > len(domains.get(slot.variable, ()))
                domains[slot.variable] = merged
        return domains

    def choice(self, item: Slot | Rule, bindings: Bindings) -> Choice:
        """The choice point at `item`. A variable that is not bound can be anything it is bound to somewhere."""
        if type(item) is Rule:
            if not item.maybe:
                return self.rules[item.name]
            key: Any = item
        elif item.from_list:
            key, known = item, self.lists[item.source]
        else:
            known = bindings.get(item.source) or self.domains[item.source]
            key = (item, known[0] if len(known) == 1 else known)
        found = self._choices.get(key)
        if found is None:
            optional = [(1, (), {}), (1, (Rule(item.name, False), " "), {})] if type(item) is Rule else None
            found = self._choices[key] = Choice(optional or self._outcomes(item, known))
        return found

    def _outcomes(self, slot: Slot, known: tuple[Entry, ...]) -> list[tuple[int, Items, Bindings]]:
        """What can be said at a slot whose source stands for one of `known`, and what is known when it has been said."""
        said: dict[str, tuple[int, Bindings]] = {}
        for entry in known:
            values = entry.attributes.get(slot.attribute, ()) if slot.attribute else (entry,)
            for value in values:
                bindings = {slot.variable: (value,)} if slot.variable else {}
                if len(known) > 1 and not slot.from_list:  # narrow down what the source can stand for
                    before = said[value.text][1][slot.source] if value.text in said else ()
                    bindings = {slot.source: (*before, entry), **bindings}
                said[value.text] = (value.weight, bindings)
        return [(weight, self.compile(_with_form(text, slot.form)), known) for text, (weight, known) in said.items()]

    def tell(self, uniform: Callable[[], float]) -> tuple[str, list[Branch]]:
        """A story and the branches taken, from numbers in [0, 1) that `uniform` gives."""
        pieces: list[str] = []
        branches: list[Branch] = []
        bindings: Bindings = {}
        stack: list[Any] = list(self.start)
        while stack:
            item = stack.pop()
            if type(item) is str:
                pieces.append(item)
                continue
            choice = self.choice(item, bindings)
            branch = choice.branches[0]
            if len(choice.branches) > 1:
                branch = choice.branches[bisect(choice.cumulative, int(uniform() * choice.total))]
                branches.append(branch)
            bindings.update(branch.bindings)
            stack.extend(reversed(branch.items))
        return "".join(pieces), branches
