// rnn_forward and rnn_backward on random structures: every tensor ends at an unreadable page, results are the
// same bits for 1, 2, 3 and 8 threads, for pools that run bodies one after another or let some come late, and
// nothing that must be written keeps its first bytes. Values are checked where the definition is, in Python.
// FASTDL_CPU_ISA picks the instruction set. Exits 1 on failure.
// links ops/rnn/rnn_plan.cpp
// links ops/rnn/rnn_forward_cpu.cpp
// links ops/rnn/rnn_backward_cpu.cpp
#include <chrono>

#include "kernel_test.h"
#include "ops/rnn/rnn_cpu.h"

using namespace fastdl;
using namespace fastdl::test;

namespace {

int failures = 0;

void fail(const char* what, const RnnSequence& q) {
  if (++failures > 20) return;
  std::printf(
      "%s: cell %d D %ld batch_first %d bias %d projection %d layer norm %d peephole %d projected %d T %ld B "
      "%ld "
      "I %ld H %ld R %ld dtype %d\n",
      what, static_cast<int>(q.s.cell), q.s.directions, q.s.batch_first, q.s.has_bias, q.s.has_projection,
      q.s.layer_norm, q.s.peephole, q.s.projected, q.rows.T, q.rows.B, q.I, q.H, q.R,
      static_cast<int>(q.dtype));
}

// Pools as bad as a pool may be: bodies one after another, backwards; and threads that come late.
const cpu::ThreadPool kSerial = {[](int64_t workers, void (*body)(void*, int64_t), void* context) {
                                   for (int64_t i = workers; i-- > 0;) body(context, i);
                                 },
                                 []() { return num_threads; }};
const cpu::ThreadPool kLate = {[](int64_t workers, void (*body)(void*, int64_t), void* context) {
                                 std::vector<std::thread> threads;
                                 for (int64_t i = 1; i < workers; ++i)
                                   threads.emplace_back([=] {
                                     std::this_thread::sleep_for(std::chrono::microseconds(50 * i));
                                     body(context, i);
                                   });
                                 body(context, 0);
                                 for (std::thread& t : threads) t.join();
                               },
                               []() { return num_threads; }};

struct Options {
  RnnStructure s;
  int64_t T, B, I, H, R;
  bool packed, lengths, reset, mask, keep, h_0, c_0, save, grad_states;
  double zoneout;
};

template <class T>
class Case {
 public:
  Case(const Options& o, Random& random) : o_(o), random_(random) {
    RnnSequence& q = q_;
    q.s = o.s, q.I = o.I, q.H = o.H, q.R = o.R, q.dtype = kDType<T>;
    const int64_t D = o.s.directions, G = num_gates(o.s.cell);
    const bool lstm = o.s.cell == Cell::kLstm;
    set_rows();
    for (int64_t d = 0; d < D; ++d) {
      RnnWeights& w = q.weights[d];
      w.weight_ih = o.s.projected ? nullptr : values(G * o.H * o.I);
      w.bias_ih = !o.s.projected && o.s.has_bias ? values(G * o.H) : nullptr;
      w.weight_hh = values(G * o.H * o.R);
      w.bias_hh = o.s.has_bias ? values(G * o.H) : nullptr;
      w.weight_hr = o.s.has_projection ? values(o.R * o.H) : nullptr;
      w.weight_peephole = o.s.peephole ? values(3 * o.H) : nullptr;
      w.weight_norm_hh = o.s.layer_norm ? values(G * o.H) : nullptr;
      w.weight_norm_c = o.s.layer_norm && lstm ? values(o.H) : nullptr;
      w.bias_norm_c = o.s.layer_norm && lstm ? values(o.H) : nullptr;
    }
    q.h_0 = o.h_0 ? values(D * o.B * o.R) : nullptr;
    q.c_0 = o.c_0 && lstm ? floats(D * o.B * o.H) : nullptr;
    q.reset = o.reset ? flags(q.rows.count) : nullptr;
    q.recurrent_mask = o.mask ? values(D * o.B * o.R) : nullptr;
    q.zoneout_h = o.keep ? flags(q.rows.count * D * o.R) : nullptr;
    q.zoneout_c = o.keep && lstm ? flags(q.rows.count * D * o.H) : nullptr;
    q.zoneout[0] = o.zoneout, q.zoneout[1] = o.zoneout / 2;
    x_width_ = o.s.projected ? D * G * o.H : o.I;
    x_ = values(q.rows.count * x_width_);
    saved_ = (lstm || o.s.cell == Cell::kGru ? 4 : 1) + (o.s.layer_norm ? G : 0);
    hh_ = o.s.layer_norm ? G : o.s.cell == Cell::kGru ? 1 : 0;
    grad_output_ = values(q.rows.count * D * o.R);
    grad_h_n_ = o.grad_states ? values(D * o.B * o.R) : nullptr;
    grad_c_n_ = o.grad_states && lstm ? floats(D * o.B * o.H) : nullptr;
  }

