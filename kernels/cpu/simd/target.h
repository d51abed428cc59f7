// SPDX-License-Identifier: Apache-2.0
// Code between CTC_TARGET_BEGIN and CTC_TARGET_END is compiled for an instruction set that the machine may not have.
// The standard headers stand above it, and are compiled for every machine. A compiler flag for the whole file would
// compile their inline functions for that instruction set too, and the linker might pick those for all files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "interface.h"

#define CTC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define CTC_TARGET_BEGIN(isa) CTC_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define CTC_TARGET_END CTC_PRAGMA(clang attribute pop)
#else
#define CTC_TARGET_BEGIN(isa) CTC_PRAGMA(GCC push_options) CTC_PRAGMA(GCC target(isa))
#define CTC_TARGET_END CTC_PRAGMA(GCC pop_options)
#endif
