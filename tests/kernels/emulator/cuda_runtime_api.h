// SPDX-License-Identifier: Apache-2.0
// In the place of CUDA's own where kernels/cuda/ffi.cpp is compiled for the emulator.
#pragma once

#include "emulator.h"
