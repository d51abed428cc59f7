// SPDX-License-Identifier: Apache-2.0
// The targets of XLA's custom calls: name, operands, results, and whether these fit acts. On CUDA a target may have one
// more result, its scratch memory.
//
// Exported programs and compilation caches hold target names. So a change of operands, attributes or meaning is a new
// name. jax_ctc/_primitives/custom_call.py has the same names.
#pragma once

#include <string>
#include <utility>

#include "ffi_decode.h"

namespace jax_ctc {
namespace {

// Every target takes acts, labels and lengths first, and has these attributes.
#define CTC_OPERANDS Buffer acts, Ints labels, Ints lengths
#define CTC_ATTRIBUTES int64_t time_axis, bool time_moved, int64_t blank, int64_t threads
template <class Binding> auto with_operands(Binding binding) {
  return std::move(binding).template Arg<Buffer>().template Arg<Ints>().template Arg<Ints>();
}
template <class Binding> auto with_attributes(Binding binding) {
  return std::move(binding)
      .template Attr<int64_t>("time_axis")
      .template Attr<bool>("time_moved")
      .template Attr<int64_t>("blank")
      .template Attr<int64_t>("threads");
}

// The first six targets take log-scores under another name (Batch::softmax). `rows` is then empty.
template <class Target> constexpr const char* name_of(bool softmax) {
  return softmax ? Target::name : Target::of_scores;
}

inline ffi::Error mismatch(const char* target) {
  return ffi::Error::InvalidArgument(std::string("jax_ctc: an operand or result of ") + target +
                                     " has a shape or dtype that does not go with acts");
}

struct LossTarget {
  static constexpr const char *name = "jax_ctc_loss_v1", *of_scores = "jax_ctc_loss_of_scores_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding).template Ret<Buffer>();  // cost
  }
  static bool fits(const Batch& p, Buffer cost) { return is_per_sequence(p, cost); }
};

struct ForwardTarget {
  static constexpr const char *name = "jax_ctc_forward_v1", *of_scores = "jax_ctc_forward_of_scores_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Ret<Buffer>()   // cost
        .template Ret<Buffer>()   // rows
        .template Ret<Buffer>();  // columns
  }
  static bool fits(const Batch& p, Buffer cost, Buffer rows, Buffer columns) {
    return is_per_sequence(p, cost) && are_residuals(p, rows, columns);
  }
};

struct TangentTarget {
  static constexpr const char *name = "jax_ctc_tangent_v1", *of_scores = "jax_ctc_tangent_of_scores_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Arg<Buffer>()   // rows
        .template Arg<Buffer>()   // columns
        .template Arg<Buffer>()   // direction
        .template Ret<Buffer>();  // tangents
  }
  static bool fits(const Batch& p, Buffer rows, Buffer columns, Buffer direction, Buffer tangents) {
    return are_residuals(p, rows, columns) && is_like_acts(p, direction) && is_per_sequence(p, tangents);
  }
};

struct CotangentTarget {
  static constexpr const char *name = "jax_ctc_cotangent_v1", *of_scores = "jax_ctc_cotangent_of_scores_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Arg<Buffer>()   // rows
        .template Arg<Buffer>()   // columns
        .template Arg<Buffer>()   // cotangents
        .template Ret<Buffer>();  // gradient
  }
  static bool fits(const Batch& p, Buffer rows, Buffer columns, Buffer cotangents, Buffer gradient) {
    return are_residuals(p, rows, columns) && is_per_sequence(p, cotangents) && is_like_acts(p, gradient);
  }
};

struct HvpTarget {
  static constexpr const char *name = "jax_ctc_hvp_v1", *of_scores = "jax_ctc_hvp_of_scores_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Arg<Buffer>()   // rows
        .template Arg<Buffer>()   // columns
        .template Arg<Buffer>()   // cotangents
        .template Arg<Buffer>()   // direction
        .template Ret<Buffer>();  // out
  }
  static bool fits(const Batch& p, Buffer rows, Buffer columns, Buffer cotangents, Buffer direction, Buffer out) {
    return are_residuals(p, rows, columns) && is_per_sequence(p, cotangents) && is_like_acts(p, direction) &&
           is_like_acts(p, out);
  }
};

