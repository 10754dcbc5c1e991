"""Makes the two shipped miniature parts: `src/vlmrun/assets/micro-llm` and `micro-tower`.

    OMP_NUM_THREADS=1 python scripts/make_micro.py            # both, about 8 minutes on one thread
    OMP_NUM_THREADS=1 python scripts/make_micro.py --only llm --out /tmp/assets

The LLM reads only text: captions, lists of words and prose about shapes. It never sees a picture, nor a question with
its answer, so that each stage of the recipe `smoke` has something to learn. The tower sees only pictures with attribute
labels, from a stream of its own and without the colour-shape pairs held out in `vlmrun.data.prepare.shapes`; the label
heads are thrown away. One thread and fixed seeds: a second run on the same machine and library versions gives the
same bytes.
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from vlmrun.data.prepare import shapes
from vlmrun.data.prepare.shapes import Picture

ASSETS = Path(__file__).parents[1] / "src/vlmrun/assets"
BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
SPECIALS = [PAD, BOS, END, USER, ASSISTANT]
VOCAB_SIZE = 448
LLM_STEPS, LLM_BATCH, LLM_LR = 1000, 48, 2e-3
TOWER_STEPS, TOWER_BATCH, TOWER_LR = 4000, 96, 2e-3
NOISE, SHRINK = 0.3, 0.05  # on the tower's features: noise added, and the weight of their mean square in the loss
PATCH = 8  # pixels a side
GRID = shapes.IMAGE_SIZE // PATCH  # patches a side

LLM_README = """\
# micro-llm
A LlamaForCausalLM of 0.66 M parameters (3 layers, width 128) with a byte-level BPE tokenizer, for the recipe `smoke`.
It was trained from nothing by `scripts/make_micro.py` on generated text about shapes: captions, word lists, prose.
It has seen no picture and no chat, and it answers no questions before the instruct stage.
Licence: that of this repository.
"""
TOWER_README = """\
# micro-tower
A SiglipVisionModel of 0.24 M parameters (2 layers, width 96, 32x32 pixels, 16 patches), for the recipe `smoke`.
It was trained from nothing by `scripts/make_micro.py` to name attributes of drawn shapes; the heads are not kept.
Use `hidden_states[-1]`: the training heads read that. The pairs of `data.shapes.UNSEEN_PAIRS` were left out.
Licence: that of this repository.
"""


# Text.


def any_picture(rng: Random) -> Picture:
    """A picture as a subject of text: all pairs of colour and shape are spoken of."""
    return shapes.random_picture(rng, unseen=rng.random() < 1 / 8)


def attributes(picture: Picture) -> list[str]:
    """What can be said of a picture, in single words or phrases."""
    return [picture.answer(category) for category in picture.categories() if category != "caption"]


def notes(rng: Random) -> tuple[str, str]:
    """Scattered words, and the caption they amount to: the skill a connector makes use of.

    Words are repeated and mixed with blanks, as the patches of a picture would be.
    """
    picture = any_picture(rng)
    said = attributes(picture)
    slots = [rng.choice(said) if rng.random() < 0.5 else "blank" for _ in range(rng.randint(2, 9))]
    slots += said
    rng.shuffle(slots)
    return " ".join(slots) + rng.choice(("", "\n")), picture.answer("caption") + "\n"


def prose(rng: Random) -> tuple[str, str]:
    """A few sentences about one picture, in random order."""
    picture = any_picture(rng)
    verb, pronoun = ("is", "it") if picture.count == 1 else ("are", "they")
    noun = "shape" if picture.count == 1 else "shapes"
    colour, shape = picture.answer("colour"), picture.answer("shape")
    said = [
        f"there {verb} {picture.answer('count')} {noun}.",
        f"the {noun} {verb} {colour}.",
        f"we see {picture.answer('caption')}.",
        f"{pronoun} {verb} {'a ' if picture.count == 1 else ''}{shape}.",
        f"the {shape} {verb} {colour}.",
    ]
    if picture.count == 1:
        said += [f"it is {picture.size}.", f"the {picture.colour} {picture.shape} is {picture.position}."]
        said += [f"the {picture.shape} is {picture.position}.", f"its size is {picture.size}."]
    return "", " ".join(rng.sample(said, k=rng.randint(2, len(said)))) + "\n"


def lines(rng: Random) -> tuple[str, str]:
    """Captions and single words on lines of their own."""
    pictures = [any_picture(rng) for _ in range(rng.randint(1, 3))]
    return "", "".join(rng.choice([*attributes(p), p.answer("caption"), p.answer("caption")]) + "\n" for p in pictures)


def document(rng: Random) -> tuple[str, str]:
    """One text document: what is only read, and what is learnt. Lists of words are noise, so they are only read."""
    return rng.choices((notes, prose, lines), weights=(8, 1, 1))[0](rng)


def make_tokenizer() -> Tokenizer:
    """Trains the byte-level BPE; it can encode any text, and `<image>` is no token of it."""
    rng = Random("vlmrun micro tokenizer")
    texts = [text for _ in range(3000) for text in document(rng)]
    for _ in range(3000):  # the words of questions get tokens too; the LLM is never shown them
        picture = any_picture(rng)
        texts += ["\n" + picture.question(category) for category in picture.categories()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def text_batch(tokenizer: Tokenizer, rng: Random) -> tuple[Tensor, Tensor]:
    """Token ids and labels of one document a row, `bos read learnt end`; -100 where nothing is learnt.

    Shape:
        [LLM_BATCH, length of the longest document].
    """
    bos, end = (tokenizer.token_to_id(token) or 0 for token in (BOS, END))
    read, learnt = [], []
    for _ in range(LLM_BATCH):
        first, second = document(rng)
        read.append([bos, *tokenizer.encode(first, add_special_tokens=False).ids])
        learnt.append([*tokenizer.encode(second, add_special_tokens=False).ids, end])
    length = max(len(a) + len(b) for a, b in zip(read, learnt, strict=True))
    ids = torch.full((LLM_BATCH, length), end)
    labels = torch.full((LLM_BATCH, length), -100)
    for row, (a, b) in enumerate(zip(read, learnt, strict=True)):
        ids[row, : len(a) + len(b)] = torch.tensor(a + b)
        labels[row, len(a) : len(a) + len(b)] = torch.tensor(b)
    return ids, labels


def make_llm(out: Path) -> None:
    """Trains tokenizer and LLM and writes both."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    special = {name: tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", END), ("pad", PAD))}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=352,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
    )
    model = LlamaForCausalLM(config)
    # Special tokens that no text holds (user, assistant) keep their first values; decay would only shrink them.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LLM_LR, betas=(0.9, 0.98), weight_decay=0.01)
    rng = Random("vlmrun micro llm text")
    for step in range(LLM_STEPS):
        set_lr(optimizer, LLM_LR, step, LLM_STEPS)
        ids, labels = text_batch(tokenizer, rng)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        update(model, optimizer, loss)
        report("llm", step, loss)
    write_llm(out / "micro-llm", model, tokenizer)


