#ifndef QUERN_CORE_QUANT_TORCH_HEADERS_H_
#define QUERN_CORE_QUANT_TORCH_HEADERS_H_

// The part of LibTorch that this folder uses, and its precompiled header: tensors and autograd,
// not torch::nn or the rest of <torch/torch.h>, which takes twice as long to compile.

#ifdef QUERN_CORE_BASE_LOG_H_
#error "include this before core/base/log.h: both define LOG and CHECK, and ours are to stay"
#endif

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#undef CHECK
#undef LOG

#endif  // QUERN_CORE_QUANT_TORCH_HEADERS_H_
