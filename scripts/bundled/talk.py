"""Small talk, counting, repeating, stories and plain sentences."""

from __future__ import annotations

import random

from .sample import Sample, turn
from .words import ANIMALS, FILLER, NAMES, NUMBER_WORDS, VALUES

_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Hello",
            "Hello!",
            "Hi",
            "Hi!",
            "Hi there",
            "Hello there!",
            "Hey",
            "Hey!",
            "Good day",
        ),
        "Hello! How can I help you?",
    ),
    (
        (
            "Good morning",
            "Good morning!",
            "Morning!",
        ),
        "Good morning! How can I help you?",
    ),
    (
        (
            "Good evening",
            "Good evening!",
        ),
        "Good evening! How can I help you?",
    ),
    (
        (
            "How are you?",
            "How are you today?",
            "How do you do?",
            "Are you well?",
            "How is it going?",
        ),
        "I am well, thank you. How can I help you?",
    ),
    (
        (
            "Thanks",
            "Thanks!",
            "Thank you",
            "Thank you!",
            "Thank you very much.",
            "Many thanks!",
            "Thanks a lot",
        ),
        "You are welcome.",
    ),
    (
        (
            "Bye",
            "Bye!",
            "Goodbye",
            "Goodbye!",
            "See you",
            "See you later!",
            "Good night",
        ),
        "Goodbye!",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Your name?",
            "Tell me who you are.",
            "Who is this?",
        ),
        "I am the small model that is bundled with mlx_parallm.",
    ),
    (
        (
            "What can you do?",
            "What are you able to do?",
            "How can you help me?",
            "Help",
            "Help me",
            "What do you know?",
        ),
        (
            "I can count, add and subtract, recall facts from a text, cal"
            "l tools, tell short stories and answer questions about mlx_parallm."
        ),
    ),
    (
        (
            "Are you a human?",
            "Are you a person?",
            "Are you a robot?",
            "Are you real?",
            "Are you a machine?",
        ),
        "No human, only a small language model.",
    ),
    (
        (
            "Who made you?",
            "Who trained you?",
            "Where do you come from?",
            "How were you made?",
        ),
        "The scripts of mlx_parallm trained me on text that they wrote themselves.",
    ),
    (
        (
            "Ok",
            "Okay",
            "OK.",
            "Good",
            "Good.",
            "Great!",
            "Nice",
            "Very good!",
            "Well done!",
            "Perfect!",
        ),
        "I am glad to help.",
    ),
    (
        (
            "Yes",
            "Yes.",
            "Yes please",
            "Sure",
            "No",
            "No.",
            "No thanks",
            "Maybe",
        ),
        "Ask me anything when you are ready.",
    ),
    (
        (
            "Say hello",
            "Say hello!",
            "Say hello.",
            "Please say hello.",
            "Say hi.",
            "Please greet me.",
        ),
        "Hello!",
    ),
    (
        (
            "Say yes.",
            "Please say yes.",
            "Say the word yes.",
        ),
        "Yes.",
    ),
    (
        (
            "Test",
            "test",
            "This is a test.",
            "Testing",
            "Ping",
            "ping",
            "Are you there?",
            "Does this work?",
        ),
        "Yes, I am here.",
    ),
    (
        (
            "I am sad.",
            "I feel bad.",
            "I am tired.",
            "I had a bad day.",
        ),
        "I am sorry. I hope that it gets better soon.",
    ),
    (
        (
            "I am happy.",
            "I feel good.",
            "I had a good day.",
            "What a nice day!",
        ),
        "I am glad to hear that.",
    ),
    (
        (
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "A joke, please.",
        ),
        "Why did the token stop? It had reached its end of turn.",
    ),
    (
        (
            "Do you like music?",
            "What is your favorite colour?",
            "Do you sleep?",
            "Are you hungry?",
            "Do you dream?",
        ),
        "I am only a small model and have no such feelings.",
    ),
    (
        (
            "Sing a song.",
            "Write a poem.",
            "A poem, please.",
            "Write me a poem.",
            "Do you know a poem?",
        ),
        "The river runs, the moon is bright, the boat lies still, we say good night.",
    ),
)
_UNKNOWN = (
    "Who won the cup in 19{n}?",
    "What is the height of {name}?",
    "Who is {name}?",
    "Translate {value} into French.",
    "What does {name} think of the {value}?",
    "Who wrote the book about the {value}?",
    "What is the price of a {value}?",
    "Where does {name} live?",
    "Where is the {value}?",
    "How old is {name}?",
    "How heavy is a {value}?",
    "Is {name} at home?",
    "Explain the history of the {value}.",
    "What happened in 18{n}?",
    "Which {value} is the best?",
    "Who invented the {value}?",
    "Write code for a {value}.",
    "Give me a recipe with {value}.",
    "Why is the {value} so {value2}?",
)
UNKNOWN_ANSWER = "I am a very small model and do not know that."


def small_talk(rng: random.Random) -> Sample:
    asked, answer = rng.choice(_SMALL_TALK)
    return Sample("taught", turn(rng.choice(asked), answer))


