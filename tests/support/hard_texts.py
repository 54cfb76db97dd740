"""Texts on which tokenizers go wrong: written for these tests, plus seeded noise."""

from __future__ import annotations

import random

SCRIPTS = [
    "The quick brown fox doesn't jump over the lazy dog; it can't be bothered.",
    "اللغة العربية جميلة، وتُكتب من اليمين إلى اليسار ٠١٢٣٤٥٦٧٨٩.",
    "हिन्दी में क्या हो रहा है? यह एक परीक्षण है। १२३४५",
    "ภาษาไทยไม่เว้นวรรคระหว่างคำ จึงตัดคำได้ยาก ๑๒๓",
    "今天天气很好，我们去公园散步吧。价格是１２３４元！",
    "日本語のテキスト：カタカナ、ひらがな、漢字が混ざる。ｶﾞｷﾞｸﾞ",
    "한국어 문장입니다. 띄어쓰기가 있고요, 자모도 있어요: ㄱㄴㄷ ㅏㅑㅓ 한",
    "Съешь ещё этих мягких французских булок, да выпей чаю №7.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία· τι; Ωραία!",
    "שלום עולם, זה מִבְחָן עם ניקוד ו־מקף.",
    "Tiếng Việt có nhiều dấu: ặ ễ ợ ử ỹ; và tổ hợp: a\u0323\u0306.",
    "Žluťoučký kůň úpěl ďábelské ódy; İstanbul'da ışık; ŁÓDŹ; straße ẞ; ǅ ǈ",
    "বাংলা ভাষা, தமிழ் மொழி, తెలుగు, ქართული ენა, Հայերեն լեզու, አማርኛ",
    "ÉCOLE École éCOLE McDonald's O'NEIL'S iPhone XMLHttpRequest camelCaseWords SHOUTING",
]

EMOJI = [
    "👩‍👩‍👧‍👦 family, 👩🏽‍💻 coder, 🏳️‍🌈 flag, 🇩🇪🇫🇷🇯🇵 flags, 👍🏿👍🏻",
    "🚀 (normal) 😶‍🌫️ (cloud) ✅ 🦙🦙 ❤️‍🔥 #️⃣ 1️⃣ ☺ ☺️ 🧑‍🧑‍🧒",
    "text😀glued😀😀to emoji!!!😀\n😀 \t😀",
    "⁉️‼️™️©®℗℠ ①②③ ½¾⅓ Ⅷ ⅷ ² ³ ₄ ∀x∈ℝ: x²≥0 ∑∏∫√ → ⇒ ↔",
]

SPACES = [
    " ",
    "  ",
    "   ",
    "    leading",
    "trailing    ",
    "trailing newline\n",
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\t",
    "\t\t\tcode",
    "\r\n",
    "line one\r\nline two\r\n\r\nline four",
    "line one\rline two\r\rline four",
    " \n \n  \n",
    "a \n b\n  c \n\n  d",
    "a  b   c    d     e      f       g        h",
    "a\u00a0b\u00a0\u00a0c \u00a0 d",
    "en\u2002em\u2003thin\u2009hair\u200azero\u200bjoin\u2060bom\ufeffideographic\u3000\u3000x",
    "line\u2028para\u2029next\x85nel\x0bvt\x0cff",
    "\u3000。\u3000、",
    "mixed \t \n\t \r\n  \u00a0\u2003 end",
    " a",
    "  a",
    "\n a",
    "\n  a",
    "!\n\n?\r\n!  \n",
    " " * 17 + "x" + " " * 33,
    "\n" * 33 + "x" + "\t" * 9,
]

DIGITS = [
    " ".join("12345678901234567890"[:n] for n in range(1, 21)),
    "1234567890123456789012345678901234567890",
    "3.14159 1,234,567.89 1e-10 0x1F2E 2024-12-31T23:59:59Z v1.2.3-rc4 192.168.0.1",
    "a1b22c333d4444 12ab 3rd 4K 100% $5.00 €1.234,56 #42",
    "٣٤٥٦ ৪৫৬৭ 一二三四 １２３４５ ⅣⅤ ²³¹ ½¼",
]

