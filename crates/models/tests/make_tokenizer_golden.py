#!/usr/bin/env python3
"""Makes CLIP's table of merges and the tokenizer's golden values. Needs open_clip 3.3, ftfy 6.3 and transformers 5.23:

    python3 -m venv venv && venv/bin/pip install open_clip_torch==3.3.0 transformers==5.23.0 ftfy==6.3.1
    venv/bin/python crates/models/tests/make_tokenizer_golden.py

src/tokenizer/clip_merges.bin          CLIP's merges as pairs of token ids, little-endian u16 (from OpenAI's vocabulary)
tests/golden/tokenizer/prompts.jsonl   [prompt, open_clip's ids, transformers' ids, the same with "!" for padding]; an id list
                                       that equals the one before it is null
tests/golden/tokenizer/added/*         the same with added tokens, as transformers 5 saves it; its lines are in added.jsonl
tests/golden/tokenizer/small/*         a small vocabulary in transformers' files; its lines in small.jsonl are [prompt, ids]
"""

import json
import os
import pathlib
import random
import struct
import tempfile
import unicodedata

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import ftfy
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import AddedToken
from transformers import CLIPTokenizer

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden" / "tokenizer"

PLAIN = """
a photo of a cat
A PHOTO OF A CAT
An astronaut riding a horse on Mars, highly detailed, 8k, trending on artstation
masterpiece, best quality, (1girl:1.3), [blurry], {{sharp}}, <lora:detail:0.8>
portrait of an old man, 35mm, f/1.8, ISO 100, 1/250s
don't we'll they've I'm he'd it's they're o'clock rock'n'roll
DON'T WE'LL THEY'VE I'M HE'D IT'S THEY'RE
''s 'tis 'twas dogs' 's 't 're 've 'm 'll 'd 'x
1234567890 3.14159 1,000,000 2^10 0x7f 12/31/1999 10:30pm
hello!!! wow!! ok! !start a!b !! ! !
??? ... --- ___ *** ~~~ @@@ ### $$$ %%% ^^^ &&& ((())) [[[]]] {{{}}}
x=y+z; if (a<b && c>d) { return a|b; } // comment
http://example.com/path?query=1&other=2#fragment user@example.org
C:\\Windows\\System32 /usr/local/bin
snake_case camelCase kebab-case SCREAMING_CASE
donaudampfschifffahrtsgesellschaftskapitänsmütze
Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
abababababababababababababababababababababab
the the the the the the
Ünïcödé àéîõü ñ ç ß æ ø å þ ð
ÀÉÎÕÜ Ñ Ç ẞ Æ Ø Å Þ Ð
Straße STRASSE Weißbier
Łódź Kraków Gdańsk żółć
İstanbul ısparta DİYARBAKIR Iğdır
ΑΣ ΣΑΣ Σ ΟΔΥΣΣΕΥΣ. ΣΊΣΥΦΟΣ, ς σ
Привет, мир! Ёлка ЩУКА
שלום עולם
مرحبا بالعالم ١٢٣
नमस्ते दुनिया १२३
สวัสดีชาวโลก
你好,世界!一只猫的照片
こんにちは世界。カタカナとひらがな
안녕하세요 세계
漢字仮名交じり文 123 abc
猫cat犬dog
🐱 a cat 🐶🐕 dog
👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪🇫🇷 👍🏽
❤️ ♥ ☺️ ★ ☆ ♪ ♫ ☮
½ ¼ ¾ ² ³ ¹ ① ② Ⅷ ⅷ ٣ ௧
a™ b® c© 10°C 5µm €5 £6 ¥7 ¢8 § ¶ † ‡
“curly” ‘quotes’ ‚low’ „low“ «guillemets» ‹single›
it’s don’t I’ll ‛tis ʼn
em—dash en–dash ellipsis… bullet•
ﬁne ﬂow oﬀer aﬃx baﬄe ﬅ ﬆ Ĳssel ĳs ŉ Ǆ ǅ ǆ Ǉ ǈ ǉ Ǌ ǋ ǌ Ǳ ǲ ǳ
Ｆｕｌｌ　ｗｉｄｔｈ ＬＯＵＤ １２３ ！？
ｶﾀｶﾅ ﾊﾟﾋﾟ ﾡﾢ ￠￡￥￦ ｡｢｣
&amp; &lt;b&gt; &quot;x&quot; &#39;y&#39; &nbsp; &hellip;
&amp;amp; &amp;lt; &amp;amp;amp; &amp;#233;
&eacute;t&eacute; &EACUTE;T&EACUTE; &NTILDE; &nTILDE; &SZLIG; &Jscr;
&notit; &not &notin; &copy2024 &ampx &lt5 &gt &times;3 &unknown; &; & &x
&#233; &#xe9; &#XE9; &#128; &#x80; &#129; &#0; &#13; &#1; &#65533; &#xD800; &#x110000; &#99999999999999; &#x; &#;
&#65 &#x41 &#65x &#59; &#38;lt;
<b>bold &amp; brave</b> &eacute;
a < b &amp; c
<start_of_text>Hi<start_of_text>labs<end_of_text>
<START_OF_TEXT> <End_Of_Text> <start_of_text >
<|startoftext|>Hi<|endoftext|> <|STARTOFTEXT|> <|EndOfText|>x
a<|endoftext|>b <|endoftext|>! !<|endoftext|>!
<|startoftext|><|startoftext|>
cafÃ© ÃœbergrÃ¶ÃŸe
cafe\u0301 café
itâ€™s mojibake â€œquotedâ€\x9d â€” dash
schÃ¶n grÃ¼n weiÃŸ
ÃƒÂ© twice
ãƒ„ æ—¥æœ¬
Ð¿Ñ€Ð¸Ð²ÐµÑ‚
cafe\u0301 e\u0302\u0301 A\u030a \u1100\u1161\u11a8 \u0958
\u212b \u2126 \u212a \u2460 \ufb1d
\x1b[31mred\x1b[0m text \x1b[1;32mgreen
zero\u200bwidth joiner\u200d non\u200cjoiner \u2060word \ufeffbom
soft\u00adhyphen nb\u00a0space thin\u2009space ideographic\u3000space
tab\tnew\nline\r\nwindows\rmac\x0bvt\x0cff
\x00nul \x01soh \x07bell \x1fus \x1cfs \x7fdel
next\x85line \u2028separator \u2029paragraph
c1 \x80\x81\x82\x91\x92\x99 controls
\u202ertl\u202c \u200eltr \u200frtl \u206a\u206f \ufff9\ufffb\ufffc\ufffd
  leading and trailing   spaces  
a  b   c    d
\ue000 \uf8ff private \U000f0000 \U0010fffd
\ufffe \uffff \U0001fffe
'ſ 'ſt ſ K Å
ǅungla Ǆ
ﷺ ﷽ ㎏ ㍿ ℡ №
𝕳𝖊𝖑𝖑𝖔 𝓦𝓸𝓻𝓵𝓭 ⓗⓔⓛⓛⓞ
ᏣᎳᎩ ꮳꮃꭹ Ꭰ
ქართული ᲥᲐᲠᲗᲣᲚᲘ
ა Ა ⴀ Ⴀ
ⅰ Ⅰ ⓐ Ⓐ 
Zalgo: H̴̢̛e̷l̸l̵o̶
̈ ́x
a\u0300\u0301\u0302\u0303\u0304\u0305\u0306
"""

