#include "core/quant/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/cpu/Utils.h>
#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/quant/exceptions.h"
#include "core/quant/quantize.h"

// MKL's own names, which libtorch_cpu.so exports without a header. Weak: another build of LibTorch
// may have another BLAS inside, which then has nothing to set.
extern "C" {
__attribute__((weak)) int mkl_serv_cbwr_set(int mode);
__attribute__((weak)) void MKL_Set_Dynamic(int enabled);
}

namespace quern {
namespace {

// MKL_CBWR_AUTO: equal bits from run to run on one kind of processor, at full speed. The stricter
// modes that hold across processors are refused on other makers' or cost 8 of 9 parts of it.
constexpr int kMklReproducible = 2;

// Loads LibTorch's CUDA half once, before anything asks LibTorch about CUDA: after a question its
// hooks would stay empty for the life of the process. Empty, or why it cannot be loaded.
const std::string& LoadCuda() {
  static const std::string error = [] {
    if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return std::string();
    const char* reason = dlerror();
    return std::string(reason == nullptr ? "unknown reason" : reason);
  }();
  return error;
}

std::string ProcessorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown processor";
}

DeviceInfo CpuInfo() {
  return {.name = "cpu", .detail = ProcessorName(), .memory_bytes = AvailableMemoryBytes()};
}

absl::StatusOr<DeviceInfo> FindCuda() {
  if (const std::string& error = LoadCuda(); !error.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("device cuda: LibTorch's CUDA half cannot be loaded (", error,
                     "); deploy/install.sh --cuda fetches it, or use --device cpu"));
  }
  try {
    const auto& hooks = at::globalContext().getAcceleratorHooksInterface(at::kCUDA);
    if (!at::globalContext().hasCUDA() || hooks.deviceCount() == 0) {
      return absl::FailedPreconditionError(
          "device cuda: LibTorch finds no usable NVIDIA GPU or driver; use --device cpu");
    }
    const at::Tensor probe = at::empty({1}, at::device(at::kCUDA));
    const size_t total_bytes = at::accelerator::getMemoryInfo(probe.get_device()).second;
    return DeviceInfo{.name = "cuda",
                      .detail = absl::StrCat("CUDA device ", probe.get_device()),
                      .memory_bytes = static_cast<int64_t>(total_bytes)};
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat("device cuda: ", error.what()));
  }
}

// Emulated, such products are slower than those of floats.
bool MultipliesBfloat16(const at::Device& device) {
  if (!device.is_cpu()) return true;
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.isBool() && found->second.toBool();
  };
  return has("avx512_bf16") || has("amx_bf16");
}

double MeasureProducts(const at::Device& device, at::ScalarType type) {
  constexpr int kRuns = 5;
  const int64_t size = device.is_cuda() ? 4096 : 1024;
  const at::Tensor a = at::ones({size, size}, at::device(device).dtype(type));
  at::Tensor product = at::mm(a, a);
  double best = 0;
  for (int i = 0; i < kRuns; ++i) {
    const absl::Time start = absl::Now();
    at::mm_out(product, a, a);
    product.narrow(0, 0, 1).narrow(1, 0, 1).item<double>();  // waits for a GPU
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    best = std::max(best, 2e-9 * static_cast<double>(size * size * size) / seconds);
  }
  return best;
}

}  // namespace

absl::StatusOr<DeviceInfo> FindDevice(const std::string& device) {
  if (device != "auto" && device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("device is \"", device, "\", wanted auto, cpu or cuda"));
  }
  if (device == "cpu") return CpuInfo();
  const absl::StatusOr<DeviceInfo> cuda = FindCuda();
  if (cuda.ok() || device == "cuda") return cuda;
  return CpuInfo();
}

absl::StatusOr<at::Device> PrepareDevice(const std::string& device, int num_threads) {
  ASSIGN_OR_RETURN(const DeviceInfo info, FindDevice(device));
  if (mkl_serv_cbwr_set != nullptr) mkl_serv_cbwr_set(kMklReproducible);
  if (MKL_Set_Dynamic != nullptr) MKL_Set_Dynamic(0);
  at::set_num_threads(num_threads);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  // Else every new tensor is written once to no end: all of ours are.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  return at::Device(info.name == "cuda" ? at::kCUDA : at::kCPU);
}

absl::StatusOr<ProductRates> MeasureProductRates(const std::string& device, int num_threads) {
  ASSIGN_OR_RETURN(const at::Device where, PrepareDevice(device, num_threads));
  return WithoutExceptions([&]() -> absl::StatusOr<ProductRates> {
    return ProductRates{
        .float32 = MeasureProducts(where, at::kFloat),
        .bfloat16 = MultipliesBfloat16(where) ? MeasureProducts(where, at::kBFloat16) : 0};
  });
}

}  // namespace quern
