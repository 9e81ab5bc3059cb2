"""Short English stories from a grammar of our own: the corpus that needs no network, and its cloze passages.

A story is five or six sentences about two people, a coloured thing and the place where it was put. Names,
things, colours and places come back in later sentences, so words that are decoded together must agree: a
model that guesses them on its own is caught. Stories are made of templates; a word behind `*` in a template
is given away by the sentences before it and by nothing in its own, so a cloze passage can end there.
"""

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter

from halfstep.settings.base import PositiveInt
from halfstep.settings.data import CorpusSettings

GIRLS = ("Anna", "Clara", "Emma", "Flora", "Grace", "Helen", "Julia", "Lucy", "Martha", "Nora", "Rose", "Sarah")
BOYS = ("Adam", "Ben", "Carl", "David", "Edgar", "Frank", "Henry", "Jacob", "Martin", "Oscar", "Peter", "Tom")
THINGS = (
    "ball", "bell", "book", "clock", "coat", "cup", "doll", "drum", "flute", "hat", "kite", "lamp", "ring", "scarf",
)  # fmt: skip
COLOURS = ("black", "blue", "brown", "golden", "green", "pink", "purple", "red", "silver", "white", "yellow")
SPOTS = (
    "beach", "church", "farm", "forest", "lake", "market", "mill", "park", "river", "school", "station", "village",
)  # fmt: skip
ANIMALS = ("cat", "crow", "dog", "fox", "goat", "goose", "horse", "monkey", "mouse", "pig")
FOODS = ("bread", "cake", "cheese", "fish", "honey", "milk", "rice", "soup")
OPENINGS = (
    "One day", "One morning", "One evening", "On Monday", "On Friday", "On Sunday", "In spring", "Last winter",
)  # fmt: skip
PLACES = {
    "under": ("bench", "bridge", "table", "tree", "wagon"),
    "behind": ("curtain", "door", "fence", "rock", "wall"),
    "in": ("barrel", "basket", "box", "chest", "shed"),
}
KINSHIPS = ("sibling", "cousin", "friend", "neighbour")

HELD_OUT_SHARE = 10
"""One cast in this many is kept for cloze passages, and no story has it."""


@dataclass(frozen=True)
class Person:
    """A name and the words that refer to it; `kin` is what this person is to the other one in the story."""

    name: str
    they: str
    them: str
    their: str
    kin: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Place:
    """Where a thing can be: `under the bench`."""

    preposition: str
    noun: str

    def __str__(self) -> str:
        return f"{self.preposition} the {self.noun}"


@dataclass(frozen=True)
class Cast:
    """All the open choices of a story. Hero and friend differ in gender, so a pronoun names one of them."""

    hero: Person
    friend: Person
    colour: str
    other_colour: str
    thing: str
    other_thing: str
    place: Place
    other_place: Place
    spot: str
    animal: str
    food: str
    opening: str

    @property
    def key_words(self) -> tuple[str, str, str, str, str]:
        """The choices that every plot mentions."""
        return self.hero.name, self.friend.name, self.colour, self.thing, self.place.noun

    @property
    def is_held_out(self) -> bool:
        """True for the share of casts kept for cloze passages; a hash, so no model can learn which."""
        return _is_held_out(self.key_words)


def _is_held_out(key_words: Sequence[str]) -> bool:
    return zlib.crc32(" ".join(key_words).encode()) % HELD_OUT_SHARE == 0


Plot = tuple[tuple[str, ...], ...]
"""Sentences in order, each a choice of templates."""