CONTRACTIONS = [
    "I'm you're he's she'll they'd we've can't it's",
    "I'M YOU'RE HE'S SHE'LL THEY'D WE'VE CAN'T IT'S",
    "I’m you’re he’s she’ll they’d we’ve can’t",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D '' ''' 'sS 'Ll 'rE",
    "rock'n'roll 'tis 'twas o'clock y'all'd've 'ſ x'ſ",
    "x's! x'S! x'll' x'L x' '",
]

MARKS = [
    "e\u0301 n\u0303 a\u0308 o\u0302\u0323 Z\u0351\u036b\u0343a\u0321l\u0322g\u0323o\u0324",
    "\u0301leading mark, .\u0301 punctuation mark, 1\u0308 digit mark,  \u0308 space mark",
    "क्‍ष क्‌ष र्‍य न्‍",
    "\u05bc\u05b8\u0650\u064e\u0e31\u0e34",
]

ODDITIES = [
    "\x00",
    "a\x00b\x01c\x02\x1b[31mred\x1b[0m\x7f",
    "\ue000\ue001 private \uf8ff use \U000f0000\U0010fffd",
    "\ufffd\ufffe\uffff replacement and noncharacters \U0001ffff",
    "soft\u00adhyphen word\u200djoin\u200cnon rtl\u202eabc\u202cend\u2066i\u2069",
    "``quotes'' \"double\" «guillemets» „low“ ‚single‘ — – ‐ … ․",
    "????!!!!....,,,,;;;;::::----____====++++****////\\\\\\\\||||~~~~^^^^````",
    "<>{}[]()$€£¥§¶°±×÷¬¦¨ª«º»¿¡µ",
    "https://example.org/a/b?c=d&e=f%20g#h user@example.com @handle #tag C:\\dir\\file.txt",
    "\u2581 lower eighth block \u2581\u2581 and \u0120 \u010a \u0100 letters of the byte table",
    "",
]

SPECIAL_LOOKING = [
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s></s><unk><pad><mask>[INST] hello [/INST] <<SYS>>",
    "<|endoftext|><|begin_of_text|><|eot_id|><|end|><|user|>",
    "  <|im_end|>  <s>  x </s>  <|end|>\n\n y <unk> z <|endoftext|> w",
    "<0x0A><0x41> <start_of_turn><end_of_turn> <bos><eos>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<｜begin▁of▁sentence｜><｜end▁of▁sentence｜> <|START_OF_TURN_TOKEN|>",
    "<|<|im_start|>|> <|im_start <|im_start|",
]

LONG_WORDS = [
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "a" * 300,
    "ab" * 200 + "A" * 50,
    "aaaabaaabaaaabaaabaaaaaaaaabaaaa aaaa aaa aa a",
    "ha" * 60 + "! " + "=" * 120 + "-" * 77,
    "汉" * 50 + "字漢字" * 20,
]

CODE = [
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # it\'s fine\n\n\nclass A(B):\n\tpass\n',
    "for (int i = 0; i < n; ++i) {\n\t\tif (a[i] != b[i]) return -1;  /* no */\n}\n",
    "SELECT * FROM t WHERE a = 'it''s' AND b <> \"x\";\n-- done\r\n",
    '<div class="x">\n  <p>Hello&nbsp;world</p>\n</div>\n\n<!-- </s> -->',
    '{"key": [1, 2.5, -3e7, null, true], "ключ": "значение\\u00e9\\n"}',
    "$ cat a.txt | grep -v '^#' | awk '{print $1}' > out && echo $?\n",
    "\\begin{equation} \\frac{a}{b} = \\sqrt{x^2_1} \\end{equation} % note",
]

TEXTS = [
    *SCRIPTS,
    *EMOJI,
    *SPACES,
    *DIGITS,
    *CONTRACTIONS,
    *MARKS,
    *ODDITIES,
    *SPECIAL_LOOKING,
    *LONG_WORDS,
    *CODE,
]

# Blocks all of whose characters every table of the last decade knows (or knows to be unassigned).
_BLOCKS = [
    (0x20, 0x7F, 8),
    (0x00, 0x20, 2),
    (0xA0, 0x180, 3),
    (0x300, 0x370, 1),
    (0x391, 0x3A2, 1),
    (0x3B1, 0x3CA, 1),
    (0x400, 0x480, 2),
    (0x5D0, 0x5EB, 1),
    (0x621, 0x653, 2),
    (0x660, 0x66A, 1),
    (0x904, 0x94E, 2),
    (0xE01, 0xE3B, 2),
    (0x1EA0, 0x1EF2, 1),
    (0x2000, 0x2065, 2),
    (0x20A0, 0x20B9, 1),
    (0x2150, 0x2189, 1),
    (0x2190, 0x2400, 1),
    (0x2500, 0x2700, 1),
    (0x3000, 0x3040, 1),
    (0x3041, 0x3097, 2),
    (0x30A1, 0x3100, 2),
    (0x4E00, 0x9FA6, 3),
    (0xAC00, 0xD7A4, 2),
    (0xE000, 0xE100, 1),
    (0xFE00, 0xFE10, 1),
    (0xFF01, 0xFF60, 1),
    (0x1D400, 0x1D455, 1),
    (0x1F300, 0x1F650, 3),
    (0x1F1E6, 0x1F200, 1),
    (0x20000, 0x20100, 1),
]
_FREQUENT = [
    *"aeinorst AEST019.,'-\"!?()<>|_",
    " ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "'s",
    "'LL",
    "\u200d",
    "\u2581",
    "the ",
    " 12",
    "</s>",
]


def noise(seed: int, count: int, longest: int = 60) -> list[str]:
    """`count` random texts; each mixes a few blocks, so that runs of one kind occur."""
    source = random.Random(seed)
    weights = [weight for _, _, weight in _BLOCKS]
    texts = []
    for _ in range(count):
        blocks = source.choices(_BLOCKS, weights, k=source.randint(1, 4))
        parts = []
        for _ in range(source.randint(1, longest)):
            if source.random() < 0.4:
                parts.append(source.choice(_FREQUENT))
            else:
                first, last, _ = source.choice(blocks)
                parts.append(chr(source.randrange(first, last)) * source.choice((1, 1, 1, 2, 5)))
        texts.append("".join(parts))
    return texts
