// Runs the CUDA kernels of rnn on random layers: steps in every dtype against steps in fp64, persistent
// kernels (by clusters, by a cooperative grid) against steps. What steps in fp64 should give is
// tests/ops/test_rnn_cuda.py's. Arguments:
// --schedule N, --large 1, --dtype fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/rnn.cpp"

#include <cmath>
#include <memory>
#include <vector>

#include "checked_memory.h"

namespace {

struct Layer {
  Cell cell;
  int T, B, H, R, directions;
  bool layer_norm;
  std::vector<int64_t> lengths, counts;  // counts: packed
};
const Layer kSmall[] = {
    {Cell::kLstm, 4, 3, 24, 24, 2, false, {4, 0, 2}, {}}, {Cell::kGru, 3, 9, 40, 40, 1, false, {}, {}},
    {Cell::kGru, 3, 4, 11, 11, 2, false, {}, {4, 2, 2}},  {Cell::kRnnTanh, 3, 2, 20, 20, 1, false, {}, {}},
    {Cell::kLstm, 2, 3, 16, 8, 1, false, {2, 1, 2}, {}},  {Cell::kLstm, 2, 3, 18, 18, 1, true, {}, {3, 2}},
    {Cell::kGru, 2, 2, 16, 16, 1, true, {}, {}},
};
// Weights beyond the registers, clusters of several sizes, two tiles of rows.
const Layer kLarge[] = {
    {Cell::kLstm, 3, 10, 136, 136, 2, false, {3, 1, 2, 3, 3, 0, 3, 2, 3, 1}, {}},
    {Cell::kGru, 3, 9, 200, 200, 1, false, {}, {9, 8, 1}},
    {Cell::kRnnRelu, 2, 3, 300, 300, 1, false, {}, {}},
};

int failures = 0;

bool take_error(const char* what) {
  const char* error = emulation_take_error();
  if (!error) return false;
  printf("FAIL emulator %s %s\n", what, error);
  ++failures;
  return true;
}

template <class T>
constexpr DType kDType = std::is_same_v<T, double>   ? DType::kFloat64
                         : std::is_same_v<T, float>  ? DType::kFloat32
                         : std::is_same_v<T, __half> ? DType::kFloat16
                                                     : DType::kBFloat16;

// The kernels of a kind.
struct Launcher {
  const char* name;
  int64_t (*forward_workspace)(const RnnForward*);
  int (*forward)(const RnnForward*, void*);
  int64_t (*backward_workspace)(const RnnBackward*);
  int (*backward)(const RnnBackward*, void*);
  const char* (*forward_refusal)(const RnnForward*);
};
const Launcher kSteps = {"steps",
                         emulated_rnn_steps_forward_workspace,
                         emulated_rnn_steps_forward,
                         emulated_rnn_steps_backward_workspace,
                         emulated_rnn_steps_backward,
                         nullptr};
const Launcher kClusters = {"clusters",
                            emulated_rnn_persistent_forward_workspace,
                            emulated_rnn_persistent_forward,
                            emulated_rnn_persistent_backward_workspace,
                            emulated_rnn_persistent_backward,
                            emulated_rnn_persistent_forward_refusal};
const Launcher kGrid = {"grid",
                        emulated_rnn_grid_forward_workspace,
                        emulated_rnn_grid_forward,
                        emulated_rnn_grid_backward_workspace,
                        emulated_rnn_grid_backward,
                        emulated_rnn_grid_forward_refusal};

// One call in dtype T: inputs from a seed, the same in every dtype but for rounding to bf16.
template <class T>
class Call {
 public:
  using A = fd::Compute<T>;
  explicit Call(const Layer& l) : l_(l), gates_(num_gates(l.cell) * l.H) {
    generator.seed(1);
    rows_ = l.counts.empty() ? int64_t{l.T} * l.B : 0;
    for (int64_t count : l.counts) offsets_.push_back(rows_), rows_ += count;
    lengths_ = std::make_unique<Array<int64_t>>(l.lengths.size());
    std::copy(l.lengths.begin(), l.lengths.end(), lengths_->data);
    RnnSequence& q = q_;
    q.s = {l.cell, l.directions, false, true, l.R != l.H, l.layer_norm, false, true};
    q.rows = {l.T,
              l.B,
              rows_,
              l.B,
              1,
              l.counts.empty() ? nullptr : l.counts.data(),
              l.counts.empty() ? nullptr : offsets_.data()};
    q.H = l.H, q.R = l.R, q.dtype = kDType<T>;
    for (int d = 0; d < l.directions; ++d)
      q.weights[d] = {nullptr,
                      nullptr,
                      input(gates_ * l.R, l.R),
                      input(gates_, 1),
                      l.R != l.H ? input(l.R * l.H, l.H) : nullptr,
                      nullptr,
                      norm(gates_),
                      norm(l.H),
                      norm(l.H)};
    q.h_0 = input(states(l.R), 1), q.c_0 = accumulated(states(l.H));
    q.lengths = l.lengths.empty() ? nullptr : lengths_->data;
    x_ = input(rows_ * l.directions * gates_, 1);
    grad_output_ = input(rows_ * l.directions * l.R, 1);
  }

