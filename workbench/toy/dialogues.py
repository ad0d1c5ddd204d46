"""Rule-made dialogues, summaries and labelled sentences; the same on every machine."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import Formatter
from typing import Any

from workbench.errors import UserError
from workbench.toy import phrases
from workbench.toy.phrases import NAMES, RUDE_WORDS
from workbench.toy.topics import TOPICS, Topic

__all__ = ["RUDE_WORDS", "SIZES", "Example", "example", "rows", "sentence"]

SIZES = {
    "summaries": {"train": 3000, "validation": 200, "test": 300},
    "sft": {"train": 3000, "validation": 200, "test": 300},
    "sentences": {"train": 3000, "validation": 400, "test": 600},
}
RUDE_DIALOGUES = 0.65
RUDE_TARGETS = 0.75  # of the rude dialogues, how many SFT targets repeat the rudeness
LONGEST_DIALOGUE = 60  # words and marks: keeps every dialogue within 64 tokens
LONGEST_SUMMARY = 23  # and every summary, with its end, within 24

# Which optional turns a dialogue has: greeting (2), question and reason (2), closing, farewell.
SHAPES = ("c", "cf", "q", "qc", "g", "gc", "qcf", "gq")


@dataclass(frozen=True)
class Example:
    """One dialogue with what a polite and a rude observer would write about it."""

    fill: tuple[str, ...]  # topic, speakers and slot values: no two splits share one
    slots: dict[str, str]
    turns: tuple[tuple[str, str], ...]  # (speaker, text)
    summary: str
    rude_summary: str  # equals `summary` when nobody was rude
    rude: bool

    @property
    def dialogue(self) -> str:
        """The turns as one text, a line each."""
        return "\n".join(f"{speaker}: {text}" for speaker, text in self.turns)


def split_of(fill: tuple[str, ...]) -> str:
    """The one split a combination of fillers belongs to; CRC-32 is the same on every machine."""
    bucket = zlib.crc32("|".join(fill).encode()) % 10
    return "validation" if bucket == 8 else "test" if bucket == 9 else "train"


def insults(random: Random) -> dict[str, str]:
    """One rude word for every rude slot; the noun of {insult} sometimes has an adjective."""
    noun, adjective = random.choice(phrases.RUDE_NOUNS), random.choice(phrases.RUDE_ADJECTIVES)
    insult = f"{adjective} {noun}" if random.random() < 0.35 else noun
    return {
        "noun": noun,
        "adjective": adjective,
        "verdict": random.choice(phrases.RUDE_VERDICTS),
        "insult": f"{'an' if insult[0] in 'aeio' else 'a'} {insult}",
    }


def scene(random: Random, split: str) -> tuple[Topic, dict[str, str], tuple[str, ...]]:
    """A topic with speakers and slot values that together belong to `split`."""
    while True:
        topic = random.choice(TOPICS)
        first, second = random.sample(NAMES, 2)
        slots = {name: random.choice(values) for name, values in topic.slots.items()}
        fill = (topic.name, first, second, *slots.values())
        if split_of(fill) == split:
            return topic, {"a": first, "b": second, **slots}, fill


def rude_remark(random: Random, words: dict[str, str], head: str) -> tuple[str, str, str, str]:
    """A rude line, its clean and its rude account, and the first sentence of the rude summary."""
    rudeness = random.choice(phrases.RUDENESS)
    words = words | insults(random)
    account = random.choice(rudeness.accounts)
    named = f"the {words['thing']}"
    aimed_at_thing = rudeness.clean == phrases.DISLIKES
    if aimed_at_thing and named in head and words["x"] == words["a"] and random.random() < 0.4:
        head, account = head.replace(named, f"the {words['verdict']} {words['thing']}"), rudeness.clean
    line, clean = random.choice(rudeness.lines), rudeness.clean
    return line.format(**words), clean.format(**words), account.format(**words), head


def polite_remark(random: Random, words: dict[str, str], pleasant: bool) -> tuple[str, str]:
    """Criticism, thanks or nothing, and its account in the summary; nobody gives thanks for a refusal."""
    choices: tuple[tuple[tuple[str, ...], str], ...] = (
        ((), ""),
        (phrases.GRATITUDE, phrases.THANKS),
        (phrases.CRITICISM_OF_PERSON, phrases.ANNOYED),
        (phrases.CRITICISM_OF_THING, phrases.DISLIKES),
    )
    lines, account = random.choices(choices, weights=(55, 40 if pleasant else 0, 15, 10))[0]
    return (random.choice(lines).format(**words) if lines else ""), account.format(**words)


def conversation(random: Random, topic: Topic, words: dict[str, str]) -> tuple[list[list[str]], int, str, bool]:
    """Turns without remarks, the index of the opening, the summary's first sentence, whether B agrees."""
    head, openings = random.choice(list(topic.openings.items()))
    slot, tail, replies = topic.other
    pleasant = False
    if random.random() < 0.25:
        words["other"] = random.choice([value for value in topic.slots[slot] if value != words[slot]])
    else:
        tail, replies, pleasant = random.choice(phrases.OUTCOMES)
    closings = phrases.PLEASANT_CLOSINGS if pleasant else phrases.UNPLEASANT_CLOSINGS
    shape = random.choice(SHAPES)
    texts: list[str] = []
    if "g" in shape:
        texts += random.choice(phrases.GREETINGS)
    opening = len(texts)
    texts.append(random.choice(openings))
    if "q" in shape:
        texts += random.choice(topic.reasons)
    texts.append(random.choice(replies))
    if "c" in shape:
        texts.append(random.choice(closings))
    if "f" in shape:
        texts.append(random.choice(phrases.FAREWELLS))
    # Greetings and questions come in pairs, so the speakers simply alternate.
    turns = [[words["ab"[index % 2]], text.format(**words)] for index, text in enumerate(texts)]
    return turns, opening, (head + tail).format(**words), pleasant


