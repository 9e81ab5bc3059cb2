"""The story grammar: bounded vocabulary, determinism, agreement, cloze passages that the past gives away."""

import re
from itertools import pairwise

import pytest

from halfstep.data.corpora.stories import (
    ANIMALS,
    BOYS,
    COLOURS,
    FOODS,
    GIRLS,
    PLACES,
    PLOTS,
    SPOTS,
    THINGS,
    make_passages,
    stories,
)
from halfstep.data.tokenizer import WORD_UNITS

NAMES = {*GIRLS, *BOYS}
NOUNS = {noun for nouns in PLACES.values() for noun in nouns}


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(stories(2000, seed=3))


@pytest.fixture(scope="module")
def passages() -> list[str]:
    return list(make_passages(400, seed=3))


def test_a_story_depends_on_its_seed_and_its_number_only() -> None:
    assert list(stories(5, seed=1)) == list(stories(9, seed=1))[:5]
    assert not set(stories(50, seed=1)) & set(stories(50, seed=2))


def test_vocabulary_is_bounded_and_nearly_used_up(documents: list[str]) -> None:
    units = {unit for text in documents for unit in re.findall(WORD_UNITS, text)}
    assert 150 <= len(units) <= 300
    words = {word for text in documents for word in words_of(text)}
    assert {*NAMES, *COLOURS, *THINGS, *NOUNS, *SPOTS, *ANIMALS, *FOODS} <= words


def test_stories_are_short_and_all_different(documents: list[str]) -> None:
    assert all(30 <= len(text.split()) <= 60 for text in documents)
    assert all(5 <= len(sentences_of(text)) <= 6 for text in documents)
    assert len(set(documents)) == len(documents)


def test_every_template_is_filled_and_written_as_a_sentence(documents: list[str]) -> None:
    for text in documents:
        assert not re.search(r"[*{}]|  ", text)
        assert all(re.fullmatch(r"[A-Z][^.]*\.", sentence) for sentence in sentences_of(text))


def test_a_thing_has_one_colour_and_one_owner_of_each_gender_is_named(documents: list[str]) -> None:
    for text in documents:
        words = words_of(text)
        girls, boys = set(words) & set(GIRLS), set(words) & set(BOYS)
        assert len(girls) == len(boys) == 1, text
        colours: dict[str, set[str]] = {}
        for colour, thing in pairwise(words):
            if colour in COLOURS:
                colours.setdefault(thing, set()).add(colour)
        assert set(colours) == set(words) & set(THINGS), text
        assert all(len(of_thing) == 1 for of_thing in colours.values()), text


def test_kin_fits_the_gender_of_the_named_person(documents: list[str]) -> None:
    pairs = [pair for text in documents for pair in re.findall(r"(?:his|her) (\w+) ([A-Z]\w+)", text)]
    assert {kin for kin, _ in pairs} == {"brother", "sister", "cousin", "friend", "neighbour"}
    assert all((name in GIRLS) for kin, name in pairs if kin == "sister")
    assert all((name in BOYS) for kin, name in pairs if kin == "brother")
    # The possessive is that of the other one in the story, who never has the same gender.
    other_than = re.findall(r"(his|her) (?:brother|sister|cousin|friend|neighbour) ([A-Z]\w+)", " ".join(documents))
    assert all((name in BOYS) == (possessive == "her") for possessive, name in other_than)


def test_places_keep_their_preposition(documents: list[str]) -> None:
    for preposition, noun in re.findall(r"(under|behind|in) the (\w+)", " ".join(documents)):
        assert noun in PLACES[preposition] or (preposition, noun) == ("in", "evening")


def test_a_cloze_target_stands_in_an_earlier_sentence_and_not_in_its_own(passages: list[str]) -> None:
    for passage in passages:
        assert passage[-1].isalpha()
        *before, last = sentences_of(passage)
        target = words_of(last)[-1]
        assert target in words_of(" ".join(before)), passage
        assert target not in words_of(last)[:-1], passage
        assert target in {*NAMES, *COLOURS, *THINGS, *NOUNS, *SPOTS, *ANIMALS, *FOODS}, passage


def test_the_last_sentence_alone_does_not_give_the_target_away() -> None:
    # Whatever the words before the target, up to names and the like, it has been several things.
    choices = {*NAMES, *COLOURS, *THINGS, *NOUNS, *SPOTS, *ANIMALS, *FOODS}
    targets: dict[str, list[str]] = {}
    for passage in make_passages(3000, seed=0):
        *stem, target = re.findall(r"\w+", sentences_of(passage)[-1])
        targets.setdefault(" ".join("*" if word in choices else word for word in stem), []).append(target)
    common = [found for found in targets.values() if len(found) >= 20]
    assert sum(map(len, common)) > 2500
    # Five nouns stand behind a preposition, the fewest of all choices; 20 uniform draws of five that give
    # fewer than three different ones have a chance below 10 * (2 / 5)^20 = 1e-7.
    assert all(len(set(found)) >= 3 for found in common)


def test_the_target_is_what_the_story_forces() -> None:
    # Read independently of the grammar: a place word after "looked <preposition> the" is where it was put.
    checked = 0
    for passage in make_passages(2000, seed=1):
        if (found := re.search(r"looked (under|behind|in) the (\w+)$", passage)) is None:
            continue
        preposition, target = found.groups()
        told = re.findall(rf"{preposition} the (\w+)", passage[: found.start()])
        assert target in told, passage
        checked += 1
    assert checked > 50


def test_no_cloze_passage_begins_a_story(documents: list[str], passages: list[str]) -> None:
    # By construction: a cast is either a story's or a passage's. Told by the words that make up the cast.
    def people_things_places(text: str) -> frozenset[str]:
        return frozenset(words_of(text)) & {*NAMES, *COLOURS, *THINGS, *NOUNS}

    casts_of_stories = {people_things_places(text) for text in documents}
    whole_casts = [people_things_places(passage) for passage in passages]
    assert all(len(cast) >= 5 for cast in whole_casts)
    assert not casts_of_stories & set(whole_casts)
    assert not any(text.startswith(passage) for passage in passages[:100] for text in documents)


def test_every_plot_and_template_is_told(documents: list[str]) -> None:
    joined = " ".join(documents)
    for plot in PLOTS.values():
        for templates in plot:
            for template in templates:
                pattern = re.sub(r"\\\{[^}]*\\\}", r"[\\w ]+", re.escape(template.replace("*", "")))
                assert re.search(pattern, joined, re.IGNORECASE), template
