"""Word lists of the templates. Names and values become one token each."""

from __future__ import annotations

NAMES = tuple(
    """Mira Tom Anna Ben Clara David Emma Felix Greta Hugo Ida Jan Karl Lena Max Nora Otto Paul
    Rosa Sam Tina Uma Vera Will Yara Zoe Alan Bella Carl Dora Eric Flora George Hanna Ivan Julia
    Kate Leo Maria Nico Olga Peter Rita Simon Theo Ulla Victor Wanda Adam Bruno Cora Dina Edgar
    Frida Gina Henry Iris Jonas Klara Luis Mona Nils Oscar Pia Ralf Sara Tim Ursula Viola Walter
    Alice Boris Celia Daniel Elsa Fred Grace Helen Isaac James Lucy Martin Nina Oliver""".split()
)

VALUES = tuple(
    """falcon amber river copper violet anchor bridge candle desert ember forest garden hammer
    island jacket kettle ladder marble needle orange pepper quartz ribbon silver tunnel umbrella
    valley window yellow zebra apple button castle dragon engine feather guitar honey ice jungle
    kite lemon mirror nest ocean paper queen rocket saddle tiger uncle velvet wagon acorn basket
    cotton diamond eagle flute ginger harbor ink jewel knife lantern mountain nut olive pearl
    rabbit shadow tower vase wheel arrow barrel coral daisy echo fossil glove hazel ivory
    lotus maple nickel onyx piano raven salmon thunder willow""".split()
)

RELATIONS = ("code", "word", "key", "sign", "seal", "badge", "token", "mark")

FILLER = tuple(
    """The day was calm.|It rained in the morning.|The street was quiet.|A dog slept by the door.
    The train was late.|Nobody was in a hurry.|The tea was still warm.|The lamp was on.
    A bird sang in the tree.|The shop was closed.|The wind came from the west.|The snow was deep.
    Children played in the park.|The bread smelled good.|The clock struck five.
    The road was long.|The boat lay still.|The cat looked out.|The moon was bright.
    The letter came today.""".replace("\n", "|").split("|")
)
FILLER = tuple(sentence.strip() for sentence in FILLER if sentence.strip())

CITIES = tuple(
    """Paris London Berlin Rome Madrid Vienna Oslo Lisbon Dublin Prague Athens Cairo Tokyo Delhi
    Lima Boston Chicago Denver Seattle Toronto Sydney Zurich Hamburg Munich Geneva Milan Porto
    Warsaw Helsinki Stockholm""".split()
)
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple(
    """January February March April May June July August September October November
    December""".split()
)
ANIMALS = tuple(
    "fox bear cat dog horse cow duck frog goat hen lion mouse owl pig rabbit sheep wolf bee".split()
)
NUMBER_WORDS = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())
