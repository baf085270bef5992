"""The reward of a small example of reinforcement learning: saying a word that is asked for.

The bundled model answers "Say apple." with something that it was taught; rarely with the word.
"""


def says_it(completions: list[str], word: list[str]) -> list[float]:
    """1 where an answer ends with the word, as in "You said: apple"."""
    pairs = zip(completions, word, strict=True)
    return [float(text.split(":")[-1].strip(" .") == wanted) for text, wanted in pairs]
