#ifndef QUERN_SERVICES_INFERENCE_MODEL_LOAD_OPTIONS_H_
#define QUERN_SERVICES_INFERENCE_MODEL_LOAD_OPTIONS_H_

// What a Model message says of how it is loaded.

#include <quern/inference/v1/inference_service.pb.h>

#include "core/engine/model_source.h"

namespace quern {

// Of a model whose type is known.
KvCacheType KvCacheTypeOf(const inference::v1::Model& model);
// Of a checked model; its draft model is to be read and set.
LoadOptions LoadOptionsOf(const inference::v1::Model& model);
inference::v1::Model::KvCacheType ToProto(KvCacheType type);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_MODEL_LOAD_OPTIONS_H_
