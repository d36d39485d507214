// Runs the CUDA kernels of conv_relu_maxpool on small integers, where every dtype is exact, against plain
// loops. Arguments: --schedule N, --large 1, --dtype fp64|fp32|fp16|bf16. Exit status 1 if a case fails.
#include "emulation/ops/conv_relu_maxpool.cpp"

#include <cmath>
#include <vector>

#include "checked_memory.h"

namespace {

struct Case {
  int N, C, H, W, C_out, K, stride, padding, dilation;
  int pool, pool_stride, pool_padding;  // pool 0: none
  bool channels_last;
};
// What decides a path: chunks of channels or a gather, 32 or 64 channels a block, windows or positions, odd
// sizes.
const Case kSmall[] = {
    {1, 3, 8, 9, 5, 3, 1, 1, 1, 2, 2, 0, false},  {2, 8, 7, 6, 8, 3, 1, 1, 1, 2, 2, 0, true},
    {1, 16, 6, 7, 40, 3, 1, 1, 1, 0, 0, 0, true}, {1, 5, 9, 9, 33, 3, 2, 1, 1, 0, 0, 0, false},
    {1, 8, 9, 10, 8, 3, 1, 2, 2, 3, 2, 1, true},  {1, 2, 6, 8, 8, 1, 1, 0, 1, 2, 1, 0, false},
};
const Case kLarge[] = {
    {2, 32, 24, 24, 64, 3, 1, 1, 1, 2, 2, 0, true},  {2, 3, 33, 31, 32, 3, 1, 1, 1, 2, 2, 0, false},
    {1, 64, 14, 14, 130, 3, 1, 1, 1, 0, 0, 0, true}, {1, 24, 20, 18, 48, 5, 1, 2, 1, 2, 2, 0, false},
    {3, 8, 21, 20, 16, 7, 2, 3, 1, 3, 2, 1, true},   {1, 40, 16, 16, 24, 3, 1, 2, 2, 2, 2, 0, true},
};

int failures = 0;

int64_t output_size(int64_t size, int k, int stride, int padding, int dilation = 1) {
  return (size + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
}
void set_strides(int64_t (&to)[4], bool channels_last, int64_t C, int64_t H, int64_t W) {
  const int64_t last[4] = {H * W * C, 1, W * C, C}, first[4] = {C * H * W, H * W, W, 1};
  for (int i = 0; i < 4; ++i) to[i] = channels_last ? last[i] : first[i];
}
int64_t at(const int64_t (&s)[4], int64_t n, int64_t c, int64_t h, int64_t w) {
  return n * s[0] + c * s[1] + h * s[2] + w * s[3];
}

bool take_error(const char* what) {
  const char* error = emulation_take_error();
  if (!error) return false;
  printf("FAIL emulator %s %s\n", what, error);
  ++failures;
  return true;
}

template <class T>
bool same(Array<T>& got, const std::vector<double>& expected, const char* what) {
  for (size_t i = 0; i < got.size; ++i) {
    double value = static_cast<float>(got[i]);
    if (value == expected[i]) continue;
    printf("FAIL %s %s [%zu] = %g, expected %g\n", value != value ? "poison" : "wrong", what, i, value,
           expected[i]);
    ++failures;
    return false;
  }
  return true;
}

template <class T>
class Check {
 public:
  Check(const Case& c, DType dtype) : c_(c), dtype_(dtype) {
    CH_ = output_size(c.H, c.K, c.stride, c.padding, c.dilation);
    CW_ = output_size(c.W, c.K, c.stride, c.padding, c.dilation);
    pool_.present = c.pool > 0;
    for (int i = 0; i < 2; ++i) {
      pool_.size[i] = c.pool, pool_.stride[i] = c.pool_stride, pool_.padding[i] = c.pool_padding,
      pool_.dilation[i] = 1;
    }
    pool_.OH = c.pool ? output_size(CH_, c.pool, c.pool_stride, c.pool_padding) : CH_;
    pool_.OW = c.pool ? output_size(CW_, c.pool, c.pool_stride, c.pool_padding) : CW_;
    set_strides(x_strides_, c.channels_last, c.C, c.H, c.W);
    set_strides(conv_strides_, c.channels_last, c.C_out, CH_, CW_);
    set_strides(output_strides_, c.channels_last, c.C_out, pool_.OH, pool_.OW);
  }

  void run() {
    Array<T> x(size_t(c_.N) * c_.C * c_.H * c_.W), weight(size_t(c_.C_out) * c_.C * c_.K * c_.K),
        bias(c_.C_out);
    x.integers(1), weight.integers(1), bias.integers(2);
    convolve(x, weight);
    pool(bias);
    for (int tf32 = 0; tf32 < 1 + (dtype_ == DType::kFloat32); ++tf32) implicit_gemm(x, weight, bias, tf32);
    passes(bias);
  }

 private:
  void convolve(Array<T>& x, Array<T>& weight) {
    conv_.assign(size_t(c_.N) * c_.C_out * CH_ * CW_, 0);
    for (int n = 0; n < c_.N; ++n)
      for (int k = 0; k < c_.C_out; ++k)
        for (int h = 0; h < CH_; ++h)
          for (int w = 0; w < CW_; ++w) {
            double sum = 0;
            for (int c = 0; c < c_.C; ++c)
              for (int kh = 0; kh < c_.K; ++kh)
                for (int kw = 0; kw < c_.K; ++kw) {
                  int y = h * c_.stride - c_.padding + kh * c_.dilation,
                      z = w * c_.stride - c_.padding + kw * c_.dilation;
                  if (y < 0 || y >= c_.H || z < 0 || z >= c_.W) continue;
                  sum += double(float(x[at(x_strides_, n, c, y, z)])) *
                         float(weight[((int64_t(k) * c_.C + c) * c_.K + kh) * c_.K + kw]);
                }
            conv_[at(conv_strides_, n, k, h, w)] = sum;
          }
  }

  template <class Visit>
  void each_pooled(Visit visit) {
    for (int n = 0; n < c_.N; ++n)
      for (int k = 0; k < c_.C_out; ++k)
        for (int oh = 0; oh < pool_.OH; ++oh)
          for (int ow = 0; ow < pool_.OW; ++ow) visit(n, k, oh, ow, at(output_strides_, n, k, oh, ow));
  }
  int64_t position(int n, int k, int oh, int ow, int kh, int kw) {
    int h = oh * c_.pool_stride - c_.pool_padding + kh, w = ow * c_.pool_stride - c_.pool_padding + kw;
    return h < 0 || h >= CH_ || w < 0 || w >= CW_ ? -1 : at(conv_strides_, n, k, h, w);
  }

  void pool(Array<T>& bias) {
    const size_t size = size_t(c_.N) * c_.C_out * pool_.OH * pool_.OW;
    output_.assign(size, 0), record_.assign(size, 0);
    each_pooled([&](int n, int k, int oh, int ow, int64_t to) {
      double best = c_.pool ? -INFINITY : conv_[to];
      int offset = 0;
      for (int i = 0; i < c_.pool * c_.pool; ++i) {
        int64_t from = position(n, k, oh, ow, i / c_.pool, i % c_.pool);
        if (from >= 0 && conv_[from] > best) best = conv_[from], offset = i;
      }
      best += float(bias[k]);
      output_[to] = static_cast<float>(T(static_cast<float>(std::max(best, 0.0))));
      record_[to] = best <= 0 ? 255 : offset;
    });
  }

  void implicit_gemm(Array<T>& x, Array<T>& weight, Array<T>& bias, int tf32) {
    ConvReluMaxpoolForward p{};
    p.conv = {c_.N,
              c_.C,
              c_.H,
              c_.W,
              c_.C_out,
              c_.K,
              c_.K,
              1,
              {c_.stride, c_.stride},
              {c_.padding, c_.padding},
              {c_.dilation, c_.dilation},
              CH_,
              CW_};
    p.pool = pool_, p.dtype = dtype_;
    p.x = x.data, p.weight = weight.data, p.bias = bias.data;
    Array<T> output(output_.size());
    Array<uint8_t> record(output_.size());
    p.output = output.data, p.record = c_.pool ? record.data : nullptr;
    std::copy_n(x_strides_, 4, p.x_strides), std::copy_n(output_strides_, 4, p.output_strides);
    if (emulated_implicit_gemm_refusal(&p)) return;
    Array<char> workspace(emulated_implicit_gemm_workspace(&p));
    emulated_implicit_gemm_forward(&p, tf32, workspace.data);
    if (take_error("implicit_gemm")) return;
    same(output, output_, "implicit_gemm output");
    if (c_.pool) same(record, record_, "implicit_gemm record");
  }

  void passes(Array<T>& bias) {
    Array<T> conv(conv_.size()), output(output_.size());
    Array<uint8_t> record(output_.size());
    for (size_t i = 0; i < conv.size; ++i) conv[i] = T(static_cast<float>(conv_[i]));
    BiasReluMaxpoolForward f{c_.N,      c_.C_out,    CH_,       CW_,
                             pool_,     dtype_,      conv.data, {},
                             bias.data, output.data, {},        c_.pool ? record.data : nullptr};
    std::copy_n(conv_strides_, 4, f.conv_strides), std::copy_n(output_strides_, 4, f.output_strides);
    emulated_bias_relu_maxpool_forward(&f);
    if (take_error("bias_relu_maxpool")) return;
    same(output, output_, "bias_relu_maxpool output");
    if (c_.pool) same(record, record_, "bias_relu_maxpool record");

    Array<T> grad_output(output_.size()), grad_conv(conv_.size()), grad_bias(c_.C_out);
    grad_output.integers(1);
    BiasReluMaxpoolBackward b{c_.N,
                              c_.C_out,
                              CH_,
                              CW_,
                              pool_,
                              dtype_,
                              grad_output.data,
                              {},
                              f.record,
                              c_.pool ? nullptr : output.data,
                              grad_conv.data,
                              {},
                              grad_bias.data};
    std::copy_n(output_strides_, 4, b.grad_output_strides),
        std::copy_n(conv_strides_, 4, b.grad_conv_strides);
    Array<char> workspace(emulated_bias_relu_maxpool_backward_workspace(&b));
    emulated_bias_relu_maxpool_backward(&b, workspace.data);
    if (take_error("bias_relu_maxpool_backward")) return;
    std::vector<double> expected(conv_.size()), bias_expected(c_.C_out);
    each_pooled([&](int n, int k, int oh, int ow, int64_t from) {
      if (c_.pool ? record_[from] == 255 : output_[from] <= 0) return;
      int offset = c_.pool ? record_[from] : 0;
      int64_t to = c_.pool ? position(n, k, oh, ow, offset / c_.pool, offset % c_.pool) : from;
      expected[to] += float(grad_output[from]);
      bias_expected[k] += float(grad_output[from]);
    });
    same(grad_conv, expected, "grad_conv");
    same(grad_bias, bias_expected, "grad_bias");
  }

  Case c_;
  DType dtype_;
  PoolGeometry pool_{};
  int64_t CH_, CW_, x_strides_[4], conv_strides_[4], output_strides_[4];
  std::vector<double> conv_, output_, record_;
};

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
  auto run = [&](const Case& c) {
    if (wanted("fp64")) Check<double>(c, DType::kFloat64).run();
    if (wanted("fp32")) Check<float>(c, DType::kFloat32).run();
    if (wanted("fp16")) Check<__half>(c, DType::kFloat16).run();
    if (wanted("bf16")) Check<__nv_bfloat16>(c, DType::kBFloat16).run();
  };
  for (const Case& c : kSmall) run(c);
  if (large)
    for (const Case& c : kLarge) run(c);
  if (!failures) puts("ok");
  return failures != 0;
}
