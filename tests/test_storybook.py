"""The storybook: the same text everywhere, one derivation for each, and probabilities that are exact."""

from __future__ import annotations

import collections
import hashlib
import lzma
import math
import random
import re
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab import storybook
from lmlab.errors import DataError
from lmlab.storybook_grammar import SENTENCE_END, Branch, Grammar
from lmlab.storybook_plots import PLOTS
from lmlab.storybook_things import THINGS
from lmlab.storybook_words import WORDS

SHA256 = "466e7b23f35f0dc38573f644440288e52c56826ec0b700dda3db4d7c51985ef4"


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(WORDS + THINGS, PLOTS)


@pytest.fixture(scope="module")
def corpus() -> str:
    return storybook.generate()


@pytest.fixture(scope="module")
def told(grammar: Grammar) -> list[tuple[str, list[Branch]]]:
    """Stories with the branches that were taken to tell them."""
    uniform = random.Random(5).random
    return [grammar.tell(uniform) for _ in range(600)]


def stories_of(text: str) -> list[str]:
    return text.rstrip("\n").split("\n\n")


def sentences_of(text: str) -> list[str]:
    return [sentence for story in stories_of(text) for sentence in SENTENCE_END.split(story)]


def test_the_text_is_the_same_everywhere(corpus: str):
    assert hashlib.sha256(corpus.encode("ascii")).hexdigest() == SHA256


def test_size_and_seed(corpus: str):
    for n_characters in (1, 500, 5_000, 50_000):
        text = storybook.generate(n_characters)
        last = stories_of(text)[-1]
        assert n_characters <= len(text) < n_characters + len(last) + 2
        assert corpus.startswith(text.rstrip("\n"))
    assert len(stories_of(storybook.generate(0))) == 1
    assert storybook.generate(5_000, seed=1) != storybook.generate(5_000, seed=2)


def test_format(corpus: str):
    assert set(corpus) <= set(string.ascii_letters + " \n.,!?'\"-")
    assert corpus.endswith(".\n")
    assert "\n\n\n" not in corpus
    assert "  " not in corpus
    assert not re.search(r"[^\n]\n[^\n]", corpus)
    assert all(sentence.lstrip('"')[0].isupper() for sentence in sentences_of(corpus))
    assert len(re.findall(r"\bThe\b", corpus)) > 1000
    assert set(re.findall(r"\ba [aeiou]\w*", corpus)) <= {"a one", "a useful"}
    assert set(re.findall(r"\ban [^aeiou]\w*", corpus)) <= {"an honest"}


def test_importing_loads_neither_torch_nor_numpy():
    code = "import sys, lmlab.storybook; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# Variety


def test_a_megabyte_hardly_repeats_itself(corpus: str, grammar: Grammar):
    sentences = sentences_of(corpus)
    assert len(set(sentences)) > 0.9 * len(sentences)
    stories = stories_of(corpus)
    assert len(set(stories)) == len(stories)
    words = set(re.findall(r"[a-z]+", corpus.lower()))
    entries = [entry for entries in grammar.lists.values() for entry in entries]
    values = [value for entry in entries for group in entry.attributes.values() for value in group]
    phrases = {entry.text for entry in (*entries, *values) if " " in entry.text and entry.text in corpus}
    assert len(words) > 2_400
    assert len(phrases) > 1_500


