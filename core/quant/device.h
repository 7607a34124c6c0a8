#ifndef QUERN_CORE_QUANT_DEVICE_H_
#define QUERN_CORE_QUANT_DEVICE_H_

#include <absl/status/statusor.h>

#include <string>

#include "core/quant/torch_headers.h"

namespace quern {

// The LibTorch device that QuantizeOptions::device means, after FindDevice has said that it is
// there. Sets the number of threads and makes sums reproducible: LibTorch and MKL in modes in
// which equal inputs on one kind of machine with one number of threads give equal bits.
absl::StatusOr<at::Device> PrepareDevice(const std::string& device, int num_threads);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_DEVICE_H_