PLOTS: dict[str, Plot] = {
    "lost": (
        (
            "{opening}, {hero} lost {hero.their} {colour} {thing} near the {spot}.",
            "{opening}, {hero} went to the {spot} and lost {hero.their} {colour} {thing}.",
        ),
        ("{hero.they} looked {other_place}, but it was not there.",),
        (
            "{hero.their} {friend.kin} {friend} wanted to help.",
            "So {hero.their} {friend.kin} {friend} went back to the *{spot}.",
        ),
        ("{friend.they} found the *{colour} *{thing} {place}.",),
        ("{friend.they} ran home and gave it to *{hero}.", "{friend.they} gave it back to *{hero}."),
        (
            "{hero} was happy and thanked *{friend}.",
            "{hero} never left it {place.preposition} the *{place.noun} again.",
        ),
    ),
    "hidden": (
        (
            "{opening}, {hero} had a {colour} {thing}, and {hero.their} {friend.kin} {friend} wanted it.",
            "{opening}, {hero} got a new {colour} {thing}, and {hero.their} {friend.kin} {friend} wanted it.",
        ),
        ("{hero} hid it {place} and went to the {spot}.",),
        ("But {friend} took it and put it {other_place}.",),
        (
            "{hero} came back from the *{spot} and looked {place.preposition} the *{place.noun}.",
            "{hero} looked {place.preposition} the *{place.noun}, but the *{thing} was gone.",
        ),
        ("{friend} was sorry and said that it was {other_place.preposition} the *{other_place.noun}.",),
    ),
    "gift": (
        ("{opening}, {friend} wanted to surprise {friend.their} {hero.kin} {hero}.",),
        (
            "{friend.they} went to the {spot} and bought a {colour} {thing}.",
            "{friend.they} made a {colour} {thing} and painted it at the {spot}.",
        ),
        ("At home {friend.they} hid it {place}.",),
        ("Then {hero} came in with a {animal}.",),
        (
            "The *{animal} ran and looked {place.preposition} the *{place.noun}.",
            "The *{animal} soon found the *{colour} *{thing}.",
        ),
        ("{hero} was happy and thanked *{friend}.", "So {friend} gave the *{colour} *{thing} to *{hero}."),
    ),
    "trade": (
        (
            "{opening}, {hero} had a {colour} {thing}, and {hero.their} {friend.kin} {friend}"
            " had a {other_colour} {other_thing}.",
        ),
        ("They met at the {spot} to trade.",),
        ("{hero} took the *{other_colour} *{other_thing} and put it {other_place}.",),
        ("{friend} took the *{colour} *{thing} and put it {place}.",),
        (
            "Every day {friend} looked at it {place.preposition} the *{place.noun}.",
            "Every day {hero} looked at it {other_place.preposition} the *{other_place.noun}.",
        ),
    ),
    "journey": (
        (
            "{opening}, {hero} and {hero.their} {friend.kin} {friend} walked to the {spot}.",
            "{opening}, {hero} and {hero.their} {friend.kin} {friend} rode to the {spot}.",
        ),
        ("{hero} carried a {colour} {thing} and {friend} carried some {food}.",),
        ("A {animal} ate all the *{food}.", "They gave the *{food} to a {animal}."),
        ("{hero} was afraid of the *{animal} and left the *{thing} {place}.",),
        (
            "Then {friend} went back and looked {place.preposition} the *{place.noun}.",
            "Then {friend} went back and found the *{colour} *{thing}.",
        ),
        ("{friend.they} brought it to *{hero} at the *{spot}.",),
    ),
    "visit": (
        ("{opening}, {hero} went to see {hero.their} {friend.kin} {friend} near the {spot}.",),
        ("{friend} had a {animal} and some {food}.",),
        ("They ate the *{food} and played with the *{animal}.",),
        ("Then {friend} showed {hero.them} a {colour} {thing} that was {place}.",),
        ("{friend.they} gave the *{thing} to *{hero}.",),
        (
            "Now there was nothing {place.preposition} the *{place.noun}.",
            "{hero} took the *{colour} *{thing} home and thanked *{friend}.",
        ),
    ),
    "thief": (
        (
            "{opening}, a {animal} took the {colour} {thing} of {hero}.",
            "{opening}, {hero} saw a {animal} with {hero.their} {colour} {thing}.",
        ),
        ("{hero.they} ran after the *{animal} to the {spot}.",),
        ("At the *{spot} {hero.they} met {hero.their} {friend.kin} {friend}.",),
        ("{friend} said that the *{thing} was {place}.",),
        (
            "They looked {place.preposition} the *{place.noun} and found the *{colour} *{thing}.",
            "So they found the *{colour} *{thing} {place.preposition} the *{place.noun}.",
        ),
        ("{hero} was happy and thanked *{friend}.", "The *{animal} was sorry and ran home."),
    ),
    "loan": (
        ("{opening}, {friend} gave {friend.their} {hero.kin} {hero} a {colour} {thing} for a day.",),
        ("{hero} took it to the {spot} and played with it.",),
        ("{hero.they} left it {place} and went home.",),
        ("In the evening {friend} wanted it back.",),
        ("{hero} ran to the *{spot} and looked {place.preposition} the *{place.noun}.",),
        (
            "The *{thing} was there, so {hero.they} gave it to *{friend}.",
            "{hero.they} found the *{colour} *{thing} and gave it to *{friend}.",
        ),
    ),
}


class Settings(CorpusSettings):
    """How many stories, and how many cloze passages they bring."""

    num_documents: PositiveInt
    num_cloze: PositiveInt


def texts(settings: Settings, seed: int) -> Iterator[str]:
    return stories(settings.num_documents, seed)


def cloze_passages(settings: Settings, seed: int) -> Iterator[str]:
    return make_passages(settings.num_cloze, seed)


