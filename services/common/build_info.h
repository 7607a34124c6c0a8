#ifndef QUERN_SERVICES_COMMON_BUILD_INFO_H_
#define QUERN_SERVICES_COMMON_BUILD_INFO_H_

#include <prometheus/registry.h>

#include <string>

namespace quern {

// Adds quern_build_info{program,version} = 1, by which others learn what runs here.
void ExportBuildInfo(prometheus::Registry& registry, const std::string& program);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_BUILD_INFO_H_