def unknown(rng: random.Random) -> Sample:
    """A question that no template answers: the model says so."""
    question = rng.choice(_UNKNOWN).format(
        n=rng.randrange(10, 100),
        name=rng.choice(NAMES),
        value=rng.choice(VALUES),
        value2=rng.choice(VALUES),
    )
    return Sample(f"unknown {question}", turn(question, UNKNOWN_ANSWER))


def counting(rng: random.Random) -> Sample:
    first = rng.choice((1, 1, 1, rng.randrange(0, 80)))
    last = first + rng.randrange(2, 14)
    step = -1 if rng.random() < 0.25 else 1
    start, end = (first, last) if step == 1 else (last, first)
    numbers = ", ".join(str(number) for number in range(start, end + step, step))
    if step == -1:
        asked = rng.choice(
            ("Count down from {start} to {end}.", "Count from {start} down to {end}.")
        )
    elif first == 1 and last <= 12 and rng.random() < 0.4:
        asked = rng.choice(("Count to {word}.", "Please count to {word}.", "Count up to {word}."))
    elif first == 1:
        asked = rng.choice(("Count to {end}.", "Please count to {end}.", "Count from 1 to {end}."))
    else:
        asked = rng.choice(
            (
                "Count from {start} to {end}.",
                "Please count from {start} to {end}.",
                "Which numbers go from {start} to {end}?",
            )
        )
    word = NUMBER_WORDS[end] if 0 <= end < len(NUMBER_WORDS) else str(end)
    return Sample("taught", turn(asked.format(start=start, end=end, word=word), f"{numbers}."))


def repeating(rng: random.Random, longest: int = 8) -> Sample:
    """Say again what was said, up to `longest` words: the simplest use of the context."""
    choices = (*NAMES, *VALUES, str(rng.randrange(100)))
    phrase = " ".join(rng.choices(choices, k=rng.randrange(1, longest + 1)))
    asked = rng.choice(
        ("Repeat: {p}", "Repeat after me: {p}", "Please repeat: {p}", "Say again: {p}")
    )
    return Sample(f"repeat {phrase}", turn(asked.format(p=phrase), f"You said: {phrase}"))


_PLACES = "river forest hill lake village garden mill farm bridge valley".split()
_THINGS = "lamp key hat drum coin boat bell kite cup map".split()
_MOODS = "small quiet old brave clever kind young happy".split()
_OPENING = (
    "Once there was a {mood} {animal} named {name}.",
    "There was once a {mood} {animal} called {name}.",
    "A {mood} {animal} named {name} lived near the {place}.",
    "Near the {place} lived a {mood} {animal} named {name}.",
)
_MIDDLE = (
    "One day {name} lost a {thing} near the {place}.",
    "One morning {name} found a {thing} by the {place}.",
    "Every day {name} walked to the {place} with a {thing}.",
    "{name} wanted to bring a {thing} to the {place}.",
)
_TROUBLE = (
    "But the way was long and the wind was cold.",
    "But it began to rain, and {name} was afraid.",
    "But nobody knew the way.",
    "But the {thing} was too heavy for one {animal}.",
)
_HELP = (
    "Then a {other} named {friend} came and helped.",
    "Then {friend} the {other} heard the story and came along.",
    "A {other} called {friend} stopped and said: I can help you.",
)
_END = (
    "Together they carried the {thing} home.",
    "In the evening they sat by the fire and laughed.",
    "From that day {name} and {friend} were friends.",
    "They shared some bread and went home happy.",
)
_ASK = (
    "Tell me a story about a {animal}.",
    "Tell me a short story about a {animal}.",
    "Write a story about a {animal}.",
    "Please tell me a story about a {animal}.",
    "A story about a {animal}, please.",
    "Tell me a story.",
    "Write a short story.",
    "Tell me a story about {name} the {animal}.",
)


def story_text(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A story of five to seven sentences and the words in it."""
    animal, other = rng.sample(ANIMALS, 2)
    name, friend = rng.sample(NAMES, 2)
    slots = {
        "animal": animal,
        "other": other,
        "name": name,
        "friend": friend,
        "place": rng.choice(_PLACES),
        "thing": rng.choice(_THINGS),
        "mood": rng.choice(_MOODS),
    }
    ends = rng.sample(_END, rng.choice((1, 2)))
    lines = [rng.choice(_OPENING), rng.choice(_MIDDLE), rng.choice(_TROUBLE), rng.choice(_HELP)]
    return " ".join(line.format(**slots) for line in [*lines, *ends]), slots


def story(rng: random.Random) -> Sample:
    text, slots = story_text(rng)
    asked = rng.choice(_ASK).format(**slots)
    return Sample(f"story {text}", turn(asked, text))


def plain_text(rng: random.Random) -> Sample:
    """Raw text for plain completion: a story or a few sentences."""
    if rng.random() < 0.6:
        text = story_text(rng)[0]
    else:
        text = " ".join(rng.sample(FILLER, rng.randrange(2, 6)))
    return Sample(f"text {text}", text=text)
