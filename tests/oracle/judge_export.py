#!/usr/bin/env python3
"""Reads what `quern artifacts export` wrote with the loaders that others use, and compares values.

Usage: judge_export.py gptq EXPORT HUGGINGFACE GPTQMODEL
       judge_export.py gguf FILE HUGGINGFACE
       judge_export.py llama.cpp FILE HUGGINGFACE TEXT
  EXPORT, FILE  the artifact, exported --as gptq; the file in what was exported --as gguf
  HUGGINGFACE   the same artifact, exported --as huggingface: the values that are expected, exactly
  GPTQMODEL     directory with the source of PyPI's gptqmodel (its sdist, unpacked)
  TEXT          a file of plain text, of which both programs tokenize and predict the beginning
Needs PyTorch and safetensors; for gptq what gptqmodel's linear layer imports, for gguf PyPI's gguf,
for llama.cpp PyPI's llama-cpp-python and transformers. Exits with 1 when a value or token differs, or
when llama.cpp's predictions, whose products take states in 8 bits, are off by more than that explains.
"""

import glob
import importlib.machinery
import json
import os
import sys
import types

import torch
from safetensors.torch import load_file


def load_all(directory):
    tensors = {}
    for path in glob.glob(os.path.join(directory, "*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def import_torch_linear(source):
    """gptqmodel's linear layer in PyTorch, without its __init__, which imports every model there is."""
    for name in ("gptqmodel", "gptqmodel.models", "gptqmodel.nn_modules"):
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(source, *name.split("."))]
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    sys.modules["gptqmodel"].DEBUG_ON = False
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    return TorchLinear


def judge_gptq(export, expected, source):
    linear = import_torch_linear(source)
    with open(os.path.join(export, "config.json"), encoding="utf-8") as file:
        config = json.load(file)["quantization_config"]
    tensors = load_all(export)
    for name in sorted(n for n in tensors if n.endswith(".qweight")):
        prefix = name[: -len(".qweight")]
        want = expected[prefix + ".weight"].float()
        layer = linear(bits=config["bits"], group_size=config["group_size"], sym=config["sym"],
                       desc_act=False, in_features=want.shape[1], out_features=want.shape[0])
        buffers = dict(layer.named_buffers())
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            buffers[part].copy_(tensors[f"{prefix}.{part}"])
        layer.post_init()
        layer.eval()
        # float16 times int: exact to a rounding of the product, as the expected value is.
        yield prefix, layer.dequantize_weight().t().float(), want.half().float()


def judge_gguf(path, expected):
    from gguf import GGUFReader, dequantize

    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
             "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    reader = GGUFReader(path)

    def number(key):
        return int(reader.fields[key].parts[-1][0])

    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    heads = {"attn_q": number(f"{architecture}.attention.head_count"),
             "attn_k": number(f"{architecture}.attention.head_count_kv")}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        name = f"model.layers.{block[1]}.{names[kind]}.weight" if block else f"{names[kind]}.weight"
        want = expected[name].float()
        found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).reshape(want.shape)
        if kind in heads:  # llama.cpp turns neighbours
            found = found.reshape(heads[kind], -1, 2, want.shape[1]).swapaxes(1, 2).reshape(want.shape)
        yield name, found, want


def judge_llama_cpp(path, huggingface, text_path):
    import llama_cpp
    import numpy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    length, max_tokens, max_divergence = 512, 2048, 0.01
    with open(text_path, encoding="utf-8") as file:
        text = file.read(8 * max_tokens)
    llama = llama_cpp.Llama(path, n_ctx=length, n_batch=length, logits_all=True, verbose=False)
    tokens = llama.tokenize(text.encode(), add_bos=False, special=False)
    wanted = AutoTokenizer.from_pretrained(huggingface)(text, add_special_tokens=False).input_ids
    same = tokens == wanted
    print(f"{len(wanted)} tokens of text, {'the same' if same else 'others in llama.cpp'}")
    model = AutoModelForCausalLM.from_pretrained(huggingface, dtype=torch.float32).eval()
    divergences, agreements = [], []
    for begin in range(0, min(max_tokens, len(wanted) - length + 1), length):
        chunk = wanted[begin:begin + length]
        llama.reset()
        llama.eval(chunk)
        found = torch.from_numpy(numpy.array(llama.scores[:length])).log_softmax(-1)
        with torch.no_grad():
            want = model(torch.tensor([chunk])).logits[0].log_softmax(-1)
        divergences.append((want.exp() * (want - found)).sum(-1).mean().item())
        agreements.append((want.argmax(-1) == found.argmax(-1)).float().mean().item())
    divergence = sum(divergences) / len(divergences)
    print(f"{len(divergences) * length} predictions: KL(dequantized in floats || llama.cpp) "
          f"{divergence:.5f}, the same most likely token in "
          f"{100 * sum(agreements) / len(agreements):.1f} %")
    return same and divergence < max_divergence


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 4 and arguments[0] == "llama.cpp":
        sys.exit(0 if judge_llama_cpp(*arguments[1:]) else 1)
    if len(arguments) == 4 and arguments[0] == "gptq":
        results = judge_gptq(arguments[1], load_all(arguments[2]), arguments[3])
    elif len(arguments) == 3 and arguments[0] == "gguf":
        results = judge_gguf(arguments[1], load_all(arguments[2]))
    else:
        sys.exit(__doc__)
    count = different = 0
    for name, found, want in results:
        count += 1
        if not torch.equal(found, want):
            different += 1
            print(f"{name}: {(found != want).sum()} of {want.numel()} values differ, the largest "
                  f"difference is {(found - want).abs().max():.3g}")
    print(f"{count} tensors read, {different} with other values")
    sys.exit(1 if different or not count else 0)


if __name__ == "__main__":
    main()
