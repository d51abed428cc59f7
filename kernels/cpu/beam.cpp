// SPDX-License-Identifier: Apache-2.0
// Prefix beam search. A sequence is an item. Scores are logs in double, relative to the largest logit of each frame, so
// which labels are found does not depend on the instruction set.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ctc.h"
#include "dispatch.h"
#include "memory.h"
#include "prefix_tree.h"
#include "schedule.h"

namespace jax_ctc {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  // exp(-40) is less than half an ulp of 1.
  return b - a > -40 ? a + std::log1p(std::exp(b - a)) : a;
}

// A prefix in the beam. Its paths end in the blank or in its last label.
struct Prefix {
  int32_t node;
  int32_t label;  // the last, or -1
  double blank, last, total;
};

// What a frame makes of a prefix: it stays, or gets a label.
struct Candidate {
  double score;
  int32_t slot;
  int32_t added;  // -1: it stays
};

// The logits of one frame, and the classes that may be added, the most probable first.
template <class F> struct Frame {
  const F* logits;
  F top;
  int32_t blank;
  const ClassScore<F>*begin, *end;
  double at(int32_t c) const { return double(logits[c]) - double(top); }
};

// Leaves the n most probable classes, the lower of equal ones first. Returns their end.
template <class F> ClassScore<F>* sort_best(ClassScore<F>* begin, int64_t count, int64_t n) {
  const auto before = [](const ClassScore<F>& a, const ClassScore<F>& b) {
    return a.score > b.score || (a.score == b.score && a.label < b.label);
  };
  if (count > 2 * n) std::nth_element(begin, begin + n, begin + count, before), count = n;
  std::sort(begin, begin + count, before);
  return begin + std::min(count, n);
}

class Search {
 public:
  void start(int64_t width) {
    width_ = width;
    tree_.clear();
    beam_.assign(1, {0, -1, 0, kNever, 0});
    tree_[0].slot = 0;
  }

  template <class F> void step(const Frame<F>& frame) {
    stay(frame);
    extend(frame);
    keep();
  }

  // Candidates stand in order, so the beam does too.
  const std::vector<Prefix>& beam() const { return beam_; }
  const PrefixTree::Node& node(int32_t n) { return tree_[n]; }

  void trim() {
    if (bytes() > kLargestKept) *this = Search();
  }

 private:
  size_t bytes() const {
    return tree_.bytes() + (beam_.capacity() + stays_.capacity() + next_.capacity()) * sizeof(Prefix) +
           candidates_.capacity() * sizeof(Candidate) + (children_.capacity() + siblings_.capacity()) * sizeof(int32_t);
  }

  // Candidates that stay, with what their parent gives them: a parent and its child's last label are the child.
  template <class F> void stay(const Frame<F>& frame) {
    const double blank = frame.at(frame.blank);
    candidates_.clear();
    stays_.clear();
    children_.assign(beam_.size(), -1);
    siblings_.resize(beam_.size());
    for (size_t k = 0; k < beam_.size(); ++k) {
      const Prefix& prefix = beam_[k];
      Prefix stays = {prefix.node, prefix.label, prefix.total + blank, kNever, kNever};
      if (prefix.label >= 0) {
        double entering = kNever;
        const int32_t slot = tree_[tree_[prefix.node].parent].slot;
        if (slot >= 0) {
          siblings_[k] = children_[slot], children_[slot] = k;
          const Prefix& parent = beam_[slot];
          entering = parent.label == prefix.label ? parent.blank : parent.total;
        }
        stays.last = log_add(prefix.last, entering) + frame.at(prefix.label);
      }
      stays.total = log_add(stays.blank, stays.last);
      stays_.push_back(stays);
      add({stays.total, int32_t(k), -1});
    }
  }

  template <class F> void extend(const Frame<F>& frame) {
    for (size_t k = 0; k < beam_.size(); ++k) {
      const Prefix& prefix = beam_[k];
      for (const ClassScore<F>* x = frame.begin; x < frame.end; ++x) {
        const double e = double(x->score) - double(frame.top);
        if (!is_wanted(prefix.total + e)) break;  // nor are the classes that follow, which are less probable
        const double score = (x->label == prefix.label ? prefix.blank : prefix.total) + e;
        if (is_wanted(score) && !has_child(k, x->label)) add({score, int32_t(k), x->label});
      }
    }
  }

  bool has_child(int32_t slot, int32_t label) const {
    for (int32_t k = children_[slot]; k >= 0; k = siblings_[k])
      if (beam_[k].label == label) return true;
    return false;
  }

  bool is_full() const { return int64_t(candidates_.size()) == width_; }
  bool is_wanted(double score) const { return score > (is_full() ? candidates_.back().score : kNever); }
  // Equal candidates keep the order in which they come.
  void add(const Candidate& candidate) {
    if (!is_wanted(candidate.score)) return;
    if (is_full()) candidates_.pop_back();
    const auto before = [](const Candidate& a, const Candidate& b) { return a.score > b.score; };
    candidates_.insert(std::upper_bound(candidates_.begin(), candidates_.end(), candidate, before), candidate);
  }

