"""Cross checks: every broken rule is found, none is found in a sound run, and all of them at once."""

import json

import pytest

from vlmrun.checks.rules import check
from vlmrun.config.compose import compose
from vlmrun.config.validate import validate


def composed(*overrides: str):
    result = compose(["+recipe=smoke", *overrides])
    run, problems = validate(result.tree, result.problems)
    assert run is not None, [str(problem) for problem in [*result.problems, *problems]]
    return run


def found(*overrides: str) -> list[str]:
    return [f"{problem.where}: {problem.what} | {problem.fix}" for problem in check(composed(*overrides))]


def test_the_smoke_recipe_is_sound():
    assert found() == []


QLORA = ["stage.lora.tune.llm=qlora", "stage.lora.quant={bits: 4, type: nf4, double: true}"]
HELD_OUT = "stage.instruct.eval={steps: 2, data: [shapes_test], max_samples: 8, generate: 0, max_new_tokens: 4}"
RULES = {
    "objective": ("objective=eval_mrge.accuracy", "is no number of a stage | STAGE.NUMBER; did you mean 'eval_merge'"),
    "global batch": ("stage.lora.micro_batch=5", "is no multiple of micro_batch 5 x 1 rank(s)"),
    "nearest batch": ("stage.lora.micro_batch=5", "stage.lora.micro_batch=4, or stage.lora.global_batch=30 or 35"),
    "row too short": (
        "stage.pretrain.packing={length: 64, method: even_fit, window: 100}",
        "but a row only 64 | stage.pretrain.packing.length=",
    ),
    "rows in groups": (
        [
            "stage.pretrain.packing={length: 4096, method: even_fit, window: 100}",
            "stage.pretrain.group_by_modality_length=true",
        ],
        "group_by_modality_length is an order of batches of samples",
    ),
    "rows of a recorded order": (
        [
            "stage.pretrain.packing={length: 4096, method: even_fit, window: 100}",
            "stage.pretrain.compat.transformers_order='4.37'",
        ],
        "compat.transformers_order is an order of batches",
    ),
    "rows of an unknown family": (
        [
            "stage.pretrain.packing={length: 4096, method: even_fit, window: 100}",
            "model/llm=pico_mpt",
            "hardware.attention=eager",
        ],
        "not known to stay apart in mpt | stage.pretrain.packing=null; known: cohere2, deepseek_v3",
    ),
    "liger on a CPU": ("stage.pretrain.loss_head=liger", "liger needs a GPU | stage.pretrain.loss_head=chunked"),
    "liger in fp16": (
        ["hardware=v100_fp16", "stage.pretrain.loss_head=liger"],
        "computes gradients before the loss is scaled",
    ),
    "liger missing": (
        ["hardware=a100_bf16", "stage.pretrain.loss_head=liger"],
        "liger-kernel is not installed | pip install 'vlmrun-trainer[gpu]'",
    ),
    "nothing trained": ("stage.pretrain.tune.connector=freeze", "every part is frozen"),
    "more blocks than there are": ("stage.instruct.tune.llm_last=99", "blocks, not 99"),
    "module to save that is none": (
        "stage.lora.lora.modules_to_save=[q_prj]",
        "no module of the LLM is called 'q_prj' | did you mean 'q_proj'",
    ),
    "lora without values": ("stage.lora.lora=null", "lora has no values"),
    "lora values unused": ("stage.lora.tune.llm=full", "tune.llm is full"),
    "qlora without values": (["stage.lora.tune.llm=qlora", "stage.lora.lora=null"], "tune.llm is qlora, but lora has"),
    "qlora and ZeRO-3": (
        ["stage.lora.tune.llm=qlora", "stage.lora.zero=3"],
        "cut the packed weights into pieces | stage.lora.zero=2",
    ),
    "qlora without quant": ("stage.lora.tune.llm=qlora", "tune.llm is qlora, but quant has no values"),
    "quant without qlora": (QLORA[1:], "quant has values, but tune.llm is lora"),
    "type of 8 bits": (
        [QLORA[0], "stage.lora.quant={bits: 8, type: fp4, double: false}"],
        "type and double are of 4 bits, but bits is 8",
    ),
    "head without qlora": ("stage.lora.compat.quantised_head=true", "compat.quantised_head is of qlora"),
    "rows of no tokens": ("stage.instruct.tune.llm=new_tokens", "tune.llm is new_tokens, but the model adds none"),
    "rows and ZeRO-3": (
        ["model.image_markers=['<s>', '<e>']", "stage.instruct.tune.llm=new_tokens", "stage.instruct.zero=3"],
        "cuts the embedding whose rows",
    ),
    "tokens and ZeRO-3": (
        ["model.new_tokens=['<new>']", "stage.pretrain.zero=3"],
        "while ZeRO-3 loads the LLM in pieces",
    ),
    "tokens and qlora": (
        ["model.new_tokens=['<new>']", *QLORA, "stage.lora.init_from=null"],
        "cannot be added to a quantized LLM",
    ),
    "token twice": ("model.image_markers=['<a>', '<a>']", "<a> is named twice"),
    "token of a space": ("model.new_tokens=[' a']", "has a space at an end"),
    "token that is a place": ("model.new_tokens=['<image>']", "is no token"),
    "role": ("+model.llm.tokens={padd: '<unk>'}", "did you mean 'pad'?"),
    "role of no token": ("+model.llm.tokens={pad: '<unkn>'}", "the tokenizer has no token '<unkn>'"),
    "attention of MPT": ("model/llm=pico_mpt", "mpt knows no attention 'sdpa'"),
    "quantised by hand": ("+model.llm.quantized=nf4", "load takes no argument 'quantized'"),
    "train from qlora": (
        ["stage.lora2.init_from=lora", "stage.lora.tune.llm=qlora"],
        "the adapters of 'lora' were trained with tune.llm qlora",
    ),
    "train from lora of another shape": (
        ["stage.lora2.init_from=lora", "stage.lora2.lora.r=3", "+stage.lora2.lora.dora=true"],
        "has adapters of another shape",
    ),
    "pattern that backtracks": ("+stage.lora.lora.alpha_pattern={.*.*.*.*.*x: 2.0}", "too many ways to match a name"),
    "cooldown longer than the rest": (
        [
            "stage.lora.max_steps=10",
            "stage.lora.optim.schedule=wsd",
            "stage.lora.optim.warmup_ratio=0.2",
            "+stage.lora.optim.cooldown_steps=1000",
        ],
        "the cooldown takes 1000 steps, and the warm-up leaves 8 of 10",
    ),
    "decay within a share of warm-up": (
        ["stage.lora.max_steps=10", "stage.lora.optim.warmup_ratio=0.5", "+stage.lora.optim.decay_steps=5"],
        "the warm-up takes 5 of 10 steps, and the decay ends after 5",
    ),
    "tower through adapters of no shape": ("stage.instruct.tune.tower=lora", "but tower_lora has no values"),
    "shape for a frozen tower": (
        "stage.lora.tower_lora={r: 4, alpha: 8.0, dropout: 0.0, targets: all-linear, bias: none, modules_to_save: []}",
        "tower_lora has values, but tune.tower is freeze",
    ),
    "biases beside a tower's adapters": (
        ["stage.lora.tune.tower=lora", "stage.lora.lora.bias=all"],
        "beside the adapters of the tower nothing of it trains",
    ),
    "last blocks of a frozen tower": ("stage.instruct.tune.tower_last=2", "tower_last is 2, but tune.tower is freeze"),
    "last blocks of a frozen llm": ("stage.pretrain.tune.llm_last=2", "llm_last is 2, but tune.llm is freeze"),
    "cpu adam of nothing offloaded": ("stage.instruct.optim.optimizer=cpu_adam", "(offload is none)"),
    "8 bits under fsdp": (
        ["stage.instruct.optim.optimizer=adamw_8bit", "stage.instruct.engine=fsdp", "stage.instruct.zero=3"],
        "fsdp shards state that adamw_8bit cannot be sharded in",
    ),
    "8 bits offloaded": (
        ["stage.instruct.optim.optimizer=adamw_8bit", "stage.instruct.offload=cpu"],
        "stage.instruct.optim.optimizer=cpu_adam",
    ),
    "pages without a GPU": ("stage.instruct.optim.optimizer=paged_adamw", "there is no GPU"),
    "an average of pieces on a drive": (
        [
            "stage.instruct.ema={decay: 0.9, every: 1, result: true}",
            "stage.instruct.offload=nvme",
            "stage.instruct.zero=3",
        ],
        "an average of weights is not kept with offload=nvme",
    ),
    "a pattern that is none": (
        "+stage.lora.lora.rank_pattern={*a: 4}",
        "* repeats nothing | the end of a layer's name",
    ),
    "features of a trained tower": (
        ["stage.instruct.tune.tower=full", "stage.instruct.tower_cache=features"],
        "its features change with every update",
    ),
    "features of a sharded tower": (
        ["stage.lora.zero=3", "stage.lora.tower_cache=features"],
        "ZeRO-3 shards the tower",
    ),
    "features in a file": ("stage.lora.tower_cache=/dev/null/features", "/dev/null is not a folder"),
    "images kept in a file": ("stage.lora.image_cache=/etc/hosts", "/etc/hosts is not a folder"),
    "features nowhere": ("stage.lora.tower_cache=' '", "tower_cache is empty"),
    "lora on random weights": (["model/llm=pico", "stage.lora.init_from=null"], "lie in no folder"),
    "lora targets": ("stage.lora.lora.targets=[q_prj]", "did you mean 'q_proj'?"),
    "lora no targets": ("stage.lora.lora.targets=[]", "LoRA has no targets"),
    "rate 0": ("stage.instruct.optim.lr=0.0", "would never move"),
    "warm-up only": ("stage.instruct.optim.warmup_ratio=1.0", "the whole schedule is warm-up"),
    "warm-up in one step": ("stage.instruct.max_steps=1", "all 1 steps are warm-up"),
    "warm-up told twice": ("stage.instruct.optim.warmup_steps=2", "by warmup_steps, and both are given"),
    "warm-up not told": ("stage.instruct.optim.warmup_ratio=null", "by warmup_steps, and neither is given"),
    "warm-up of all steps": (
        ["stage.instruct.optim.warmup_ratio=null", "stage.instruct.optim.warmup_steps=8", "stage.instruct.max_steps=8"],
        "all 8 steps are warm-up, and the first has rate 0 | raise max_steps or lower warmup_steps",
    ),
    "lowest rate of none": (
        ["stage.instruct.optim.schedule=constant", "stage.instruct.optim.min_lr_ratio=0.1"],
        "schedule constant never falls",
    ),
    "lowest rate told twice": (
        ["stage.instruct.optim.min_lr=1e-5", "stage.instruct.optim.min_lr_ratio=0.1"],
        "given as a rate and as a share",
    ),
    "lowest rate too high": ("stage.instruct.optim.min_lr=1.0", "the lowest rate 1 is above lr"),
    "lowest rate of a constant": (
        ["stage.instruct.optim.schedule=constant", "stage.instruct.optim.decay_steps=9"],
        "schedule constant never falls to a lowest rate | decay_steps=null",
    ),
    "decay within the warm-up": (
        [
            "stage.instruct.optim.warmup_ratio=null",
            "stage.instruct.optim.warmup_steps=8",
            "stage.instruct.optim.decay_steps=8",
        ],
        "the warm-up takes 8 steps, and the decay ends after 8",
    ),
    "warm-up from above": ("stage.instruct.optim.warmup_from=1.0", "the warm-up begins at 1, above lr"),
    "warm-up from a rate, of none": (
        ["stage.instruct.optim.warmup_from=1e-6", "stage.instruct.optim.warmup_ratio=0.0"],
        "there is no warm-up that could begin",
    ),
    "power of a line": ("stage.instruct.optim.power=2.0", "schedule cosine has no power"),
    "cooldown of a cosine": ("stage.instruct.optim.cooldown_steps=4", "schedule cosine has no cooldown"),
    "decay of wsd as a share": (
        ["stage.instruct.optim.schedule=wsd", "stage.instruct.optim.decay_ratio=0.25"],
        "stage.instruct.optim.decay_ratio=null stage.instruct.optim.cooldown_ratio=0.25",
    ),
    "decay told twice": (
        ["stage.instruct.optim.decay_ratio=0.5", "stage.instruct.optim.decay_steps=8"],
        "in updates and as a share",
    ),
    "warm-up beyond the decay": (
        ["stage.instruct.optim.decay_ratio=0.1", "stage.instruct.optim.warmup_ratio=0.1"],
        "the warm-up takes 0.1 of all steps",
    ),
    "a gain that nothing waits for": (
        "stage.instruct.eval={steps: 3, data: [other], max_samples: 4, generate: 0, max_new_tokens: 4, min_delta: 0.1}",
        "min_delta is what an evaluation must gain for patience",
    ),
    "wsd with two": (
        [
            "stage.instruct.optim.schedule=wsd",
            "stage.instruct.optim.cooldown_steps=4",
            "stage.instruct.optim.cooldown_ratio=0.1",
        ],
        "both are given",
    ),
    "a cooldown of nothing": (
        ["stage.instruct.optim.schedule=wsd", "stage.instruct.optim.cooldown_ratio=0.0"],
        "a cooldown of no step",
    ),
    "weight decay that grows to nowhere": (
        "stage.instruct.optim.weight_decay_schedule=linear",
        "where it ends is not given",
    ),
    "weight decay that stays": ("stage.instruct.optim.weight_decay_end=0.1", "it is constant"),
    "weight decay that falls": (
        [
            "stage.instruct.optim.weight_decay=0.2",
            "stage.instruct.optim.weight_decay_end=0.1",
            "stage.instruct.optim.weight_decay_schedule=cosine",
        ],
        "it can only grow",
    ),
    "no length": ("stage.instruct.epochs=null", "neither epochs nor max_steps"),
    "packing without passes": (
        [
            "stage.instruct.epochs=null",
            "stage.instruct.max_steps=9",
            "stage.instruct.packing={length: 512, method: in_order, window: 9}",
        ],
        "packing lays out whole passes",
    ),
    "energon's order of JSON": (
        "stage.instruct.order={name: energon7, ranks: 1, workers: 0, micro_batch: 1, slice_samples: null, buffer: 9}",
        "of one data set of format energon",
    ),
    "energon's order of another batch": (
        "stage.instruct.order={name: energon7, ranks: 3, workers: 0, micro_batch: 1, slice_samples: null, buffer: 9}",
        "is not a multiple of 3 ranks x 1 samples",
    ),
    "energon's order and lengths": (
        [
            "stage.instruct.order={name: energon4, ranks: 1, workers: 0, micro_batch: 1, slice_samples: 9, buffer: 9}",
            "stage.instruct.group_by_modality_length=true",
        ],
        "group_by_modality_length is another order",
    ),
    "units of blocks under fsdp": (
        ["stage.instruct.gradient_checkpointing=2", "stage.instruct.engine=fsdp"],
        "fsdp gathers block by block",
    ),
    "best of nothing": ("stage.instruct.keep_best=loss", "keep_best needs evaluations"),
    "best answers of none": ([HELD_OUT, "stage.instruct.keep_best=exact_match"], "none are generated"),
    "held out and trained on": (
        [HELD_OUT, "stage.instruct.eval.data=[shapes_instruct]"],
        "shapes_instruct is trained on: what is evaluated on must be held out",
    ),
    "held-out data": ([HELD_OUT, "stage.instruct.eval.data=[shapes_tset]"], "eval.data: no data 'shapes_tset'"),
    "answers of too few": ([HELD_OUT, "stage.instruct.eval.generate=99"], "99 answers of 8 samples"),
    "rate of a frozen part": ("stage.instruct.optim.tower_lr=1e-4", "the vision tower is frozen"),
    "inline ranks": ("hardware.ranks_per_node=2", "launcher inline is one process"),
    "bf16 zero 0": (["hardware.precision=bf16", "stage.lora.zero=0"], "bf16 with ZeRO 0"),
    "bf16 on v100": (["hardware.precision=bf16", "hardware.gpu=v100_32g"], "v100_32g has no bf16"),
    "unknown gpu": ("hardware.gpu=a100", "unknown gpu 'a100'"),
    "fp16 on a CPU": (
        "hardware.precision=fp16",
        "fp16 training needs a GPU: DeepSpeed refuses it on a CPU",
    ),
    "fp16 without DeepSpeed": (
        ["hardware=v100_fp16", "stage.lora.engine=fsdp"],
        "which engine fsdp has not | stage.lora.engine=deepspeed",
    ),
    "fp16 without ZeRO": (
        ["hardware=v100_fp16", "stage.lora.zero=0"],
        "scales losses for fp16 at ZeRO 1 or more | stage.lora.zero=2",
    ),
    "offload below ZeRO-2": (
        ["stage.lora.zero=1", "stage.lora.offload=cpu"],
        "needs ZeRO 2 or 3, or fsdp (",
    ),
    "scores that are capped": (
        ["model/llm=pico_mistral", "model.llm.config.model_type=gemma2"],
        "gemma2 knows no attention 'sdpa' in transformers | hardware.attention=eager or flash_attention_2",
    ),
    "srun where there is none": ("hardware.launcher=srun", "there is no srun here | run it inside a SLURM job"),
    "hosts for srun": (
        ["hardware.launcher=srun", "hardware.hostfile=nowhere"],
        "SLURM says which nodes srun starts ranks on | hardware.hostfile=null",
    ),
    "flash on cpu": ("hardware.attention=flash_attention_2", "flash-attn needs a GPU"),
    "flash on V100": (
        ["hardware=v100_fp16", "hardware.attention=flash_attention_2"],
        "flash-attn needs a GPU of compute capability 8.0, v100_32g has 7.0 | hardware.attention=sdpa or xformers",
    ),
    "flash in fp32": (
        ["hardware=h100_bf16", "hardware.precision=fp32", "hardware.attention=flash_attention_2"],
        "flash-attn does not compute in fp32 | hardware.attention=sdpa, or hardware.precision=fp16 or bf16",
    ),
    "flash not installed": (
        ["hardware=h100_bf16", "hardware.attention=flash_attention_2"],
        "flash-attn is not installed | pip install 'vlmrun-trainer[gpu]'",
    ),
    "heads of flash": (
        [
            "hardware=h100_bf16",
            "hardware.attention=flash_attention_2",
            "model/llm=pico",
            "model.llm.config.hidden_size=1056",
        ],
        "flash-attn computes heads of up to 256, the LLM has heads of 264 | hardware.attention=sdpa",
    ),
    "xformers on cpu": ("hardware.attention=xformers", "xformers needs a GPU"),
    "heads of xformers": (
        ["hardware=v100_fp16", "model/llm=pico", "model.llm.config.hidden_size=80"],
        "xformers computes heads of multiples of 8 up to 65536, the LLM has heads of 20",
    ),
    "tf32 on V100": (["hardware=v100_fp16", "hardware.tf32=true"], "v100_32g has no TensorFloat-32"),
    "bf16 on V100": (["hardware=v100_fp16", "hardware.precision=bf16"], "hardware.precision=fp16, or fp32"),
    "variable of another kind": (
        "+hardware.env.LD_PRELOAD=x.so",
        "hardware.env.LD_PRELOAD: LD_PRELOAD may not be set by a configuration | names of NCCL_",
    ),
    "variable that loads code": ("+hardware.env.NCCL_NET_PLUGIN=x.so", "loads code, opens files or connects"),
    "variable of ours": ("+hardware.env.OMP_NUM_THREADS=4", "OMP_NUM_THREADS is not set here | set hardware.threads"),
    "no hostfile": ("hardware.hostfile=nowhere", "nowhere cannot be read"),
    "average weights": ("stage.average.weights=[0.5,0.6]", "the weights sum to 1.1"),
    "average count": ("stage.average.weights=[0.2,0.3,0.5]", "2 models, 3 weights"),
    "merge of no lora": ("stage.merge.init_from=instruct", "'instruct' has no adapters to merge"),
    "train from lora": (
        ["stage.lora2.init_from=lora", "stage.lora2.tune.llm=full", "stage.lora2.lora=null"],
        "adapters that are not merged",
    ),
    "cycle": ("stage.pretrain.init_from=instruct", "wait for each other"),
    "near stage": ("stage.lora.init_from=instuct", "did you mean 'instruct'?"),
    "near data": ("stage.lora.data=[shapes_lora]", "no data 'shapes_lora'"),
    "only": ("only=[loraa]", "did you mean 'lora'?"),
    "template": ("stage.lora.template=vicuna", "did you mean 'vicuna_v1'?"),
    "template tokens": ("model.template=vicuna_v1", "needs the tokens </s>"),
    "max length": ("model.max_length=16", "no text fits"),
    "max positions": ("model.max_length=100000", "exceeds the LLM's"),
    "tower layer": ("model.tower.layers=[-9]", "layer -9 does not exist"),
    "target argument": ("+model.connector.dept=3", "did you mean 'depth'?"),
    "type of a number": ("model.connector.depth=two", "model.connector.depth: MLP takes int as depth, not 'two'"),
    "type of a list": (
        "model.tower.layers=-1",
        "model.tower.layers: Siglip takes Sequence[int] | None as layers, not -1",
    ),
    "type in a list": ("model.tower.layers=[a]", "Siglip takes Sequence[int] | None as layers, not ['a']"),
    "type of a path": ("model.llm.path=7", "model.llm.path: load takes str | None as path, not 7"),
    "type of a tower's path": ("model.tower.path=[7]", "model.tower.path: Siglip takes str | None as path, not [7]"),
    "type of a config": (["model/llm=pico", "model.llm.config=3"], "load takes dict[str, Any] | None as config, not 3"),
    "type of a size": (
        ["model/llm=pico", "model.llm.config.hidden_size=x"],
        "model.llm.config: config.json: hidden_size is 'x'",
    ),
    "size of nothing": (["model/tower=pico", "model.tower.config.patch_size=0"], "patch_size is 0"),
    "size of no whole patches": (["model/tower=pico_dinov3", "model.tower.image_size=36"], "no multiple of the patch"),
    "size that a family does not take": (
        [
            "model/tower=pico_dinov3",
            "model.tower.config.model_type=metaclip_2_vision_model",
            "model.tower.image_size=64",
        ],
        "takes images of 32 pixels only",
    ),
    "depth of an abstractor": (["model/connector=abstractor", "model.connector.depth=0"], "a connector of depth 0"),
    "size not stated": (["model/llm=pico", "~model.llm.config.vocab_size"], "config.json has no 'vocab_size'"),
    "target forbidden": ("model.connector._target_=os.system", "is not allowed"),
    "target name": ("model.connector._target_=vlmrun.model.connectors.mlp.MPL", "did you mean 'MLP'?"),
    "missing model": ("model.llm.path=/nowhere/at/all", "no model folder '/nowhere/at/all'"),
    "hub id": ("model.llm.path=lmsys/vicuna-7b-v1.5", "vlmrun download lmsys/vicuna-7b-v1.5"),
    "builtin": ("model.llm.path=builtin:micro-lm", "did you mean 'micro-llm'?"),
    "format": ("data.shapes_test.format=vqaa", "did you mean 'vqa'?"),
    "kind of data": ("stage.lora.data=[shapes_test]", "train cannot read data 'shapes_test' of format vqa"),
}


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_found(name):
    overrides, text = RULES[name]
    problems = found(*([overrides] if isinstance(overrides, str) else overrides))
    assert any(text in problem for problem in problems), problems


