# Flags of every target of ours, and the two functions that make libraries and tests.

add_library(quern_flags INTERFACE)
target_include_directories(quern_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(quern_flags INTERFACE
  -Wall -Wextra -Werror -Wvla -Wno-missing-field-initializers
  -fno-omit-frame-pointer -fstack-protector-strong)
target_compile_definitions(quern_flags INTERFACE
  _GLIBCXX_ASSERTIONS QUERN_VERSION="${PROJECT_VERSION}")
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(quern_flags INTERFACE -Wthread-safety)
endif()
if(QUERN_JUMBO AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # GCC takes an anonymous namespace of an included file for one that several files share.
  target_compile_options(quern_flags INTERFACE -Wno-subobject-linkage)
endif()
if(QUERN_SANITIZE)
  target_compile_options(quern_flags INTERFACE
    -fsanitize=${QUERN_SANITIZE} -fno-sanitize-recover=all
    # GCC 12 warns falsely inside std::string once sanitizers change what is inlined.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict;-Wno-maybe-uninitialized>
    # Boost.Asio has a fence, which ThreadSanitizer does not model; one thread each uses it.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
  target_link_options(quern_flags INTERFACE -fsanitize=${QUERN_SANITIZE})
else()
  target_compile_definitions(quern_flags INTERFACE $<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
endif()

# quern_library(<folder> [SRCS ...] [DEPS folder...] [EXTERNAL target...])
#
# One library per folder: core/artifact -> core_artifact. A file may include project headers only
# from its own folder or from DEPS, and x.cc includes x.h before all else, which proves that the header
# compiles alone; configuring fails otherwise. Headers without such a file are compiled alone by the
# target all_verify_interface_header_sets.
function(quern_library folder)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "SRCS;DEPS;EXTERNAL")
  string(REPLACE "/" "_" target ${folder})
  list(TRANSFORM ARG_SRCS PREPEND "${PROJECT_SOURCE_DIR}/${folder}/")
  file(GLOB headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/${folder}/*.h")
  quern_check_includes(${folder} "${ARG_DEPS}" ${ARG_SRCS} ${headers})
  # Templates for one ISA do not compile alone, without its flags.
  list(FILTER headers EXCLUDE REGEX "-inl\\.h$")
  foreach(source IN LISTS ARG_SRCS)
    string(REGEX REPLACE "\\.cc$" ".h" header ${source})
    list(REMOVE_ITEM headers ${header})
  endforeach()
  if(QUERN_JUMBO)
    quern_join_files(ARG_SRCS ${target} ${ARG_SRCS})
  endif()
  if(ARG_SRCS)
    add_library(${target} STATIC ${ARG_SRCS})
    set(scope PUBLIC)
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_sources(${target} PUBLIC FILE_SET HEADERS
                 BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers})
  set_target_properties(${target} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  list(TRANSFORM ARG_DEPS REPLACE "/" "_")
  target_link_libraries(${target} ${scope} quern_flags ${ARG_DEPS} ${ARG_EXTERNAL})
endfunction()

# Sets `out` to one file, <name>.cc in the build folder, that includes all the files, and to those that have
# compile options of their own. (Not by UNITY_BUILD, whose files name the checkout's path and so miss
# ccache in another one.)
function(quern_join_files out name)
  set(all)
  set(sources)
  foreach(source IN LISTS ARGN)
    get_source_file_property(options ${source} DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} COMPILE_OPTIONS)
    if(options)
      list(APPEND sources ${source})
    else()
      file(RELATIVE_PATH source ${PROJECT_SOURCE_DIR} ${source})
      string(APPEND all "#include \"${source}\"\n")
    endif()
  endforeach()
  if(all)
    file(CONFIGURE OUTPUT ${name}.cc CONTENT "${all}" @ONLY)
    list(APPEND sources ${CMAKE_CURRENT_BINARY_DIR}/${name}.cc)
  endif()
  set(${out} ${sources} PARENT_SCOPE)
endfunction()

# Fails when one of the files includes a project header from outside `folder` and `deps`.
function(quern_check_includes folder deps)
  set(allowed ${folder} ${deps})
  foreach(source IN LISTS ARGN)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(STRINGS ${source} includes REGEX "^#include ")
    string(REGEX REPLACE "\\.cc$" ".h" header ${source})
    if(NOT source STREQUAL header AND EXISTS ${header})
      file(RELATIVE_PATH header ${PROJECT_SOURCE_DIR} ${header})
      list(GET includes 0 first)
      if(NOT first STREQUAL "#include \"${header}\"")
        message(FATAL_ERROR "${source}: the first include must be \"${header}\"")
      endif()
    endif()
    list(FILTER includes INCLUDE REGEX "\"")
    foreach(line IN LISTS includes)
      string(REGEX REPLACE "^#include \"(.*)/[^/]*\".*" "\\1" used "${line}")
      if(NOT used IN_LIST allowed)
        message(FATAL_ERROR "${source}: ${line}\n"
                "  ${folder} may include only from: ${allowed}")
      endif()
    endforeach()
  endforeach()
endfunction()

# quern_test(<name> LABEL unit|parity|e2e|slow SRCS ... [DEPS target...] [TIMEOUT s])
#
# One GoogleTest binary, built from files beside the calling CMakeLists.txt, run as one ctest test.
# Its files are compiled as one: GoogleTest's and gRPC's headers cost more than what tests add to them.
function(quern_test name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "LABEL;TIMEOUT" "SRCS;DEPS")
  list(TRANSFORM ARG_SRCS PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/")
  quern_join_files(ARG_SRCS ${name} ${ARG_SRCS})
  add_executable(${name} ${ARG_SRCS})
  if(QUERN_SANITIZE MATCHES address)
    # A third less time to compile; what the tests call is optimised all the same.
    target_compile_options(${name} PRIVATE -O0)
  endif()
  target_link_libraries(${name} PRIVATE quern_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "QUERN_BIN_DIR=${CMAKE_BINARY_DIR}/bin;QUERN_SOURCE_DIR=${PROJECT_SOURCE_DIR}")
endfunction()
