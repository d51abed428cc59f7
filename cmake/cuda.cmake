# SPDX-License-Identifier: Apache-2.0
# The module `_cuda`: finds a CUDA compiler, says what was found, and builds the kernels with it.

# One asked for by name is taken or nothing is. Else any that works, the toolkits before PyPI's nvidia-cuda-nvcc: pip
# builds in an environment of its own, but with the interpreter of the one it installs into, so that is where to look.
if(CMAKE_CUDA_COMPILER)
  set(candidates "${CMAKE_CUDA_COMPILER}")
elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
  set(candidates "$ENV{CUDACXX}")
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [=[
import os, shutil, sys, sysconfig
sites = [sysconfig.get_path("purelib"), sysconfig.get_path("purelib", vars={"base": sys.prefix}), *sys.path]
homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
homes += [site + "/nvidia/cu13" for site in sites]
found = [shutil.which("nvcc", path=place) for place in os.get_exec_path() + [home + "/bin" for home in homes if home]]
print(";".join(dict.fromkeys(filter(None, found))))]=]
    OUTPUT_VARIABLE candidates OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()

# Whether a program can be built that has what the kernels need: the headers of the 16-bit floats (PyPI has part of them
# in a wheel of their own), the runtime, a host compiler that this nvcc supports, these architectures.
function(jax_ctc_try_nvcc nvcc architectures works)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/nvcc-works")
  file(WRITE "${folder}/probe.cu" "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n__global__ void nothing() {}\n"
                                  "int main() { nothing<<<1, 1>>>(); }\n")
  set(generate "")
  foreach(architecture IN LISTS architectures)
    if(architecture MATCHES "^([0-9]+[af]?)")
      list(APPEND generate -gencode "arch=compute_${CMAKE_MATCH_1},code=sm_${CMAKE_MATCH_1}")
    else()
      list(APPEND generate "-arch=${architecture}")  # native, all, all-major
    endif()
  endforeach()
  separate_arguments(flags UNIX_COMMAND "$ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS}")
  if(CMAKE_CUDA_HOST_COMPILER)
    list(APPEND flags -ccbin "${CMAKE_CUDA_HOST_COMPILER}")
  endif()
  execute_process(
    COMMAND "${nvcc}" -std=c++17 ${flags} ${generate} "${folder}/probe.cu" -o "${folder}/probe"
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result EQUAL 0)
    set(${works} TRUE PARENT_SCOPE)
  else()
    set(${works} FALSE PARENT_SCOPE)
    string(STRIP "${output}" output)
    message(STATUS "jax_ctc: ${nvcc} does not build for ${architectures}: ${result} ${output}")
  endif()
endfunction()

# Ampere, Hopper, Blackwell; and PTX of the newest for what comes after. Toolkits before 12.8 end at Hopper.
set(choices "80-real 90-real 100-real 120" "80-real 90")
if(CMAKE_CUDA_ARCHITECTURES)
  list(JOIN CMAKE_CUDA_ARCHITECTURES " " choices)
endif()
set(works FALSE)
set(given_flags "$ENV{CUDAFLAGS}")
foreach(nvcc IN LISTS candidates)
  # The wheels keep their libraries in lib; nvcc looks in lib64.
  get_filename_component(folder "${nvcc}" DIRECTORY)
  if(folder IN_LIST CMAKE_IGNORE_PATH)
    continue()
  endif()
  get_filename_component(toolkit "${folder}" DIRECTORY)
  set(ENV{CUDAFLAGS} "${given_flags}")
  if(NOT EXISTS "${toolkit}/lib64" AND EXISTS "${toolkit}/lib/libcudart_static.a")
    set(ENV{CUDAFLAGS} "${given_flags} \"-L${toolkit}/lib\"")
  endif()
  foreach(choice IN LISTS choices)
    string(REPLACE " " ";" architectures "${choice}")
    jax_ctc_try_nvcc("${nvcc}" "${architectures}" works)
    if(works)
      break()
    endif()
  endforeach()
  if(works)
    set(ENV{CUDACXX} "${nvcc}")
    set(CMAKE_CUDA_ARCHITECTURES "${architectures}")
    break()
  endif()
endforeach()

if(NOT works)
  string(CONCAT remedy
    "Install a CUDA toolkit (12.0 or later) and have its nvcc on the path, or CUDACXX name it, or "
    "`pip install nvidia-cuda-nvcc nvidia-cuda-cccl` into the same environment; and a host compiler it supports.")
  if(JAX_CTC_CUDA STREQUAL "ON")
    message(FATAL_ERROR "JAX_CTC_CUDA=ON, but no CUDA compiler works here. ${remedy}")
  endif()
  message(STATUS "jax_ctc: no CUDA compiler works here, building the CPU kernels only. For GPUs: ${remedy}")
  return()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # nothing is needed at run time but the driver
enable_language(CUDA)
message(STATUS "jax_ctc: building CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES} with ${CMAKE_CUDA_COMPILER}, which works "
               "here. JAX_CTC_CUDA=OFF in the environment leaves them out.")

pybind11_add_module(_cuda
  kernels/cuda/bindings.cpp
  kernels/cuda/ffi.cpp
  kernels/cuda/ctc.cpp
  kernels/cuda/rows.cu
  kernels/cuda/lattice.cu
  kernels/cuda/occupancy.cu
  kernels/cuda/gradient.cu
  kernels/cuda/hvp.cu
  kernels/cuda/align_rows.cu
  kernels/cuda/align.cu)
jax_ctc_module(_cuda)
# Numbers for CMake's words native, all, all-major: Python compares them with the GPUs that it finds.
string(REPLACE "-" "_" word "${CMAKE_CUDA_ARCHITECTURES}")
string(TOUPPER "CMAKE_CUDA_ARCHITECTURES_${word}" word)
if(DEFINED "${word}" AND NOT "${${word}}" STREQUAL "")
  set(architectures "${${word}}")
else()
  set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
endif()
string(REPLACE ";" "," architectures "${architectures}")
target_compile_definitions(_cuda PRIVATE JAX_CTC_CUDA_ARCHITECTURES="${architectures}")
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
# machine.cuh, in the place of the emulator's.
target_include_directories(_cuda PRIVATE kernels/cuda/nvidia)
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
