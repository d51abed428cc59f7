# SPDX-License-Identifier: Apache-2.0
# The module `_cuda`: finds a CUDA compiler, says what was found, and builds the kernels with it.

include(CheckLanguage)

# PyPI's nvidia-cuda-nvcc is a compiler too. pip builds in an environment of its own, but with the interpreter of the one
# it installs into, so that is where to look.
if(NOT CMAKE_CUDA_COMPILER AND "$ENV{CUDACXX}" STREQUAL "")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import sys, sysconfig
places = [sysconfig.get_path("purelib"), sysconfig.get_path("purelib", vars={"base": sys.prefix}), *sys.path]
print(";".join(dict.fromkeys(place + "/nvidia/cu13" for place in places)))]]
    OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE)
  find_program(jax_ctc_nvcc nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda ${wheels} PATH_SUFFIXES bin)
  if(jax_ctc_nvcc)
    set(ENV{CUDACXX} "${jax_ctc_nvcc}")
    # The wheels keep their libraries in lib; nvcc looks in lib64.
    get_filename_component(toolkit "${jax_ctc_nvcc}" DIRECTORY)
    get_filename_component(toolkit "${toolkit}" DIRECTORY)
    if(NOT EXISTS "${toolkit}/lib64" AND EXISTS "${toolkit}/lib/libcudart_static.a")
      set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${toolkit}/lib")
    endif()
  endif()
endif()

check_language(CUDA)  # by building a program with it
if(NOT CMAKE_CUDA_COMPILER)
  string(CONCAT remedy
    "Install a CUDA toolkit (12.8 or later) and have its nvcc on the path, or CUDACXX name it, or "
    "`pip install nvidia-cuda-nvcc nvidia-cuda-cccl` into the same environment; and a host compiler it supports.")
  if(JAX_CTC_CUDA STREQUAL "ON")
    message(FATAL_ERROR "JAX_CTC_CUDA=ON, but no CUDA compiler works here. ${remedy}")
  endif()
  message(STATUS "jax_ctc: no CUDA compiler works here, building the CPU kernels only. For GPUs: ${remedy}")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Ampere, Hopper, Blackwell; and PTX of the newest for what comes after.
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90-real;100-real;120")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # nothing is needed at run time but the driver
enable_language(CUDA)
message(STATUS "jax_ctc: building CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES} with ${CMAKE_CUDA_COMPILER}")

pybind11_add_module(_cuda
  kernels/cuda/bindings.cpp
  kernels/cuda/ffi.cpp
  kernels/cuda/ctc.cpp
  kernels/cuda/rows.cu
  kernels/cuda/lattice.cu
  kernels/cuda/gradient.cu)
jax_ctc_module(_cuda)
string(REPLACE ";" "," architectures "${CMAKE_CUDA_ARCHITECTURES}")
string(REPLACE "-real" "" architectures "${architectures}")
target_compile_definitions(_cuda PRIVATE JAX_CTC_CUDA_ARCHITECTURES="${architectures}")
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
