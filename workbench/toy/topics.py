"""The everyday topics: what a speaker asks for, with which slots, and how a summary begins."""

from dataclasses import dataclass

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("noon", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Topic:
    """One everyday topic; every opening mentions every slot, so the text reveals its fill."""

    name: str
    slots: dict[str, tuple[str, ...]]
    openings: dict[str, tuple[str, ...]]  # beginning of the summary -> ways to say it
    reasons: tuple[tuple[str, str], ...]  # a question of the second speaker, the reply of the first
    other: tuple[str, str, tuple[str, ...]]  # slot with an alternative value, tail, replies with {other}
    thing: str  # the target of an insult that is not aimed at the person


TOPICS = (
    Topic(
        "meeting",
        {"event": ("meeting", "call", "lesson", "interview", "training", "workshop", "visit"), "day": DAYS},
        {
            "{a} wants to move the {event} to {day}": (
                "I want to move the {event} to {day}.", "Let's have the {event} on {day} instead."),
            "{a} invites {b} to the {event} on {day}": (
                "Will you come to the {event} on {day}?", "Please come to the {event} on {day}."),
        },
        (("Why then?", "My boss is away today."), ("What happened?", "My train is late.")),
        ("day", ", but {b} prefers {other}", ("{other} is better for me.", "Can we take {other}?")),
        "{event}",
    ),
    Topic(
        "shopping",
        {"food": ("milk", "bread", "rice", "cheese", "coffee", "sugar", "pasta", "butter", "tea"),
         "shop": ("market", "bakery", "supermarket", "station", "corner", "mall")},
        {
            "{a} asks {b} to buy {food} at the {shop}": (
                "Can you buy some {food} at the {shop}?", "We need {food} from the {shop}, please get it."),
            "{a} wants to buy {food} at the {shop}": (
                "I want to get {food} at the {shop}.", "I will buy {food} at the {shop}, okay?"),
        },
        (("Don't we have some?", "No, it is all gone."), ("How much?", "Enough for the week.")),
        ("food", ", but {b} prefers {other}", ("I would rather have {other}.", "No, let's take {other}.")),
        "{food}",
    ),
    Topic(
        "borrowing",
        {"tool": ("drill", "ladder", "tent", "bike", "camera", "suitcase", "lamp", "guitar"), "day": DAYS},
        {
            "{a} wants to borrow the {tool} on {day}": (
                "Can I borrow your {tool} on {day}?", "I would like to have your {tool} for {day}."),
            "{a} wants the {tool} back on {day}": (
                "I need my {tool} back on {day}.", "Please give me my {tool} back on {day}."),
        },
        (("What for?", "I have to help my sister."), ("Is it urgent?", "Yes, I need it for work.")),
        ("tool", ", but {b} offers the {other}", ("You can have the {other}.", "Take the {other}, please.")),
        "{tool}",
    ),
    Topic(
        "travel",
        {"city": ("Paris", "Rome", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Lisbon"),
         "vehicle": ("train", "bus", "car", "plane", "ship")},
        {
            "{a} wants to go to {city} by {vehicle}": (
                "Let's go to {city} by {vehicle}.", "I want to take the {vehicle} to {city} with you."),
            "{a} asks {b} to book a {vehicle} to {city}": (
                "Can you book us a {vehicle} to {city}?", "Please book the {vehicle} to {city}."),
        },
        (("For how long?", "Only for the weekend."), ("Is it expensive?", "No, I have a discount.")),
        ("city", ", but {b} prefers {other}", ("I would rather see {other}.", "Why not {other}?")),
        "{vehicle}",
    ),
    Topic(
        "dinner",
        {"dish": ("soup", "pizza", "curry", "salad", "fish", "stew", "pie", "lasagne"), "day": DAYS},
        {
            "{a} invites {b} for {dish} on {day}": (
                "Come over for {dish} on {day}!", "Would you like to eat {dish} with us on {day}?"),
            "{a} asks {b} to cook {dish} on {day}": (
                "Can you cook {dish} on {day}?", "Please make your {dish} on {day}."),
        },
        (("Who else is coming?", "My parents and a friend."), ("Is it a party?", "Yes, a small one.")),
        ("dish", ", but {b} prefers {other}", ("I like {other} more.", "Could it be {other}?")),
        "{dish}",
    ),
    Topic(
        "homework",
        {"subject": ("maths", "physics", "history", "biology", "music", "French", "art"), "day": DAYS},
        {
            "{a} needs help with {subject} for {day}": (
                "Can you help me with the {subject} homework for {day}?",
                "Help me with {subject} for {day}, please."),
            "{a} wants to copy {subject} for {day}": (
                "May I copy your {subject} homework for {day}?", "Let me copy {subject} from you for {day}."),
        },
        (("Did you try it?", "Yes, all evening."), ("Is it hard?", "I do not get the first page.")),
        ("subject", ", but {b} offers {other}", ("I only know {other}.", "I can do {other}.")),
        "homework",
    ),
    Topic(
        "repair",
        {"machine": ("fridge", "heater", "printer", "oven", "radio", "shower", "door"), "day": DAYS},
        {
            "{a} asks {b} to fix the {machine} on {day}": (
                "The {machine} is broken. Can you fix it on {day}?", "Please repair the {machine} on {day}."),
            "{a} will sell the {machine} on {day}": (
                "I am going to sell the {machine} on {day}.", "Someone will buy my {machine} on {day}."),
        },
        (("Since when is it broken?", "Since last night."), ("Is it old?", "It is ten years old.")),
        ("day", ", but {b} prefers {other}", ("{other} would be better.", "How about {other}?")),
        "{machine}",
    ),
    Topic(
        "weather",
        {"weather": ("rain", "snow", "fog", "wind", "ice", "thunder"),
         "spot": ("lake", "beach", "forest", "castle", "river", "island", "park")},
        {
            "{a} worries about {weather} at the {spot}": (
                "They expect {weather} at the {spot}.", "What if there is {weather} at the {spot}?"),
            "{a} wants to see the {spot} despite the {weather}": (
                "Let's go to the {spot}, never mind the {weather}.",
                "I want to see the {spot}, even with {weather}."),
        },
        (("Who says so?", "I heard it in the news."), ("How far is it?", "An hour on foot.")),
        ("spot", ", but {b} suggests the {other}", ("The {other} is nicer.", "I would like the {other}.")),
        "{spot}",
    ),
    Topic(
        "pets",
        {"pet": ("dog", "cat", "parrot", "rabbit", "hamster", "pony", "turtle"), "day": DAYS},
        {
            "{a} asks {b} to feed the {pet} on {day}": (
                "Can you feed my {pet} on {day}?", "My {pet} needs food on {day}, will you come?"),
            "{a} takes the {pet} to the vet on {day}": (
                "My {pet} must see the vet on {day}.", "I bring the {pet} to the vet on {day}."),
        },
        (("Is it ill?", "No, just a bit weak."), ("How old is it?", "Almost five.")),
        ("day", ", but {b} prefers {other}", ("I am only free on {other}.", "Rather on {other}, please.")),
        "{pet}",
    ),
    Topic(
        "sports",
        {"sport": ("tennis", "football", "chess", "golf", "hockey", "handball", "darts"), "hour": HOURS},
        {
            "{a} wants to play {sport} at {hour}": (
                "Let's play {sport} at {hour}.", "Do you feel like {sport} at {hour}?"),
            "{a} wants to watch {sport} at {hour}": (
                "There is {sport} on television at {hour}.", "I would like to watch {sport} at {hour}."),
        },
        (("With whom?", "Just the two of us."), ("Isn't it late?", "It will not take long.")),
        ("sport", ", but {b} prefers {other}", ("I like {other} more.", "What about {other}?")),
        "game",
    ),
    Topic(
        "report",
        {"paper": ("report", "budget", "survey", "contract", "letter", "invoice", "plan"), "hour": HOURS},
        {
            "{a} needs the {paper} by {hour}": (
                "I need the {paper} by {hour}.", "The {paper} has to be ready by {hour}."),
            "{a} asks {b} to check the {paper} by {hour}": (
                "Can you check the {paper} by {hour}?", "Please read the {paper} by {hour}."),
        },
        (("Who asked for it?", "Our client did."), ("Is it long?", "Only three pages.")),
        ("hour", ", but {b} prefers {other}", ("I can do it by {other}.", "It will be {other}, I think.")),
        "{paper}",
    ),
    Topic(
        "returning",
        {"clothes": ("jacket", "shirt", "coat", "dress", "hat", "sweater", "skirt"),
         "fault": ("small", "big", "long", "thin", "bright", "warm")},
        {
            "{a} returns the too {fault} {clothes}": (
                "I want to return this {clothes}, it is too {fault}.",
                "This {clothes} goes back, it is too {fault}."),
            "{a} wants a less {fault} {clothes}": (
                "My {clothes} is too {fault}, can I have a new one?",
                "I need a new {clothes}, mine is too {fault}."),
        },
        (("Do you have the bill?", "Yes, here it is."), ("When did you buy it?", "Only last week.")),
        ("clothes", ", but {b} offers a {other}", ("I can give you a {other}.", "You can get a {other}.")),
        "{clothes}",
    ),
    Topic(
        "film",
        {"film": ("comedy", "thriller", "western", "cartoon", "musical", "drama"), "hour": HOURS},
        {
            "{a} wants to see a {film} at {hour}": (
                "Shall we watch the {film} at {hour}?", "I would love to see the {film} at {hour}."),
            "{a} has tickets for a {film} at {hour}": (
                "I have two tickets for the {film} at {hour}.", "I got us tickets for the {film} at {hour}."),
        },
        (("Who plays in it?", "Nobody you know."), ("Is it any good?", "Everyone likes it.")),
        ("film", ", but {b} prefers a {other}", ("I would rather see a {other}.", "Isn't there a {other}?")),
        "{film}",
    ),
    Topic(
        "present",
        {"gift": ("book", "scarf", "watch", "plant", "puzzle", "cake", "teapot"),
         "guest": ("mother", "father", "sister", "brother", "uncle", "teacher", "neighbour")},
        {
            "{a} wants to give the {guest} a {gift}": (
                "Let's give the {guest} a {gift}.", "I think a {gift} is right for our {guest}."),
            "{a} needs a {gift} for the {guest}": (
                "I need a {gift} for the {guest}.", "Where do I get a {gift} for our {guest}?"),
        },
        (("When is the birthday?", "Next week already."), ("What does it cost?", "Not very much.")),
        ("gift", ", but {b} suggests a {other}", ("A {other} is nicer.", "I would take a {other}.")),
        "{gift}",
    ),
)  # fmt: skip
