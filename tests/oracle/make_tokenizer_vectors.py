#!/usr/bin/env python3
"""Writes tests/testdata/tokenizer_vectors.json: small tokenizers of every supported form, texts, and
the ids that Hugging Face's own library gives.

    pip install tokenizers==0.23.3
    python3 tests/oracle/make_tokenizer_vectors.py

The file holds two small vocabularies ("models"), texts, and per pipeline the rest of its
tokenizer.json and for each text: ids with special tokens parsed and added, ids of the same text
taken as ordinary text without added ones, and the text that the first ids decode to. Null stands
for ordinary ids that equal the first ones (but for added ones), and for text that comes back as it was.
"""

import json
import pathlib

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).parent.parent / "testdata" / "tokenizer_vectors.json"

TRAINING_TEXT = [
    "The capital of France is Paris. The capital of Italy is Rome, and it's older than 1,000 years.",
    "I'm sure they'll say we've seen it; he'd said 'tis so, and you're right: don't DON'T.",
    "for (int i = 0; i < 12345; ++i) {\n\t\tsum += values[i];\n    }\n\n\nreturn sum;\n",
    "Über die Brücke gehen; déjà vu, naïve café, señor, Ærøskøbing, Łódź, žluťoučký kůň.",
    "Привет, как дела? Γειά σου Κόσμε. שלום עולם. 東京は日本の首都です。 안녕하세요 세계",
    "a quick brown fox, the quicker browner foxes; hello hello Hello HELLO hellohello   spaces    here",
] * 4

TEXTS = [
    "",
    " ",
    "  ",
    "Hello",
    " Hello",
    "hello hello  hello",
    "The capital of France is",
    "The capital of France is Paris.\n",
    "it's it'S IT'S don't DON'T we'll WE'LL I'm 'tis y'all's \u2019s",
    "'\u017f and \u212aelvin, \u0130stanbul",
    "1 12 123 1234 12345 1,234.5 3\u00b2 \u2167 \u0663\u0664\u0665",
    "tabs\tand\t\tmore\t \tmixed",
    "line\nline\n\nline\r\nline\n \n  \n   end\n",
    "   leading and trailing   ",
    "\n\n\n",
    " \n \n",
    "a\u00a0b\u3000c\u2003d\u180ee\u2028f\u0085g\u001ch",
    "!!! ?!? ... --- <<<>>> (a) [b] {c}; x=y+z*w/v\\u",
    "foo_bar-baz.qux@example.com https://example.com/?a=1&b=2#c",
    "caf\u00e9 cafe\u0301 \u1e9b\u0323 \uac00 \u1100\u1161 \ufb01 A\u030a \u212b q\u0307\u0323",
    "\u00dcber die Br\u00fccke, d\u00e9j\u00e0 vu",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043a\u0430\u043a \u0434\u0435\u043b\u0430",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U0001d54f \u2764\ufe0f",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0f73\u0f71\u0f72",
    "\u0000\u0001\u001f\u007f\u0080\uffff\U0010ffff\ufffd",
    "<|bos|>",
    "<|bos|>Hello<|eos|>",
    "Hello <|eos|> world<|eos|><|eos|>  x",
    "<|eos|> leading <|eo s|> <|eos| >",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a <|both|> b  <|both|>\t\nc",
    "wordword word word. sword wordy <|tool|>x<|tool|>",
    "<0x41><0x0A> <0x0a> <unk> <s> </s>",
    "\u2581 \u2581\u2581 a\u2581b \u2581c",
    "x" * 70,
    " " * 70 + "y",
    "hello" * 12 + " " + "ab12" * 9,
    "the quick brown fox " * 4,
]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(model, vocab_size, normalizer, pre_tokenizer, alphabet, first_tokens):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=alphabet,
        special_tokens=first_tokens,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    return {"vocab": trained["vocab"], "merges": trained["merges"]}


def byte_level(use_regex=True, add_prefix_space=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(pattern, behavior="Isolated", invert=False):
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": behavior,
                "invert": invert,
            },
            byte_level(use_regex=False),
        ],
    }


def metaspace(scheme, splits):
    return {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": scheme,
        "split": splits,
    }


def template(before, after=()):
    piece = lambda token: {"SpecialToken": {"id": token[0], "type_id": 0}}
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [piece(t) for t in before] + [text("A")] + [piece(t) for t in after],
        "pair": [text("A"), text("B")],
        "special_tokens": {
            t[0]: {"id": t[0], "ids": [t[1]], "tokens": [t[0]]} for t in (*before, *after)
        },
    }


