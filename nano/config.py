"""The one configuration of nano, as the released text and vision configs name things (README: why these values)."""

from types import SimpleNamespace

# Layers 0-1 window only; 2 owner + 3 reuse; 4 owner with Engram + 5 reuse; 6 ratio-1 owner and candidate source + 7
# reuse; 8 reindex + 9 reuse. The last three ratios belong to the DSpark stages, which are trained later.
TEXT = dict(
    hidden_size=192,
    num_hidden_layers=10,
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=32,
    q_lora_rank=96,
    o_lora_rank=64,
    o_groups=2,
    moe_intermediate_size=96,
    n_routed_experts=16,
    num_experts_per_tok=2,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    sliding_window=64,
    rope_theta=10000.0,
    compress_rope_theta=160000.0,
    rope_scaling=dict(factor=128, beta_fast=32, beta_slow=1, original_max_position_embeddings=1024),
    compress_ratios=[0, 0, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0],
    kv_source_layer_ids=[2, 4, 6],
    index_source_layer_ids=[2, 4, 6, 8],
    candidate_source_layer_id=6,
    candidate_topk_blocks=32,
    candidate_block_size=8,
    index_n_heads=8,
    index_head_dim=32,
    index_topk=64,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    engram_layer_ids=[1, 4],
    engram_max_ngram_size=4,
    engram_vocab_size=4000,
    engram_n_heads=4,
    engram_head_dim=32,
)

VISION = dict(
    model_type="deepseek_v41_vision",
    num_hidden_layers=3,
    hidden_size=96,
    num_attention_heads=3,
    intermediate_size=192,
    patch_size=14,
    rope_theta=10000,
    downsample_ratio=3,
    max_image_tokens=64,
    min_pixels=7056,
    max_wh_ratio=None,
)

MAX_POSITIONS = 131_072


def config(vocab, classes):
    """The text configuration for a tokenizer of `vocab` ids in `classes` Engram classes."""
    return SimpleNamespace(vocab_size=vocab, engram_pad_class=2, engram_compressed_vocab_size=classes, **TEXT)
