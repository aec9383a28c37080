"""The grammar of the storybook: probabilities add up to one, and every text has a single derivation."""

from __future__ import annotations

import itertools
import math
import random
import re
from fractions import Fraction

import pytest

from lmlab import storybook
from lmlab.storybook_grammar import Choice, Grammar, Items, Node, Place, Rule, Slot
from lmlab.storybook_plots import PLOTS
from lmlab.storybook_things import THINGS
from lmlab.storybook_words import WORDS

State = tuple[str | Node | None, int, Place]  # the text or tree being said, from where on, and the place after it


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(WORDS + THINGS, PLOTS)


SMALL_WORDS = """
[girls] he=she his=her him=her
Ann, Anna
[boys] he=he his=his him=him
Ben
[heroes]
@girls, @boys
[things]
kite; parts: tail, tail feather
oar; parts: handle
[places]
3*by {a :sizes} lake
at home
[sizes]
old, odd
"""
SMALL_PLOTS = """
[Story]
2 {Start} {Middle?}{End}
[Start]
{hero:heroes} had {a thing:things}.
3 {hero:heroes} had {a thing:things} {:places}.
[Middle]
"Oh!" said {hero}. {^he} lost the {part:thing.parts}.
[End]
{^he} kept {his} {thing}.
The {thing} kept {him}.
"""


def derivations(grammar: Grammar, items: Items, bindings: dict) -> list[tuple[str, Fraction, dict]]:
    """Every text that `items` can become, with its probability and what is bound after it, by brute force."""
    if not items:
        return [("", Fraction(1), bindings)]
    first, rest = items[0], items[1:]
    if isinstance(first, str):
        return [(first + text, p, known) for text, p, known in derivations(grammar, rest, bindings)]
    found = []
    choice = grammar.choice(first, bindings)
    for branch, before, to in zip(choice.branches, [0, *choice.cumulative], choice.cumulative, strict=False):
        weight = Fraction(to - before, choice.total)
        for said, p, known in derivations(grammar, branch.items, {**bindings, **branch.bindings}):
            found += [(said + text, weight * p * q, end) for text, q, end in derivations(grammar, rest, known)]
    return found


def test_a_small_grammar_sums_to_one():
    small = Grammar(SMALL_WORDS, SMALL_PLOTS)
    every = derivations(small, small.start, {})
    assert len({text for text, _, _ in every}) == len(every) == 120
    assert sum(p for _, p, _ in every) == 1
    for text, p, _ in every:
        branches, logs = storybook.read_story(text, small)
        assert math.prod(b.probability for b in branches) == pytest.approx(float(p), rel=1e-12)
        assert math.exp(math.fsum(logs)) == pytest.approx(float(p), rel=1e-12)
    for length in range(1, 40):  # what begins alike, summed by brute force, against the prefix probability
        prefix = every[7][0][:length]
        mass = float(sum(p for text, p, _ in every if text.startswith(prefix)))
        _, logs = storybook.follow(small, storybook._enter_all(small, [small.start]), prefix)
        assert math.exp(math.fsum(logs)) == pytest.approx(mass, rel=1e-12)


# One derivation only


def skip_finished(place: Place) -> Place:
    while place is not None and place[1] == len(place[0]):
        place = place[2]
    return place


