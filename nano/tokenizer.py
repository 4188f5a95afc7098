"""Byte-level BPE with DeepSeek's special-token texts, and the Engram classes derived from it.

python tokenizer.py        # trains tokenizer.json on drawn samples
"""

import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT, SYSTEM = "<｜User｜>", "<｜Assistant｜>", "<｜System｜>"
IMAGE, NOISE = "<｜deepseek_image｜>", "<｜dspark▁noise｜>"
CONTROL = [USER, ASSISTANT, SYSTEM, "<think>", "</think>", "｜DSML｜", IMAGE, NOISE]
PATTERNS = [  # digits one by one: a small model adds and copies numbers far better
    r"\p{N}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]

# The long samples of the corpus; its own copy, so that another training mixture does not change the ids.
LONG = dict(tool=34, long_needle=16, fact=20, unknown=2, sums=4, lists=4, needle=5, chat=7, image=8)


def train(texts, size):
    tok = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in PATTERNS]
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - len(CONTROL),
            special_tokens=[BOS, EOS, PAD],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    spare = size - tok.get_vocab_size()
    tok.add_special_tokens(
        [AddedToken(f"<｜place▁holder▁no▁{i}｜>", special=True, normalized=False) for i in range(spare)]
    )
    return tok


def token_classes(tok):
    """Class of every id and the number of classes (the release's rule: fold case, accents, width, white space)."""
    n = normalizers
    fold = n.Sequence(
        [
            n.NFKC(),
            n.NFD(),
            n.StripAccents(),
            n.Lowercase(),
            n.Replace(Regex(r"[ \t\r\n]+"), " "),
            n.Replace(Regex(r"^ $"), "\ue000"),
            n.Strip(),
            n.Replace("\ue000", " "),
        ]
    )
    seen, out = {}, []
    for i in range(tok.get_vocab_size()):
        text = tok.decode([i], skip_special_tokens=False)
        key = tok.id_to_token(i) if "\ufffd" in text else (fold.normalize_str(text) or text)
        out.append(seen.setdefault(key, len(seen)))
    return out, len(seen)


def main():
    from abilities import World
    from render import fragments

    world, r, size = World(), random.Random(7), 4096
    samples = [world.sample(r) for _ in range(16000)] + [world.sample(r, LONG) for _ in range(4000)]
    texts = [text for s in samples for text, control in fragments(s.request) if not control] + world.glosses * 2
    train(texts, size).save(str(Path(__file__).with_name("tokenizer.json")))


if __name__ == "__main__":
    main()
