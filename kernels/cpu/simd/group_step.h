// SPDX-License-Identifier: Apache-2.0
// A few frames of the lattice of one sequence at once, in plain doubles, or in doubles with derivatives.
//
// A value of the lattice is m * 2^e with an exponent of its own (scaled.h). Here the two states of a slot share an
// exponent for many frames: they are plain numbers in the unit 2^e of their slot. So a step is two multiply-adds, an
// addition and a multiplication, and the states of a vector of slots stay in registers for a group of frames. Numbers
// that differ by more than a double can hold do not fit. GroupStates finds that before any number is lost, and the
// sequence is then computed in scaled.h's values.
#pragma once

#include "arena.h"
#include "group_numbers.h"

namespace jax_ctc {
namespace {

// The slots that an alignment can occupy at frames [t, t + count), and at the frames on either side, from which alpha
// and beta come.
inline Window group_window(int64_t t, int64_t count, int64_t T, int64_t L) {
  const auto at = [&](int64_t frame) { return window<double>(frame, T, L, padded<double>(L + 1)); };
  return {at(max_of<int64_t>(t - 1, 0)).begin, at(t + count).end};
}

// By how many powers of 2 a ratio can make a number smaller or larger in a frame.
struct Growth {
  int fall, rise;
};

// The states of alpha, or of beta, at one frame. Slots and neighbours are those of step.h. What is said of numbers is
// said of their values: a derivative is at most 2^kMostChange times as large.
template <Recursion kRecursion, class V> class GroupStates {
  static constexpr int kParts = kPartsOf<V>;
  static constexpr bool kRight = kRecursion == kBeta;  // where the neighbour is
  static constexpr int kNeighbour = kRight ? 1 : -1;

 public:
  double *blank, *label;  // of `pairs` slots, in the units of their slots. 0 is "not reached"
  double* exponent;       // a unit is 2^exponent
  double reach;           // no number is more than 2^reach in the frames that `prepare` has allowed

  void lay_out(Arena& arena, int64_t slots) {
    pairs = slots;
    arena.take(blank, kParts * pairs), arena.take(label, kParts * pairs);
    arena.take(exponents_with_margins, pairs + 2 * kDoubles), arena.take(fresh_with_margins, pairs + 2 * kDoubles);
    arena.take(neighbour_unit, pairs), arena.take(skip_unit, pairs);
  }

  // The states before the first step. Only blank `first` is reached, and its derivative is `change`. `skips` is 1 for
  // each pair where the skip is allowed, else 0.
  void start(int64_t first, const double* skips, double change = 0) {
    skip_mask = skips, exponent = exponents_with_margins + kDoubles, fresh = fresh_with_margins + kDoubles;
    for (int64_t i = 0; i < kParts * pairs; ++i) blank[i] = label[i] = 0;
    for (int64_t i = -kDoubles; i < pairs + kDoubles; ++i) exponent[i] = 0;
    blank[first] = 1;
    if constexpr (kParts > 1) blank[pairs + first] = change;
    most = 1, steepest = 0, room = kLeast;
    set_neighbour_units();
  }

  static int64_t copy_size(int64_t pairs) { return (2 * kParts + 1) * pairs + 3; }
  void copy_to(double* to) const {
    const size_t states = kParts * pairs, word = sizeof(double);
    __builtin_memcpy(to, blank, states * word), __builtin_memcpy(to + states, label, states * word);
    __builtin_memcpy(to += 2 * states, exponent, pairs * word), to += pairs;
    to[0] = most, to[1] = steepest, to[2] = room;
  }
  void copy_from(const double* from) {
    const size_t states = kParts * pairs, word = sizeof(double);
    __builtin_memcpy(blank, from, states * word), __builtin_memcpy(label, from + states, states * word);
    __builtin_memcpy(exponent, from += 2 * states, pairs * word), from += pairs;
    most = from[0], steepest = from[1], room = int(from[2]);
    set_neighbour_units();
  }

  // Makes sure that a group of frames can be taken: numbers then stay below 2^kMost, and no number but 0 falls below
  // 2^-kLeast. Returns false if units cannot be found. `changed` is set if units have changed.
  bool prepare(Window window, Growth growth, bool& changed) {
    const int fall = kFrames * growth.fall;
    if (rises_too_far(growth) || (fall > room && fall > (room = room_of(window)))) {
      if (!change_units(window)) return false;
      changed = true;
    }
    room -= fall;
    reach = reach_of(growth);
    return room >= 0 && !rises_too_far(growth);
  }

  // Takes kCount frames, of which `y` has the ratios. visit(f, i, before, after) gets the states of the slots from i on
  // at frame f of them, before and after its emission.
  //
  // A vector of slots stays in registers for all frames. A frame waits for the one before: for 16 cycles, in which a
  // core could do two frames' work. So the frames are taken in chunks of kChunk: a chunk of a vector is taken together
  // with the next chunk of the vector before it, frame by frame in turns, because these two do not wait for each other.
  // Small chunks take more registers.
  template <int kCount, int kChunk, class Visit> CTC_INLINE void step(Window window, Ratios y, Visit visit) {
    Pair<V> at[kCount];   // of the vector that is next at each frame
    V last[kCount] = {};  // the labels of the vector that was taken before it
    Doubles largest = splat<Doubles>(most);
    // Copies, because stores may change the members, for all that the compiler knows.
    double *const blank = this->blank, *const label = this->label;
    const double *const neighbour_unit = this->neighbour_unit, *const skip_unit = this->skip_unit;
    const int64_t pitch = pairs, n = window.end - window.begin;
    const auto take = [&](int f, int64_t k) __attribute__((always_inline)) {
      const int64_t i = kRight ? window.end - kDoubles - k : window.begin + k;
      if (f == 0) load_number(blank + i, pitch, at[f].blank), load_number(label + i, pitch, at[f].label);
      const V neighbour = kRight ? shift_down(at[f].label, last[f]) : shift_up(last[f], at[f].label);
      last[f] = at[f].label;
      const Pair<V> before = advance(at[f], neighbour, load<Doubles>(neighbour_unit + i), load<Doubles>(skip_unit + i));
      V ratio;
      load_number(y.first + f * y.frame + i - kRight, y.pitch, ratio);
      const Pair<V> after = {before.blank, times_ratio(before.label, ratio)};
      visit(f, i, before, after);
      if (f + 1 < kCount) {
        at[f + 1] = after;
      } else {
        store_parts(blank + i, pitch, after.blank), store_parts(label + i, pitch, after.label);
        largest = max_of(max_of(value_of(after.blank), value_of(after.label)), largest);
      }
    };
    // Chunks `first` to `last`, each of the vector behind that of the next one. Slot k is that of chunk 0.
    const auto take_chunks = [&](int64_t k, int first, int last) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int f = 0; f < kChunk; ++f)
#pragma GCC unroll 4
        for (int c = last; c >= first; --c) take(c * kChunk + f, k - c * kDoubles);
    };
    constexpr int kLast = kCount / kChunk - 1;
    if (n > kLast * kDoubles) {
#pragma GCC unroll 4
      for (int k = 0; k < kLast; ++k) take_chunks(k * kDoubles, 0, k);
      for (int64_t k = kLast * kDoubles; k < n; k += kDoubles) take_chunks(k, 0, kLast);
#pragma GCC unroll 4
      for (int k = 0; k < kLast; ++k) take_chunks(n + k * kDoubles, k + 1, kLast);
    } else {
      for (int64_t k = 0; k < n; k += kDoubles)
#pragma GCC unroll 4
        for (int f = 0; f < kCount; ++f) take(f, k);
    }
    most = max_of_lanes(largest);
  }

