// SPDX-License-Identifier: Apache-2.0
// Random problems for the CPU kernels, honest and forged ones. Built by test_sanitized.py with -DJAX_CTC_TEST and
// sanitizers: an access outside an array, the scratch arrays among them, or a race ends the program.
#include <cstring>
#include <thread>
#include <vector>

#include "../../kernels/cpu/ctc.h"
#include "../../kernels/cpu/dispatch.h"
#include "failing_allocator.h"
#include "random_problem.h"

namespace {

class Threads final : public Executor {
 public:
  int64_t threads() const override { return 3; }
  void schedule(std::function<void()> work) override { started_.emplace_back(std::move(work)); }
  ~Threads() override {
    for (std::thread& t : started_) t.join();
  }

 private:
  std::vector<std::thread> started_;
};

// What XLA hands over for an array without elements.
template <class T> T* pointer(const Array<T>& array) { return array.size > 0 ? array.data.get() : nullptr; }

// All results of one problem.
template <class F> struct Results {
  Array<F> alone, cost, score, tangents, rows, columns;
  Array<int32_t> path, label_index;
  Array<char> products, masked, gradient;

  explicit Results(const RandomProblem<F>& random)
      : alone(random.s.sequences()),
        cost(alone.size),
        score(alone.size),
        tangents(alone.size),
        rows(random.kept_rows()),
        columns(random.kept_columns()),
        path(random.s.rows()),
        label_index(path.size),
        products(random.s.rows() * random.s.V * sizeof(F)),
        masked(products.size),
        gradient(products.size) {
    for (Array<char>* array : {&products, &masked, &gradient}) std::memset(array->data.get(), 0, array->size);
  }

  Residuals residuals() const { return {pointer(rows), pointer(columns)}; }
  void forwards(const Problem& p) {
    Threads threads;
    loss(p, pointer(alone), threads);
    forward(p, pointer(cost), residuals(), threads);
    align(p, false, {pointer(path), pointer(label_index), pointer(score)}, threads);
  }
  void backwards(const Problem& p, RandomProblem<F>& random) {
    Threads threads;
    const F* cotangents = pointer(random.cotangents);
    tangent(p, residuals(), random.directions(), pointer(tangents), threads);
    hvp(p, residuals(), cotangents, random.directions(), true, pointer(masked), threads);
    hvp(p, residuals(), cotangents, random.directions(), false, pointer(products), threads);
    cotangent(p, residuals(), cotangents, pointer(gradient), threads);
  }
  bool operator==(const Results& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size == 0 || std::memcmp(a.data.get(), b.data.get(), a.size * sizeof(a.data[0])) == 0;
    };
    return same(path, other.path) && same(label_index, other.label_index) && same(score, other.score) &&
           same(alone, other.alone) && same(cost, other.cost) && same(tangents, other.tangents) &&
           same(rows, other.rows) && same(columns, other.columns) && same(products, other.products) &&
           same(masked, other.masked) && same(gradient, other.gradient);
  }
};

// Symbols are classes or below 0: the handler sees to that.
template <class F> void sums_and_back(Problem p) {
  const int64_t rows = p.shape.rows(), n = p.shape.sequences() * p.shape.L;
  std::vector<int32_t> symbols(p.labels, p.labels + n);
  for (int32_t& symbol : symbols) symbol = symbol >= p.shape.V ? -1 : symbol;
  p.labels = symbols.data();
  Array<F> top(rows), count(rows), tail(rows), scores(rows * p.shape.L);
  Threads threads;
  sums(p, {pointer(top), pointer(count), pointer(tail), pointer(scores)}, threads);
  Array<char> out(rows * p.shape.V * sizeof(F));
  sums_cotangent(p, pointer(top), pointer(tail), pointer(scores), pointer(out), threads);
}

// The most probable class of each frame: -1 at and after the length, and where there is no softmax.
template <class F> void top_classes(Problem p, RandomProblem<F>& random) {
  p.shape.L = 0;
  const int64_t rows = p.shape.rows();
  Array<int32_t> best(rows);
  Array<F> top(rows), others(rows);
  Threads threads;
  top_class(p, {pointer(best), pointer(top), pointer(others)}, threads);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t sequence = p.shape.sequence_of_row(row), c = best.data[row];
    const bool used = p.shape.frame_of_row(row) < p.lengths[sequence], found = others.data[row] == others.data[row];
    if (used && found ? c < 0 || c >= p.shape.V || !(others.data[row] >= 0) : c != -1 || used == found)
      random.fail(sequence, "the most probable class", double(c), double(others.data[row]));
  }
}