  void run() {
    Outputs first(*this);
    call(first, kThreadPool, 1);
    check_written(first);
    const cpu::ThreadPool* pools[] = {&kThreadPool, &kSerial, &kLate};
    for (int64_t threads : {2, 3, 8})
      for (const cpu::ThreadPool* pool : pools) {
        Outputs again(*this);
        call(again, *pool, threads);
        if (!first.same(again))
          fail(pool == &kThreadPool ? "changes with threads" : "changes with the pool", q_);
      }
  }

 private:
  struct Outputs {
    explicit Outputs(const Case& c)
        : output(c.q_.rows.count * c.D() * c.o_.R),
          h_n(c.D() * c.o_.B * c.o_.R),
          gates(c.o_.save ? c.q_.rows.count * c.D() * c.saved_ * c.o_.H : 0),
          grad_gates(c.trains() ? c.q_.rows.count * c.D() * num_gates(c.o_.s.cell) * c.o_.H : 0),
          grad_gates_hh(c.trains() ? c.q_.rows.count * c.D() * c.hh_ * c.o_.H : 0),
          grad_h_0(c.trains() ? c.D() * c.o_.B * c.o_.R : 0),
          grad_projected(c.trains() && c.o_.s.has_projection ? c.q_.rows.count * c.D() * c.o_.R : 0),
          grad_norm_c(c.trains() && c.lstm() && c.o_.s.layer_norm ? c.q_.rows.count * c.D() * c.o_.H : 0),
          c_n(c.lstm() ? c.D() * c.o_.B * c.o_.H : 0),
          cells(c.lstm() && c.o_.save ? c.q_.rows.count * c.D() * c.o_.H : 0),
          rstd(c.o_.s.layer_norm && c.o_.save ? c.q_.rows.count * c.D() : 0),
          grad_c_0(c.trains() && c.lstm() ? c.D() * c.o_.B * c.o_.H : 0) {}
    bool same(const Outputs& b) const {
      return output.same_bytes(b.output) && h_n.same_bytes(b.h_n) && gates.same_bytes(b.gates) &&
             grad_gates.same_bytes(b.grad_gates) && grad_gates_hh.same_bytes(b.grad_gates_hh) &&
             grad_h_0.same_bytes(b.grad_h_0) && grad_projected.same_bytes(b.grad_projected) &&
             grad_norm_c.same_bytes(b.grad_norm_c) && c_n.same_bytes(b.c_n) && cells.same_bytes(b.cells) &&
             rstd.same_bytes(b.rstd) && grad_c_0.same_bytes(b.grad_c_0);
    }
    Guarded<T> output, h_n, gates, grad_gates, grad_gates_hh, grad_h_0, grad_projected, grad_norm_c;
    Guarded<float> c_n, cells, rstd, grad_c_0;
  };

  int64_t D() const { return o_.s.directions; }
  bool lstm() const { return o_.s.cell == Cell::kLstm; }
  bool trains() const { return o_.save && o_.s.projected; }

  void set_rows() {
    RnnRows& r = q_.rows;
    lengths_.reserve(3);  // references stay
    r.T = o_.T, r.B = o_.B, r.count = o_.T * o_.B;
    r.row_t = o_.s.batch_first ? 1 : o_.B, r.row_b = o_.s.batch_first ? o_.T : 1;
    if (o_.lengths) {
      auto& lengths = lengths_.emplace_back(o_.B);
      for (int64_t b = 0; b < o_.B; ++b) lengths[b] = random_.below(o_.T + 3) - 1;
      q_.lengths = lengths.data();
    }
    if (!o_.packed) return;
    auto &sizes = lengths_.emplace_back(o_.T), &offset = lengths_.emplace_back(o_.T);
    int64_t rows = 0, size = o_.B;
    for (int64_t t = 0; t < o_.T; ++t) {
      sizes[t] = size, offset[t] = rows, rows += size;
      size = random_.below(3) ? size : random_.below(size + 1);
    }
    r.count = rows, r.row_t = 0, r.row_b = 1, r.batch_sizes = sizes.data(), r.row_offset = offset.data();
  }

