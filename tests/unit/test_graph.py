"""The stage graph: parents first, data made once."""

from vlmrun import graph


def test_parents_come_first_whatever_the_order_of_the_list(smoke):
    planned, problems = graph.plan(smoke())
    assert problems == []
    names = [item.name for item in planned]
    assert len(names) == len(set(names)) == 13
    for item in planned:
        assert all(names.index(need) < names.index(item.name) for need in item.needs), item


def test_equal_datasets_are_prepared_once_and_different_ones_apart(smoke):
    planned, _ = graph.plan(smoke())
    assert [item.name for item in planned if item.stage.kind == "prepare"] == ["shapes"]
    planned, _ = graph.plan(smoke("data.shapes_test.prepare.n_test=50"))
    assert [item.name for item in planned if item.stage.kind == "prepare"] == ["shapes", "shapes_shapes_test"]


def test_only_selects_stages_and_the_data_they_read(smoke):
    planned, _ = graph.plan(smoke())
    assert [item.name for item in graph.selected(planned, ["merge", "lora"])] == ["shapes", "lora", "merge"]
    assert [item.name for item in graph.selected(planned, ["average"])] == ["average"]


def test_data_that_no_stage_reads_is_not_made(smoke):
    run = smoke("data=[shapes_captions,shapes_instruct,shapes_lora_a,shapes_lora_b,shapes_test,llava]",
                "data.llava.annotations=a", "data.llava.images=b",
                "data.llava.prepare={_target_: vlmrun.data.shapes.prepare, n_train: 1, n_test: 1}")  # fmt: skip
    planned, _ = graph.plan(run)
    assert "shapes_llava" in [item.name for item in planned]
    assert "shapes_llava" not in [item.name for item in graph.selected(planned, [])]


def test_every_cycle_is_a_problem_and_the_other_stages_are_ordered(smoke):
    cycles = ("stage.pretrain.init_from=instruct", "stage.lora.init_from=lora2", "stage.lora2.init_from=lora")
    planned, problems = graph.plan(smoke(*cycles))
    texts = sorted(problem.what for problem in problems)
    assert all(text.startswith("stages wait for each other: ") for text in texts)
    assert [len(set(text.partition(": ")[2].split(" -> "))) for text in texts] == [2, 2]
    left = [item.name for item in planned]
    assert "shapes" in left
    assert not {"pretrain", "instruct", "lora", "lora2"} & set(left)