@pytest.mark.parametrize("name", [name for name in RULES if name.startswith(("type", "size"))])
def test_a_wrong_type_is_one_problem(name):
    overrides, _ = RULES[name]
    assert len(found(*([overrides] if isinstance(overrides, str) else overrides))) == 1


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", '{"hidden', "config.json is not JSON"),
        ("tokenizer.json", '{"model": {"vocab"', "tokenizer.json is not a whole tokenizer"),
        ("model.safetensors", "", "model.safetensors is not a whole safetensors file"),
    ],
)
def test_a_damaged_file_is_one_problem(tmp_path, file, content, text):
    sizes = {"model_type": "starcoder2", "hidden_size": 64, "vocab_size": 600}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    (tmp_path / file).write_text(content)
    (problem,) = found(f"model.llm.path={tmp_path}")
    assert problem.startswith("model.llm.path: ")
    assert text in problem


def test_qlora_is_sound_in_the_place_of_lora():
    assert found(*QLORA, "stage.lora.zero=2") == []
    assert found(*QLORA, "stage.lora.zero=3", "stage.lora.engine=plain") == [], "no shards"


def test_bitsandbytes_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr("vlmrun.hardware.packages.find_spec", lambda _name: None)
    (problem,) = found(*QLORA)
    assert problem.startswith("stage.lora.tune.llm: 4-bit weights need bitsandbytes")
    assert "pip install 'bitsandbytes>=0.50'" in problem
    assert found() == []
    told = found("model/tower=eva02_clip_l_336")
    assert any("timm, which is not installed | pip install 'vlmrun-trainer[towers]'" in line for line in told), told