  T* values(int64_t count) {
    Guarded<T>& made = values_.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) assign(&made[i], random_.uniform() / 2);
    return made.data();
  }
  float* floats(int64_t count) {
    Guarded<float>& made = floats_.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) assign(&made[i], random_.uniform());
    return made.data();
  }
  uint8_t* flags(int64_t count) {
    Guarded<uint8_t>& made = flags_.emplace_back(count);
    for (int64_t i = 0; i < count; ++i) made[i] = random_.below(4) == 0;
    return made.data();
  }

  void call(Outputs& o, const cpu::ThreadPool& pool, int64_t threads) {
    num_threads = threads;
    RnnForward f = {};
    f.q = q_, f.x = x_, f.x_row_stride = x_width_;
    f.output = o.output.data(), f.h_n = o.h_n.data(), f.c_n = lstm() ? o.c_n.data() : nullptr;
    f.gates = o_.save ? o.gates.data() : nullptr;
    f.cells = o_.save && lstm() ? o.cells.data() : nullptr;
    f.rstd = o_.save && o_.s.layer_norm ? o.rstd.data() : nullptr;
    cpu::rnn_forward(f, pool);
    if (!trains()) return;
    RnnBackward b = {};
    b.q = q_, b.grad_output = grad_output_, b.grad_h_n = grad_h_n_, b.grad_c_n = grad_c_n_;
    b.output = f.output, b.gates = f.gates, b.cells = f.cells, b.rstd = f.rstd;
    b.grad_gates = o.grad_gates.data(), b.grad_gates_hh = hh_ ? o.grad_gates_hh.data() : nullptr;
    b.grad_h_0 = o.grad_h_0.data(), b.grad_c_0 = lstm() ? o.grad_c_0.data() : nullptr;
    b.grad_projected = o_.s.has_projection ? o.grad_projected.data() : nullptr;
    b.grad_norm_c = o_.s.layer_norm && lstm() ? o.grad_norm_c.data() : nullptr;
    cpu::rnn_backward(b, pool);
  }

  // Guarded memory starts as 0x5a5a..., far from any result.
  template <class E>
  void check_written(const Guarded<E>& g, const char* name) {
    for (int64_t i = 0; i < g.size(); ++i)
      if (!(std::fabs(value(g[i])) < 100)) return fail(name, q_);
  }
  void check_written(const Outputs& o) {
    check_written(o.output, "output"), check_written(o.h_n, "h_n"), check_written(o.gates, "gates");
    check_written(o.c_n, "c_n"), check_written(o.cells, "cells"), check_written(o.grad_gates, "grad_gates");
    check_written(o.grad_gates_hh, "grad_gates_hh"), check_written(o.grad_projected, "grad_projected");
    check_written(o.grad_norm_c, "grad_norm_c"), check_written(o.grad_c_0, "grad_c_0");
    check_written(o.grad_h_0, "grad_h_0");
  }

  const Options o_;
  Random& random_;
  RnnSequence q_ = {};
  std::vector<Guarded<T>> values_;
  std::vector<Guarded<float>> floats_;
  std::vector<Guarded<uint8_t>> flags_;
  std::vector<Guarded<int64_t>> lengths_;
  int64_t x_width_, saved_, hh_;
  T *x_, *grad_output_, *grad_h_n_;
  float* grad_c_n_;
};

Options draw(Random& random) {
  Options o = {};
  const auto flag = [&] { return random.below(3) == 0; };
  o.s.cell = static_cast<Cell>(random.below(4));
  const bool lstm = o.s.cell == Cell::kLstm;
  o.s.directions = 1 + random.below(2), o.s.batch_first = flag(), o.s.has_bias = !flag();
  o.s.has_projection = lstm && flag(), o.s.layer_norm = flag(), o.s.peephole = lstm && flag();
  o.s.projected = o.s.layer_norm || !flag();
  // large enough, now and then, for panels and for workers that share the units
  const bool large = flag();
  o.T = 1 + random.below(large ? 9 : 5), o.B = random.below(large ? 40 : 6), o.I = 1 + random.below(20);
  o.H = 1 + random.below(large ? 150 : 40), o.R = o.s.has_projection ? 1 + random.below(o.H) : o.H;
  o.packed = flag(), o.lengths = flag(), o.reset = flag(), o.mask = flag(), o.keep = flag();
  o.h_0 = o.packed || !flag(), o.c_0 = !flag(), o.save = !flag(), o.grad_states = !flag();
  o.zoneout = flag() ? 0.2 : 0;
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoi(argv[1]) : 200;
  Random random = {1};
  for (int64_t i = 0; i < cases; ++i) {
    const Options o = draw(random);
    Case<float>(o, random).run();
    Case<BFloat16>(o, random).run();
    if (i % 4 == 0) Case<Float16>(o, random).run();
  }
  std::printf("rnn: %ld structures, %d failures\n", cases, failures);
  return failures != 0;
}