  // Every output, as fp64, one after another; empty if the emulation complained.
  std::vector<double> run(const Launcher& launcher) {
    const bool lstm = l_.cell == Cell::kLstm, norm = l_.layer_norm;
    const int own = l_.cell == Cell::kLstm || l_.cell == Cell::kGru ? 4 : 1, G = num_gates(l_.cell);
    const int64_t columns = rows_ * l_.directions;
    Array<T> output(columns * l_.R), h_n(states(l_.R)), saved(columns * (own + norm * G) * l_.H);
    Array<A> c_n(states(l_.H)), cells(columns * l_.H), rstd(columns);
    RnnForward f{q_,
                 x_,
                 l_.directions * gates_,
                 output.data,
                 h_n.data,
                 lstm ? c_n.data : nullptr,
                 saved.data,
                 lstm ? cells.data : nullptr,
                 norm ? rstd.data : nullptr};
    Array<char> forward_memory(launcher.forward_workspace(&f));
    launcher.forward(&f, forward_memory.data);
    if (take_error("forward")) return {};

    const int width = norm ? G : l_.cell == Cell::kGru ? 1 : 0;
    Array<T> grad_gates(columns * gates_), grad_hh(columns * width * l_.H), grad_h_0(states(l_.R)),
        grad_projected(columns * l_.R), grad_norm_c(columns * l_.H);
    Array<A> grad_c_0(states(l_.H));
    RnnBackward b{q_,
                  grad_output_,
                  nullptr,
                  nullptr,
                  output.data,
                  saved.data,
                  lstm ? cells.data : nullptr,
                  norm ? rstd.data : nullptr,
                  grad_gates.data,
                  width ? grad_hh.data : nullptr,
                  grad_h_0.data,
                  lstm ? grad_c_0.data : nullptr,
                  l_.R != l_.H ? grad_projected.data : nullptr,
                  lstm && norm ? grad_norm_c.data : nullptr};
    Array<char> backward_memory(launcher.backward_workspace(&b));
    launcher.backward(&b, backward_memory.data);
    if (take_error("backward")) return {};

    std::vector<double> all;
    auto add = [&](auto& array, bool exists = true) {
      for (size_t i = 0; exists && i < array.size; ++i) all.push_back(double(A(array[i])));
    };
    add(output), add(h_n), add(saved), add(c_n, lstm), add(cells, lstm), add(rstd, norm);
    add(grad_gates), add(grad_hh), add(grad_h_0), add(grad_c_0, lstm), add(grad_projected, l_.R != l_.H);
    add(grad_norm_c, lstm && norm);
    return all;
  }

  bool served(const Launcher& launcher) {
    RnnForward f{};
    f.q = q_;
    return !launcher.forward_refusal(&f);
  }

 private:
  int64_t states(int64_t width) const { return int64_t{l_.directions} * l_.B * width; }
  template <class E>
  E* keep(std::vector<std::unique_ptr<Array<E>>>& kept, int64_t count, double scale) {
    kept.push_back(std::make_unique<Array<E>>(count));
    std::normal_distribution<float> normal(0, static_cast<float>(scale));
    for (int64_t i = 0; i < count; ++i) (*kept.back())[i] = E(float(__nv_bfloat16(normal(generator))));
    return kept.back()->data;
  }
  T* input(int64_t count, int64_t fan_in) { return keep(inputs_, count, 1 / std::sqrt(double(fan_in))); }
  A* accumulated(int64_t count) { return keep(states_, count, 1); }
  T* norm(int64_t count) { return l_.layer_norm ? input(count, 1) : nullptr; }

  const Layer& l_;
  const int64_t gates_;
  int64_t rows_;
  std::vector<int64_t> offsets_;
  std::unique_ptr<Array<int64_t>> lengths_;
  std::vector<std::unique_ptr<Array<T>>> inputs_;
  std::vector<std::unique_ptr<Array<A>>> states_;
  RnnSequence q_{};
  T *x_, *grad_output_;
};

void compare(const std::vector<double>& got, const std::vector<double>& expected, double tolerance,
             const char* what, const Layer& l) {
  double most = 1;
  for (double value : expected) most = std::max(most, std::fabs(value));
  for (size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    if (std::fabs(got[i] - expected[i]) <= tolerance * most) continue;
    printf("FAIL %s %s cell %d H %d [%zu] = %g, expected %g\n", got[i] != got[i] ? "poison" : "wrong", what,
           int(l.cell), l.H, i, got[i], expected[i]);
    ++failures;
    return;
  }
}

template <class T>
void check(const Layer& l, const std::vector<double>& truth, double tolerance) {
  Call<T> call(l);
  const std::vector<double> steps = call.run(kSteps);
  compare(steps, truth, tolerance, kSteps.name, l);
  for (const Launcher* launcher : {&kClusters, &kGrid})
    if (call.served(*launcher)) compare(call.run(*launcher), steps, tolerance, launcher->name, l);
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  bool large = false;
  const char* dtype = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--schedule")) emu::options.schedule = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--large")) large = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--dtype")) dtype = argv[i + 1];
  }
  auto wanted = [&](const char* name) { return !dtype || !strcmp(dtype, name); };
  auto run = [&](const Layer& l) {
    const std::vector<double> truth = Call<double>(l).run(kSteps);
    if (wanted("fp32")) check<float>(l, truth, 1e-5);
    if (wanted("fp16")) check<__half>(l, truth, 1e-2);
    if (wanted("bf16")) check<__nv_bfloat16>(l, truth, 6e-2);
  };
  for (const Layer& l : kSmall) run(l);
  if (large)
    for (const Layer& l : kLarge) run(l);
  if (!failures) puts("ok");
  return failures != 0;
}
