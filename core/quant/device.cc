#include "core/quant/device.h"

#include <ATen/Context.h>
#include <absl/strings/str_cat.h>
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "core/base/status_macros.h"
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
// hooks would stay empty for the life of the process.
bool LoadCuda() {
  static const bool loaded = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr;
  return loaded;
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
  return {.name = "cpu",
          .detail = ProcessorName(),
          .memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE)};
}

}  // namespace

absl::StatusOr<DeviceInfo> FindDevice(const std::string& device) {
  if (device != "auto" && device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("device is \"", device, "\", wanted auto, cpu or cuda"));
  }
  if (device == "cpu") return CpuInfo();
  if (!LoadCuda()) {
    if (device == "auto") return CpuInfo();
    return absl::FailedPreconditionError(
        absl::StrCat("device cuda: LibTorch's CUDA half cannot be loaded (", dlerror(),
                     "); install the nvidia wheels of its release, or use --device cpu"));
  }
  try {
    if (at::globalContext().hasCUDA()) {
      const auto& hooks = at::globalContext().getAcceleratorHooksInterface(at::kCUDA);
      if (hooks.deviceCount() > 0) {
        const at::Tensor probe = at::empty({1}, at::device(at::kCUDA));
        return DeviceInfo{.name = "cuda",
                          .detail = absl::StrCat("CUDA device ", probe.get_device())};
      }
    }
  } catch (const std::exception& error) {
    if (device == "cuda") {
      return absl::FailedPreconditionError(absl::StrCat("device cuda: ", error.what()));
    }
  }
  if (device == "auto") return CpuInfo();
  return absl::FailedPreconditionError(
      "device cuda: LibTorch finds no usable NVIDIA GPU or driver; use --device cpu");
}

absl::StatusOr<at::Device> PrepareDevice(const std::string& device, int num_threads) {
  ASSIGN_OR_RETURN(const DeviceInfo info, FindDevice(device));
  if (mkl_serv_cbwr_set != nullptr) mkl_serv_cbwr_set(kMklReproducible);
  if (MKL_Set_Dynamic != nullptr) MKL_Set_Dynamic(0);
  at::set_num_threads(num_threads);
  // A step's tensors have the sizes of the last step's: kept in the heap they cost no page faults,
  // which were 6 % of a step of 512 tokens.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  return at::Device(info.name == "cuda" ? at::kCUDA : at::kCPU);
}

}  // namespace quern