  // The total, from beta's states at the first frame.
  Scaled<double> total_of(int64_t L) const {
    return fold(total(value(blank[0], 0), L > 0 ? value(label[1], 1) : Scaled<double>::none()));
  }
  // Its derivative, in the unit 2^e.
  double change_of_total(int64_t L, int64_t e) const {
    const auto part = [&](const double* states, int64_t i) {
      return states[i] == 0 ? 0 : states[pairs + i] * pow2_any<double>(int64_t(exponent[i]) - e);
    };
    return part(blank, 0) + (L > 0 ? part(label, 1) : 0);
  }

  // Takes states to be 0.
  void clear(int64_t i) { store_parts(blank + i, pairs, V{}), store_parts(label + i, pairs, V{}); }

  static constexpr double kMost = kParts == 1 ? 1000 : 1000 - kMostChange;

 private:
  // So much below kMost that products of alpha and beta fit a double too.
  static constexpr double kLargest = kRight ? 0x1p450 : 0x1p350;
  static constexpr int kLeast = 900;
  // The most powers of 2 by which the unit of a neighbour is larger, and is smaller. What a number smaller than 2^-1000
  // would add to one larger than 2^-kLeast does not count.
  static constexpr double kSteepest = 150, kDeepest = 1000;
  // How far a state may be from its unit when units are changed.
  static constexpr double kFurthestFromUnit = 0x1p200;

  // In a frame a number grows by a factor of 3 at most, times its ratio, times the unit of its neighbour.
  double reach_of(Growth growth) const { return exponent_of(most) + 1 + kFrames * (growth.rise + steepest + 2); }
  bool rises_too_far(Growth growth) const { return most > kLargest || reach_of(growth) > kMost; }

  Scaled<double> value(double state, int64_t i) const {
    return state == 0 ? Scaled<double>::none() : fold(Scaled<double>{state, int64_t(exponent[i])});
  }

