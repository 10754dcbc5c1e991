"""Names of the parts of a model, and of the files in the folders of stages and runs. A leaf: it imports nothing."""

PARTS = ("llm", "tower", "connector")

WEIGHTS = "weights"  # the folder of a model; in it a folder for each part
MODEL = "model.json"  # describes the model whose weights lie beside it

RUN_CONFIG = "config.yaml"  # of a run: what was composed
LATEST = "latest"  # the link to the newest run of a name

METRICS = "metrics.jsonl"  # a row for each update
HELD_OUT = "eval.jsonl"  # a row for each evaluation during training
SAMPLES = "samples.jsonl"  # answers that were generated then
SCORES = "scores.json"  # of a finished model
MARKS = "marks.jsonl"  # how each answer to a benchmark was read
ANSWERS = "answers.jsonl"
SHUFFLED = "answers_shuffled.jsonl"  # to the same questions, each about another image
LEDGER = "ledger.jsonl.gz"  # a row for each record: how often it was trained on, and what was lost of it
SKIPPED = "skipped.jsonl"  # records that could not be used, each with its reason
POINTS = "points.jsonl"  # a row for each average that a search tried
BEST = "best.json"  # the one whose weights it kept