def stories(num_documents: int, seed: int) -> Iterator[str]:
    """Yield stories; number i depends on `seed` and i only."""
    for index in range(num_documents):
        yield story(random.Random(f"story {seed} {index}"))


def make_passages(num_passages: int, seed: int) -> Iterator[str]:
    """Yield cloze passages; number i depends on `seed` and i only, and none is the beginning of a story."""
    for index in range(num_passages):
        yield cloze_passage(random.Random(f"cloze {seed} {index}"))


def story(rng: random.Random) -> str:
    """One story, 30 to 60 words, its sentences separated by single spaces."""
    return " ".join(_marked_sentences(rng, _draw_cast(rng, held_out=False))).replace("*", "")


def cloze_passage(rng: random.Random) -> str:
    """The beginning of a story up to a word that only its earlier sentences give away.

    The cast is one that no story of the corpus has. The last word is the target: it has no punctuation after
    it, and is in an earlier sentence but nowhere else in its own.
    """
    cast = _draw_cast(rng, held_out=True)
    marked = " ".join(_marked_sentences(rng, cast))
    starts = [index for index, character in enumerate(marked) if character == "*"]
    passages = [marked[:start].replace("*", "") + _words(marked[start + 1 :])[0] for start in starts]
    # Only a passage that shows the whole cast is sure not to begin a story of the corpus as well.
    return rng.choice([passage for passage in passages if set(cast.key_words) <= set(_words(passage))])


def _draw_cast(rng: random.Random, *, held_out: bool) -> Cast:
    while True:
        kinship = rng.choice(KINSHIPS)
        girl = Person(rng.choice(GIRLS), "she", "her", "her", "sister" if kinship == "sibling" else kinship)
        boy = Person(rng.choice(BOYS), "he", "him", "his", "brother" if kinship == "sibling" else kinship)
        hero, friend = rng.sample((girl, boy), 2)
        colour, other_colour = rng.sample(COLOURS, 2)
        thing, other_thing = rng.sample(THINGS, 2)
        place, other_place = rng.sample([Place(where, noun) for where in PLACES for noun in PLACES[where]], 2)
        cast = Cast(
            hero=hero,
            friend=friend,
            colour=colour,
            other_colour=other_colour,
            thing=thing,
            other_thing=other_thing,
            place=place,
            other_place=other_place,
            spot=rng.choice(SPOTS),
            animal=rng.choice(ANIMALS),
            food=rng.choice(FOODS),
            opening=rng.choice(OPENINGS),
        )
        if cast.is_held_out == held_out:
            return cast


def _marked_sentences(rng: random.Random, cast: Cast) -> list[str]:
    """Choose a plot and its templates and fill them in; marks of cloze targets stay."""
    plot = PLOTS[rng.choice(sorted(PLOTS))]
    sentences = [rng.choice(templates).format(**vars(cast)) for templates in plot]
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def _words(text: str) -> list[str]:
    return [word.rstrip(".,") for word in text.split()]


