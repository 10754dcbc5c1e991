#!/bin/bash
# Pai-Megatron-Patch's run of LLaVA on Mistral 7B: 23 arguments and the flags that they set, rebuilt from the
# specification's tables (its sections 5 and B2), with the constructs of such scripts: branches, strings that are split
# again, eval. Names of variables, the entry and the order of flags are ours.
set -e
ENV=$1
MODEL_SIZE=$2
BATCH_SIZE=$3
GLOBAL_BATCH_SIZE=$4
LR=$5
MIN_LR=$6
SEQ_LEN=$7
DECODER_SEQ_LEN=$8
PR=$9
TP=${10}
PP=${11}
CP=${12}
DO=${13}
FL=${14}
AC=${15}
OPTIMIZER_OFFLOAD=${16}
SAVE_INTERVAL=${17}
DATASET_PATH=${18}
VALID_DATASET_PATH=${19}
PRETRAIN_CHECKPOINT_PATH=${20}
TRAIN_ITERS=${21}
LR_WARMUP_ITERS=${22}
OUTPUT_BASEPATH=${23}

export CUDA_DEVICE_MAX_CONNECTIONS=1
export NVTE_APPLY_QK_LAYER_SCALING=0
export NVTE_ALLOW_NONDETERMINISTIC_ALGO=1
if [ $ENV = dsw ]; then
    MASTER_ADDR=localhost
    MASTER_PORT=$(shuf -n 1 -i 10000-65535)
    NNODES=1
    NODE_RANK=0
    GPUS_PER_NODE=`python -c "import torch; print(torch.cuda.device_count())"`
elif [ $ENV = dlc ]; then
    NNODES=${WORLD_SIZE}
    NODE_RANK=${RANK}
    GPUS_PER_NODE=${KUBERNETES_CONTAINER_RESOURCE_GPU}
fi
DISTRIBUTED_ARGS="--nproc_per_node $GPUS_PER_NODE --nnodes $NNODES --node_rank $NODE_RANK --master_addr $MASTER_ADDR --master_port $MASTER_PORT"

if [ $MODEL_SIZE = 7B ]; then
    size_options=" \
        --num-layers 32 --hidden-size 4096 --num-attention-heads 32 --ffn-hidden-size 14336 \
        --group-query-attention --num-query-groups 8 --max-position-embeddings 4096"
fi
if [ $PR = fp16 ]; then
    pr_options="--fp16 --apply-query-key-layer-scaling"
elif [ $PR = bf16 ]; then
    pr_options="--bf16"
elif [ $PR = fp8 ]; then
    pr_options="--bf16 --fp8-format hybrid --fp8-amax-compute-algo max --fp8-amax-history-len 1024"
fi
if [ $OPTIMIZER_OFFLOAD != false ] && [ $DO = false ]; then
    echo "the distributed optimizer is switched on"
    DO=true
fi
if [ $DO = true ]; then
    do_options="--use-distributed-optimizer"
fi
if [ $FL = true ]; then
    export NVTE_FLASH_ATTN=1 NVTE_FUSED_ATTN=0
    flash_options="--use-flash-attn"
fi
if [ $AC = sel ]; then
    activation_options="--recompute-activations"
elif [ $AC = full ]; then
    activation_options="--recompute-granularity full --recompute-method uniform --recompute-num-layers ${MP_AC_LAYERS}"
elif [ $AC = offload ]; then
    activation_options="--cpu-offloading --cpu-offloading-num-layers ${MP_AC_LAYERS}"
fi
if [ $OPTIMIZER_OFFLOAD = static ] || [ $OPTIMIZER_OFFLOAD = auto ]; then
    offload_options="--optimizer hybridadam --optimizer-offload-policy $OPTIMIZER_OFFLOAD --optimizer-offload-fraction 1.0"
fi
if [ $PRETRAIN_CHECKPOINT_PATH != none ]; then
    load_options="--pretrained-checkpoint $PRETRAIN_CHECKPOINT_PATH"
fi
LR_DECAY_ITERS=$(( ${TRAIN_ITERS} - ${LR_WARMUP_ITERS} ))
NAME="llava-${MODEL_SIZE}-lr-${LR}-bs-${BATCH_SIZE}"
mkdir -p ${OUTPUT_BASEPATH}/tensorboard ${OUTPUT_BASEPATH}/checkpoint ${OUTPUT_BASEPATH}/log

megatron_options=" \
    --save ${OUTPUT_BASEPATH}/checkpoint/${NAME} --save-interval ${SAVE_INTERVAL} \
    --train-data-path ${DATASET_PATH} --valid-data-path ${VALID_DATASET_PATH} --dataloader-type external \
    --split 100,0,0 --micro-batch-size ${BATCH_SIZE} --global-batch-size ${GLOBAL_BATCH_SIZE} \
    --train-iters ${TRAIN_ITERS} --lr ${LR} --min-lr ${MIN_LR} --lr-decay-style cosine \
    --lr-decay-iters ${LR_DECAY_ITERS} --lr-warmup-iters ${LR_WARMUP_ITERS} --weight-decay 0.01 --clip-grad 1.0 \
    --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.014 --attention-dropout 0.0 --hidden-dropout 0.1 \
    --seq-length ${SEQ_LEN} --decoder-seq-length ${DECODER_SEQ_LEN} --eod-mask-loss --eod-mask-loss \
    --log-interval 1 --eval-interval 10000 --eval-iters 10 --num-workers 2 \
    --tensorboard-dir ${OUTPUT_BASEPATH}/tensorboard --tensorboard-queue-size 1 --log-timers-to-tensorboard \
    --log-validation-ppl-to-tensorboard --tensor-model-parallel-size ${TP} --pipeline-model-parallel-size ${PP} \
    --context-parallel-size ${CP} --no-load-optim --no-load-rng --img-h 336 --img-w 336 --patch-dim 14 \
    --position-embedding-type rope --rotary-percent 1.0 --rotary-base 1000000 --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-05 --apply-layernorm-1p --untie-embeddings-and-output-weights --disable-bias-linear \
    --attention-softmax-in-fp32 --transformer-impl transformer_engine --tokenizer-type MultimodalTokenizer \
    --tokenizer-model ${PRETRAIN_CHECKPOINT_PATH} --tokenizer-prompt-format mistral \
    --language-model-type mistral_7b --disable-vision-class-token --freeze-LM --freeze-ViT \
    --allow-missing-vision-projection-checkpoint"

run_cmd="torchrun $DISTRIBUTED_ARGS pretrain_llava.py
    ${megatron_options} ${size_options} ${pr_options} ${load_options} ${do_options} ${flash_options}
    ${activation_options} ${offload_options}"
echo ${run_cmd}
eval ${run_cmd}
set +x