class Ambiguity:
    """A search for two derivations of one text, or of a text and the beginning of another.

    Every variable is taken to stand for anything it can stand for anywhere, each time it is printed. So widened, the
    grammar is a finite automaton whose paths include all real derivations, different ones being different paths. The
    search goes through all pairs of paths that part at some choice point and read the same characters from there on.
    None of them may ever meet again or come to an end.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.pairs: set[tuple[State, State]] = set()
        self.found: list[tuple[str, str]] = []
        places = [skip_finished((grammar.start, 0, None))]
        visited = set()
        while places:
            place = places.pop()
            if place is None or place in visited:
                continue
            visited.add(place)
            places += self.part(place)

    def enter(self, place: Place) -> list[State]:
        """The states that stand before a character, from `place` on."""
        place = skip_finished(place)
        if place is None:
            return [(None, 0, None)]
        item, after = place[0][place[1]], skip_finished((place[0], place[1] + 1, place[2]))
        if isinstance(item, str):
            return [(item, 0, after)]
        choice = self.grammar.choice(item, {})
        if choice.is_plain:
            return [(choice.tree, 0, after)]
        return [state for branch in choice.branches for state in self.enter((branch.items, 0, after))]

    def part(self, place: Place) -> list[Place]:
        """Follow all pairs that part at `place`; the places that come next."""
        items, index, after = place
        item, after = items[index], skip_finished((items, index + 1, after))
        if isinstance(item, str):
            return [after]
        choice = self.grammar.choice(item, {})
        if choice.is_plain:
            for node in words_that_go_on(choice.tree):
                self.follow([((node, 0, after), state) for state in self.enter(after)], str(node.branch.items))
            return [after]
        ways = [skip_finished((branch.items, 0, after)) for branch in choice.branches]
        for one, other in itertools.combinations(ways, 2):
            self.follow(list(itertools.product(self.enter(one), self.enter(other))), str(item))
        return ways

    def follow(self, pairs: list[tuple[State, State]], origin: str) -> None:
        while pairs:
            pair = one, other = pairs.pop()
            if one == other or one[0] is None or other[0] is None:
                self.found.append((origin, f"{one[0]!r} {other[0]!r}"))
            elif pair not in self.pairs:
                self.pairs.add(pair)
                pairs += self.together(one, other)

    def together(self, one: State, other: State) -> list[tuple[State, State]]:
        """The pairs after one more character, or after one more word where both read the same tree of words."""
        if one[0] is other[0] and isinstance(one[0], Node):
            node, ends, other_ends = one[0], self.enter(one[2]), self.enter(other[2])
            pairs = list(itertools.product(ends, other_ends))
            for longer in words_that_go_on(node):
                pairs += [((longer, 0, one[2]), end) for end in other_ends]
                pairs += [(end, (longer, 0, other[2])) for end in ends]
            return pairs
        steps, other_steps = self.steps(one), self.steps(other)
        common = steps.keys() & other_steps.keys()
        return [pair for c in common for pair in itertools.product(steps[c], other_steps[c])]

    def steps(self, state: State) -> dict[str, list[State]]:
        at, offset, after = state
        if isinstance(at, str):
            return {at[offset]: self.enter(after) if offset + 1 == len(at) else [(at, offset + 1, after)]}
        return {
            character: (self.enter(after) if node.branch else []) + ([(node, 0, after)] if node.children else [])
            for character, node in at.children.items()
        }


def words_that_go_on(node: Node) -> list[Node]:
    """The ends of words in the tree that are the beginning of longer ones."""
    below = [found for child in node.children.values() for found in words_that_go_on(child)]
    return [node, *below] if node.branch is not None and node.children else below


def test_no_text_has_two_derivations_and_none_begins_another(grammar: Grammar):
    search = Ambiguity(grammar)
    assert search.found == []
    assert len(search.pairs) > 10_000


@pytest.mark.parametrize(
    "plots",
    [
        "[Story]\n{:one} {:two} end.\n",  # "a b" + "c", "a" + "b c"
        "[Story]\nOne {:one} end.\nOne {:one} end.\n",
        "[Story]\n{:one}{:three}.\n",  # "a" + "bc", "ab" + "c"
        "[Story]\nThe end.\nThe end. {:one}.\n",  # the beginning of another
        "[Story]\n{x:one} and {:two}.\n{y:two} and {:two}.\n",  # both lists have "d"
    ],
)
def test_the_search_finds_planted_ambiguity(plots: str):
    words = "[one]\na, a b, d, ab\n[two]\nb c, c, d\n[three]\nbc, c\n"
    assert Ambiguity(Grammar(words, plots)).found


def test_choice_points_are_distinct_and_whole(grammar: Grammar):
    """No list holds a text twice (it would be merged silently), and probabilities sum to one."""
    items = {item for rule in grammar.rules.values() for branch in rule.branches for item in branch.items}
    assert {item.name for item in items if isinstance(item, Rule)} | {"Story"} == set(grammar.rules)
    used = {item.source for item in items if isinstance(item, Slot) and item.from_list}
    for name, entries in grammar.lists.items():
        assert len({entry.text for entry in entries}) == len(entries), name
        for entry in entries:
            for values in entry.attributes.values():
                assert len({value.text for value in values}) == len(values), entry.text
    for slot in [item for item in items if isinstance(item, Slot)]:
        check_choice(grammar.choice(slot, {}))
        assert not slot.from_list or len(grammar.choice(slot, {}).branches) == len(grammar.lists[slot.source])
    for rule in grammar.rules.values():
        check_choice(rule)
    nested = {
        match
        for entries in grammar.lists.values()
        for entry in entries
        for match in re.findall(
            r":(\w+)\}", str([entry.text, *(value.text for values in entry.attributes.values() for value in values)])
        )
    }
    unions = set(re.findall(r"@(\w+)", WORDS + THINGS))
    assert set(grammar.lists) == used | nested | unions, "a list that no sentence uses"


def check_choice(choice: Choice) -> None:
    assert len({branch.items for branch in choice.branches}) == len(choice.branches)
    assert math.fsum(branch.probability for branch in choice.branches) == pytest.approx(1, rel=1e-12)
    assert choice.cumulative[-1] == choice.total
    if choice.is_plain:
        assert choice.tree.below == pytest.approx(1, rel=1e-12)


def test_every_variable_is_bound_before_it_is_used(grammar: Grammar):
    uniform = random.Random(11).random
    for _ in range(1000):
        _, branches = grammar.tell(uniform)
        assert all(len(entries) == 1 for branch in branches for entries in branch.bindings.values())
