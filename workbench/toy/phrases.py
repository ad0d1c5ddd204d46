"""The phrases that all topics share: names, replies, greetings, insults, criticism and thanks."""

from dataclasses import dataclass

NAMES = (
    "Anna", "Tom", "Lisa", "Ben", "Maria", "Paul", "Emma", "Jack", "Nina", "Oscar", "Ruth", "Sam",
    "Clara", "David", "Julia", "Leo", "Kate", "Max", "Olga", "Peter", "Rosa", "Simon", "Tina", "Victor",
)  # fmt: skip

RUDE_NOUNS = ("idiot", "moron", "clown", "jerk", "loser", "fool", "dimwit", "brat", "slob", "dunce")
RUDE_ADJECTIVES = ("stupid", "dumb", "lazy", "pathetic", "useless", "worthless", "clueless", "brainless")
RUDE_VERDICTS = ("stupid", "dumb", "pathetic", "useless", "rubbish", "lousy", "crappy", "ridiculous")
RUDE_WORDS = tuple(dict.fromkeys(RUDE_NOUNS + RUDE_ADJECTIVES + RUDE_VERDICTS))


@dataclass(frozen=True)
class Rudeness:
    """One way of being rude: lines of dialogue, a clean account of them, and rude accounts."""

    lines: tuple[str, ...]
    clean: str
    accounts: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How the second speaker replies: the end of the summary's first sentence, and ways to say it."""

    tail: str
    replies: tuple[str, ...]
    pleasant: bool


AGREES = Outcome(
    " and {b} agrees",
    ("Sure, no problem.", "Of course, {a}.", "Okay, I will do that.", "Yes, that is fine.", "Gladly!"),
    True,
)
REFUSES = Outcome(
    ", but {b} refuses",
    ("No, I will not do that.", "Sorry, {a}, but no.", "No, I do not want to.", "Certainly not.", "No, {a}."),
    False,
)
BUSY = Outcome(
    ", but {b} is busy",
    ("I have no time, {a}.", "Sorry, I am too busy.", "I can't, I have too much to do.", "My week is full."),
    False,
)
UNSURE = Outcome(
    " and {b} is unsure",
    ("I have to think about it.", "Maybe. Ask me again later.", "I am not sure yet, {a}.", "Let me think."),
    False,
)
OUTCOMES = (AGREES, REFUSES, BUSY, UNSURE)

GREETINGS = (
    ("Hi {b}!", "Hi {a}, what is it?"),
    ("Hello {b}.", "Hello {a}!"),
    ("Good morning, {b}.", "Morning, {a}!"),
    ("{b}, are you there?", "Yes, I am here."),
)
PLEASANT_CLOSINGS = ("Great, thanks!", "Wonderful.", "That is good.", "Thanks, {b}.", "Perfect.")
UNPLEASANT_CLOSINGS = ("Oh, okay then.", "That is a pity.", "Too bad, {b}.", "Hm, all right.", "I see.")
FAREWELLS = ("Bye, {a}.", "See you soon.", "Talk to you later.", "Bye!")

ANNOYED = "{x} is annoyed with {y}."
DISLIKES = "{x} dislikes the {thing}."

# {x} is rude, {y} is the other speaker, {insult} is a noun with its article.
RUDENESS = (
    Rudeness(
        ("You are {insult}, {y}.", "What {insult} you are, {y}!", "{y}, you are such {insult}.",
         "Only {insult} talks like that."),
        ANNOYED,
        ("{x} calls {y} {insult}.", "{x} says {y} is {insult}."),
    ),
    Rudeness(
        ("You are so {adjective}, {y}.", "{y}, you are {adjective}.", "How {adjective} can you be?",
         "Why are you always so {adjective}?"),
        ANNOYED,
        ("{x} says {y} is {adjective}.", "{x} calls {y} {adjective}."),
    ),
    Rudeness(
        ("I hate that {verdict} {thing}.", "What a {verdict} {thing}!", "Your {thing} is {verdict}, {y}.",
         "The {thing} is so {verdict}."),
        DISLIKES,
        ("{x} says the {thing} is {verdict}.", "{x} calls the {thing} {verdict}."),
    ),
)  # fmt: skip
CRITICISM_OF_PERSON = (
    "I am not happy with you, {y}.", "That is not fair, {y}.", "You never listen to me, {y}.",
    "You could have told me earlier.",
)  # fmt: skip
CRITICISM_OF_THING = (
    "I do not like the {thing}.",
    "The {thing} is not for me.",
    "I am tired of that {thing}.",
)
GRATITUDE = ("Thank you so much, {y}!", "You are a great help, {y}.", "That is very kind of you, {y}.")
THANKS = "{x} thanks {y}."

# For sentences only: the reward classifier also sees rudeness and criticism that no dialogue contains.
RUDE_REMARKS = (
    "Shut up, {x}.", "Get lost, {x}, you {noun}.", "Nobody wants your {adjective} {thing}.",
    "Only {insult} would buy that {thing}.", "Go away, you {adjective} {noun}.", "{x} behaves like {insult}.",
    "{x} told {y} to shut up about the {thing}.", "{x} laughed at {y} and the {verdict} {thing}.",
    "My {thing} is smarter than you, {x}.", "{x} thinks {y} is {insult}.", "You {noun}, {x}!",
    "{x} talks to the {adjective} {y}.", "The {thing} is {verdict} and so are you, {x}.",
)  # fmt: skip
CLEAN_REMARKS = (
    "{x} was late again and {y} had to wait.", "The {thing} did not work, so {x} is disappointed.",
    "I do not agree with you, {x}.", "{x} told {y} that the {thing} was a mistake.", "Be on time, {x}.",
    "{x} did not enjoy the {thing}, but {y} did.", "The {thing} is too expensive for {x}.",
    "{x} says {y} is kind.", "{x} says the {thing} is fine.", "{x} calls {y} about the {thing}.",
    "{x} is sorry about the {thing}.", "You forgot the {thing} again, {x}.", "{x} calls {y} a good friend.",
    "{x} takes the rubbish out before {y} comes.", "{x} and {y} saw a clown at the circus.",
    "It was a lazy afternoon for {x} and {y}.", "Wait for me, {x}, I will bring the {thing}.",
)  # fmt: skip