def test_a_loader_that_knows_no_four_bits_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "own_loader.py").write_text("def load(path=None, *, dtype, attention):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLMRUN_ALLOW", "own_loader")
    own = "model.llm._target_=own_loader.load"
    assert found(own) == []
    (problem,) = found(own, *QLORA)
    assert "load takes no argument 'quant'" in problem


def test_all_problems_come_at_once():
    problems = found(
        "stage.lora.micro_batch=5", "hardware.gpu=a100", "model.tower.layers=[7]", "model.max_length=100000"
    )
    assert len(problems) == 4, problems


def test_vocabulary_larger_than_the_embedding_table(tmp_path):
    run = composed("model/llm=pico", "model.llm.config.vocab_size=300")
    problems = [problem.what for problem in check(run)]
    assert any("300 embedding rows" in what for what in problems), problems


def test_weights_may_be_absent_when_config_json_is_there(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "phi", "hidden_size": 2560, "vocab_size": 51200, "max_position_embeddings": 2048})
    )
    run = composed(f"model.llm.path={tmp_path}", "stage.lora.lora.targets=[fc1,q_proj]")
    assert check(run) == []
    run = composed(f"model.llm.path={tmp_path}", "stage.lora.lora.targets=[gate_proj]")
    assert [problem.where for problem in check(run)] == ["stage.lora.lora.targets"]


