// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels over the emulator against the CPU kernels, on random problems; then on residuals that no forward
// pass has made. Built with the address and the undefined-behaviour sanitizer by test_emulated_bugs.py: an access
// outside an array ends the program, be it in shared memory or between the arrays of the scratch memory.
#define JAX_CTC_GAP 256
#define JAX_CTC_BLOCK_FRAMES 32
#include <sanitizer/asan_interface.h>

#include "../../kernels/cpu/ctc.h"
#include "emulated.cpp"
#include "emulated_kernels.h"
#include "random_problem.h"

namespace {

class Alone final : public Executor {
 public:
  int64_t threads() const override { return 1; }
  void schedule(std::function<void()>) override {}
};

template <class Array> void* data(Array& array) { return array.data.get(); }

// ---- scratch memory whose gaps may not be touched ----

void forbid(const void* end) { ASAN_POISON_MEMORY_REGION(static_cast<const char*>(end) - JAX_CTC_GAP, JAX_CTC_GAP); }

template <class Value> void forbid_gaps(void* base, const Shape& s, bool training) {
  const cuda::Workspace<Value> ws(base, s.T, s.L, training);
  for (const void* after : std::initializer_list<const void*>{
           ws.result, ws.ends, ws.states, ws.value, ws.column, ws.next, ws.is_first, ws.edges, ws.emissions, ws.sums,
           ws.directed_rows, ws.changes, static_cast<char*>(base) + ws.bytes})
    forbid(after);
}

template <class F> void forbid_gaps_of_alignment(void* base, const Shape& s) {
  const cuda::AlignWorkspace<F> ws(base, s.T, s.L);
  for (const void* after :
       std::initializer_list<const void*>{ws.states, ws.checkpoints, ws.nats, ws.star, ws.choices, ws.star_class,
                                          ws.value, ws.column, static_cast<char*>(base) + ws.bytes})
    forbid(after);
}

template <class F> Array<__int128> scratch_for(cuda::Operation operation, const Batch& p) {
  const int64_t stride = cuda::scratch_stride(operation, p), n = p.shape.sequences();
  Array<__int128> memory(n * stride / 16);
  for (int64_t i = 0; i < n; ++i) {
    char* const base = static_cast<char*>(data(memory)) + i * stride;
    switch (operation) {
      case cuda::Operation::kLoss: forbid_gaps<Scaled<F>>(base, p.shape, false); break;
      case cuda::Operation::kForward: forbid_gaps<Scaled<F>>(base, p.shape, true); break;
      case cuda::Operation::kHvp: forbid_gaps<Dual<F>>(base, p.shape, true); break;
      case cuda::Operation::kTangent: forbid(base + p.shape.T * sizeof(double) + JAX_CTC_GAP); break;
      case cuda::Operation::kAlign: forbid_gaps_of_alignment<F>(base, p.shape);
    }
  }
  return memory;
}

// ---- what is compared ----

double element(const void* array, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kF64: return static_cast<const double*>(array)[i];
    case Dtype::kBF16: return __bfloat162float(static_cast<const __nv_bfloat16*>(array)[i]);
    case Dtype::kF16: return __half2float(static_cast<const __half*>(array)[i]);
    default: return static_cast<const float*>(array)[i];
  }
}
void set_element(void* array, Dtype dtype, int64_t i, double x) {
  switch (dtype) {
    case Dtype::kF64: static_cast<double*>(array)[i] = x; break;
    case Dtype::kBF16: static_cast<__nv_bfloat16*>(array)[i] = __float2bfloat16_rn(float(x)); break;
    case Dtype::kF16: static_cast<__half*>(array)[i] = __float2half_rn(float(x)); break;
    default: static_cast<float*>(array)[i] = float(x);
  }
}