def judge(samples: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """What the grammar makes of samples, independently of any model. None is what no sample has.

    Args:
        samples: the documents of each; the first may lack its beginning, and the last its end.
    Returns:
        parsed: share of complete sentences that a template makes.
        agreeing: share of agreements kept: a name, pronoun, colour, thing, place, animal or food that an earlier
            sentence of the document fixed. Its sentences are taken as those of the plot that fits best.
        held_out: share of casts that the training stories never have, among those that are known in full. Of stories
            drawn evenly it is 1 / HELD_OUT_SHARE; of training stories it is zero.
        cast_entropy: of hero, colour, thing and place over all documents, nats, the mean of the four.
    """
    are_parsed: list[bool] = []
    kept: list[bool] = []
    casts: list[dict[str, str]] = []
    for documents in samples:
        for number, document in enumerate(documents):
            sentences = _complete_sentences(document, is_first=number == 0, is_last=number == len(documents) - 1)
            are_parsed += [bool(_readings(sentence)) for sentence in sentences]
            cast, agreements = _cast_of(sentences)
            casts.append(cast)
            kept += agreements
    words = [[cast[role] for role in KEY_ROLES] for cast in casts if all(role in cast for role in KEY_ROLES)]
    named = [[cast[role] for cast in casts if role in cast] for role in KEY_ROLES if role != "friend"]
    return {
        "parsed": _share(are_parsed),
        "agreeing": _share(kept),
        "held_out": _share([_is_held_out(some) for some in words]),
        "cast_entropy": math.fsum(map(_entropy, named)) / len(named) if all(named) else None,
    }


KEY_ROLES = ("hero", "friend", "colour", "thing", "place.noun")
"""Those of `Cast.key_words`."""


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None


def _entropy(values: Sequence[str]) -> float:
    counts = Counter(values)
    return -sum(n / counts.total() * math.log(n / counts.total()) for n in counts.values())


def _complete_sentences(document: str, *, is_first: bool, is_last: bool) -> list[str]:
    """Sentences that are there from beginning to end, as far as the document can be known."""
    *sentences, rest = [sentence.strip() for sentence in document.split(".")]
    if rest and not is_last:
        sentences.append(rest)
    return sentences[1 if is_first else 0 :]


Reading = tuple[str, int, tuple[tuple[str, str], ...]]
"""A plot, the place of a sentence in it, and what fills its template: (role, word) in order."""


@cache
def _readings(sentence: str) -> list[Reading]:
    """Every way in which a template makes a sentence, without its full stop."""
    found = []
    for plot, index, pattern, roles in _patterns():
        if match := pattern.fullmatch(sentence):
            words = (word if word in GIRLS + BOYS else word.lower() for word in match.groups())
            found.append((plot, index, tuple(zip(roles, words, strict=True))))
    return found


@cache
def _patterns() -> list[tuple[str, int, re.Pattern[str], list[str]]]:
    """(plot, place of the sentence, pattern, role of each of its groups) of all templates."""
    people = "|".join(GIRLS + BOYS)
    nouns = "|".join(noun for some in PLACES.values() for noun in some)
    words = {
        "hero": people,
        "friend": people,
        **dict.fromkeys(("colour", "other_colour"), "|".join(COLOURS)),
        **dict.fromkeys(("thing", "other_thing"), "|".join(THINGS)),
        **dict.fromkeys(("place.preposition", "other_place.preposition"), "|".join(PLACES)),
        **dict.fromkeys(("place.noun", "other_place.noun"), nouns),
        **dict.fromkeys(("hero.kin", "friend.kin"), "sister|brother|cousin|friend|neighbour"),
        **dict.fromkeys(("hero.they", "friend.they"), "she|he"),
        **dict.fromkeys(("hero.their", "friend.their"), "her|his"),
        **dict.fromkeys(("hero.them", "friend.them"), "her|him"),
        "spot": "|".join(SPOTS),
        "animal": "|".join(ANIMALS),
        "food": "|".join(FOODS),
        "opening": "|".join(OPENINGS),
    }
    found = []
    for plot, sentences in PLOTS.items():
        for index, templates in enumerate(sentences):
            for template in templates:
                pattern, roles = "", []
                for literal, role, _, _ in Formatter().parse(template.rstrip(".").replace("*", "")):
                    pattern += re.escape(literal)
                    parts = [f"{role}.preposition", f"{role}.noun"] if role in ("place", "other_place") else [role]
                    for part in filter(None, parts):
                        pattern += f"{' the ' if part.endswith('.noun') and len(parts) == 2 else ''}({words[part]})"
                        roles.append(part)
                found.append((plot, index, re.compile(pattern, re.IGNORECASE), roles))
    return found


def _cast_of(sentences: Sequence[str]) -> tuple[dict[str, str], list[bool]]:
    """(who and what a document is about, whether each later mention agrees), under the plot that fits best."""
    best: tuple[dict[str, str], list[bool]] = ({}, [])
    best_fit = (0, 0)
    for plot, length in ((name, len(plot)) for name, plot in PLOTS.items()):
        for start in range(-len(sentences) + 1, length):
            cast: dict[str, str] = {}
            agreements: list[bool] = []
            num_matched = 0
            for index, sentence in enumerate(sentences, start):
                readings = [words for name, at, words in _readings(sentence) if (name, at) == (plot, index)]
                num_matched += bool(readings)
                noted = [_noted(cast, words) for words in readings]
                if noted:
                    # Two templates may differ in whose name it is alone.
                    cast, found = min(noted, key=lambda each: each[1].count(False))
                    agreements += found
            if (fit := (num_matched, sum(agreements) - agreements.count(False))) > best_fit:
                best, best_fit = (cast, agreements), fit
    return best


FEMALE, MALE = {*GIRLS, "she", "her", "sister"}, {*BOYS, "he", "his", "him", "brother"}


def _noted(cast: dict[str, str], words: Sequence[tuple[str, str]]) -> tuple[dict[str, str], list[bool]]:
    """(the cast with a sentence's words taken down, whether each that was known agrees)."""
    cast, agreements = dict(cast), []
    for role, word in words:
        person, _, form = role.partition(".")
        if word in FEMALE or word in MALE:
            gender = "female" if word in FEMALE else "male"
            known = cast.setdefault(f"{person}.gender", gender)
            if form:
                agreements.append(known == gender)
                continue
        if role in cast:
            agreements.append(cast[role] == word)
        cast.setdefault(role, word)
    return cast, agreements
