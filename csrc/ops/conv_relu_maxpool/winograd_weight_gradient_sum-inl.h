// Adds the slices of winograd_weight_gradient-inl.h and maps them to 3x3 taps; what is not finite is summed
// directly. A task is a vector of output channels. Saves nothing.

// grad_weight of one input channel and the output channels k .. k + kLanes - 1
FASTDL_INLINE void sum_slices(const WeightGradient& w, int64_t c, int64_t k, Vec (&taps)[9]) {
  const int64_t position = block_channels(w.shape.C) * block_channels(w.shape.K);
  Vec lines[3][kSide];
  for (int j = 0; j < kSide; ++j) {
    Vec column[kSide], out[3];
    for (int i = 0; i < kSide; ++i) {
      const int64_t at = (i * kSide + j) * position;
      column[i] = load(sums_at(w, 0, c, k) + at);
      for (int64_t s = 1; s < w.slices; ++s) column[i] += load(sums_at(w, s, c, k) + at);
    }
    weight_gradient_line(column, out);
    for (int i = 0; i < 3; ++i) lines[i][j] = out[i];
  }
  for (int i = 0; i < 3; ++i) {
    Vec out[3];
    weight_gradient_line(lines[i], out);
    for (int j = 0; j < 3; ++j) taps[3 * i + j] = out[j];
  }
}

FASTDL_INLINE bool all_finite(const Vec (&taps)[9]) {
  Vec sum = taps[0];
  for (int i = 1; i < 9; ++i) sum += taps[i];
  return is_finite(sum);
}

// The same sum in plain order for the input channels [c, c + channels) that are `wanted`; taps in the padding
// are skipped. taps [channels][9][kLanes]
static void sum_directly(const WeightGradient& w, int64_t c, int64_t channels, int64_t k, const bool* wanted,
                         float* memory, float* taps) {
  const WeightGradientScratch scratch = weight_gradient_scratch(w);
  float* staged_x = memory;
  float* staged_gradient = memory + scratch.x;
  WinogradShape in = w.shape, out = gradient_shape(w.shape);
  in.C = channels;
  out.C = kLanes < w.shape.K - k ? kLanes : w.shape.K - k;
  ImageSource x = w.x;
  GradientSource gradient = w.gradient;
  x.first_channel = c;
  gradient.first_channel = k;
  zero_floats(taps, channels * 9 * kLanes);
  for (int64_t index = 0; index < w.plan.groups(); ++index) {
    const WinogradGroup group = w.plan.group(w.shape.N, index);
    const StagedSize in_size = staged_size(group, channels, 2);
    const StagedSize out_size = staged_size(group, out.C, 0);
    w.stage_x(&x, in, group, in_size, staged_x);
    w.stage_gradient(&gradient, out, group, out_size, staged_gradient);
    for (int64_t i = 0; i < channels; ++i) {
      if (!wanted[i]) continue;
      for (int tap = 0; tap < 9; ++tap) {
        Vec sum = zero();
        for (int64_t image = 0; image < group.images; ++image)
          for (int64_t y = 0; y < out_size.rows; ++y) {
            const int64_t top = kTile * group.y + y, row = top + tap / 3 - w.shape.padding[0];
            if (top >= w.shape.OH || row < 0 || row >= w.shape.H) continue;
            for (int64_t z = 0; z < out_size.cols; ++z) {
              const int64_t left = kTile * group.x + z, col = left + tap % 3 - w.shape.padding[1];
              if (left >= w.shape.OW || col < 0 || col >= w.shape.W) continue;
              const float* pixel = staged_x + image * in_size.image() + (y + tap / 3) * in_size.row() +
                                   (z + tap % 3) * in_size.channels;
              const float* grad =
                  staged_gradient + image * out_size.image() + y * out_size.row() + z * out_size.channels;
              sum = fma(set1(pixel[i]), load(grad), sum);
            }
          }
        float* total = taps + (i * 9 + tap) * kLanes;
        store(total, load(total) + sum);
      }
    }
  }
}

// grad_weight [kLanes][C][3][3] from output channel k on
template <class T>
void finish_weight_gradient(const WeightGradient& w, int64_t k, T* grad_weight, float* memory,
                            float* direct_taps) {
  const int64_t channels = w.shape.K - k < kLanes ? w.shape.K - k : kLanes;
  for (int64_t block = 0; block < w.shape.C; block += kBlockChannels) {
    const int64_t count = w.shape.C - block < kBlockChannels ? w.shape.C - block : kBlockChannels;
    bool wanted[kBlockChannels] = {}, any_wanted = false;
    Vec taps[9];
    for (int64_t i = 0; i < count; ++i) {
      sum_slices(w, block + i, k, taps);
      wanted[i] = !all_finite(taps);
      any_wanted |= wanted[i];
      store_taps(taps, channels, grad_weight + (k * w.shape.C + block + i) * 9, 9 * w.shape.C);
    }
    if (!any_wanted) continue;
    sum_directly(w, block, count, k, wanted, memory, direct_taps);
    for (int64_t i = 0; i < count; ++i) {
      if (!wanted[i]) continue;
      for (int tap = 0; tap < 9; ++tap) taps[tap] = load(direct_taps + (i * 9 + tap) * kLanes);
      store_taps(taps, channels, grad_weight + (k * w.shape.C + block + i) * 9, 9 * w.shape.C);
    }
  }
}
