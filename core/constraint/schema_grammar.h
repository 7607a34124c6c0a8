#ifndef QUERN_CORE_CONSTRAINT_SCHEMA_GRAMMAR_H_
#define QUERN_CORE_CONSTRAINT_SCHEMA_GRAMMAR_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include "core/constraint/grammar.h"

namespace quern {

// Makes rule 0 of `grammar` the JSON texts that are valid under `schema` (JSON Schema 2020-12), of
// these:
//  - members in the order of `properties` (sorted by name), then additional ones, which come only
//    where `additionalProperties` is given or there are no `properties`;
//  - between tokens nothing, a space, or a new line with at most 16 spaces;
//  - integers of at most 18 digits; other numbers of at most 16 digits on each side of the point
//  and
//    2 in the exponent.
// So every text is valid, but not every valid value has a text.
//
// INVALID_ARGUMENT names the place in the schema: a keyword that is not supported (nothing is
// ignored but annotations), a fault, a limit. Follow with Finish.
void AddJsonSchema(Grammar& grammar, absl::string_view schema);
// Any JSON object.
void AddJsonObject(Grammar& grammar);

}  // namespace quern

#endif  // QUERN_CORE_CONSTRAINT_SCHEMA_GRAMMAR_H_