def added(token_id, content, special=True, **flags):
    row = {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
    row.update(flags)
    return row


def pipelines(models_by_name):
    top = len(models_by_name["bytes"]["vocab"])
    byte_tokens = [
        added(0, "<|bos|>"),
        added(1, "<|eos|>"),
        added(top, "<|im_start|>"),
        added(top + 1, "<|im_end|>"),
        added(top + 2, "<|both|>", lstrip=True, rstrip=True),
        added(top + 3, "word", special=False, single_word=True, normalized=True),
        added(top + 4, "<|tool|>", special=False, normalized=True),
    ]
    pieces_tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]
    legacy_tokens = [added(0, "<unk>", normalized=True), added(1, "<s>", normalized=True),
                     added(2, "</s>", normalized=True)]
    prepend = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    fallback = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }

    def bytes_form(name, pre, normalizer=None, post=None, **model):
        return name, "bytes", model, {
            "added_tokens": byte_tokens, "normalizer": normalizer, "pre_tokenizer": pre,
            "post_processor": post, "decoder": byte_level(),
        }

    def pieces_form(name, normalizer, pre, decoder, post, tokens=pieces_tokens, **model):
        settings = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, **model}
        return name, "pieces", settings, {
            "added_tokens": tokens, "normalizer": normalizer, "pre_tokenizer": pre,
            "post_processor": post, "decoder": decoder,
        }

    digits = lambda each: {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": each}, byte_level()],
    }
    bos = template([("<s>", 1)])
    return [
        bytes_form("gpt2", byte_level()),
        bytes_form("gpt2_prefix_space", byte_level(add_prefix_space=True)),
        bytes_form("smollm2", digits(True)),
        bytes_form("digit_runs", digits(False)),
        bytes_form("llama3", split(LLAMA3), ignore_merges=True, post={
            "type": "Sequence",
            "processors": [byte_level(), template([("<|bos|>", 0)])],
        }),
        bytes_form("llama3_removed", split(LLAMA3, "Removed", True)),
        bytes_form("qwen2", split(QWEN2), normalizer={"type": "NFC"}, post=byte_level()),
        bytes_form("tekken", split(TEKKEN), post=template([("<|bos|>", 0)], [("<|eos|>", 1)])),
        pieces_form("llama2", prepend, None, fallback, bos),
        pieces_form("llama2_legacy", prepend, None, fallback, bos, tokens=legacy_tokens),
        pieces_form("llama2_unknown", prepend, None, fallback, None, byte_fallback=False),
        pieces_form("llama2_unfused", prepend, None, fallback, None, byte_fallback=False,
                    fuse_unk=False),
        pieces_form("mistral", None, metaspace("first", False), fallback, bos),
        pieces_form("metaspace_words", None, metaspace("always", True), fallback, bos),
    ]


def full(models_by_name, name, model, rest):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        **rest,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
            **models_by_name[name],
        },
    }


def main():
    bytes_model = train(
        models.BPE(), 450, None, pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.ByteLevel.alphabet(), ["<|bos|>", "<|eos|>"])
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces_model = train(
        models.BPE(unk_token="<unk>"), 580, normalizers.Replace(" ", "\u2581"),
        pre_tokenizers.Metaspace(prepend_scheme="always"), ["\u2581"],
        ["<unk>", "<s>", "</s>", *byte_pieces])
    models_by_name = {"bytes": bytes_model, "pieces": pieces_model}
    rows = []
    for name, model_name, settings, rest in pipelines(models_by_name):
        tokenizer = Tokenizer.from_str(json.dumps(full(models_by_name, model_name, settings, rest)))
        parsed = [tokenizer.encode(text).ids for text in TEXTS]
        bare = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        tokenizer.encode_special_tokens = True
        ordinary = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
        ordinary = [None if a == b else a for a, b in zip(ordinary, bare)]
        # The library's skip_special_tokens misses special tokens that are "normalized".
        special = {row["id"] for row in rest["added_tokens"] if row["special"]}
        decoded = [tokenizer.decode([i for i in ids if i not in special]) for ids in parsed]
        decoded = [None if a == b else a for a, b in zip(decoded, TEXTS)]
        rows.append({"name": name, "model": model_name, "settings": settings, "tokenizer": rest,
                     "parsed": parsed, "ordinary": ordinary, "decoded": decoded})
    merges = lambda pairs: [list(pair) for pair in pairs]
    for model in models_by_name.values():
        model["merges"] = merges(model["merges"])
    text = json.dumps({"models": models_by_name, "texts": TEXTS, "pipelines": rows},
                      ensure_ascii=False, separators=(",", ":"))
    # One row a line keeps differences readable.
    OUT.write_text(text.replace(',{"name"', ',\n{"name"') + "\n", encoding="utf-8")
    print(f"{OUT}: {OUT.stat().st_size} bytes, {len(rows)} pipelines x {len(TEXTS)} texts")


if __name__ == "__main__":
    main()
