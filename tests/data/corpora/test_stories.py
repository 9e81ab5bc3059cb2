"""The story grammar: bounded vocabulary, determinism, agreement, cloze passages that the past gives away."""

import math
import random
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
    Cast,
    _draw_cast,
    _marked_sentences,
    judge,
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


def judged(documents: list[str]) -> dict[str, float | None]:
    """Of one sample, whose first and last document are cut off."""
    return judge([["", *documents, ""]])


def test_the_judge_finds_no_fault_in_stories(documents: list[str]) -> None:
    found = judged(documents)
    assert (found["parsed"], found["agreeing"], found["held_out"]) == (1, 1, 0)
    # Hero, colour, thing and place are drawn evenly from 24, 11, 14 and 15.
    evenly = math.fsum(map(math.log, (24, len(COLOURS), len(THINGS), len(NOUNS)))) / 4
    assert found["cast_entropy"] == pytest.approx(evenly, abs=0.01)


def test_the_judge_knows_casts_that_no_story_has() -> None:
    rng = random.Random(0)
    held_out = [told(rng, _draw_cast(rng, held_out=True)) for _ in range(200)]
    found = judged(held_out)
    assert (found["parsed"], found["agreeing"], found["held_out"]) == (1, 1, 1)


def told(rng: random.Random, cast: Cast) -> str:
    return " ".join(_marked_sentences(rng, cast)).replace("*", "")


STORY = (
    "One day, Anna lost her blue kite near the lake. She looked behind the door, but it was not there. Her cousin Ben"
    " wanted to help. He found the blue kite under the bench. He ran home and gave it to Anna. Anna was happy and"
    " thanked Ben."
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("found the blue", "found the red"),
        ("blue kite under", "blue drum under"),
        ("gave it to Anna", "gave it to Clara"),
        ("thanked Ben", "thanked Adam"),
        ("She looked", "He looked"),
        ("Her cousin Ben", "His cousin Ben"),
        ("He ran home", "She ran home"),
    ],
)
def test_the_judge_finds_what_does_not_agree(old: str, new: str) -> None:
    whole = judged([STORY])
    assert (whole["parsed"], whole["agreeing"]) == (1, 1)
    assert STORY.count(old) == 1
    found = judged([STORY.replace(old, new)])
    assert found["parsed"] == 1
    assert found["agreeing"] is not None
    assert found["agreeing"] < 1


def test_agreements_are_counted() -> None:
    """Of the colour, thing, two pronouns of hers, three of his, her name and his twice: one in so many is wrong."""
    num_agreements = round(1 / (1 - (judged([STORY.replace("thanked Ben", "thanked Adam")])["agreeing"] or 0)))
    # Once each: her kite, she, her cousin, he found, blue, kite, he ran, Anna, Anna, Ben.
    assert num_agreements == 10


def test_what_is_cut_off_does_not_count() -> None:
    beginning, end = STORY[: STORY.index("Her cousin") + 7], STORY[STORY.index("cousin Ben") :]
    assert judge([[end, beginning]])["parsed"] == 1
    # Inside a sample the same are sentences that no template makes.
    found = judged([beginning, end])
    assert found["parsed"] == pytest.approx(1 - 2 / 7)
    # A document that is both, and one without a full stop.
    assert judge([[STORY[5:-5]]])["parsed"] == 1
    assert judge([["Anna"]])["parsed"] is None


def test_nonsense_does_not_parse() -> None:
    found = judged(["The the kite. Anna lost.", "One day, the lake lost its Ben."])
    assert found == {"parsed": 0, "agreeing": None, "held_out": None, "cast_entropy": None}


def test_no_sample_has_nothing() -> None:
    assert set(judge([]).values()) == {None}