def test_files_of_ones_own_data_must_exist(tmp_path):
    problems = found(
        "data=[shapes_captions,shapes_instruct,shapes_lora_a,shapes_lora_b,shapes_test,llava]",
        f"data.llava.annotations={tmp_path}/none.json",
        f"data.llava.images={tmp_path}/none",
        "stage.lora.data=[llava]",
    )
    assert len(problems) == 2, problems


@pytest.mark.parametrize("content", ["null", '["r"]', "[" * 100_000, "{", "3"])
def test_an_adapter_config_of_another_shape_is_no_traceback(tmp_path, content):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(content)
    said = [text for text in found(f"stage.lora2.init_from={tmp_path}") if "holds no keys and values" in text]
    assert len(said) == (content in ("null", '["r"]', "3"))


def test_a_cooldown_may_take_all_that_the_warm_up_leaves():
    wsd = ["stage.lora.max_steps=10", "stage.lora.optim.schedule=wsd", "stage.lora.optim.warmup_ratio=0.2"]
    assert not any("cooldown" in text for text in found(*wsd, "+stage.lora.optim.cooldown_steps=8"))
    assert not any("cooldown" in text for text in found(*wsd, "+stage.lora.optim.cooldown_ratio=0.8"))
    assert any("cooldown" in text for text in found(*wsd, "+stage.lora.optim.cooldown_steps=9"))
