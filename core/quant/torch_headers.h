#ifndef QUERN_CORE_QUANT_TORCH_HEADERS_H_
#define QUERN_CORE_QUANT_TORCH_HEADERS_H_

// The part of LibTorch that this folder uses, and its precompiled header: tensors and autograd,
// not torch::nn or the rest of <torch/torch.h>, which takes twice as long to compile.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#endif  // QUERN_CORE_QUANT_TORCH_HEADERS_H_
