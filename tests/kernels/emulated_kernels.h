// SPDX-License-Identifier: Apache-2.0
// All CUDA kernels and what launches them, for programs that compile them over the emulator in one piece.
#pragma once

#include "../../kernels/cuda/align.cu"
#include "../../kernels/cuda/align_rows.cu"
#include "../../kernels/cuda/ctc.cpp"
#include "../../kernels/cuda/gradient.cu"
#include "../../kernels/cuda/hvp.cu"
#include "../../kernels/cuda/lattice.cu"
#include "../../kernels/cuda/occupancy.cu"
#include "../../kernels/cuda/rows.cu"
