"""Short texts that tell one pre-tokenizer from another."""

from __future__ import annotations

TELLING = [
    "I'm sure they'LL say it's DON'T, we'Ve 'tis",
    "1 12 123 1234 12345 1234567 a12b ٣٤٥٦ 3.14159",
    "x  =  y;\n\n\n  if (a != b) {\r\n\treturn 'c';\n}   ",
    " \n \n  end\n\t\n",
    "Größe CamelCase éCOLE ÉCOLE İstanbul ǅ ß",
    "e\u0301a\u0308 क्या हो १२ ภาษาไทย a\u0323\u0306",
    "今天天气，我们。ｶﾞ カタカナ かな 汉字kanji漢",
    "한국어 문장 ㄱㄴ",
    "!!! ??/ .../x //path a/b_c-d <tag> $5 ~^`+|",
    "😀👩‍💻glued ✅ ☺️ … “quoted” —",
    "aaaa bbbb  cc   dd     ee        ff",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u200bg",
    "Съешь ещё мир Ξεσ",
    "<sentinel:7> IMGIMGABZ <mark> <|end|> [SEP] <s>",
    "the THE The a\\b 's  the\n\nthe\r\nover\tover",
    "x <dna>ACGTACacgtacGGGCCCACéN</dna> ACGTAC <dna>TTTTTT",
    "\x00\x01\ufffd\ue000 \u2581 \ufeff",
]