WORDS = """a the of and with in on by photo painting portrait landscape castle forest river mountain city street night sunset
dramatic lighting detailed intricate baroque cyberpunk steampunk watercolor oil canvas render octane unreal engine 4k 8k hdr
cinematic wide angle lens bokeh trending artstation greg rutkowski alphonse mucha victorian robot dragon cat dog horse""".split()


def prompts():
    texts = [line.encode("latin-1", "backslashreplace").decode("unicode-escape") if "\\" in line and "C:" not in line else line
             for line in PLAIN.split("\n")[1:-1]]
    texts += ["", " ", "\n", "\t \n", "!", "'", "&", "\u0301", "\ud7a3", "a" * 300]
    texts += ["two\nlines &eacute;\nand <br> here &eacute;\nthen &eacute;"]
    rng = random.Random(1)
    texts += [" ".join(rng.choice(WORDS) + rng.choice(["", "", "", ",", ".", "!"]) for _ in range(n)) for n in (60, 75, 76, 200)]
    texts += ["、".join("".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(3)) for _ in range(30))]
    # Assigned characters alone: Unicode versions differ in the others.
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x590), (0x590, 0x1000), (0x1000, 0x2000), (0x2000, 0x2C00),
              (0x2C00, 0x3100), (0x3100, 0xD7A4), (0xF900, 0xFE00), (0xFE00, 0xFFFE), (0x10000, 0x11000), (0x1D400, 0x1D800),
              (0x1F300, 0x1F700), (0x20000, 0x20100)]
    for i in range(190):
        own = [rng.choice(blocks) for _ in range(rng.randrange(1, 4))]
        chars = []
        while len(chars) < rng.randrange(2, 14):
            c = chr(rng.randrange(*rng.choice(own)))
            if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
                chars.append(c)
                if rng.random() < 0.2:
                    chars.append(rng.choice(" '!&;1s"))
        # Stretches that happen to be readable in another encoding are repaired by ftfy alone.
        if (text := "".join(chars)) == ftfy.fix_encoding(text):
            texts.append(text)
    return texts


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n" for row in rows))


