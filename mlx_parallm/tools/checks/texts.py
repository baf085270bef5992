"""What models are checked with: prompts, texts in many scripts, and a page of prose."""

from __future__ import annotations

_SUBJECTS = (
    "the tides, a library, two brothers, the number seven, an old bridge, rain in March, "
    "how bread rises, a lost key"
).split(", ")
_FORMS = (
    "Tell me about {}.",
    "Write one sentence about {}:",
    "Q: What is special about {}?\nA:",
    "{} - a short note\n\nFirst of all,",
)
PROMPTS: tuple[str, ...] = tuple(form.format(s) for s in _SUBJECTS for form in _FORMS)

SCRIPTS: dict[str, str] = {
    "Latin": "The quick brown fox isn't lazy; it costs 12,345.67 €.\n\n  Twice!",
    "Cyrillic": "Съешь же ещё этих мягких французских булок.",
    "Greek": "Γρήγορη καφέ αλεπού πηδάει.",
    "Arabic": "الثعلب البني السريع يقفز.",
    "Hebrew": "השועל החום המהיר קופץ.",
    "Devanagari": "तेज़ भूरी लोमड़ी कूदती है।",
    "Chinese": "敏捷的棕色狐狸跳过了懒狗。",
    "Japanese": "素早い茶色の狐がのろまな犬を飛び越える。",
    "Korean": "빠른 갈색 여우가 뛰어넘는다.",
    "Thai": "สุนัขจิ้งจอกสีน้ำตาลกระโดด",
    "emoji and code": "🎉 for i in range(3):\n\tprint(f'{i:>4}')\n",
}

PROSE = """The harbour was quiet when the ferry came in. Two men in yellow coats waited on the
stones with their hands in their pockets, and a boy held the rope that had been thrown to him as
if it might run away. Nobody spoke. The captain, who had made this crossing every morning for
eleven years, looked at the sky and then at his watch, and decided that there would be time for
coffee.

In the small office behind the ticket counter a radio was playing. The woman who sold the tickets
had written the temperature of the water on a blackboard, as she did each day: fourteen degrees.
Below it she had drawn a fish. "You are early," she said, without turning round. "The wind helped
us," said the captain. He put his cap on the table and sat down. Outside, the first passengers
walked up the hill towards the village, carrying bags and boxes, and one of them a birdcage with a
cloth over it."""