// The labels of acts, by prefix beam search: classes but the blank, -1 after the last.
template <class F> void beams(Problem p, RandomProblem<F>& random, bool memory) {
  p.shape.L = 0;
  const int64_t rows = p.shape.rows(), n = p.shape.sequences(), width = 1 + below(20), paths = 1 + below(width);
  p.softmax = sometimes(2);
  const BeamOptions options = {width, paths, below(4)};
  Array<int32_t> labels(rows * paths), lengths(n * paths), again(rows * paths);
  Array<F> scores(n * paths);
  const auto run = [&](Array<int32_t>& labels) {
    Threads threads;
    beam(p, options, {pointer(labels), pointer(lengths), pointer(scores)}, threads);
  };
  run(labels);
  for (int64_t i = 0; i < n * paths; ++i) {
    const int64_t sequence = i / paths, length = lengths.data[i];
    const F score = scores.data[i];
    if (length < 0 || length > p.shape.T || (random.bad_length(sequence) && score == score))
      random.fail(sequence, "length and score of a path", double(length), double(score));
    for (int64_t t = 0; t < p.shape.T; ++t) {
      const int32_t label = labels.data[(p.shape.first_row(sequence) + t * p.shape.B) * paths + i % paths];
      if (t < length ? label < 0 || label >= p.shape.V || label == p.blank : label != -1)
        random.fail(sequence, "a label of a path", double(label), double(t));
    }
  }
  int64_t k = 1;
  for (bool failed = memory; failed; k += 1 + below(4)) {
    failing::at = k;
    try {
      std::thread([&] {
        try {
          run(again);
        } catch (const std::bad_alloc&) {
        }
      }).join();
    } catch (const std::bad_alloc&) {  // of the thread itself
    }
    failed = failing::at.exchange(0) <= 0;
  }
  run(again);
  if (labels.size > 0 && std::memcmp(labels.data.get(), again.data.get(), labels.size * sizeof(int32_t)) != 0)
    random.fail(0, "other labels in another run", 0, 0);
}

