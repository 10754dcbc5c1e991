"""The demo's own code on a tiny fake of the packages; `make demo` runs it on the real ones."""

import json
from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples.emoji import page, pictures, weights
from examples.emoji.efficientnet import EfficientNetLite0, Layers
from tests.conftest import ROOT
from vlmrun.cli import train
from vlmrun.data import lint
from vlmrun.data.images import loading as images
from vlmrun.data.images.finding import ImageFolder

N = 8


@pytest.fixture
def packages(tmp_path):
    """A listing, two vocabularies and two artists' drawings: animals, food, a flower, and one that nobody drew."""
    kinds = [("Animals & Nature", "animal-mammal"), ("Food & Drink", "food-fruit")] * N
    kinds += [("Animals & Nature", "plant-flower"), ("Food & Drink", "drink")]
    listing, words = [], {"en": [], "ko": []}
    for number, (category, subcategory) in enumerate(kinds):
        name = f"{number:04x}"
        listing.append({"unified": name, "image": f"{name}.png", "category": category, "subcategory": subcategory})
        for language, made in words.items():
            made.append({"hexcode": name, "label": f"{language} thing {number}"})
        for artist in ("google", "twitter") if number < len(kinds) - 1 else ():
            (tmp_path / artist).mkdir(exist_ok=True)
            Image.new("RGBA", (64, 64), (number * 9, 40, 40, 255)).save(tmp_path / artist / f"{name}.png")
    (tmp_path / "emoji.json").write_text(json.dumps(listing))
    for language, made in words.items():
        (tmp_path / f"{language}.json").write_text(json.dumps(made))
    return tmp_path


@pytest.fixture
def made(packages):
    """The demo's files: four things taught, two never shown."""
    artists = [packages / "google", packages / "twitter"]
    found = pictures.things(packages / "emoji.json", packages / "en.json", packages / "ko.json", artists)
    known, unseen = pictures.divide(found, 4, 2, seed=1)
    folder = packages / "made"
    pictures.write(folder, (artists[0], known), (artists[1], unseen), copies=4, seed=1)
    return found, known, unseen, folder


def test_only_animals_and_food_that_both_artists_drew_are_taken(made):
    found, known, unseen, _ = made
    assert len(found) == 2 * N
    assert {thing.category for thing in known} == {thing.category for thing in unseen} == {"animal", "food"}
    assert not set(known) & set(unseen)


def test_sorts_take_turns_so_that_a_neighbour_is_of_the_other(made):
    sorts = [thing.category for thing in made[1]]
    assert all(first != second for first, second in pairwise(sorts))


def test_what_is_tested_is_never_shown_in_training(made):
    _, known, unseen, folder = made
    taught = json.loads((folder / "questions.json").read_text()) + json.loads((folder / "captions.json").read_text())
    asked = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert not {record["image"] for record in taught} & {question["image"] for question in asked}
    said = {turn["value"] for record in taught for turn in record["conversations"]}
    assert not said & {thing.name for thing in unseen}
    assert said >= {thing.name for thing in known} | {thing.korean for thing in known}
    assert {question["split"] for question in asked} == {"other", "unseen"}


def test_the_files_are_clean_for_lint(made):
    folder = made[3]
    for name, format in (("captions.json", "llava"), ("questions.json", "llava"), ("test.jsonl", "vqa")):
        rules = lint.Rules(format=format, images=ImageFolder(folder / "images"))
        assert list(lint.lint(folder / name, rules)) == []


def test_copies_differ_and_keep_their_size(made):
    copies = sorted((made[3] / "images").glob("taught-*-0?.png"))
    assert len(copies) == 4 * 4
    opened = [images.load_image(path) for path in copies]
    assert len({image.tobytes() for image in opened}) == len(copies)
    assert {image.size for image in opened} == {(pictures.SIZE, pictures.SIZE)}


def test_too_few_things_are_told():
    with pytest.raises(ValueError, match="are needed"):
        pictures.divide([pictures.Thing("a", "a", "a", "animal")], 4, 2, seed=1)


@pytest.fixture
def cnn(tmp_path):
    """An EfficientNet of random weights in the form of the published checkpoint."""
    torch.manual_seed(0)
    checkpoint, folder = tmp_path / "published.pth", tmp_path / "cnn"
    state = Layers().state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("feature_")}
    kept["_blocks.15._bn2.weight"] *= 1e6  # random weights let hardly anything through
    torch.save(kept | {"_conv_head.weight": torch.zeros(1280, 320, 1, 1), "_fc.bias": torch.zeros(1000)}, checkpoint)
    weights.efficientnet_lite0(checkpoint, folder, 64)
    return folder


def test_a_network_of_ones_own_is_a_tower(cnn):
    tower = EfficientNetLite0(str(cnn), dtype=torch.float32, attention="sdpa")
    (features,) = tower(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, tower.n_patches, tower.hidden_dim) == (2, 4, 320)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower.train()
    tower(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_standardised_features_have_mean_0_and_deviation_1(cnn, made):
    chosen = sorted((made[3] / "images").glob("taught-*-00.png"))
    weights.standardise(cnn, chosen)
    assert load_file(cnn / "model.safetensors")["feature_std"].min() > 0
    tower = EfficientNetLite0(str(cnn), dtype=torch.float32, attention="sdpa")
    transform = weights.ImageTransform(tower.preprocessor)
    pixels = [torch.from_numpy(transform(images.load_image(path), "square")) for path in chosen]
    features = tower(torch.stack(pixels))[0].flatten(0, 1)
    assert features.mean(0).abs().max() < 1e-2
    assert (features.std(0).median() - 1).abs() < 0.1


def test_the_recipe_composes_with_either_tower(monkeypatch):
    monkeypatch.setenv("VLMRUN_ALLOW", "examples")
    plain = train.compose(["+recipe=emoji_smollm2"], [])
    other = train.compose(
        ["+recipe=emoji_smollm2", "model/tower=efficientnet_lite0"], [ROOT / "examples" / "emoji" / "conf"]
    )
    assert plain.model.tower.target == "vlmrun.model.towers.dinov2.Dinov2"
    assert other.model.tower.target == "examples.emoji.efficientnet.EfficientNetLite0"


def test_the_page_shows_right_and_wrong(made):
    folder = made[3]
    asked = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows = [question | {"expected": question["answer"]} for question in asked]
    shown = page.sheet(rows, folder / "images")
    below = (0, page.CELL - 4, shown.width, page.CELL + page.TEXT_HEIGHT)
    colours = [colour for _, colour in shown.crop(below).getcolors(1 << 20)]
    assert any(green > red + 50 for red, green, _ in colours)
    wrong = page.sheet([row | {"answer": "no"} for row in rows], folder / "images").crop(below)
    assert any(red > green + 80 for _, (red, green, _) in wrong.getcolors(1 << 20))
    group = {"categories": {"name": {"n_questions": 2, "accuracy": 0.5, "chance": 0.25, "shuffled": None}}}
    assert "| other | name | 2 | 50.0% | 25.0% | - |" in page.table([{"splits": {"other": group}}])
