# LibTorch from the PyPI wheels that deploy/install.sh unpacked. The wheel's own TorchConfig.cmake
# insists on a CUDA toolkit; its CPU half needs none, so the two targets are defined here.

foreach(file torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/include/ATen/ATen.h)
  if(NOT EXISTS ${QUERN_LIBTORCH}/${file})
    message(FATAL_ERROR "${QUERN_LIBTORCH}/${file} is missing: run deploy/install.sh, or set "
            "-DQUERN_LIBTORCH to the unpacked wheels, or -DQUERN_TRAINING=OFF to build without it")
  endif()
endforeach()

add_library(torch_c10 SHARED IMPORTED)
set_target_properties(torch_c10 PROPERTIES IMPORTED_LOCATION ${QUERN_LIBTORCH}/torch/lib/libc10.so)
add_library(torch_cpu SHARED IMPORTED)
set_target_properties(torch_cpu PROPERTIES
  IMPORTED_LOCATION ${QUERN_LIBTORCH}/torch/lib/libtorch_cpu.so
  INTERFACE_INCLUDE_DIRECTORIES
  "${QUERN_LIBTORCH}/torch/include;${QUERN_LIBTORCH}/torch/include/torch/csrc/api/include"
  INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
  "${QUERN_LIBTORCH}/torch/include;${QUERN_LIBTORCH}/torch/include/torch/csrc/api/include"
  INTERFACE_LINK_LIBRARIES torch_c10
  INTERFACE_LINK_OPTIONS
  "LINKER:-rpath-link,${QUERN_LIBTORCH}/nvidia/cu13/lib")
