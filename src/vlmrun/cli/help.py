"""Help of the command itself and of the verbs that read their words themselves, at 80 columns."""

from __future__ import annotations

HELP = """\
vlmrun: train vision-language models from one declarative description

usage: vlmrun [train] OVERRIDES     run a recipe, or what is missing of it
       vlmrun VERB ...              vlmrun VERB --help shows its examples

a run
  check OVERRIDES       every problem of a run, before any weight is loaded
  plan OVERRIDES        memory, time, cost and disk of a run, without a GPU
  -m OVERRIDES          a sweep: key=a,b runs every combination
  OVERRIDES --cfg job   print the composed run and stop
  nodes OVERRIDES | sh  the same on every node of hardware.hostfile, over ssh
  selftest [--gpu]      whether every engine and kernel here computes right
where to start
  init DIR              a project of your own, for your data, that runs as it is
  recipes [WORD]        published recipes; of one: its values and its data
  download RECIPE       fetch its weights and data where check looks for them
  import FILE.sh        a recipe from another project's launch script
  export-script RECIPE  the way back: a recipe as another project's script
  completion SHELL      completion for bash, zsh or fish
results
  ls [ARTIFACT]         finished stages; of one: where it came from
  runs [NAME]           what was run, and what came of it
  site                  pages of all runs, stages and sweeps, for a browser
  watch [RUN]           a run while it works, here and in a browser
  diff A B              what changed between two runs, and what came of it
  replay RUN            run it again and compare every digest
  doctor RUN            why a model does not learn: the likeliest causes
  gc                    free the room of stages no run needs
models
  chat ARTIFACT         talk with a model about an image
  serve ARTIFACT...     an OpenAI-compatible server, and a web page (--web)
  merge ARTIFACT        fold a LoRA adapter into its LLM
  average A B           one model of several: linear, ties, slerp, ...
  convert SRC DST       a model in another format: Hugging Face, Megatron, ...
data and scores
  data show|lint|...    a sample as the model sees it; check, convert data sets
  score ANSWERS         accuracy, interval and protocol of answers
  submit STAGE          the files that evaluation servers take
  judge QUESTIONS A B   two sets of answers compared by a judge

overrides (Hydra's grammar)
  +recipe=NAME                choose a recipe from conf/recipe
  stage.lora.optim.lr=1e-4    set a value
  model/connector=linear      choose another option of a group
  only=[lora]                 run these stages only

options: -m, --multirun   --cfg job   --config-dir DIR (adds your own conf/)
         --help   --version

try:   vlmrun +recipe=smoke   the full pipeline at toy size: minutes on two
                              cores, offline
       vlmrun check +recipe=smoke stage.lora.optim.lrr=1
"""

_OPTIONS = """\
options:
  -m, --multirun      every combination of values given as key=a,b
  --cfg job           print the composed run and stop
  --config-dir DIR    add the options of a folder that is laid out like conf/
  --help              this text
"""

TRAIN = f"""\
usage: vlmrun [train] OVERRIDES [-m] [--cfg job] [--config-dir DIR]

Runs the stages of a recipe that are not finished yet, parents first. Finished
stages are reused, an interrupted one resumes from its newest checkpoint.

{_OPTIONS}
examples:
  vlmrun +recipe=smoke
  vlmrun +recipe=smoke stage.lora.optim.lr=3e-3      another value
  vlmrun +recipe=smoke 'only=[lora]'                 one stage
  vlmrun -m +recipe=smoke stage.lora.optim.lr=1e-3,3e-3    a sweep
  vlmrun --config-dir conf +recipe=mine              a recipe of your own
"""

CHECK = f"""\
usage: vlmrun check OVERRIDES [-m] [--config-dir DIR]

Composes a run and reports every problem at once, each with its fix, before any
weight is loaded: names, values, files, memory, what belongs together. Without
problems it lists the stages, and which of them are finished. Exit code 2 when
there is a problem.

{_OPTIONS.replace("  --cfg job           print the composed run and stop" + chr(10), "")}
examples:
  vlmrun check +recipe=llava15_7b                    data, weights, values
  vlmrun check +recipe=smoke stage.lora.optim.lr=3e-3    what would run again
  vlmrun check -m +recipe=smoke stage.lora.optim.lr=1e-3,3e-3
"""

NODES = """\
usage: vlmrun nodes OVERRIDES [--config-dir DIR] | sh

Prints a shell script that gives the same command on every node of a host file,
over ssh. Nothing is started until a shell reads it. Paths and the Python
environment have to be the same on all nodes.

options:
  --config-dir DIR    add the options of a folder that is laid out like conf/
  --help              this text

examples:
  vlmrun nodes +recipe=llava15_7b hardware.nodes=2 hardware.hostfile=hosts | sh
"""

DATA = """\
usage: vlmrun data ACTION ...       vlmrun data ACTION --help says more

  show OVERRIDES [INDEX]            one sample as the model will see it
  lint OVERRIDES                    what is wrong with all data of a run
  lint FILE --images DIR            the same of one annotation file
  ledger STAGE                      which records were trained on, what was lost
  convert FILE OUTPUT --to minicpm  LLaVA JSON to MiniCPM-V JSON (llava: back)
  convert FILE FOLDER --to wds      LLaVA JSON and images to tar shards
  convert FOLDER FOLDER --from wds  tar shards to LLaVA JSON and images
  prepare scienceqa                 a published data set as LLaVA JSON

examples:
  vlmrun data show +recipe=smoke 3
  vlmrun data lint train.json --images images
"""
DATA_SHOW_USAGE = "vlmrun data show OVERRIDES [INDEX] [--stage NAME] [--json]"
DATA_SHOW = """\
vlmrun data show +recipe=smoke
vlmrun data show +recipe=smoke 3 --stage lora      record 3, counted from 0
"""
DATA_LINT_USAGE = "vlmrun data lint OVERRIDES|FILE [options]"
DATA_LINT = """\
vlmrun data lint +recipe=smoke --report problems.jsonl
vlmrun data lint train.json --images images
vlmrun data lint train.json --images images --template vicuna_v1 --limit 1000
vlmrun data lint train.json --images images --decode all
"""
DATA_PREPARE = """\
vlmrun data prepare scienceqa --base-dir ScienceQA --output train.json
"""

OF_RUNS = {"train": TRAIN, "check": CHECK, "nodes": NODES}
