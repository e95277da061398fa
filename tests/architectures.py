"""Tiny configurations of the architectures that the split engine must equal the plain one for."""

from transformers import (
    DeepseekV2Config,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=8),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=8),
    "olmo, clamped in place": OlmoConfig(**SHAPE, clip_qkv=0.05),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
    "deepseek-v2": DeepseekV2Config(
        **SHAPE | {"num_key_value_heads": 4},
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
