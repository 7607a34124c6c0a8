#include "services/inference/model_load_options.h"

namespace quern {

using inference::v1::Model;

KvCacheType KvCacheTypeOf(const Model& model) {
  switch (model.kv_cache_type()) {
    case Model::INT8:
      return KvCacheType::kInt8;
    case Model::INT4:
      return KvCacheType::kInt4;
    default:
      return KvCacheType::kFloat16;
  }
}

LoadOptions LoadOptionsOf(const Model& model) {
  return {.kv_cache_type = KvCacheTypeOf(model),
          .speculation = {.max_guesses = model.speculation().max_guesses()}};
}

Model::KvCacheType ToProto(KvCacheType type) {
  switch (type) {
    case KvCacheType::kFloat16:
      return Model::FLOAT16;
    case KvCacheType::kInt8:
      return Model::INT8;
    case KvCacheType::kInt4:
      return Model::INT4;
  }
  return Model::KV_CACHE_TYPE_UNSPECIFIED;
}

}  // namespace quern
