// The mathematics of the cells, forward and backward, on one vector of units (fastdl/ops/rnn/reference.py).
// One thread. Each result is named after what the kernel saves or passes on.

struct LstmGates {
  Vec i, f, g, o, c;  // c: before zoneout
};

// pre: gate sums of i, f, g, o; p: peephole weights of i, f, o, or null.
FASTDL_INLINE LstmGates lstm_gates(const Vec* pre, Vec c_old, const Vec* p) {
  LstmGates s;
  s.i = sigmoid(p == nullptr ? pre[0] : fma(p[0], c_old, pre[0]));
  s.f = sigmoid(p == nullptr ? pre[1] : fma(p[1], c_old, pre[1]));
  s.g = tanh(pre[2]);
  s.c = fma(s.f, c_old, s.i * s.g);
  s.o = sigmoid(p == nullptr ? pre[3] : fma(p[2], s.c, pre[3]));
  return s;
}

struct GruGates {
  Vec r, z, n;
};

// x_n, u_n: sums of the input and of the recurrent product, with its bias.
FASTDL_INLINE GruGates gru_gates(Vec r, Vec z, Vec x_n, Vec u_n) { return {r, z, tanh(fma(r, u_n, x_n))}; }
FASTDL_INLINE Vec gru_hidden(const GruGates& s, Vec h_old) { return fma(s.z, h_old, (set1(1) - s.z) * s.n); }

// NaN stays NaN.
FASTDL_INLINE Vec relu(Vec v) { return select(at_most(v, zero()), zero(), v); }

// `old` where keep, else `now`; without a mask the expectation.
FASTDL_INLINE Vec zoned(Vec now, Vec old, const uint8_t* keep, float probability, int n) {
  if (keep != nullptr) return select(load_keep(keep, n), old, now);
  return fma(set1(probability), old, set1(1 - probability) * now);
}
// The gradient's shares of the new and of the old state.
FASTDL_INLINE void unzoned(Vec grad, const uint8_t* keep, float probability, int n, Vec& now, Vec& old) {
  if (keep != nullptr) {
    const VecInt mask = load_keep(keep, n);
    now = select(mask, zero(), grad), old = select(mask, grad, zero());
    return;
  }
  now = set1(1 - probability) * grad, old = set1(probability) * grad;
}

struct LstmGradient {
  Vec gates[4];
  Vec c_old;
};

// grad_c: what reaches c before zoneout, without o's peephole; shown: tanh's value.
FASTDL_INLINE LstmGradient lstm_backward(const LstmGates& s, Vec c_old, Vec shown, Vec grad_h, Vec grad_c,
                                         const Vec* p) {
  const Vec one = set1(1);
  LstmGradient d;
  d.gates[3] = grad_h * shown * s.o * (one - s.o);
  if (p != nullptr) grad_c = fma(d.gates[3], p[2], grad_c);
  d.gates[0] = grad_c * s.g * s.i * (one - s.i);
  d.gates[1] = grad_c * c_old * s.f * (one - s.f);
  d.gates[2] = grad_c * s.i * (one - s.g * s.g);
  d.c_old = grad_c * s.f;
  if (p != nullptr) d.c_old = fma(d.gates[0], p[0], fma(d.gates[1], p[1], d.c_old));
  return d;
}

struct GruGradient {
  Vec gates[3];
  Vec recurrent_n;  // of the recurrent half of n
  Vec h_old;
};

FASTDL_INLINE GruGradient gru_backward(const GruGates& s, Vec u_n, Vec h_old, Vec grad_h) {
  const Vec one = set1(1);
  GruGradient d;
  d.gates[2] = grad_h * (one - s.z) * (one - s.n * s.n);
  d.gates[1] = grad_h * (h_old - s.n) * s.z * (one - s.z);
  d.gates[0] = d.gates[2] * u_n * s.r * (one - s.r);
  d.recurrent_n = d.gates[2] * s.r;
  d.h_old = grad_h * s.z;
  return d;
}