def transformers_files(folder, tokens, merges):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.json").write_text(json.dumps(tokens, separators=(",", ":")))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return str(folder / "vocab.json"), str(folder / "merges.txt")


def spell(token):
    return token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>")


def main():
    open_clip = SimpleTokenizer()
    merges = sorted(open_clip.bpe_ranks, key=open_clip.bpe_ranks.get)
    ids = [open_clip.encoder[token] for pair in merges for token in pair]
    (HERE.parent / "src/tokenizer/clip_merges.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    tokens = {spell(token): i for token, i in open_clip.encoder.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = transformers_files(pathlib.Path(folder), tokens, merges)
        end, exclamation = CLIPTokenizer(*files), CLIPTokenizer(*files, pad_token="!")
    rows = []
    for text in prompts():
        a = open_clip.encode(text)
        b = end(text).input_ids[1:-1]
        c = exclamation(text).input_ids[1:-1]
        rows.append([text, a, None if a == b else b, None if b == c else c])
    GOLDEN.mkdir(parents=True, exist_ok=True)
    write_lines(GOLDEN / "prompts.jsonl", rows)

    # No digits, no capitals, no bytes beyond ASCII: those are unknown.
    letters = "abcdefghijklmnopqrstuvwxyz!,'"
    small = merges[:400]
    small = [m for m in small if set("".join(m).replace("</w>", "")) <= set(letters)]
    names = sorted({c for c in letters} | {c + "</w>" for c in letters} | {a + b for a, b in small})
    names += ["<|startoftext|>", "<|endoftext|>"]
    files = transformers_files(GOLDEN / "small", {name: i for i, name in enumerate(names)}, small)
    tokenizer = CLIPTokenizer(*files)
    texts = ["the cat", "A photo, of 12 cats!", "naïve café", "x", "", "don't", "<|endoftext|> with", "日本 in the", "one-two"]
    write_lines(GOLDEN / "small.jsonl", [[text, tokenizer(text).input_ids] for text in texts])
    added(files)


def added(files):
    """A tokenizer with added tokens as transformers 5 saves it, without vocab.json, and the older files of the same."""
    tokenizer = CLIPTokenizer(*files)
    tokenizer.add_tokens(["<cat-toy>", "My-Style", "cat-toys"])
    tokenizer.add_tokens([AddedToken("sks", single_word=True), AddedToken("[L]", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.add_tokens(["<Spec>"], special_tokens=True)
    tokenizer.add_tokens(["two words", "of\u3000 \tit"])
    folder = GOLDEN / "added"
    tokenizer.save_pretrained(folder)
    file = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(file, separators=(",", ":")))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    texts = ["a <cat-toy> in the park", "my-style, MY-STYLE!", "sks dog, asks, sks!", "a [L]  the", "<Spec> and <spec>",
             "<|startoftext|> <|STARTOFTEXT|> <|endoftext|> the", "a<cat-toy>the <CAT-TOY>", "the cat-toys cat-toy", "My-Style sks_ sks", "",
             "two words, two  words, TWO\n\twords", "two\u200bwords two\x1cwords two\x85words two\u2009words", "of it of  it ofit",
             "  the  \u00a0 cat [L]\n\nsks"]
    write_lines(GOLDEN / "added.jsonl", [[text, tokenizer(text).input_ids] for text in texts])


main()