// A number that no forward pass leaves behind.
template <class F> F forged() {
  using Bits = std::conditional_t<sizeof(F) == 4, uint32_t, uint64_t>;
  constexpr F most = std::numeric_limits<F>::max(), infinity = std::numeric_limits<F>::infinity();
  const F some[] = {F(std::nan("")), infinity, -infinity, most, -most, F(1e-40), std::numeric_limits<F>::denorm_min(),
                    F(-0.0),         1,        F(1e30),   -1,   2};
  if (!sometimes(4)) return some[below(12)];
  const Bits bits = Bits(generator()) << (8 * sizeof(F) - 32) | Bits(generator());
  F number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

bool sound(const Problem& p, int64_t sequence) {
  const int32_t* labels = p.labels + sequence * p.shape.L;
  bool good = p.lengths[sequence] >= 0 && p.lengths[sequence] <= p.shape.T;
  for (int64_t i = 0; i < p.shape.L; ++i)
    good = good && (labels[i] < 0 || (labels[i] < p.shape.V && labels[i] != p.blank));
  return good;
}

// Residuals, labels and lengths that do not go together.
template <class F> void forge(const Problem& p, RandomProblem<F>& random, Results<F>& results) {
  const int32_t bad[] = {int32_t(p.shape.V), int32_t(p.shape.V + 1), 1000000000, INT32_MAX, INT32_MIN, p.blank};
  for (Array<F>* array : {&results.rows, &results.columns})
    for (int64_t i = 0; i < array->size; ++i)
      if (sometimes(2)) array->data[i] = forged<F>();
  for (int64_t i = 0; i < random.labels.size; ++i)
    if (sometimes(40)) random.labels.data[i] = bad[below(6)];
  for (int64_t i = 0; i < random.lengths.size; ++i)
    if (sometimes(3)) random.lengths.data[i] = int32_t(generator());
  results.backwards(p, random);
  const int64_t V = p.shape.V, size = random.half() ? 2 : sizeof(F);
  for (int64_t row = 0; row < p.shape.rows() * (V > 0); ++row) {
    const int64_t i = p.shape.sequence_of_row(row);
    if (sound(p, i)) continue;
    const char *g = results.gradient.data.get() + row * V * size, *h = results.products.data.get() + row * V * size;
    // Dense: the gradient was kept, and cotangents of 1 leave it as it is.
    if (std::any_of(g, g + V * size, [](char c) { return c != 0; })) random.fail(i, "a forged gradient", row, 0);
    if (std::any_of(h, h + V * size, [](char c) { return c != 0; })) random.fail(i, "a forged product", row, 0);
    if (results.tangents.data[i] != 0) random.fail(i, "a forged tangent", double(results.tangents.data[i]), 0);
  }
}

// Each allocation fails once. The call says so, or does without; afterwards everything works as before.
template <class F> void without_memory(const Problem& p, RandomProblem<F>& random, const Results<F>& expected) {
  Results<F> results(random);
  int64_t k = 1;
  for (bool failed = true; failed; k += 1 + below(4)) {
    bool thrown = false;
    failing::at = k;
    try {
      // In a thread that has no scratch memory yet.
      std::thread([&] {
        try {
          results.forwards(p), results.backwards(p, random);
        } catch (const std::bad_alloc&) {
          thrown = true;
        }
      }).join();
    } catch (const std::bad_alloc&) {
      thrown = true;  // of the thread itself
    }
    failed = failing::at.exchange(0) <= 0;
    if (thrown && !failed) random.fail(0, "bad_alloc without a failure, at allocation", double(k), 0);
  }
  if (!(results == expected)) random.fail(0, "other bits after allocations have failed", 0, 0);
}

// `wide`: rows of so many classes that threads may share them (rows_ahead.h).
template <class F> void one(Dtype dtype, bool memory, bool wide) {
  Shape shape = RandomProblem<F>::random_shape();
  if (wide) shape.V += kMostClasses;
  RandomProblem<F> random(dtype, shape);
  Problem p = {random.batch(), sometimes(2) ? 1 : 99};
  p.blank = int32_t(below(p.shape.V));
  for (int64_t i = 0; i < random.labels.size; ++i) {
    int32_t& label = random.labels.data[i];  // the roles of class 0 and the blank change
    if (label == 0 || label == p.blank) label = p.blank - label;
  }
  if (p.shape.rows() == 0) p.acts = nullptr;
  if (random.labels.size == 0) p.labels = nullptr;

  tested::block_length = 0, tested::products_of_blanks = false, tested::narrowest_band = 0;
  tested::pieces_of_halves = sometimes(2);
  Results<F> results(random);
  results.forwards(p), results.backwards(p, random);
  for (int64_t i = 0; i < results.cost.size; ++i) {
    const F a = results.alone.data[i], b = results.cost.data[i];
    if ((a != b && (a == a || b == b)) || (a < 0 && p.softmax) || (random.bad_length(i) && a == a))
      random.fail(i, "cost alone, and with residuals", a, b);
  }
  // Several callers at once, one thread or several, blocks of any length, with products of blanks or without: the same
  // bits.
  tested::block_length = 4 * below(6), tested::products_of_blanks = sometimes(2);
  Results<F> others[2] = {Results<F>(random), Results<F>(random)};
  const auto run = [&](Results<F>& to, int64_t threads) {
    Problem here = p;
    here.threads = threads;
    to.forwards(here), to.backwards(here, random);
  };
  std::thread caller(run, std::ref(others[0]), 1);
  run(others[1], 99);
  caller.join();
  if (!(others[0] == results) || !(others[1] == results))
    random.fail(0, "other bits with states kept for so many frames at once", double(tested::block_length), 0);
  sums_and_back<F>(p);
  top_classes<F>(p, random);
  beams<F>(p, random, memory);
  if (memory) without_memory(p, random, results);
  forge(p, random, results);
  if (p.acts != nullptr) {
    Threads threads;
    cotangent(p, results.residuals(), pointer(random.cotangents), random.acts(), threads);  // in the place of acts
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200, first = argc > 2 ? std::atoi(argv[2]) : 0;
  for (int seed = first; seed < first + rounds; ++seed) {
    generator.seed(seed);
    // Every fourth of the seeds with memory is wide too.
    const bool memory = seed % 16 == 0, wide = seed % 8 == 3 || seed % 64 == 32;
    one<float>(Dtype::kF32, memory, wide);
    one<double>(Dtype::kF64, memory, wide);
    one<float>(Dtype::kBF16, memory, wide);
    one<float>(Dtype::kF16, memory, wide);
  }
  std::printf("%d rounds on %s\n", rounds, instruction_set().name);
}