def write_llm(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Writes the Hugging Face folder of the LLM; the tokenizer's files by hand, so that its class stays general."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.max_length = None
    save_weights(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT],
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", config)
    (folder / "README.md").write_text(LLM_README, encoding="utf-8")


# Pictures.

LABELS: dict[str, list[str] | list[int]] = {
    "colour": list(shapes.COLOURS),
    "shape": list(shapes.SHAPES),
    "size": ["", *shapes.SIZES],
    "position": ["", *shapes.POSITIONS],
    "count": [1, 2, 3],
}


class Heads(nn.Module):
    """Linear attribute heads: one set reads the mean of the patches, another every patch that shows the shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in LABELS.items()})
        self.patch = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in LABELS.items()})
        self.covered = nn.Linear(width, 1)

    def forward(self, features: Tensor, labels: dict[str, Tensor], covered: Tensor) -> Tensor:
        """The sum of all losses; `covered` is the share of each patch that the shape fills, [N, 16]."""
        shown = covered > 0.04
        loss = nn.functional.binary_cross_entropy_with_logits(self.covered(features).squeeze(-1), shown.float())
        for name, label in labels.items():
            loss = loss + nn.functional.cross_entropy(self.whole[name](features.mean(1)), label)
            each = label[:, None].expand_as(shown)[shown]
            loss = loss + nn.functional.cross_entropy(self.patch[name](features[shown]), each)
        return loss


def picture_batch(rng: Random, n: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Fresh pictures, their labels, and the share of each patch that is not background.

    Shape:
        pixels [n, 3, 32, 32] in -1 .. 1, labels [n] each, shares [n, 16].
    """
    pictures = [shapes.random_picture(rng) for _ in range(n)]
    raw = b"".join(shapes.draw(picture, rng).tobytes() for picture in pictures)
    size = shapes.IMAGE_SIZE
    pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(n, size, size, 3).permute(0, 3, 1, 2).float()
    labels = {
        name: torch.tensor([list(values).index(getattr(picture, name)) for picture in pictures])
        for name, values in LABELS.items()
    }
    background = pixels.flatten(2).median(dim=2).values[:, :, None, None]
    foreground = ((pixels - background).abs().sum(1) > 40).float()
    covered = foreground.view(n, GRID, PATCH, GRID, PATCH).mean((2, 4)).flatten(1)
    return pixels / 127.5 - 1, labels, covered


def make_tower(out: Path) -> None:
    """Trains the vision tower on pictures alone and writes it."""
    torch.manual_seed(2)
    config = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=shapes.IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    model = SiglipVisionModel(config)
    # At the usual small scale, where a thing stands is not learnt for hundreds of steps.
    embeddings = next(module for name, module in model.named_modules() if name.endswith("position_embedding"))
    nn.init.normal_(embeddings.weight, std=1.0)
    heads = Heads(config.hidden_size)
    both = nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(both.parameters(), lr=TOWER_LR, betas=(0.9, 0.98), weight_decay=0.02)
    rng = Random("vlmrun micro tower pictures")
    for step in range(TOWER_STEPS):
        set_lr(optimizer, TOWER_LR, step, TOWER_STEPS)
        pixels, labels, covered = picture_batch(rng, TOWER_BATCH)
        features = model(pixels, output_hidden_states=True).hidden_states[-1]
        noisy = features + NOISE * torch.randn_like(features)
        loss = heads(noisy, labels, covered) + SHRINK * features.square().mean()
        update(both, optimizer, loss)
        report("tower", step, loss)
    score(model, heads)
    write_tower(out / "micro-tower", model)


@torch.no_grad()
def score(model: SiglipVisionModel, heads: Heads) -> None:
    """Prints how often each attribute is read rightly from new pictures."""
    pixels, labels, _ = picture_batch(Random("vlmrun micro tower score"), 2000)
    features = model(pixels, output_hidden_states=True).hidden_states[-1]
    print("feature std", round(features.std().item(), 3))
    for name, label in labels.items():
        print(name, (heads.whole[name](features.mean(1)).argmax(-1) == label).float().mean().item())


def write_tower(folder: Path, model: SiglipVisionModel) -> None:
    """Writes the Hugging Face folder of the tower."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder)
    size = {"height": shapes.IMAGE_SIZE, "width": shapes.IMAGE_SIZE}
    config = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    write_json(folder / "preprocessor_config.json", config)
    (folder / "README.md").write_text(TOWER_README, encoding="utf-8")


# Both.


def set_lr(optimizer: torch.optim.Optimizer, peak: float, step: int, n_steps: int) -> None:
    """Warm-up over 3 % of the steps, then a cosine down to nothing."""
    warm = max(1, n_steps * 3 // 100)
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / (n_steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = peak * min((step + 1) / warm, cosine)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def report(name: str, step: int, loss: Tensor) -> None:
    """Prints the loss now and then."""
    if step % 100 == 0:
        print(f"{name} step {step} loss {loss.item():.4f} cpu {time.process_time():.0f} s", flush=True)


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Writes config and weights, readable to all: the library's writer leaves the weights to their owner."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def write_json(path: Path, value: object) -> None:
    """Writes JSON as the rest of the folder has it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Makes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--only", choices=("llm", "tower"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.only != "tower":
        make_llm(args.out)
    if args.only != "llm":
        make_tower(args.out)


if __name__ == "__main__":
    main()
