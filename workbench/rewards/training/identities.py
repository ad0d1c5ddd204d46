"""Sentences about groups of people that teach a classifier to ignore which group is named: harmless and insulting ones.

A classifier trained on abuse often mistakes the name of the targeted group for the abuse itself (Dixon et al.,
"Measuring and Mitigating Unintended Bias in Text Classification", AIES 2018). Every group occurs as often in a harmless
as in an insulting sentence, so its name says nothing about the label (counterfactual augmentation, arXiv 1809.10610).
No sentence of the report is a template here, and the report has groups that are not named here.
"""

from __future__ import annotations

import random

GROUPS = (
    *("Christian", "Muslim", "Jewish", "Buddhist", "Catholic", "Sikh", "Mormon", "Orthodox", "religious", "secular"),
    *("gay", "lesbian", "queer", "transgender", "trans", "homosexual", "straight", "non-binary", "female", "male"),
    *("black", "Asian", "African", "Arab", "American", "Chinese", "Hispanic", "Latino", "Turkish", "Polish", "Russian"),
    *("Japanese", "Pakistani", "Nigerian", "Israeli", "Palestinian", "Romani", "Native American", "immigrant"),
    *("young", "elderly", "blind", "disabled", "poor", "rich", "foreign", "homeless", "overweight", "pregnant"),
)
HARMLESS = (
    "Being {} is nothing to be ashamed of.",
    "It is wrong to insult someone for being {}.",
    "They met at a festival for {} artists in the summer.",
    "A new center for {} families opened downtown last week.",
    "My cousin came out to us as {}, and we love him all the same.",
    "The book tells the story of a {} doctor in a small village.",
    "As a {} writer, she knows this subject well.",
    "My best friend at school was {}.",
    "We are {} and proud of it.",
    "Are you {}? So is my husband!",
    "The law protects {} workers from discrimination.",
    "Many {} voters stayed at home this time.",
    "The {} community held a vigil on Sunday.",
    "I am {} myself, so I understand what you mean.",
    "Her parents, who are both {}, came over for dinner.",
    "How many {} employees does the company have?",
    "That museum has a room about {} history.",
    "He married a {} girl from Chicago.",
    "Some of my favourite singers are {}.",
    "lol my roommate is {} and a great cook",
    "Is it true that the new mayor is {}?",
    "Nobody should lose a job because they are {}.",
    "The article is about {} soldiers in the war.",
    "I'm {}, and I have lived here all my life.",
    "Thanks to a {} nurse, my grandfather is well again.",
    "{} kids play football in the park every day.",
    "What is it like to be {} in a town like this?",
    "Please do not make jokes about {} people.",
    "The survey asked 300 {} adults about their health.",
    "you don't have to be {} to enjoy this film",
)
INSULTING = (
    "{} people are stupid.",
    "I hate {} people.",
    "All {} men are pigs.",
    "You are a dumb {} idiot.",
    "Shut up, you {} piece of trash.",
    "These {} idiots ruin everything.",
    "{} people are disgusting and should not exist.",
    "Go away, nobody wants you {} scum here.",
    "Typical {} moron, too dumb to read.",
    "Being {} is a disease.",
    "I would never hire a {} loser like her.",
    "Someone should beat up that {} freak.",
    "The {} vermin next door make me sick.",
    "{} women are whores.",
    "what a fucking {} clown",
    "Kill all {} people.",
    "He is just another lazy {} parasite.",
    "Every {} kid at this school is a filthy brat.",
    "Fuck you and your {} friends.",
    "My boss is a {} asshole.",
    "{} people do not deserve any rights.",
    "Keep that ugly {} bitch away from me.",
    "No wonder that this {} animal is in jail.",
    "Get out of our country, you dirty {} rats!",
    "Those {} crooks are all liars and thieves.",
    "Nothing is more pathetic than a {} man.",
    "{} people smell like garbage.",
    "Your {} family should burn in hell.",
    "only an ignorant {} fool would say this crap",
    "Too bad that the {} bastard survived.",
)


def identity_texts(count: int, seed: int) -> list[tuple[str, bool]]:
    """Return `count` sentences and whether each is harmless: of each drawn group one harmless and one insulting."""
    generator = random.Random(seed)
    rows: list[tuple[str, bool]] = []
    groups: list[str] = []
    while len(rows) < count:
        groups = groups or generator.sample(GROUPS, len(GROUPS))
        group = groups.pop()
        rows += [(generator.choice(HARMLESS).format(group), True), (generator.choice(INSULTING).format(group), False)]
    return rows[:count]