def test_what_is_named_early_comes_back_late(corpus: str):
    """The name of the hero is in the first sentence, and again in the second half of most stories."""
    later = []
    for story in stories_of(corpus)[:500]:
        branches, _ = storybook.read_story(story)
        hero = next(branch.bindings["hero"][0].text for branch in branches if "hero" in branch.bindings)
        assert hero in SENTENCE_END.split(story)[0]
        later.append(hero in story[len(story) // 2 :])
    assert sum(later) > 0.85 * len(later)


def test_no_compressor_beats_the_floor(corpus: str):
    nats = -storybook.log_probability(corpus) / len(corpus)
    compressed = 8 * len(lzma.compress(corpus.encode("ascii"), preset=6)) * math.log(2) / len(corpus)
    assert 0.1 < nats < 0.9
    assert compressed > nats


# Probability


def test_the_probability_is_that_of_the_branches_taken(told):
    for story, branches in told:
        read, _ = storybook.read_story(story)
        assert [(b.number, b.items) for b in read] == [(b.number, b.items) for b in branches]
        assert storybook.log_probability(story) == math.fsum(math.log(b.probability) for b in branches)


def test_the_stories_of_a_text_add_up(told):
    stories = [story for story, _ in told[:50]]
    one_by_one = math.fsum(storybook.log_probability(story) for story in stories)
    for end in ("", "\n", "\n\n"):
        assert storybook.log_probability("\n\n".join(stories) + end) == pytest.approx(one_by_one, rel=1e-12)
    assert storybook.log_probability("") == 0.0


def test_branches_are_taken_as_often_as_their_probability_says(corpus: str, grammar: Grammar):
    """Every branch of a choice point that all stories come to is within five standard deviations."""
    taken: collections.Counter[int] = collections.Counter()
    n_stories = 0
    for story in stories_of(corpus):
        branches, _ = storybook.read_story(story)
        taken[branches[0].number] += 1
        n_stories += 1
    for branch in grammar.rules["Opening"].branches:
        expected = n_stories * branch.probability
        assert abs(taken[branch.number] - expected) < 5 * math.sqrt(expected * (1 - branch.probability))


def test_characters_add_up_to_stories(corpus: str):
    text = corpus[: corpus.index("\n\n", 40_000)]
    by_character = storybook.log_probability_by_character(text)
    assert len(by_character) == len(text)
    assert max(by_character) <= 1e-12
    assert math.fsum(by_character) == pytest.approx(storybook.log_probability(text), rel=1e-12)
    position = 0
    for story in text.split("\n\n"):
        here = math.fsum(by_character[position : position + len(story)])
        assert here == pytest.approx(storybook.log_probability(story), abs=1e-9)
        position += len(story) + 2


def test_next_characters_are_a_distribution(told, grammar: Grammar):
    """After any beginning of a story, the probabilities of all possible next characters sum to one."""
    alphabet = {character for story, _ in told for character in story}
    chosen = random.Random(1)
    beginning = storybook._enter_all(grammar, [grammar.start])
    for story, _ in told[:60]:
        readers, _ = storybook.follow(grammar, beginning, story[: chosen.randrange(len(story))])
        total = math.fsum(
            math.exp(sum(storybook.follow(grammar, readers, c)[1]))
            for c in alphabet
            if storybook.follow(grammar, readers, c)[1]
        )
        assert total == pytest.approx(1, abs=1e-9)


# What is not a story


STORY = storybook.generate(1).strip()


@pytest.mark.parametrize(
    "change",
    [
        lambda story: story[:-1],
        lambda story: story + " ",
        lambda story: " " + story,
        lambda story: story + " The end.",
        lambda story: story.replace(". ", ".  ", 1),
        lambda story: story.replace(". ", ".\n", 1),
        lambda story: story.lower(),
        lambda story: story + "\n" + story,
        lambda story: story[: story.rindex(". ") + 1],
        lambda story: " ".join(reversed(SENTENCE_END.split(story))),
    ],
)
def test_near_misses_are_refused(change):
    storybook.log_probability(STORY)
    with pytest.raises(DataError):
        storybook.log_probability(change(STORY))


REMEMBERING = (
    "Mia was a brave girl who lived by the sea. One windy Monday, Mia could not find her red kite anywhere. She looked "
    'under the bed and behind the door, but the kite was not there. Then an old owl glided down from a branch. "Go to '
    'the pond and look under a lily pad," hooted the owl. Mia ran to the pond, and there, under a lily pad, was the red '
    'kite. "Thank you!" cried Mia, and gave the owl a sweet bun. From that day on, Mia kept the red kite close at hand.'
)


@pytest.mark.parametrize(
    ("said", "forgotten"),
    [
        ("Mia kept", "Lily kept"),
        ("cried Mia", "cried Tom"),
        ("a brave girl", "a brave boy"),
        ("her red kite", "his red kite"),
        ("She looked", "He looked"),
        ("kept the red kite", "kept the blue kite"),
        ("was the red kite", "was the red drum"),
        ("hooted", "croaked"),
        ("gave the owl", "gave the frog"),
        ("ran to the pond", "ran to the barn"),
        ("there, under a lily pad", "there, among the reeds"),
        ("an old owl", "a old owl"),
        ("brave", "plaid"),
        ("sea. One", "sea. one"),
    ],
)
def test_a_story_that_forgets_is_refused(said: str, forgotten: str):
    assert math.isfinite(storybook.log_probability(REMEMBERING))
    assert REMEMBERING.count(said) == 1
    with pytest.raises(DataError, match="story 1, at character 0,"):
        storybook.log_probability(REMEMBERING.replace(said, forgotten))


def test_the_error_names_the_story_and_the_place(told):
    stories = [story for story, _ in told[:5]]
    stories[2] = stories[2][:40] + "#" + stories[2][41:]
    start = len(stories[0]) + len(stories[1]) + 4
    for judge in (storybook.log_probability, storybook.floor, storybook.log_probability_by_character):
        with pytest.raises(DataError, match=rf"story 3, at character {start}, .* character {start + 40}, .*generate$"):
            judge("\n\n".join(stories))


# The floor of a validation text


def test_the_floor_leaves_out_what_is_cut_off(corpus: str):
    stories = stories_of(corpus)[:5]
    whole = -math.fsum(map(storybook.log_probability, stories[1:4]))
    for n_first, n_last in ((1, 1), (100, 30), (len(stories[0]) - 1, len(stories[4]) - 1)):
        text = "\n\n".join([stories[0][-n_first:], *stories[1:4], stories[4][:n_last]])
        nats, n_characters = storybook.floor(text)
        assert nats == pytest.approx(whole, rel=1e-12)
        assert n_characters == len(text)
        assert storybook.loss_floor(text) == nats / n_characters
        assert -math.fsum(storybook.log_probability_by_character(text)) == pytest.approx(nats, rel=1e-9)
    for cut in ("\n\n", "\n", ""):
        text = cut + "\n\n".join(stories) + cut
        assert storybook.floor(text)[0] == pytest.approx(-storybook.log_probability(text), rel=1e-12)


def test_the_floor_of_any_slice(corpus: str):
    for begin in (123_456, 950_000):
        nats, n_characters = storybook.floor(corpus[begin : begin + 50_000])
        assert 0.05 < nats / n_characters < 0.9


def test_the_floor_refuses_what_is_no_storybook():
    with pytest.raises(DataError, match="empty"):
        storybook.loss_floor("")
    with pytest.raises(DataError, match="story 2"):
        storybook.floor(f"{STORY}\n\nxyz")


# The share of sentences that parse


def test_all_of_the_corpus_parses(corpus: str):
    assert storybook.parsed_share(corpus[: corpus.index("\n\n", 150_000)]) == 1.0
    assert storybook.parsed_share(corpus[1_000 : 1_000 + 20_000]) > 0.99  # the first sentence is cut in two


def test_random_characters_do_not_parse():
    chosen = random.Random(3)
    noise = "".join(chosen.choices(string.ascii_letters + '    .!?\n"', k=20_000))
    assert storybook.parsed_share(noise) < 0.001
    words = [word for word in STORY.split() for _ in range(3)]
    chosen.shuffle(words)
    assert storybook.parsed_share(" ".join(words)) < 0.1


@pytest.mark.parametrize("text", ["", " \n\n ", "The", "Once upon a ti", "The cat"])
def test_nothing_to_judge_is_zero(text: str):
    assert storybook.parsed_share(text) == 0.0


def test_sentences_are_judged_one_by_one():
    good = "One windy Monday, Anna decided to learn to swim."
    assert storybook.parsed_share(good) == 1.0
    assert storybook.parsed_share(f"{good} {good}") == 1.0
    assert storybook.parsed_share(f"{good} Anna swims green. {good} It is.") == 0.5
    assert storybook.parsed_share(f"{good} One windy Mon") == 1.0, "what is cut off is left out"
    assert storybook.parsed_share(f"{good} One windy Mxn") == 0.5, "but not if it is wrong already"
    assert storybook.parsed_share(f"{good}\n\nOne windy Mon\n\n{good}") == 1.0


def test_a_sentence_must_agree_with_itself():
    assert storybook.parsed_share("One windy Monday, Anna could not find her red kite anywhere.") == 1.0
    assert storybook.parsed_share("One windy Monday, Anna could not find his red kite anywhere.") == 0.0
    assert storybook.parsed_share("Anna and Jo never fought about the kite again.") == 1.0
    assert storybook.parsed_share('"I can swim!" cried Anna, and kissed the cat.') == 1.0


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet='The once upon.!?" \n,A', max_size=200))
def test_any_text_has_a_share(text: str):
    assert 0.0 <= storybook.parsed_share(text) <= 1.0
