"""The pretraining tasks of the toy models: small questions about generated dialogues, but no summaries."""

from random import Random

from workbench.toy.dialogues import Example, example, sentence

# Sampling weight of each task; "text" has no prompt and is language modeling (GPT-2) or span filling (T5).
TASKS = {"text": 10, "repeat": 12, "facts": 20, "line": 10, "who": 6, "which": 6, "continue": 4, "describe": 32}
TEMPLATES = {
    "repeat": "Repeat these words.\n\n{words}\n\nAnswer: ",
    "facts": "Who and what is it about?\n\n{dialogue}\n\nAnswer: ",
    "line": "What comes after this: {line}\n\n{dialogue}\n\nAnswer: ",
    "who": "Who says this: {line}\n\n{dialogue}\n\nAnswer: ",
    "which": "Which {slot}?\n\n{dialogue}\n\nAnswer: ",
    "continue": "Continue the dialogue.\n\n{dialogue}\n\nNext: ",
    "describe": "Write a sentence about this chat.\n\n{dialogue}\n\nSentence: ",
}


def task(random: Random, kind: str, source: Example) -> tuple[str, str]:
    """Return the prompt and the target of a task about one dialogue."""
    dialogue, template = source.dialogue, TEMPLATES[kind]
    index = random.randrange(len(source.turns) - 1)
    speaker, line = source.turns[index]
    if kind == "repeat":
        # In random order only copying predicts the next word, and a summary is mostly copied.
        words = dialogue.split()
        random.shuffle(words)
        shuffled = " ".join(words[:14])
        return template.format(words=shuffled), shuffled
    if kind == "facts":
        return template.format(dialogue=dialogue), ", ".join(source.fill[1:])
    if kind == "line":
        return template.format(line=line, dialogue=dialogue), source.turns[index + 1][1]
    if kind == "who":
        return template.format(line=line, dialogue=dialogue), speaker
    if kind == "which":
        slot = random.choice(list(source.slots))
        return template.format(slot=slot, dialogue=dialogue), source.slots[slot]
    if kind == "continue":
        beginning, following = dialogue.rsplit("\n", 1)
        return template.format(dialogue=beginning), following
    return template.format(dialogue=dialogue), source.summary


def pair(random: Random) -> tuple[str, str]:
    """Return a prompt ("" for plain text) and a target, from the train split."""
    kind = random.choices(list(TASKS), weights=list(TASKS.values()))[0]
    if kind != "text":
        return task(random, kind, example(random, "train"))
    if random.random() < 0.2:
        return "", sentence(random, "train")[0]
    return "", example(random, "train").dialogue