  void keep() {
    for (const Prefix& prefix : beam_) tree_[prefix.node].slot = -1;
    next_.clear();
    for (const Candidate& x : candidates_) {
      if (x.added < 0)
        next_.push_back(stays_[x.slot]);
      else
        next_.push_back({tree_.child(beam_[x.slot].node, x.added), x.added, kNever, x.score, x.score});
      tree_[next_.back().node].slot = next_.size() - 1;
    }
    beam_.swap(next_);
  }

  int64_t width_ = 0;
  PrefixTree tree_;
  std::vector<Prefix> beam_, stays_, next_;
  std::vector<Candidate> candidates_;         // the best first
  std::vector<int32_t> children_, siblings_;  // lists of slots: the children of a slot that are in the beam
};

// Writes the labels of path k. The others are -1 already.
template <class F> struct PathWriter {
  const Shape& shape;
  const BeamResults& out;
  int64_t sequence, paths;

  int32_t& label(int64_t t, int64_t k) const {
    return out.labels[(shape.first_row(sequence) + t * shape.B) * paths + k];
  }
  void fill(F score) const {
    for (int64_t k = 0; k < paths; ++k) {
      out.label_lengths[sequence * paths + k] = 0;
      static_cast<F*>(out.scores)[sequence * paths + k] = score;
      for (int64_t t = 0; t < shape.T; ++t) label(t, k) = -1;
    }
  }
  // After fill(-inf), which a path keeps whose score is too low for F. `most`: the highest score but for rounding.
  void write(Search& search, int64_t k, double norm, double most) const {
    const Prefix& prefix = search.beam()[k];
    const F score = F(std::min(prefix.total + norm, most));
    if (score == -std::numeric_limits<F>::infinity()) return;
    const int32_t count = search.node(prefix.node).count;
    out.label_lengths[sequence * paths + k] = count;
    static_cast<F*>(out.scores)[sequence * paths + k] = score;
    int32_t node = prefix.node;
    for (int32_t t = count; t-- > 0; node = search.node(node).parent) label(t, k) = search.node(node).label;
  }
};

// Runs over the frames. Returns the sum of what scores are relative to, or NaN if a row has no softmax.
template <class F>
double search_frames(Search& search, const Problem& p, int64_t sequence, const BeamOptions& options) {
  const Shape& s = p.shape;
  const int64_t first = first_row(s, sequence), length = p.lengths[sequence];
  // An added class of rank r has r better ones, of which one may be the last label. So more are not needed.
  const int64_t most = options.classes_per_frame > 0 ? options.classes_per_frame : s.V;
  const int64_t n = std::min({most, options.beam_width + 1, s.V - 1});
  thread_local std::vector<ClassScore<F>> classes;
  const AtEnd trimmed{[] { trim(classes); }};
  classes.resize(s.V);
  double norm = 0;
  for (int64_t t = 0; t < length; ++t) {
    const auto row = [&](int64_t t) { return at(p.acts, (first + t * s.B) * s.V, p.dtype); };
    const LogitRow logits = {p.dtype, row(t), s.V, p.blank, &thread_scratch()};
    const auto best = kernels<F>().best_classes(logits, row(std::min(t + 1, length - 1)), n, classes.data());
    if (best.sum == 0) return std::numeric_limits<double>::quiet_NaN();
    norm += p.softmax ? -std::log(best.sum) : double(best.top);
    const ClassScore<F>* end = sort_best(classes.data(), best.count, n);
    search.step(Frame<F>{best.logits, best.top, p.blank, classes.data(), end});
  }
  return norm;
}

template <class F>
void run_beam(const Problem& p, const BeamOptions& options, const BeamResults& out, Executor& executor) {
  for_each_sequence(p, 5, executor, [&](int64_t i) {
    thread_local Search search;
    const AtEnd trimmed{[] { search.trim(); }};
    const PathWriter<F> writer = {p.shape, out, i, options.top_paths};
    if (!is_valid_length(p.shape, p.lengths[i])) return writer.fill(std::numeric_limits<F>::quiet_NaN());
    search.start(options.beam_width);
    const double norm = search_frames<F>(search, p, i, options);
    if (norm != norm) return writer.fill(std::numeric_limits<F>::quiet_NaN());
    writer.fill(-std::numeric_limits<F>::infinity());
    const int64_t found = search.beam().size();
    const double most = p.softmax ? 0 : std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < std::min(found, options.top_paths); ++k) writer.write(search, k, norm, most);
  });
}

}  // namespace

void beam(const Problem& p, const BeamOptions& options, const BeamResults& out, Executor& executor) {
  with_result_type(p.dtype, [&](auto zero) { run_beam<decltype(zero)>(p, options, out, executor); });
}

}  // namespace jax_ctc
