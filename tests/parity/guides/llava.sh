# LLaVA of June 2023: the guide's seven commands. Flags as its text has them, values from
# tests/parity/recipes/llava.yaml; folders and the order of flags are ours.

torchrun --nnodes=1 --nproc_per_node=8 --master_port=25001 llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/cc3m_595k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end \
    --tune_mm_mlp_adapter True \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b-pretrain --num_train_epochs 1 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 2400 --save_total_limit 1 \
    --learning_rate 2e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

python llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/cc3m_595k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end \
    --tune_mm_mlp_adapter True \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b-pretrain-1gpu --num_train_epochs 1 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 8 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 2400 --save_total_limit 1 \
    --learning_rate 2e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

python llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-7b --data_path ./data/cc3m_595k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end \
    --tune_mm_mlp_adapter True \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-7b-pretrain --num_train_epochs 1 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 8 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 2400 --save_total_limit 1 \
    --learning_rate 2e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

torchrun --nnodes=1 --nproc_per_node=8 --master_port=25001 llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/cc3m_595k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end \
    --tune_mm_mlp_adapter True \
    --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer' \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b-pretrain-fsdp --num_train_epochs 1 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 2400 --save_total_limit 1 \
    --learning_rate 2e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

torchrun --nnodes=1 --nproc_per_node=8 --master_port=25001 llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/llava_instruct_150k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end \
    --pretrain_mm_mlp_adapter ./checkpoints/llava-13b-pretrain/mm_projector.bin \
    --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer' \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b --num_train_epochs 3 \
    --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 5000 --save_total_limit 3 \
    --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

torchrun --nnodes=1 --nproc_per_node=8 --master_port=25001 llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/cc3m_595k.json --image_folder ./data/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 \
    --tune_mm_mlp_adapter True \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b-pretrain-no_im_start_end_token --num_train_epochs 1 \
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 2400 --save_total_limit 1 \
    --learning_rate 2e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb

torchrun --nnodes=1 --nproc_per_node=8 --master_port=25001 llava/train/train_mem.py \
    --model_name_or_path ./checkpoints/llama-vicuna-13b --data_path ./data/llava_train_QCM-LEPA.json --image_folder ./data/ScienceQA/images \
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 \
    --pretrain_mm_mlp_adapter ./checkpoints/llava-13b-pretrain-no_im_start_end_token/mm_projector.bin \
    --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap 'LlamaDecoderLayer' \
    --bf16 True --tf32 True --output_dir ./checkpoints/llava-13b-sqa --num_train_epochs 12 \
    --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 \
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 5000 --save_total_limit 3 \
    --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 \
    --model_max_length 2048 --gradient_checkpointing True --lazy_preprocess True --report_to wandb
