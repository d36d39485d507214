// What a share of the sequences keeps between steps backward, and where the data of its rows lies.
// One thread each. Saves nothing.

template <Cell kCell, class S>
struct BackwardState {
  static constexpr int64_t kGates = num_gates(kCell);
  static constexpr bool kLstm = kCell == Cell::kLstm, kGru = kCell == Cell::kGru;
  static constexpr int64_t kOwnSaved = kLstm || kGru ? 4 : 1;

  const RnnBackward* f;
  RnnShare share;
  int64_t d, blocks, group;  // group: vectors of a product, of which blocks are made
  const Parameters* w;

  float* hh[2];           // [share, hh_row]: gradients of the recurrent product in even and odd steps
  float* kept;            // [share, a_row]: the gradient of h_{t-1} beside the product's; null: none
  float* dc;              // [share, c_row]
  float* projected;       // [share, a_row]: before weight_hr's product
  float* dh;              // [share, c_row]: layer norm: what reaches the cell
  float *shown, *norm_c;  // [blocks, 2 * c_row] of one row with layer norm
  BFloat16* packed;       // by tiles: the rows of the next product
  RangeOf<S>* ranges;     // [blocks], of all that was packed
  int64_t a_row, c_row, hh_row;

  // What of a row the cell touches, at unit 0.
  struct Row {
    const S *gates, *h_old;
    const float* c_old;
    const uint8_t *keep_h, *keep_c;
    float *hh, *dc, *grad_c_0;
    S *grad_gates, *grad_gates_hh, *grad_projected, *grad_norm_c;
    int64_t place, row;
    bool reset;
  };

  void take(Arena& arena) {
    const RnnSequence& q = f->q;
    const int64_t rows = share.size();
    a_row = padded(q.R) + 16, c_row = padded(q.H) + 16, hh_row = padded(kGates * q.H) + 16;
    for (float*& each : hh) each = arena.take<float>(rows * hh_row);
    const bool keeps = kGru || q.zoneout_h != nullptr || q.zoneout[0] != 0;
    kept = keeps ? arena.take<float>(rows * a_row) : nullptr;
    dc = kLstm ? arena.take<float>(rows * c_row) : nullptr;
    projected = q.s.has_projection ? arena.take<float>(rows * a_row) : nullptr;
    dh = q.s.layer_norm ? arena.take<float>(rows * c_row) : nullptr;
    shown = q.s.layer_norm && kLstm ? arena.take<float>(blocks * c_row) : nullptr;
    norm_c = q.s.layer_norm && kLstm ? arena.take<float>(blocks * c_row) : nullptr;
    const int64_t recurrent = kGates * q.H, depth = q.s.has_projection && q.R > recurrent ? q.R : recurrent;
    packed = arena.take<BFloat16>(packed_row_elements<S>(rows, depth));
  }

  int64_t step(int64_t i) const { return d == 0 ? f->q.rows.T - 1 - i : i; }
  int64_t count(int64_t i) const { return i < 0 || i >= f->q.rows.T ? 0 : share.count(step(i)); }
  int64_t saved_width() const { return kOwnSaved + (f->q.s.layer_norm ? kGates : 0); }
  int64_t recurrent_grad_width() const { return f->q.s.layer_norm ? kGates : kGru ? 1 : 0; }
  bool resets(int64_t row) const { return f->q.reset != nullptr && f->q.reset[row] != 0; }
  const S* mask_of(int64_t b) const {
    const RnnSequence& q = f->q;
    if (q.recurrent_mask == nullptr) return nullptr;
    return static_cast<const S*>(q.recurrent_mask) + (d * q.rows.B + b) * q.R;
  }

  // Direction d's part of a row of `width` columns a direction; null stays null.
  template <class P, class V>
  P* at(V* base, int64_t row, int64_t width) const {
    return base == nullptr ? nullptr : static_cast<P*>(base) + (row * f->q.s.directions + d) * width;
  }
  template <class P, class V>
  P* at_state(V* base, int64_t b, int64_t width) const {
    return base == nullptr ? nullptr : static_cast<P*>(base) + (d * f->q.rows.B + b) * width;
  }

