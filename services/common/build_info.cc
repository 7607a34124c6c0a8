#include "services/common/build_info.h"

#include <prometheus/gauge.h>

namespace quern {

void ExportBuildInfo(prometheus::Registry& registry, const std::string& program) {
  prometheus::BuildGauge()
      .Name("quern_build_info")
      .Help("1, with the program that runs here and its version.")
      .Register(registry)
      .Add({{"program", program}, {"version", QUERN_VERSION}})
      .Set(1);
}

}  // namespace quern