  // How many times the smallest number that is not 0 can be halved.
  int room_of(Window window) const {
    const Doubles none = splat<Doubles>(0x1p1023);
    Doubles least = none;
    for (int64_t i = window.begin; i < window.end; i += kDoubles) {
      const Doubles a = load<Doubles>(blank + i), b = load<Doubles>(label + i);
      least = min_of(least, min_of(a == Doubles{} ? none : a, b == Doubles{} ? none : b));
    }
    return room_above(least);
  }
  static int room_above(Doubles least) { return kLeast + int(exponent_of(-max_of_lanes(-least))); }

  // Gives each slot the unit of its larger state. Slots that are not reached, on either side of those that are, get the
  // unit of the nearest one. Returns false if numbers do not fit.
  bool change_units(Window window) {
    const auto reached = [this](int64_t i) { return blank[i] > 0 || label[i] > 0; };
    int64_t first = window.begin, last = window.end - 1;
    while (first < last && !reached(first)) ++first;
    while (last > first && !reached(last)) --last;
    for (int64_t i = window.begin; i < window.end; i += kDoubles) {
      const Doubles larger = max_of(load<Doubles>(blank + i), load<Doubles>(label + i));
      store(fresh + i, load<Doubles>(exponent + i) + exponent_of(larger));
    }
    const auto extend = [&] {
      for (int64_t i = window.begin - 1; i < first; ++i) fresh[i] = fresh[first];
      for (int64_t i = last + 1; i <= window.end; ++i) fresh[i] = fresh[last];
    };
    extend();
    Doubles up = {}, down = {};
    for (int64_t i = window.begin; i < window.end; i += kDoubles) {
      const Doubles step = load<Doubles>(fresh + i + kNeighbour) - load<Doubles>(fresh + i);
      up = max_of(up, step), down = max_of(down, -step);
    }
    steepest = max_of_lanes(up), most = 2;
    if (steepest > kSteepest || max_of_lanes(down) > kDeepest) {
      if (!limit_steps(first, last)) return false;
      extend();
      steepest = min_of(steepest, kSteepest), most = 2 * kFurthestFromUnit;
    }
    Doubles least = splat<Doubles>(1);
    for (int64_t i = window.begin; i < window.end; i += kDoubles) {
      const Doubles e = load<Doubles>(fresh + i), factor = power_of_2(load<Doubles>(exponent + i) - e);
      const auto change = [&](double* states) {
        const Doubles before = load<Doubles>(states), after = before * factor;
        least = min_of(least, before == Doubles{} ? least : after);  // a state that has become 0 counts
        store(states, after);
      };
      change(blank + i), change(label + i);
      for (int64_t part = pairs; part < kParts * pairs; part += pairs) {
        store(blank + part + i, load<Doubles>(blank + part + i) * factor);
        store(label + part + i, load<Doubles>(label + part + i) * factor);
      }
      store(exponent + i, e);
    }
    room = room_above(least);
    for (int64_t i = 0; i < window.begin; i += kDoubles) store(exponent + i, splat<Doubles>(fresh[first]));
    for (int64_t i = window.end; i < pairs; i += kDoubles) store(exponent + i, splat<Doubles>(fresh[last]));
    set_neighbour_units();
    return true;
  }

  // Makes the steps from neighbour to neighbour small enough, from slot to slot. Returns false if a state would then be
  // far from its unit.
  bool limit_steps(int64_t first, int64_t last) {
    double previous = fresh[kRight ? last : first];
    for (int64_t k = 0; k <= last - first; ++k) {
      const int64_t i = kRight ? last - k : first + k;
      const double e = max_of(min_of(fresh[i], previous + kDeepest), previous - kSteepest);
      if (max_of(e - fresh[i], fresh[i] - e) > exponent_of(kFurthestFromUnit)) return false;
      fresh[i] = previous = e;
    }
    return true;
  }

  void set_neighbour_units() {
    for (int64_t i = 0; i < pairs; i += kDoubles) {
      const Doubles neighbour = load<Doubles>(exponent + i + kNeighbour);
      const Doubles unit = power_of_2(neighbour - load<Doubles>(exponent + i));
      store(neighbour_unit + i, unit);
      store(skip_unit + i, load<Doubles>(skip_mask + i) * unit);
    }
  }

  int64_t pairs;
  const double* skip_mask;
  double *neighbour_unit, *skip_unit;  // the unit of the neighbour in units of this slot, and the same or 0
  double* fresh;                       // the exponents that change_units finds
  double *exponents_with_margins, *fresh_with_margins;
  double most;      // no state has been larger since units were changed
  double steepest;  // the most powers of 2 by which the unit of a neighbour is larger
  int room;         // no state but 0 is less than 2^(room - kLeast)
};

}  // namespace
}  // namespace jax_ctc