  // The gradients each sequence enters with, and what no step writes.
  void begin() {
    for (int64_t j = 0, rows = share.size(); j < rows; ++j) begin_sequence(j);
  }

  void begin_sequence(int64_t j) {
    const RnnSequence& q = f->q;
    const int64_t b = share.sequence(j);
    int64_t length = q.rows.T;
    while (length > 0 && share.count(length - 1) <= j) --length;
    if (q.lengths != nullptr)
      for (int64_t t = length; t < q.rows.T; ++t) clear(share.plan->row(t, b));
    const float* grad_c_n = at_state<const float>(f->grad_c_n, b, q.H);
    for (int64_t unit = 0; kLstm && unit < q.H; unit += kLanes) {
      const int n = units_at(unit, q.H);
      const Vec grad = grad_c_n == nullptr ? zero() : load_units(grad_c_n + unit, n);
      store(dc + j * c_row + unit, grad);
      if (length == 0) store_units(at_state<float>(f->grad_c_0, b, q.H) + unit, grad, n);
    }
    for (int64_t unit = 0; length == 0 && unit < q.R; unit += kLanes)
      store_units(at_state<S>(f->grad_h_0, b, q.R) + unit, arriving(b, unit), units_at(unit, q.R));
  }

  void clear(int64_t row) const {
    const RnnSequence& q = f->q;
    const auto zeros = [&](void* base, int64_t width) {
      if (base != nullptr) std::memset(at<S>(base, row, width), 0, static_cast<size_t>(width) * sizeof(S));
    };
    zeros(f->grad_gates, kGates * q.H);
    zeros(f->grad_gates_hh, recurrent_grad_width() * q.H);
    zeros(f->grad_projected, q.R);
    zeros(f->grad_norm_c, q.H);
  }

  // The gradient of h_n.
  Vec arriving(int64_t b, int64_t unit) const {
    const S* grad_h_n = at_state<const S>(f->grad_h_n, b, f->q.R);
    return grad_h_n == nullptr ? zero() : load_units(grad_h_n + unit, units_at(unit, f->q.R));
  }

  Row row_of(int64_t i, int64_t j) const {
    const RnnSequence& q = f->q;
    const RnnPlan& plan = *share.plan;
    const int64_t t = step(i), b = share.sequence(j), row = plan.row(t, b);
    const int64_t before = d == 0 ? t - 1 : t + 1;
    Row r;
    r.place = j, r.row = row;
    r.reset = resets(row);
    r.gates = at<const S>(f->gates, row, saved_width() * q.H);
    if (share.count(before) > j) {
      r.h_old = at<const S>(f->output, plan.row(before, b), q.R);
      r.c_old = kLstm ? at<const float>(f->cells, plan.row(before, b), q.H) : nullptr;
    } else {
      r.h_old = at_state<const S>(q.h_0, b, q.R);
      r.c_old = kLstm ? at_state<const float>(q.c_0, b, q.H) : nullptr;
    }
    if (r.reset) r.h_old = nullptr, r.c_old = nullptr;
    r.keep_h = at<const uint8_t>(q.zoneout_h, row, q.R);
    r.keep_c = at<const uint8_t>(q.zoneout_c, row, q.H);
    r.hh = hh[i % 2] + j * hh_row;
    r.dc = kLstm ? dc + j * c_row : nullptr;
    r.grad_c_0 = kLstm && j >= count(i + 1) ? at_state<float>(f->grad_c_0, b, q.H) : nullptr;
    r.grad_gates = at<S>(f->grad_gates, row, kGates * q.H);
    r.grad_gates_hh = at<S>(f->grad_gates_hh, row, recurrent_grad_width() * q.H);
    r.grad_projected = at<S>(f->grad_projected, row, q.R);
    r.grad_norm_c = at<S>(f->grad_norm_c, row, q.H);
    return r;
  }
};
