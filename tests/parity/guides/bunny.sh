# Bunny on Llama-3: the guide's three commands. Flags as its text has them, values from tests/parity/recipes/bunny.yaml;
# folders and the order of flags are ours.
mkdir -p ./checkpoints-pretrain ./checkpoints-finetune

deepspeed bunny/train/train.py \
    --deepspeed ./script/deepspeed/zero2.json --model_name_or_path ./models/Meta-Llama-3-8B-Instruct \
    --model_type llama3-8b --version plain --data_path ./data/pretrain/bunny_pretrain_laion_2m.json \
    --image_folder ./data/pretrain/images --vision_tower ./models/siglip-so400m-patch14-384 \
    --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --image_aspect_ratio square --bf16 True \
    --output_dir ./checkpoints-pretrain/bunny --num_train_epochs 1 --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 4 --gradient_accumulation_steps 4 --evaluation_strategy "no" \
    --save_strategy "steps" --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3 --weight_decay 0. \
    --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True --model_max_length 2048 \
    --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to none \
    2>&1 | tee ./checkpoints-pretrain/bunny/log.txt

deepspeed bunny/train/train.py \
    --deepspeed ./script/deepspeed/zero3.json --model_name_or_path ./models/Meta-Llama-3-8B-Instruct \
    --model_type llama3-8b --version llama --data_path ./data/finetune/bunny_695k.json \
    --image_folder ./data/finetune/images --vision_tower ./models/siglip-so400m-patch14-384 \
    --mm_projector_type mlp2x_gelu --pretrain_mm_mlp_adapter ./checkpoints-pretrain/bunny/mm_projector.bin \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --image_aspect_ratio pad \
    --group_by_modality_length False --bf16 True --output_dir ./checkpoints-finetune/recipe-1 \
    --num_train_epochs 1 --per_device_train_batch_size 8 --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 2 --evaluation_strategy "no" --save_strategy "steps" --save_steps 500 \
    --save_total_limit 1 --learning_rate 2e-4 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" \
    --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True \
    --dataloader_num_workers 4 --lazy_preprocess True --report_to none \
    2>&1 | tee ./checkpoints-finetune/recipe-1/log.txt

deepspeed bunny/train/train.py \
    --deepspeed ./script/deepspeed/zero3.json --model_name_or_path ./models/Meta-Llama-3-8B-Instruct \
    --model_type llama3-8b --version llama --data_path ./data/finetune/bunny_llava_1.4m.json \
    --image_folder ./data/finetune/images --vision_tower ./models/siglip-so400m-patch14-384 \
    --mm_projector_type mlp2x_gelu --pretrain_mm_mlp_adapter ./checkpoints-pretrain/bunny/mm_projector.bin \
    --unfreeze_vision_tower True --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 1e-5 \
    --image_aspect_ratio pad --group_by_modality_length False --bf16 True \
    --output_dir ./checkpoints-finetune/recipe-2 --num_train_epochs 1 --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 4 --gradient_accumulation_steps 2 --evaluation_strategy "no" \
    --save_strategy "steps" --save_steps 500 --save_total_limit 1 --learning_rate 1e-4 --weight_decay 0. \
    --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True --model_max_length 2048 \
    --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to none \
    2>&1 | tee ./checkpoints-finetune/recipe-2/log.txt