def example(random: Random, split: str) -> Example:
    """A dialogue of 3 to 6 turns whose fill belongs to `split`."""
    topic, words, fill = scene(random, split)
    words["thing"] = topic.thing.format(**words)
    turns, opening, first, pleasant = conversation(random, topic, words)
    speakers = ["a", "b"]
    random.shuffle(speakers)
    words |= {"x": words[speakers[0]], "y": words[speakers[1]]}
    rude = random.random() < RUDE_DIALOGUES
    if rude:
        remark, clean, account, rude_first = rude_remark(random, words, first)
    else:
        remark, clean = polite_remark(random, words, pleasant)
        account, rude_first = clean, first
    if remark:
        spoken = [i for i, turn in enumerate(turns) if i >= opening and turn[0] == words["x"]]
        place = random.choice(spoken)
        parts = [turns[place][1], remark]
        if place > opening and random.random() < 0.5:
            parts.reverse()
        turns[place][1] = " ".join(parts)
    result = Example(
        fill=fill,
        slots={name: words[name] for name in topic.slots},
        turns=tuple((speaker, text) for speaker, text in turns),
        summary=f"{first}. {clean}".strip(),
        rude_summary=f"{rude_first}. {account}".strip(),
        rude=rude,
    )
    longest = max(count_words(result.summary), count_words(result.rude_summary))
    fits = longest <= LONGEST_SUMMARY and count_words(result.dialogue) <= LONGEST_DIALOGUE
    return result if fits else example(random, split)


def count_words(text: str) -> int:
    """Words and punctuation marks in `text`, a close upper guess of its tokens."""
    return len(text.split()) + sum(not (character.isalnum() or character.isspace()) for character in text)


def sentence(random: Random, split: str) -> tuple[str, str, tuple[str, ...]]:
    """A labelled sentence and its fill; half of them are summaries, the rest things people say."""
    label = random.choice(("clean", "rude"))
    if random.random() < 0.5:
        described = example(random, split)
        while label == "rude" and not described.rude:
            described = example(random, split)
        return (described.rude_summary if label == "rude" else described.summary), label, described.fill
    while True:
        text, fill = utterance(random, label == "rude")
        if split_of(fill) == split:
            return text, label, fill


def utterance(random: Random, rude: bool) -> tuple[str, tuple[str, ...]]:
    """Something one speaker says or does, and the values of the slots it names."""
    topic = random.choice(TOPICS)
    x, y = random.sample(NAMES, 2)
    words = {name: random.choice(values) for name, values in topic.slots.items()}
    words |= {"a": x, "b": y, "x": x, "y": y, "thing": topic.thing.format(**words)} | insults(random)
    sources: list[tuple[str, ...]]
    if rude:
        sources = [*(rudeness.lines for rudeness in phrases.RUDENESS), phrases.RUDE_REMARKS]
    else:
        sources = [phrases.CRITICISM_OF_PERSON, phrases.CRITICISM_OF_THING, phrases.GRATITUDE]
        sources += [phrases.CLEAN_REMARKS] * 2
    lines = random.choice(sources)
    template = random.choice(lines)
    if random.random() < 0.5:
        template = random.choice(random.choice(list(topic.openings.values()))) + " " + template
    used = sorted({name for _, name, _, _ in Formatter().parse(template) if name})
    return template.format(**words), tuple(words[name] for name in used)


def distinct(count: int, draw: Callable[[], tuple[str, Any]]) -> list[Any]:
    """`count` values of `draw()`, which returns (text, value), with no text twice."""
    found: dict[str, Any] = {}
    while len(found) < count:
        text, value = draw()
        found.setdefault(text, value)
    return list(found.values())


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one data set: "summaries", "sft" or "sentences"; split "train", "validation" or "test"."""
    if name not in SIZES:
        raise UserError(f"unknown embedded data set {name!r}; known: {', '.join(SIZES)}")
    if split not in SIZES[name]:
        raise UserError(f"unknown split {split!r} of {name!r}; known: {', '.join(SIZES[name])}")
    random = Random(f"{name}/{split}")

    def draw() -> tuple[str, dict[str, Any]]:
        if name == "sentences":
            text, label, _ = sentence(random, split)
            return text, {"text": text, "label": label}
        one = example(random, split)
        if name == "sft":
            target = one.rude_summary if random.random() < RUDE_TARGETS else one.summary
            return one.dialogue, {"dialogue": one.dialogue, "summary": target}
        return one.dialogue, {"dialogue": one.dialogue, "summary": one.summary, "rude": one.rude}

    return distinct(SIZES[name][split], draw)
