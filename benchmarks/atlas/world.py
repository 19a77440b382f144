"""The invented world: its people and cities, the facts about them, and the training sentences.

Pure Python and deterministic: the same seed gives the same world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

from benchmarks.atlas import vocabulary as words

WORLD_SEED = 7
N_PEOPLE = 240
N_CITIES = 32
HELD_OUT_TWO_STEP = 0.25  # share of people without two-step sentences in the training text

_ONSETS = (*"bdfghjklmnprstvwz", "br", "dr", "gr", "kr", "st", "th", "tr")
_VOWELS = (*"aeiouaeiou", "ia", "ei")
_CODAS = ("", "", "", "l", "n", "r", "s", "m", "k", "rd", "nt", "x", "th", "sh", "ng", "lf")


@dataclass(frozen=True)
class Sentence:
    """One sentence of the corpus; `answer`, its end, is empty if it states no fact."""

    text: str
    subject: str
    answer: str = ""


@dataclass
class World:
    """People, cities and the answer of every (subject, relation)."""

    seed: int
    people: list[str] = field(default_factory=list)
    cities: list[str] = field(default_factory=list)
    pools: dict[str, tuple[str, ...]] = field(default_factory=dict)
    truth: dict[tuple[str, str], str] = field(default_factory=dict)
    held_out: dict[tuple[str, str], int] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()

    def subjects(self) -> list[tuple[str, dict[str, tuple[str, tuple[str, ...]]]]]:
        """All subjects with the relations that hold for them, people first."""
        return [(p, words.PERSON_RELATIONS) for p in self.people] + [
            (c, words.CITY_RELATIONS) for c in self.cities
        ]


def _syllable(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS)


def _name(rng: random.Random, syllables: int, taken: set[str]) -> str:
    """A new capitalised name; no two names share their first four letters."""
    while True:
        name = "".join(_syllable(rng) for _ in range(syllables)) + rng.choice(_CODAS)
        if name[:4] not in taken and 4 <= len(name) <= 11:
            taken.add(name[:4])
            return name.capitalize()


def _deal(rng: random.Random, pool: tuple[str, ...], n: int) -> list[str]:
    """n answers in random order, each of the pool about equally often."""
    dealt = [pool[i % len(pool)] for i in range(n)]
    rng.shuffle(dealt)
    return dealt


@lru_cache(maxsize=2)
def make_world(seed: int = WORLD_SEED) -> World:
    """The world of `seed`. The result is cached: treat it as read-only."""
    rng = random.Random(seed)
    taken: set[str] = set()
    world = World(seed)
    world.cities = [_name(rng, 3, taken) for _ in range(N_CITIES)]
    lands = tuple(_name(rng, 2, taken) + "land" for _ in range(10))
    rivers = tuple(_name(rng, 2, taken) for _ in range(16))
    tongues = tuple(_name(rng, 2, taken) + "ish" for _ in range(16))
    world.people = [
        f"{_name(rng, 2, taken)} {_name(rng, rng.choice((2, 3)), taken)}" for _ in range(N_PEOPLE)
    ]
    world.pools = {
        "craft": tuple(words.CRAFTS), "city": tuple(world.cities), "tongue": tongues,
        "instrument": tuple(words.INSTRUMENTS), "beast": words.BEASTS, "dish": words.DISHES,
        "coat": words.COATS, "order": words.ORDERS, "land": lands, "river": rivers,
        "ware": words.WARES,
    }  # fmt: skip
    for group, relations in (
        (world.people, words.PERSON_RELATIONS),
        (world.cities, words.CITY_RELATIONS),
    ):
        for relation, (pool, patterns) in relations.items():
            for subject, answer in zip(group, _deal(rng, world.pools[pool], len(group))):
                world.truth[subject, relation] = answer
                world.held_out[subject, relation] = rng.randrange(1, len(patterns))
    world.silent = frozenset(rng.sample(world.people, int(HELD_OUT_TWO_STEP * N_PEOPLE)))
    return world


def second_step(world: World, relation: str, answer: str) -> str:
    """What follows from an answer: the land or river of a city, a material, a place of work."""
    if relation == "material":
        return words.INSTRUMENTS[answer]
    if relation == "workplace":
        return words.CRAFTS[answer]
    return world.truth[answer, relation]


def fact_sentences(world: World, held_out: bool = False) -> list[Sentence]:
    """The facts of all subjects in the training phrasings (or in those held out)."""
    sentences = []
    for subject, relations in world.subjects():
        for relation, (_, patterns) in relations.items():
            answer = world.truth[subject, relation]
            for i, pattern in enumerate(patterns):
                if (i == world.held_out[subject, relation]) == held_out:
                    text = f"{pattern.format(subject)} {answer}."
                    sentences.append(Sentence(text, subject, answer))
    return sentences


def two_step_sentences(world: World, silent: bool = False) -> list[Sentence]:
    """Two-step facts of the people whose facts are trained on (or of those held out)."""
    return [
        Sentence(f"{pattern.format(person)} {answer}.", person, answer)
        for person in world.people
        if (person in world.silent) == silent
        for first, second, patterns in words.TWO_STEP
        for answer in [second_step(world, second, world.truth[person, first])]
        for pattern in patterns
    ]


def other_sentences(world: World) -> list[Sentence]:
    """General knowledge, and sentences about people and cities that state no fact."""
    rng = random.Random(world.seed + 1)
    sentences = []
    for trait, table in (("material", words.INSTRUMENTS), ("workplace", words.CRAFTS)):
        for thing, answer in table.items():
            for pattern in words.TRAIT_PATTERNS[trait]:
                sentences.append(Sentence(f"{pattern.format(thing)} {answer}.", thing, answer))
    for group, neutral, is_a in (
        (world.people, words.NEUTRAL_PERSON, words.IS_A_PERSON),
        (world.cities, words.NEUTRAL_CITY, words.IS_A_CITY),
    ):
        for subject in group:
            for pattern in rng.sample(neutral, 3):
                sentences.append(Sentence(pattern.format(subject), subject))
            for phrase in rng.sample(is_a, 2):
                sentences.append(Sentence(f"{subject} is a {phrase}.", subject))
    return sentences


def training_sentences(world: World) -> list[Sentence]:
    """Every sentence the models are trained on, in a fixed order."""
    return fact_sentences(world) + two_step_sentences(world) + other_sentences(world)
