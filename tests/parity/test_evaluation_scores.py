"""Metrics, conversions and prompts of evaluations against those that the original scripts recorded (g8_eval)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.parity import golden
from vlmrun.data.prepare.scienceqa import convert as convert_scienceqa
from vlmrun.errors import DataError
from vlmrun.eval import prompts, review, review_summary, submissions
from vlmrun.eval.metrics import cmmmu, documents, gqa, mme, mmmu, options, scienceqa, vqa, vqa_text, yes_no
from vlmrun.eval.metrics.base import Answered, UpstreamStops

TOLERANCE = 1e-12
Check = Callable[[Any, Any], None]


def cases(name: str) -> list[dict[str, Any]]:
    return golden.cases(f"g8_eval/{name}.jsonl.gz")


def close(found: Any, recorded: Any) -> None:
    """Equal in shape and text; floats to 1e-12."""
    if isinstance(recorded, dict):
        assert found.keys() == recorded.keys()
        for key, value in recorded.items():
            close(found[key], value)
    elif isinstance(recorded, list | tuple):
        assert len(found) == len(recorded)
        for one, other in zip(found, recorded, strict=True):
            close(one, other)
    elif isinstance(recorded, float) and isinstance(found, int | float):
        assert found == pytest.approx(recorded, abs=TOLERANCE, rel=0)
    else:
        assert found == recorded


def per_cent(value: float | None) -> str:
    return f"{100 * (value or 0):.2f}%"


def _soft(given: Any, recorded: Any) -> None:
    row = Answered("", {"answers": given["gt_answers"]}, given["pred_answer"])
    if recorded.get("error"):
        with pytest.raises(UpstreamStops):
            vqa.soft(row, "upstream")
        return
    mark = vqa.soft(row, "upstream")
    close(mark.score, float(recorded["score"]))
    assert mark.read_as == recorded["pred_processed"]
    close(vqa.answer_scores(given["gt_answers"]), recorded["answer_scores"])


def _textvqa_prompt(given: Any, recorded: Any) -> None:
    if "error" in recorded:
        with pytest.raises(UpstreamStops):
            vqa.question_of_prompt(given)
    else:
        assert vqa.question_of_prompt(given) == recorded["question"]


def _textvqa(given: Any, recorded: Any) -> None:
    name = recorded["stdout"].splitlines()[0]
    try:
        rows = vqa.textvqa_rows(given["annotations"], given["answers"])
        scores = [vqa.soft(row, "upstream").score for row in rows]
    except (KeyError, UpstreamStops):
        assert recorded["error"]
        return
    accuracy = per_cent(sum(scores) / len(scores))
    assert f"{name}\nSamples: {len(scores)}\nAccuracy: {accuracy}\n\n" == recorded["stdout"]


def _kit_line(given: Any, recorded: Any) -> None:
    for method in ("vqa_score", "accuracy", "other"):
        matches, read = vqa.kit_line(given["answer"], given["prediction"], method)
        close(matches, recorded[method])
        assert read == recorded[f"{method}_pred"]


def _anls(given: Any, recorded: Any) -> None:
    raw = documents.anls_distances(given["answer"], given["gt_answers"], raw_length=True)
    found = {
        "vqaeval": documents.similarity(documents.anls_distances(given["answer"], given["gt_answers"])),
        "vlmevalkit_distances": raw,
        "vlmevalkit_hit": documents.similarity(raw),
    }
    close(found, recorded)


def _relaxed(given: Any, recorded: Any) -> None:
    prediction, gold = given["prediction"], given["answer"]
    assert documents.within(prediction, gold) == recorded["correct_target_prediction_order"]
    assert [documents.within(gold, prediction)] == recorded["as_the_kit_calls_it"]


def _infer(given: Any, recorded: Any) -> None:
    text, choices = given["answer"], given["choices"]
    assert (options.infer_letter(text, choices) or False) == recorded["option"]
    assert (options.infer_text(text, choices) or False) == recorded["text"]
    assert (options.infer(text, choices) or False) == recorded["combined"]


def _ocr(given: Any, recorded: Any) -> None:
    for name, rows in given.items():
        share = sum(documents.has_word(row["answer"], row["gt_answers"]) for row in rows) / len(rows)
        assert f"{name:<10} :{100 * share:.2f}".replace(" ", "") in recorded["stdout"].replace(" ", "")


def _gqa(given: Any, recorded: Any) -> None:
    texts = {answer["question_id"]: answer["text"] for answer in given["answers"]}
    assert submissions.gqa_predictions([], given["answers"]).rows == recorded["predictions"]
    rows = [Answered(id, question, texts.get(id)) for id, question in given["questions"].items()]
    try:
        found = gqa.summary([(row, gqa.mark(row, "upstream")) for row in rows], "upstream")
    except UpstreamStops:
        assert recorded["error"]
        return
    assert not recorded["error"]
    lines = [
        f"Binary: {per_cent(found['binary'])}",
        f"Open: {per_cent(found['open'])}",
        f"Accuracy: {per_cent(found['value'])}",
        "Validity: 0.00%",
        "Plausibility: 0.00%",
        f"Distribution: {found['distribution']:.2f} (lower is better)",
    ]
    for name, table in found["by"].items():
        lines += ["", f"Accuracy / {name}:"]
        lines += [
            f"  {key}: {per_cent(row['accuracy'])} ({row['n_questions']} questions)" for key, row in table.items()
        ]
    assert "\n".join(lines) == recorded["report"].strip()


def _seed(given: Any, recorded: Any) -> None:
    names = {number: name for name, number in given["annotation"]["question_type"].items()}
    texts = {str(answer["question_id"]): answer["text"] for answer in given["answers"]}
    rows = [
        Answered(id, {**question, "question_type": names[question["question_type_id"]]}, texts.get(id))
        for question in given["annotation"]["questions"]
        for id in [str(question["question_id"])]
    ]
    try:
        found = options.by_type([(row, options.letter(row, "upstream")) for row in rows], "upstream")
    except UpstreamStops:
        assert recorded["error"]
        return
    assert not recorded["error"]
    types = found["by"]["question type"]
    lines = [f"{name}: {per_cent(types[name]['accuracy'])}" for name in names.values()]
    lines += [f"Total accuracy: {per_cent(found['value'])}"]
    lines += [f"{kind} accuracy: {per_cent(found[f'accuracy_{kind}'])}" for kind in ("image", "video")]
    assert "\n".join(lines) + "\n" == recorded["stdout"]
    assert submissions.seed(given["annotation"]["questions"], given["answers"]).rows == recorded["upload"]


def _letter(given: Any, recorded: Any) -> None:
    letter = scienceqa.parse(given["text"])
    assert {"parsed_ans": letter, "pred_idx": scienceqa.index(letter, given["choices"])} == recorded


def _stvqa(given: Any, recorded: Any) -> None:
    accuracy, anls = documents.stvqa(given["pred_answer"], given["gt_answers"])
    close({"accuracy": accuracy, "anls": anls}, recorded)


def _science(given: Any, recorded: Any) -> None:
    answers = {answer["question_id"]: answer for answer in given["answers"]}
    rows = [
        Answered(id, given["problems"][id], answers.get(id, {}).get("text"), answers.get(id, {}).get("prompt"))
        for id in given["split"]
    ]
    marked = [(row, scienceqa.mark(row, "upstream")) for row in rows]
    try:
        found = scienceqa.summary(marked, "upstream")
    except UpstreamStops:
        assert recorded["llava"]["error"]
        return
    output, result = scienceqa.output_files(given["problems"], given["split"], answers)
    assert output == recorded["llava"]["output_file"]
    close(result, recorded["llava"]["output_result"])
    line = f"Total: {len(rows)}, Correct: {result['correct']}, Accuracy: {per_cent(found['value'])}"
    assert f"{line}, IMG-Accuracy: {per_cent(found['accuracy_image'])}\n" == recorded["llava"]["stdout"]
    of_bunny = dict(recorded["bunny"]["output_result"])
    assert found["n_image"] == of_bunny.pop("image_count")
    close(100 * found["accuracy_image"], of_bunny.pop("image_acc"))
    right = of_bunny.pop("image_correct")
    assert sum(mark.score for row, mark in marked if scienceqa.has_image(row, "upstream")) == right
    close(result, of_bunny)


def _science_gpt4(given: Any, recorded: Any) -> None:
    ours, again = ({row["question_id"]: row["text"] for row in given[name]} for name in ("ours", "requery"))
    found = scienceqa.combine(given["problems"], ours, given["gpt4"], again)
    n = found["n_questions"]

    def line(label: str, key: str, share: str = "Accuracy") -> str:
        return f"Total: {n}, {label}: {found[key]}, {share}: {per_cent(found[key] / n)}"

    unread = line("GPT-4 NO-ANS (RANDOM)", "gpt4_unread", "Percentage")
    printed = [line("Correct", "gpt4"), line("Correct (upper)", "either"), unread]
    assert "\n".join(printed) + "\n" == recorded["gpt4_stdout"]
    assert recorded["requery_stdout_totals"] == [
        line("Our-Correct", "ours"),
        line("GPT-4-Correct", "gpt4"),
        unread,
        line("GPT-4-OursVisual-Correct", "gpt4_or_ours"),
        line("Requery-Correct", "requery"),
        line("Correct upper", "either"),
    ]
    assert found["results"] == recorded["requery_result"]["results"]


def _pope(given: Any, recorded: Any) -> None:
    categories = {question["question_id"]: question["category"] for question in given["questions"]}
    if any(answer["question_id"] not in categories for answer in given["answers"]):
        assert recorded["llava"]["error"]
        return
    found: dict[str, Any] = {}
    for category, rows in given["annotations"].items():
        texts = [row["text"] for row in given["answers"] if categories[row["question_id"]] == category]
        try:
            found[category] = yes_no.pope_upstream(texts, [row["label"] for row in rows])
        except UpstreamStops as stopped:
            found[category] = stopped.args[0]
    renamed = {"F1 score": "f1", "Accuracy": "accuracy", "Precision": "precision", "Recall": "recall"}
    renamed |= {"Yes ratio": "yes_ratio"} | {name: name for name in ("TP", "FP", "TN", "FN")}
    for project in ("llava", "bunny"):
        for category, table in recorded[project]["by_category"].items():
            if not isinstance(table, dict):  # Bunny's mean stands among the categories
                continue
            ours = found[category]
            both = [name for name in table if name in renamed]
            close([ours[renamed[name]] for name in both], [table[name] for name in both])
            if "summary_line" in table:
                keys = ("f1", "accuracy", "precision", "recall", "yes_ratio")
                assert ", ".join(f"{ours[key]:.3f}" for key in keys) == table["summary_line"]
        assert bool(recorded[project]["error"]) == any("f1" not in table for table in found.values())
    if (mean_f1 := recorded["bunny"]["by_category"].get("average_f1")) is not None:
        close(sum(table["f1"] for table in found.values()) / len(found), mean_f1)


def _mme(given: Any, recorded: Any) -> None:
    truths = {(row["category"], row["file"], line[0]): line[1] for row in given["questions"] for line in row["lines"]}
    try:
        files = submissions.mme_lines(given["answers"], truths)
    except KeyError:
        assert recorded["convert_error"]
        return
    assert files == recorded["files"]
    try:
        tasks = mme.mme_of_files(files)
    except UpstreamStops:
        assert recorded["calc_error"]
        return
    text = ""
    for name, listed in (("Perception", mme.PERCEPTION), ("Cognition", mme.COGNITION)):
        total = 0.0
        for task in listed:
            total += tasks[task]
        text += f"=========== {name} ===========\ntotal score: {total} \n\n"
        text += "".join(f"\t {task}  score: {tasks[task]}\n" for task in listed) + "\n\n"
    assert text == recorded["calc_stdout"]


def _kit_pope(given: Any, recorded: Any) -> None:
    found = yes_no.kit_pope(given)
    close(found, [{key: float(v) if key != "split" else v for key, v in row.items()} for row in recorded])


def _mmmu_run(given: Any, recorded: Any) -> None:
    try:
        result, skipped = mmmu.upstream_table(given["outputs"], given["answers"])
    except KeyError:
        assert recorded["error"]
        return
    close(result, recorded["result"])
    assert skipped == recorded["skipped"]


def _cmmmu_run(given: Any, recorded: Any) -> None:
    if {str(row["id"]) for row in given["data"]} != {str(row["id"]) for row in given["outputs"]}:
        assert recorded["error"]
        return
    table = cmmmu.upstream_table(given["data"], given["outputs"])
    for line in recorded["table"].splitlines()[2:]:
        name, right, total, _ = (cell.strip() for cell in line.strip("|").split("|"))
        assert (table[name]["n_right"], table[name]["n_questions"]) == (int(right), int(total))


def _unordered(found: list[Any], recorded: list[Any]) -> None:
    assert sorted(map(repr, found)) == sorted(map(repr, recorded))  # upstream's is a set


def _fill(given: Any, recorded: Any) -> None:
    assert cmmmu.blank_right(given["response"], given["answer"]) == recorded["correct"]
    _unordered(cmmmu.candidates(given["response"], given["answer"]), recorded["predictions"])


def _normalize(given: Any, recorded: Any) -> None:
    found = mmmu.normalize(given)
    close([value if isinstance(value, str) or math.isfinite(value) else str(value) for value in found], recorded)


def _mmmu_prompt(given: Any, recorded: Any) -> None:
    asked = prompts.mmmu(given)
    assert asked.text == recorded["final_input_prompt"]
    assert asked.choices == recorded["index2ans"]


def _cmmmu_prompt(given: Any, recorded: Any) -> None:
    asked = prompts.cmmmu(given)
    assert asked.text == recorded["final_input_prompt"]
    assert (None if asked.choices is None else list(asked.choices)) == recorded["all_choices"]


def _upload(make: Any) -> Check:
    def check(given: Any, recorded: Any) -> None:
        answers, n_broken = submissions.parse_lines(given["answer_lines"])
        made = make(given["split"], answers)
        n_found = len(submissions.by_id(answers))
        assert recorded["stdout"] == (
            f"total results: {n_found}, total split: {len(given['split'])}, error_line: {n_broken}\n"
        )
        if recorded["error"]:
            assert made.missing
        else:
            assert made.rows == recorded["upload"]

    return check


def _mmbench(given: Any, recorded: Any) -> None:
    rows = submissions.parse_tsv(given["tsv"])
    if recorded["error"]:
        assert submissions.mmbench_lacks(rows)
        return
    assert not submissions.mmbench_lacks(rows)
    assert submissions.mmbench(rows, given["answers"]).rows == recorded["sheet_rows"]


def _docvqa(given: Any, recorded: Any) -> None:
    answers = [{"question_id": row["question_id"], "text": row["answer"]} for row in given]
    assert submissions.docvqa([], answers).rows == recorded


def _mm_vet(given: Any, recorded: Any) -> None:
    made = submissions.mm_vet([], given)
    assert submissions.as_json(made.rows, indent=2) == recorded["text_of_file"]
    assert made.rows == recorded["object"]


def _chunks(given: Any, recorded: Any) -> None:
    """Ours has an empty share where upstream's last processes die; nothing else differs."""
    ours = submissions.chunk_bounds(given["items"], given["chunks"])
    for found, upstream in zip(ours, recorded["llava_bunny_start_stop"], strict=True):
        if isinstance(upstream, dict):
            assert found[0] == found[1]
        else:
            assert list(found) == upstream
    even = submissions.even_bounds(given["items"], given["chunks"])
    assert [list(bounds) for bounds in even] == recorded["minicpm_sampler_start_stop"]