// CPU only.
struct MaskedHvpTarget : HvpTarget {
  static constexpr const char *name = "jax_ctc_masked_hvp_v1", *of_scores = "jax_ctc_masked_hvp_of_scores_v1";
};

struct AlignTarget {
  static constexpr const char* name = "jax_ctc_align_v2";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Ret<Ints>()     // path
        .template Ret<Ints>()     // label_index
        .template Ret<Buffer>();  // score
  }
  template <class Binding> static auto with_options(Binding binding) {
    return std::move(binding)
        .template Attr<bool>("softmax")  // whether acts are logits, whose softmax is taken
        .template Attr<bool>("star");    // whether label V stands for any class but the blank
  }
  static bool fits(const Batch& p, Ints path, Ints label_index, Buffer score) {
    const int64_t rows = p.shape.rows();
    return int64_t(path.element_count()) == rows && int64_t(label_index.element_count()) == rows &&
           is_per_sequence(p, score);
  }
};

// CPU only, for programs that were exported before there was a star: without the attribute of it.
struct AlignTargetV1 : AlignTarget {
  static constexpr const char* name = "jax_ctc_align_v1";
};

// CPU only. The labels are symbols here.
struct SumsTarget {
  static constexpr const char* name = "jax_ctc_sums_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Ret<Buffer>()   // top
        .template Ret<Buffer>()   // ties
        .template Ret<Buffer>()   // tail
        .template Ret<Buffer>();  // scores
  }
  static bool fits(const Batch& p, Buffer top, Buffer ties, Buffer tail, Buffer scores) {
    return is_per_row(p, top, 1) && is_per_row(p, ties, 1) && is_per_row(p, tail, 1) &&
           is_per_row(p, scores, p.shape.L);
  }
};

// CPU only.
struct SumsCotangentTarget {
  static constexpr const char* name = "jax_ctc_sums_cotangent_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Arg<Buffer>()   // top
        .template Arg<Buffer>()   // cotangent of tail
        .template Arg<Buffer>()   // cotangent of scores
        .template Ret<Buffer>();  // cotangent of acts
  }
  static bool fits(const Batch& p, Buffer top, Buffer ct_tail, Buffer ct_scores, Buffer out) {
    return is_per_row(p, top, 1) && is_per_row(p, ct_tail, 1) && is_per_row(p, ct_scores, p.shape.L) &&
           is_like_acts(p, out);
  }
};

// CPU only. There are no labels, L = 0.
struct TopClassTarget {
  static constexpr const char* name = "jax_ctc_top_class_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Ret<Ints>()     // best
        .template Ret<Buffer>()   // top
        .template Ret<Buffer>();  // others
  }
  static bool fits(const Batch& p, Ints best, Buffer top, Buffer others) {
    return p.shape.L == 0 && int64_t(best.element_count()) == p.shape.rows() && is_per_row(p, top, 1) &&
           is_per_row(p, others, 1);
  }
};

// CPU only. There are no labels, L = 0. The results have one entry for each of `top_paths` label sequences.
struct BeamTarget {
  static constexpr const char* name = "jax_ctc_beam_v1";
  template <class Binding> static auto bind(Binding binding) {
    return std::move(binding)
        .template Ret<Ints>()     // labels, with a row for each frame
        .template Ret<Ints>()     // label_lengths
        .template Ret<Buffer>();  // scores
  }
  template <class Binding> static auto with_options(Binding binding) {
    return std::move(binding)
        .template Attr<int64_t>("beam_width")
        .template Attr<int64_t>("top_paths")
        .template Attr<int64_t>("classes_per_frame")  // 0: all
        .template Attr<bool>("softmax");
  }
  static bool fits(const Batch& p, int64_t top_paths, Ints labels, Ints label_lengths, Buffer scores) {
    int64_t per_row = 0;  // no more sequences than rows, unless T = 0
    const int64_t per_sequence = label_lengths.element_count();
    return p.shape.L == 0 && !__builtin_mul_overflow(p.shape.rows(), top_paths, &per_row) &&
           int64_t(labels.element_count()) == per_row && top_paths >= 1 && per_sequence % top_paths == 0 &&
           per_sequence / top_paths == p.shape.sequences() && has_elements(p, scores, per_sequence);
  }
};

}  // namespace
}  // namespace jax_ctc