// Both NaN, both infinite, or as close as both promise together and, where it is, a rounding to half precision allows.
bool close(double a, double b, double scale, Dtype dtype) {
  if (a != a || b != b) return a != a && b != b;
  const double rounding = dtype == Dtype::kBF16 ? 0x1p-7 : dtype == Dtype::kF16 ? 0x1p-10 : 0;
  const double tolerance = (dtype == Dtype::kF64 ? 2e-11 : 2e-6) * (1 + scale) + rounding * std::fabs(b);
  return a == b || std::fabs(a - b) <= tolerance;
}

double not_finite() {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return sometimes(3) ? std::nan("") : sometimes(2) ? infinity : -infinity;
}
double anything() {
  switch (below(8)) {
    case 0: return not_finite();
    case 1: return 0;
    case 2: return std::ldexp(sometimes(2) ? 1 : -1, int(below(256)) - 128);
    default: return logit();
  }
}
int32_t any_int(int64_t near) { return sometimes(2) ? int32_t(below(near + 3)) - 1 : int32_t(generator()); }

template <class F> class Trial {
 public:
  explicit Trial(Dtype dtype)
      : dtype_(dtype),
        random_(dtype, shape()),
        batch_(with_any_blank(random_)),
        s_(batch_.shape),
        n_(s_.sequences()),
        elements_(s_.rows() * s_.V),
        bytes_(elements_ * element_size(dtype)),
        rows_(random_.kept_rows()),
        columns_(random_.kept_columns()),
        cost_(n_),
        impossible_(elements_) {
    const int strips = sizeof(F) == 4 ? 24 : 40;  // KB: two warps with two pairs a lane, and for Duals one
    emulator::shared_memory_limit() = (sometimes(2) ? 227 : sometimes(2) ? 60 : strips) << 10;
    emulator::multiprocessors() = sometimes(2) ? 132 : 1;
    // In a large problem some logit is NaN or +inf, and no sequence has a gradient.
    const bool defined = s_.L > 32 || sometimes(2);
    for (int64_t i = 0; i < elements_ && defined; ++i)
      if (!(element(random_.acts(), dtype_, i) < HUGE_VAL)) set_element(random_.acts(), dtype_, i, 0.25);
    for (int64_t i = 0; i < n_ && s_.L < s_.T; ++i)
      if (sometimes(2)) random_.lengths.data[i] = int32_t(s_.T);
    for (int64_t i = 0; i < n_; ++i)
      if (sometimes(4)) random_.cotangents.data[i] = F(not_finite());
  }

  void run() {
    path_as_on_the_cpu();
    forward_as_on_the_cpu();
    aim_directions();
    tangents_as_on_the_cpu();
    products_as_on_the_cpu();
    gradients_as_on_the_cpu();
    whatever_was_kept();
  }

 private:
  // A quarter have labels for several strips, and frames enough for them; some of these for strips that sweep together.
  static Shape shape() {
    if (!sometimes(4)) return RandomProblem<F>::random_shape();
    const int64_t L = sometimes(2) ? 128 + below(8) : 33 + below(40);
    return {1, L + 8 + below(20), 1 + below(2), 8 + below(2 * L), L};
  }
  // Labels are drawn without class 0: it takes the place of the class that becomes the blank.
  static Batch with_any_blank(RandomProblem<F>& random) {
    Batch batch = random.batch();
    const int32_t blank = int32_t(below(batch.shape.V));
    for (int64_t i = 0; i < random.labels.size; ++i)
      if (int32_t& label = random.labels.data[i]; label == blank && !sometimes(60)) label = batch.blank;
    batch.blank = blank;
    return batch;
  }

  Residuals residuals() { return {data(rows_), data(columns_)}; }
  cuda::Problem on_cuda() const { return {batch_, nullptr}; }
  Problem on_cpu() const { return {batch_, 1}; }
  double at(const Array<char>& array, int64_t i) const { return element(array.data.get(), dtype_, i); }
  F cotangent_of(int64_t i) const { return random_.cotangents.data[s_.sequence_of_row(i / s_.V)]; }
  void expect(bool right, int64_t i, const char* what, double a, double b) const {
    if (!right) random_.fail(i, what, a, b);
  }
  // Whether element i of gradients and products is exactly 0, whatever it is multiplied with: of a sequence without a
  // gradient, of a frame behind the length, of a class without probability.
  bool zero(int64_t i) const {
    const int64_t r = i / s_.V, sequence = s_.sequence_of_row(r);
    if (s_.frame_of_row(r) >= random_.lengths.data[sequence]) return true;
    const F kept = kept_of(r, sequence, i % s_.V);
    if (!std::isfinite(cost_.data[sequence])) return kept == 0;
    return (impossible_.data[i] || !is_read(sequence, i % s_.V)) && kept == kept;
  }
  // What says whether a class of a row has a gradient: the gradient itself, the softmax, or its occupancies.
  F kept_of(int64_t r, int64_t sequence, int64_t v) const {
    if (s_.dense()) return columns_.data[r * s_.V + v];
    if (batch_.softmax) return rows_.data[2 * r + 1];
    F sum = 0;
    for (int64_t c = 0; c <= s_.L; ++c)
      if (class_of(sequence, c) == v) sum += columns_.data[r * s_.columns() + c];
    return sum;
  }
  int32_t class_of(int64_t sequence, int64_t c) const {
    return c == 0 ? batch_.blank : random_.labels.data[sequence * s_.L + c - 1];
  }
  bool is_read(int64_t sequence, int64_t v) const {
    bool read = batch_.softmax;
    for (int64_t c = 0; c <= s_.L; ++c) read |= class_of(sequence, c) == v;
    return read;
  }

  struct Path {
    Array<int32_t> path, label_index;
    Array<F> score;
    explicit Path(const Shape& s) : path(s.rows()), label_index(s.rows()), score(s.sequences()) {}
    Alignment out() { return {path.data.get(), label_index.data.get(), score.data.get()}; }
  };
  Path path_on_cuda(const Batch& batch, bool star) {
    Path found(s_);
    auto scratch = scratch_for<F>(cuda::Operation::kAlign, batch);
    cuda::align({batch, nullptr}, star, found.out(), data(scratch));
    return found;
  }

  void path_as_on_the_cpu() {
    const bool star = sometimes(2);
    Array<int32_t> labels(random_.labels.size);
    for (int64_t i = 0; i < labels.size; ++i)
      labels.data[i] = star && sometimes(5) ? int32_t(s_.V) : random_.labels.data[i];
    Batch batch = batch_;
    batch.labels = labels.data.get();
    const Path ours = path_on_cuda(batch, star);
    Path theirs(s_);
    align({batch, 1}, star, theirs.out(), executor_);
    for (int64_t i = 0; i < s_.rows(); ++i) {
      const int32_t a = ours.path.data[i], b = theirs.path.data[i];
      const int32_t c = ours.label_index.data[i], d = theirs.label_index.data[i];
      expect(a == b, i, "class of a path, and the CPU kernel's", a, b);
      expect(c == d, i, "label of a path, and the CPU kernel's", c, d);
    }
    const Dtype of_scores = sizeof(F) == 8 ? Dtype::kF64 : Dtype::kF32;
    for (int64_t i = 0; i < n_; ++i) {
      const double a = ours.score.data[i], b = theirs.score.data[i];
      expect(close(a, b, std::fabs(b), of_scores), i, "score of a path, and the CPU kernel's", a, b);
    }
  }

  void forward_as_on_the_cpu() {
    for (int64_t i = 0; i < elements_; ++i) impossible_.data[i] = element(random_.acts(), dtype_, i) == -HUGE_VAL;
    Array<F> alone(n_), cpu_cost(n_), cpu_rows(rows_.size), cpu_columns(columns_.size);
    auto loss_scratch = scratch_for<F>(cuda::Operation::kLoss, batch_),
         forward_scratch = scratch_for<F>(cuda::Operation::kForward, batch_);
    cuda::loss(on_cuda(), data(alone), data(loss_scratch));
    cuda::forward(on_cuda(), data(cost_), residuals(), data(forward_scratch));
    forward(on_cpu(), data(cpu_cost), {data(cpu_rows), data(cpu_columns)}, executor_);
    const Dtype of_sums = sizeof(F) == 8 ? Dtype::kF64 : Dtype::kF32;
    const auto alike = [&](const Array<F>& ours, const Array<F>& theirs, bool relative, const char* what) {
      for (int64_t i = 0; i < ours.size; ++i) {
        const double a = ours.data[i], b = theirs.data[i];
        expect(close(a, b, relative ? std::fabs(b) : 0, of_sums), i, what, a, b);
      }
    };
    for (int64_t i = 0; i < n_; ++i) {
      const F a = alone.data[i], b = cost_.data[i];
      expect(a == b || (a != a && b != b), i, "cost alone, and with residuals", a, b);
    }
    alike(cost_, cpu_cost, true, "cost, and the CPU kernel's");
    alike(columns_, cpu_columns, false, "element of columns, and the CPU kernel's");
    alike(rows_, cpu_rows, true, "element of rows, and the CPU kernel's");
  }

  // Directions of inf and NaN, but only where there is no gradient: they must have no effect.
  void aim_directions() {
    for (int64_t i = 0; i < elements_; ++i) {
      const double u = element(random_.directions(), dtype_, i);
      const double aimed = zero(i) && sometimes(2) ? not_finite() : u - u == 0 ? u : 0.5;
      set_element(random_.directions(), dtype_, i, aimed);
      if (aimed - aimed == 0) largest_ = std::max(largest_, std::fabs(aimed));
    }
  }

  void tangents_as_on_the_cpu() {
    Array<F> tangents(n_), cpu_tangents(n_);
    auto scratch = scratch_for<F>(cuda::Operation::kTangent, batch_);
    cuda::tangent(on_cuda(), residuals(), random_.directions(), data(tangents), data(scratch));
    tangent(on_cpu(), residuals(), random_.directions(), data(cpu_tangents), executor_);
    for (int64_t i = 0; i < n_; ++i) {
      const double a = tangents.data[i], b = cpu_tangents.data[i];
      expect(close(a, b, double(s_.T) * largest_, sizeof(F) == 8 ? Dtype::kF64 : Dtype::kF32), i,
             "tangent, and the CPU kernel's", a, b);
    }
  }

  void products_as_on_the_cpu() {
    Array<char> products(bytes_), cpu_products(bytes_);
    const F* const cotangents = random_.cotangents.data.get();
    auto scratch = scratch_for<F>(cuda::Operation::kHvp, batch_);
    cuda::hvp(on_cuda(), residuals(), cotangents, random_.directions(), data(products), data(scratch));
    hvp(on_cpu(), residuals(), cotangents, random_.directions(), false, data(cpu_products), executor_);
    alike(products, cpu_products, 5 * largest_, "element of a product, and the CPU kernel's");
  }

  void gradients_as_on_the_cpu() {
    Array<char> unit(bytes_), gradient(bytes_), cpu_gradient(bytes_);
    Array<F> ones(n_);
    std::fill_n(ones.data.get(), n_, F(1));
    const F* const cotangents = random_.cotangents.data.get();
    cuda::cotangent(on_cuda(), residuals(), data(ones), data(unit));
    cuda::cotangent(on_cuda(), residuals(), cotangents, data(gradient));
    cotangent(on_cpu(), residuals(), cotangents, data(cpu_gradient), executor_);
    alike(gradient, cpu_gradient, 1, "element of the gradient, and the CPU kernel's");
    for (int64_t i = 0; i < elements_ && !random_.half(); ++i) {  // halves are rounded between the two
      const double g = at(unit, i), c = cotangent_of(i), expected = c == 0 || (g == 0) ? 0 : F(g * c);
      expect(close(at(gradient, i), expected, 0, dtype_), i, "element of the gradient, and the product of its parts",
             at(gradient, i), expected);
    }
    cuda::cotangent(on_cuda(), residuals(), cotangents, random_.acts());
    for (int64_t i = 0; i < elements_; ++i) {
      const double a = element(random_.acts(), dtype_, i), b = at(gradient, i);
      expect(a == b || (a != a && b != b), i, "element of the gradient in the place of acts, and beside", a, b);
    }
  }

  // Elements times cotangents. Where a cotangent is inf or NaN, all that is defined on both sides is what is 0.
  void alike(const Array<char>& ours, const Array<char>& theirs, double scale, const char* what) const {
    for (int64_t i = 0; i < elements_; ++i) {
      const double a = at(ours, i), b = at(theirs, i), c = std::fabs(double(cotangent_of(i)));
      if (zero(i))
        expect(a == 0 && b == 0, i, what, a, b);
      else if (c - c == 0 && !(random_.half() && scale * c > 1e4))  // halves overflow
        expect(close(a, b, scale * c, dtype_), i, what, a, b);
    }
  }

  // No result is right or wrong: nothing outside is touched, and nothing is undefined.
  void whatever_was_kept() {
    for (int64_t i = 0; i < rows_.size; ++i) rows_.data[i] = F(anything());
    for (int64_t i = 0; i < columns_.size; ++i) columns_.data[i] = F(anything());
    for (int64_t i = 0; i < elements_; ++i) set_element(random_.acts(), dtype_, i, anything());
    for (int64_t i = 0; i < elements_; ++i) set_element(random_.directions(), dtype_, i, anything());
    for (int64_t i = 0; i < n_; ++i) random_.cotangents.data[i] = F(anything());
    if (!sometimes(3))  // else labels are good, and the product comes to its lattice
      for (int64_t i = 0; i < random_.labels.size; ++i) random_.labels.data[i] = any_int(s_.V);
    for (int64_t i = 0; i < n_; ++i) random_.lengths.data[i] = sometimes(2) ? int32_t(s_.T) : any_int(s_.T);

    const Path found = path_on_cuda(batch_, sometimes(2));
    for (int64_t i = 0; i < s_.rows(); ++i) {
      const int32_t v = found.path.data[i], k = found.label_index.data[i];
      expect(v >= -1 && v < s_.V && k >= -1 && k < s_.L, i, "class and label of a path", v, k);
    }
    Array<F> tangents(n_);
    Array<char> out(bytes_);
    auto tangent_scratch = scratch_for<F>(cuda::Operation::kTangent, batch_),
         product_scratch = scratch_for<F>(cuda::Operation::kHvp, batch_);
    const F* const cotangents = random_.cotangents.data.get();
    cuda::tangent(on_cuda(), residuals(), random_.directions(), data(tangents), data(tangent_scratch));
    cuda::hvp(on_cuda(), residuals(), cotangents, random_.directions(), data(out), data(product_scratch));
    cuda::cotangent(on_cuda(), residuals(), cotangents, data(out));
    if (s_.dense() && !random_.half())
      cuda::cotangent(on_cuda(), residuals(), cotangents, data(columns_));
    else
      cuda::cotangent(on_cuda(), residuals(), cotangents, random_.acts());
  }

  Dtype dtype_;
  RandomProblem<F> random_;
  Batch batch_;
  Shape s_;
  int64_t n_, elements_, bytes_;
  Array<F> rows_, columns_, cost_;
  Array<bool> impossible_;  // logits of -inf
  double largest_ = 0;      // direction
  Alone executor_;
};

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  for (int seed = 0; seed < rounds; ++seed) {
    generator.seed(seed);
    emulator::seed(seed);
    Trial<float>(Dtype::kF32).run();
    Trial<double>(Dtype::kF64).run();
    Trial<float>(Dtype::kBF16).run();
    Trial<float>(Dtype::kF16).run();
  }
  std::printf("%d rounds\n", rounds);
}
