#!/usr/bin/env python3
"""Makes tests/testdata/golden_models: tiny random checkpoints with the logits that Hugging Face
transformers computes for them. Independent of this project's code on purpose.

Usage: make_goldens.py OUTPUT_DIRECTORY
"""

import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

TOKENS = [1, 17, 42, 5, 63, 0, 33, 8, 21, 21, 50, 12]

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)

LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=100.0,  # of the four frequencies one is kept, one blended, two divided
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

# name -> (model_type, what differs from SIZES)
MODELS = {
    "llama": ("llama", dict(tie_word_embeddings=False)),
    "llama_tied": ("llama", dict(tie_word_embeddings=True)),
    "llama_mha": ("llama", dict(num_key_value_heads=4)),
    "llama_rope_llama3": ("llama", dict(rope_parameters=LLAMA3_ROPE)),
    "llama_rope_linear": (
        "llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=4.0)),
    ),
    "llama_biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", dict(sliding_window=None, head_dim=12)),
    "qwen2": (
        "qwen2",
        dict(rope_parameters=dict(rope_type="default", rope_theta=1e6), tie_word_embeddings=True),
    ),
    "qwen3": ("qwen3", dict(head_dim=12, rms_norm_eps=1e-5, tie_word_embeddings=True)),
    "qwen3_biases": ("qwen3", dict(head_dim=14, attention_bias=True)),
}


def randomize(model, seed):
    """Weights large enough that every norm, bias and rotary angle moves the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif parameter.dim() == 1:
            values = 0.2 * values
        elif "embed" in name or "lm_head" in name:
            values = 0.5 * values
        else:
            values = values * parameter.shape[1] ** -0.5
        parameter.data.copy_(values)


def make(name, model_type, changes, directory, seed):
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **changes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomize(model, seed)
    target = directory / name
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    # What was saved is what is computed: load it again.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        target, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        logits = model(tokens).logits[0]
    save_file(
        {"logits": logits.contiguous(), "tokens": tokens[0].to(torch.int32)},
        target / "logits.safetensors",
    )
    print(f"{name}: standard deviation of the logits {logits.std().item():.3f}")


def main():
    directory = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    for seed, (name, (model_type, changes)) in enumerate(MODELS.items()):
        make(name, model_type, changes, directory, seed)


if __name__ == "__main__":
    main()
