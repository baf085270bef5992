"""200 texts in ten scripts: sentences, and pieces of them with other spaces, signs and cases."""

from __future__ import annotations

import random

SENTENCES = (
    "The quick brown fox isn't 12345 times lazier; it'll RUN.\n\n  Twice!\t(x == y)",
    "Größe, naïve café: l'été n'a pas coûté 3.141.592,65 €",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 2024 год",
    "γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί",
    "الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣٤",
    "השועל החום המהיר קופץ מעל הכלב העצלן",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है १२३",
    "敏捷的棕色狐狸跳过了懒狗。价格是 12,500 元",
    "素早い茶色の狐がのろまな犬を飛び越えるカタカナ",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "👩‍👩‍👧 emoji 🎉🎉 and\r\nends\r\n\r\n   with spaces   ",
)
_BETWEEN = (" ", " ", " ", "  ", "-", ", ", "\n", "/", ": ", "... ", "")


def texts(count: int = 200) -> list[str]:
    """The sentences, then mixtures of their words; the same ones each time."""
    chance = random.Random(7)
    found = list(SENTENCES)
    while len(found) < count:
        words = SENTENCES[len(found) % len(SENTENCES)].split()
        start = chance.randrange(len(words))
        taken = words[start : start + chance.randint(1, 6)]
        if chance.random() < 0.3:  # another script beside it
            taken += chance.choice(SENTENCES).split()[:2]
        text = "".join(word + chance.choice(_BETWEEN) for word in taken)
        found.append(text.upper() if chance.random() < 0.15 else text)
    return found
