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
WEIGHTED = re.compile(r"(\d+)[* ](.*)")
SENTENCE_END = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]"))\s+(?=["A-Z])')
SOUNDS_LIKE_A_VOWEL = re.compile(r"(?!one|uni|use)[aeiou]|honest|hour")
PRONOUNS = {"he", "his", "him"}

# What a sentence is made of: text (str), a Slot, or a Rule.
Items = tuple[Any, ...]
# Where in a derivation we are: items, index of the next one, the Place after them. None is the end.
Place = tuple[Items, int, Any] | None


@dataclass(frozen=True, eq=False)
class Entry:
    """One word or phrase of a list, with its weight and its attributes, each a list of entries."""

    text: str
    weight: int = 1
    attributes: dict[str, tuple[Entry, ...]] = field(default_factory=dict)


# What each variable can stand for: one entry once it is chosen.
Bindings = dict[str, tuple[Entry, ...]]


class Slot(NamedTuple):
    """A place in a sentence to fill: from the list `source`, or from what the variable `source` stands for."""

    form: str
    variable: str
    source: str
    attribute: str
    from_list: bool


class Branch(NamedTuple):
    """One of the ways on at a choice point: its number there, its probability, what it says and what it binds."""

    number: int
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
            Branch(number, weight / self.total, items, bindings)
            for number, (weight, items, bindings) in enumerate(weighted)
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
    """The place of a sentence to be chosen from the section `name`."""

    name: str


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
        yield name, dict(attribute.split("=") for attribute in attributes if attribute), list(filter(None, lines))


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
        self.rules: dict[str, Choice] = {}
        self.rules |= {name: self._read_rule(lines) for name, _, lines in sections if name[0].isupper()}
        self.start: Items = (Rule("Story"),)

    def _read_list(self, header: dict[str, str], lines: list[str]) -> tuple[Entry, ...]:
        """The entries of a list, the common ones first: like 1 / (rank + size / 4), as Zipf and Mandelbrot found."""
        groups: list[tuple[Entry, ...]] = []
        words = [word for line in lines for word in ([line] if ";" in line else line.split(", "))]
        for rank, word in enumerate(words):
            text, *fields = (part.strip() for part in word.split(";"))
            if text.startswith("@"):
                groups.append(self.lists[text[1:]])
                continue
            weight = 1000 * len(words) // (4 * rank + len(words))
            if match := WEIGHTED.match(text):
                weight, text = 1000 * int(match[1]), match[2]
            pairs = {**header, **dict(field.split(": ", 1) for field in fields)}
            groups.append((Entry(text, weight, {key: self._values(value) for key, value in pairs.items()}),))
        mixed = itertools.chain.from_iterable(itertools.zip_longest(*groups))
        return tuple(entry for entry in mixed if entry is not None)

    def _values(self, value: str) -> tuple[Entry, ...]:
        """The values of an attribute: those of another list, or the ones written here, equally likely."""
        return self.lists[value[1:]] if value.startswith("@") else tuple(Entry(text) for text in value.split(", "))

    def _read_rule(self, lines: list[str]) -> Choice:
        weighted: list[tuple[int, Items, Bindings]] = []
        for line in lines:
            match = WEIGHTED.match(line)
            weighted.append((int(match[1]), self.compile(match[2]), {}) if match else (1, self.compile(line), {}))
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
        if match["maybe"]:
            self.rules[source + "?"] = Choice([(1, (), {}), (1, (Rule(source), " "), {})])
            return Rule(source + "?")
        if source[0].isupper():
            return Rule(source)
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
        whole = (tuple(filter(None, items)) for items in found if items != [" "])
        return list(dict.fromkeys(filter(None, whole)))

    def _split(self, text: str, following: Any) -> list[str]:
        """`text` cut where a sentence ends, also at its own end if what is `following` begins with a capital."""
        while type(following) is Slot:
            following = self.choice(following, {}).branches[0].items[0]
        begin = following[0] if type(following) is str else "A"
        *parts, last = SENTENCE_END.split(text + begin)
        return [*parts, last[:-1]]

    @functools.cached_property
    def domains(self) -> Bindings:
        """All that each variable can stand for anywhere, which is what is known of it without the story before."""
        texts = [items for rule in self.rules.values() for _, _, items, _ in rule.branches]
        slots = list(dict.fromkeys(item for items in texts for item in items if type(item) is Slot and item.variable))
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
        if isinstance(item, Rule):
            return self.rules[item.name]
        key: Any = item
        known = self.lists[item.source] if item.from_list else bindings.get(item.source) or self.domains[item.source]
        if not item.from_list:
            key = (item, known)
        found = self._choices.get(key)
        if found is None:
            found = self._choices[key] = Choice(self._outcomes(item, known))
        return found

    def _outcomes(self, slot: Slot, known: tuple[Entry, ...]) -> list[tuple[int, Items, Bindings]]:
        """What can be said at a slot whose source is one of `known`, and what is known once it has been said."""
        weights: dict[str, int] = {}
        bindings: dict[str, Bindings] = {}
        for entry in known:
            for value in entry.attributes.get(slot.attribute, ()) if slot.attribute else (entry,):
                weights[value.text] = value.weight
                learned = bindings.setdefault(value.text, {})
                if slot.variable:
                    learned[slot.variable] = (value,)
                if len(known) > 1 and not slot.from_list:  # the text narrows down what the source can be
                    learned[slot.source] = (*learned.get(slot.source, ()), entry)
        return [(weights[text], self.compile(_with_form(text, slot.form)), bindings[text]) for text in weights]

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