def _equal(function: Callable[[Any], Any]) -> Check:
    return lambda given, recorded: close(function(given), recorded)


CHECKS: dict[str, Check] = {
    "anls": _anls,
    "chunks": _chunks,
    "cmmmu_fill": _fill,
    "cmmmu_parse_choice": lambda given, recorded: close(
        cmmmu.parse_choice(given["response"], given["index2ans"]), recorded["pred"]
    ),
    "cmmmu_prompt": _cmmmu_prompt,
    "cmmmu_run": _cmmmu_run,
    "cmmmu_true_false": lambda given, recorded: close(cmmmu.verdict(given), recorded["verdict"]),
    "gqa_run": _gqa,
    "m4c_processor": _equal(vqa_text.clean),
    "minicpm_clean_text": _equal(lambda given: vqa_text.clean(given, whole=False)),
    "minicpm_docvqa_submission": _docvqa,
    "minicpm_ocr_run": _ocr,
    "minicpm_vqa_score": _equal(lambda given: vqa.minicpm_soft(given["answer"], given["gt_answers"])),
    "mmbench_submission": _mmbench,
    "mme_parse": _equal(lambda given: mme.mme_text(given["text"])),
    "mme_run": _mme,
    "mmmu_eval_open": _equal(lambda given: mmmu.open_right(given["gold"], given["response"])),
    "mmmu_normalize": _normalize,
    "mmmu_parse_choice": lambda given, recorded: close(
        mmmu.parse_choice(given["response"], given["index2ans"]), recorded["pred"]
    ),
    "mmmu_parse_open": lambda given, recorded: _unordered(mmmu.parse_open(given), recorded),
    "mmmu_prompt": _mmmu_prompt,
    "mmmu_run": _mmmu_run,
    "mmvet_submission": _mm_vet,
    "pope_run": _pope,
    "pope_text": _equal(yes_no.pope_text),
    "relaxed_accuracy": _relaxed,
    "scienceqa_gpt4_run": _science_gpt4,
    "scienceqa_parse": lambda given, recorded: close(
        {
            "parsed_ans": (letter := scienceqa.parse(given["text"])),
            "pred_idx": scienceqa.index(letter, given["choices"]),
        },
        recorded,
    ),
    "scienceqa_run": _science,
    "seed_run": _seed,
    "stvqa_score": _stvqa,
    "textvqa_prompt": _textvqa_prompt,
    "textvqa_run": _textvqa,
    "textvqa_score": _soft,
    "vizwiz_submission": _upload(submissions.vizwiz),
    "vlmevalkit_infer_option": _infer,
    "vlmevalkit_line": _kit_line,
    "vlmevalkit_mme": lambda given, recorded: close(mme.kit_mme(given), recorded),
    "vlmevalkit_pope": _kit_pope,
    "vlmevalkit_yes_no": _equal(yes_no.kit_read),
    "vqav2_submission": _upload(submissions.vqav2),
}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_scores_equal_those_of_the_original_scripts(name):
    found = cases(name)
    assert found
    for case in found:
        try:
            CHECKS[name](case["input"], case["output"])
        except AssertionError as error:
            raise AssertionError(f"{name}, case {case['id']}: {error}") from error


