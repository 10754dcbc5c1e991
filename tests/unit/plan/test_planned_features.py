"""What kept features of a frozen tower take and save, and when reading them is no gain."""

import dataclasses

import pytest

from tests.unit.plan.made import hardware, llava_7b, stage
from vlmrun.plan import features, time
from vlmrun.plan.lengths import Samples
from vlmrun.plan.time import Rates

SHAPES = llava_7b()
RATES = Rates(mfu=0.35, price=2.0)
SAMPLES = Samples(n=1280, mean=700, longest=2048, text=124, pictures=1, squares=1, most_squares=1, image_tokens=576)


def kept(epochs=1.0, samples=SAMPLES, on=None, **changes):
    on = on or hardware()
    asked = stage(**{"epochs": epochs, "max_steps": None, "zero": 2, "tower_cache": "features"} | changes)
    return features.kept(SHAPES, asked, on, samples, time.duration(SHAPES, asked, on, samples, None, RATES), RATES)


def test_an_image_has_its_features_once():
    one, three = kept(), kept(epochs=3.0)
    patches, width = 576, 1024  # of CLIP ViT-L/14 at 336 pixels, one layer
    assert one.n_bytes == three.n_bytes == 1280 * patches * width * 2
    assert (one.saved, three.saved) == (0, pytest.approx(2 * three.flops))
    assert kept(on=hardware(precision="fp32")).n_bytes == 2 * one.n_bytes
    assert kept(samples=dataclasses.replace(SAMPLES, squares=5)).n_bytes == 5 * one.n_bytes


def test_reading_pays_while_it_is_faster_than_computing():
    assert kept(on=hardware(ranks_per_node=1)).pays
    many = kept(on=hardware(gpu="h100_80g"))
    assert many.reading == pytest.approx(8 * 576 * 1024 * 2 / features.DISK_BYTES_PER_SECOND)
    assert not many.pays


def test_a_stage_without_a_cache_or_of_unknown_length_has_none():
    assert kept(tower_cache=None) is None
    assert kept(samples=dataclasses.replace(SAMPLES, n=None)) is None