def test_scienceqa_is_converted_as_the_original_script_does(tmp_path):
    found = cases("scienceqa_convert")
    assert found
    for case in found:
        problems = case["input"]["problems"]
        (tmp_path / "problems.json").write_text(json.dumps(problems))
        (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
        records = convert_scienceqa(tmp_path, "test", case["input"]["format"], keep_spaces=True)
        assert records == case["output"]["llava"], case["id"]
        flat = [
            {key: record[key] for key in ("id", "image") if key in record}
            | dict(zip(("instruction", "output"), (turn["value"] for turn in record["conversations"]), strict=True))
            for record in records
        ]
        assert flat == case["output"]["jsonl"], case["id"]


def _review(given: Any, recorded: Any) -> None:
    bench = review.Bench(
        given["script"], given["questions"], given["answers_1"], given["answers_2"], given["rule"], given["context"]
    )
    if recorded["error"]:
        with pytest.raises(DataError):
            bench.ask()
        return
    done = len(given["reviews_already_there"])
    asked = bench.ask()[done:]
    found = [{"messages": each.messages(), "temperature": 0.2, "max_tokens": 1024} for each in asked]
    assert found == [
        {key: row[key] for key in ("messages", "temperature", "max_tokens")} for row in recorded["requests"]
    ]
    new = recorded["reviews"][done:]
    rows = [
        each.row(row["content"], review.scores_upstream(row["content"])) for each, row in zip(asked, new, strict=True)
    ]
    close(rows, new)


def _review_summary(given: Any, recorded: Any) -> None:
    arguments = dict(zip(given["args"][::2], given["args"][1::2], strict=True))
    words = arguments["-s"].split() if "-s" in arguments else []
    if "-d" in arguments and not review_summary.is_wanted(given["file_name"], arguments.get("-v"), words):
        assert recorded["stdout"] == ""
        return
    ignored = arguments["-i"].split() if "-i" in arguments else []
    lines = review_summary.summary(given["reviews"], ignored, upstream=True)
    text = "\n".join([review_summary.set_name(given["file_name"]), *(line.text() for line in lines)])
    assert f"{text}\n{'=' * 33}\n" == recorded["stdout"]


def _review_page(given: Any, recorded: Any) -> None:
    """Ours but for ids and order, which upstream permutes by a table of its own."""
    ids = [str(question["question_id"]) for question in given["questions"]]
    answers = {"vicuna": {id: f"v{id}" for id in ids}, "ours": {id: f"o{id}" for id in ids}}
    reviews = {"vicuna": {str(row["question_id"]): row for row in given["reviews"]}}
    found = review_summary.page_data(given["questions"], answers, reviews, upstream=True)
    assert found["models"] == recorded["models"]
    plain = [
        sorted(json.dumps({**row, "id": 0}, sort_keys=True) for row in each["questions"]) for each in (found, recorded)
    ]
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("review_run", _review),
        ("review_summary", _review_summary),
        ("review_webpage", _review_page),
        ("review_parse_score", lambda given, recorded: close(list(review.scores_upstream(given)), recorded)),
    ],
)
def test_reviews_equal_those_of_the_original_scripts(name, check):
    found = cases(name)
    assert found
    for case in found:
        check(case["input"], case["output"])
