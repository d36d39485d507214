// What a share of the sequences keeps between steps forward, and where the data of its rows lies.
// One thread each. Saves nothing itself.

template <Cell kCell, class S>
struct ForwardState {
  static constexpr int64_t kGates = num_gates(kCell);
  static constexpr int64_t kGroup = group_blocks(kGates);
  // Groups at once: finding a row's data takes as long as the cell of a vector of units.
  static constexpr int64_t kTogether = kGroup < 4 ? 4 / kGroup : 1;
  static constexpr bool kLstm = kCell == Cell::kLstm;
  static constexpr int64_t kOwnSaved = kCell == Cell::kLstm || kCell == Cell::kGru ? 4 : 1;

  const RnnForward* f;
  RnnShare share;
  int64_t d, blocks, chunk;  // chunk: steps projected at once
  UnitGroups units;          // vectors of units, of which blocks are made
  bool turned;               // a single step, its rows side by side (rnn_turned-inl.h)
  const Parameters* w;

  float *a[2], *h;  // [share, a_row]: what the product reads in even and odd steps; h: before the mask
  float *c, *u, *hidden;
  // projected=False, a chunk's rows one after another: x as floats, W_ih x as the product gives it, the first
  // row of each step.
  float *staged, *gx;
  float* turned_a;              // turned, by block: a[0] side by side, as in `staged` x
  BFloat16 *packed_x, *packed;  // by tiles: a chunk's x, and a step's rows of the next product
  RangeOf<S>* ranges;           // [blocks], of all that was packed
  int64_t* offsets;
  int64_t a_row, c_row;

  // What of a row the cell touches, at unit 0.
  struct Row {
    const S* gx;          // [G, H] with b_ih, or null and
    const float* own_gx;  // [unit blocks, G, kLanes] without
    S *output, *gates, *h_n;
    const S* mask;
    const uint8_t *keep_h, *keep_c;
    const float* h_old;
    float *a_next, *h, *c, *cells, *c_n, *hidden;
    bool reset_next;
  };

  void take(Arena& arena) {
    const RnnSequence& q = f->q;
    const int64_t rows = share.size();
    a_row = padded(q.R) + 16, c_row = padded(q.H) + 16;  // rows of a power of two share cache sets
    for (float*& each : a) each = arena.take<float>(rows * a_row);
    h = q.recurrent_mask != nullptr ? arena.take<float>(rows * a_row) : nullptr;
    c = kLstm ? arena.take<float>(rows * c_row) : nullptr;
    u = q.s.layer_norm ? arena.take<float>(rows * u_row()) : nullptr;
    hidden = q.s.has_projection ? arena.take<float>(rows * c_row) : nullptr;
    gx = arena.take<float>(q.s.projected ? 0 : chunk * rows * gx_row());
    staged = arena.take<float>(q.s.projected ? 0
                               : turned      ? blocks * turned_floats(rows, q.I)
                                             : chunk * rows * staged_row());
    turned_a = turned ? arena.take<float>(blocks * turned_floats(rows, q.R)) : nullptr;
    offsets = arena.take<int64_t>(q.s.projected ? 0 : q.rows.T);
    packed_x = arena.take<BFloat16>(q.s.projected ? 0 : packed_row_elements<S>(chunk * rows, q.I));
    packed = arena.take<BFloat16>(packed_row_elements<S>(rows, q.s.has_projection && q.H > q.R ? q.H : q.R));
  }

  int64_t u_row() const { return vectors_of(f->q.H) * kGates * kLanes; }
  int64_t gx_row() const { return u_row() + 16; }
  float* staged_by(int64_t block) const {
    return turned ? staged + block * turned_floats(share.size(), f->q.I) : staged;
  }
  float* turned_by(int64_t block) const { return turned_a + block * turned_floats(share.size(), f->q.R); }
  int64_t staged_row() const { return turned ? f->q.I : padded(f->q.I) + 16; }
  int64_t step(int64_t i) const { return d == 0 ? i : f->q.rows.T - 1 - i; }
  int64_t count(int64_t i) const { return i < f->q.rows.T ? share.count(step(i)) : 0; }

  bool resets(int64_t t, int64_t sequence) const {
    return f->q.reset != nullptr && f->q.reset[share.plan->row(t, sequence)] != 0;
  }

  // The state each sequence enters with, and what no step writes: zeros past lengths, states of empty ones.
  void begin() {
    for (int64_t j = 0, rows = share.size(); j < rows; ++j) begin_sequence(j);
    if (f->q.s.projected) return;
    for (int64_t i = 0; i < f->q.rows.T; ++i) offsets[i] = i % chunk == 0 ? 0 : offsets[i - 1] + count(i - 1);
  }

  void begin_sequence(int64_t j) {
    const RnnSequence& q = f->q;
    const RnnPlan& plan = *share.plan;
    const int64_t b = share.sequence(j), T = q.rows.T, state = d * q.rows.B + b;
    int64_t entry = 0, length = T;
    while (length > 0 && share.count(length - 1) <= j) --length;
    if (d == 1) entry = T - length;
    if (q.lengths != nullptr)
      for (int64_t t = length; t < T; ++t) clear(plan.row(t, b));
    const S* h_0 = q.h_0 == nullptr ? nullptr : static_cast<const S*>(q.h_0) + state * q.R;
    const float* c_0 = q.c_0 == nullptr ? nullptr : static_cast<const float*>(q.c_0) + state * q.H;
    const bool reset = length > 0 && resets(step(entry), b);
    const S* mask = mask_of(b);
    for (int64_t unit = 0; unit < q.R; unit += kLanes) {
      const int n = units_at(unit, q.R);
      const Vec initial = h_0 == nullptr ? zero() : load_units(h_0 + unit, n);
      if (length == 0) store_units(static_cast<S*>(f->h_n) + state * q.R + unit, initial, n);
      const Vec first = reset ? zero() : initial;
      if (h != nullptr) store(h + j * a_row + unit, first);
      store(a[entry % 2] + j * a_row + unit,
            mask == nullptr ? first : rounded(first * load_units(mask + unit, n), S{}));
    }
    for (int64_t unit = 0; kLstm && unit < q.H; unit += kLanes) {
      const int n = units_at(unit, q.H);
      const Vec initial = c_0 == nullptr ? zero() : load_units(c_0 + unit, n);
      if (length == 0) store_units(static_cast<float*>(f->c_n) + state * q.H + unit, initial, n);
      store(c + j * c_row + unit, reset ? zero() : initial);
    }
  }

  void clear(int64_t row) {
    const RnnSequence& q = f->q;
    const int64_t D = q.s.directions, saved = saved_width() * q.H;
    std::memset(static_cast<S*>(f->output) + (row * D + d) * q.R, 0, static_cast<size_t>(q.R) * sizeof(S));
    if (f->gates != nullptr)
      std::memset(static_cast<S*>(f->gates) + (row * D + d) * saved, 0,
                  static_cast<size_t>(saved) * sizeof(S));
    if (f->cells != nullptr)
      std::memset(static_cast<float*>(f->cells) + (row * D + d) * q.H, 0,
                  static_cast<size_t>(q.H) * sizeof(float));
    if (f->rstd != nullptr) static_cast<float*>(f->rstd)[row * D + d] = 0;
  }

  int64_t saved_width() const { return kOwnSaved + (f->q.s.layer_norm ? kGates : 0); }
  const S* mask_of(int64_t b) const {
    const RnnSequence& q = f->q;
    if (q.recurrent_mask == nullptr) return nullptr;
    return static_cast<const S*>(q.recurrent_mask) + (d * q.rows.B + b) * q.R;
  }

  Row row_of(int64_t i, int64_t j) const {
    const RnnSequence& q = f->q;
    const int64_t t = step(i), b = share.sequence(j), row = share.plan->row(t, b), D = q.s.directions;
    const int64_t state = d * q.rows.B + b;
    const bool leaves = j >= count(i + 1);
    Row r;
    r.gx = q.s.projected ? static_cast<const S*>(f->x) + row * f->x_row_stride + d * kGates * q.H : nullptr;
    r.own_gx = q.s.projected ? nullptr : gx + (offsets[i] + j) * gx_row();
    r.output = static_cast<S*>(f->output) + (row * D + d) * q.R;
    r.gates = f->gates == nullptr ? nullptr : static_cast<S*>(f->gates) + (row * D + d) * saved_width() * q.H;
    r.cells = f->cells == nullptr ? nullptr : static_cast<float*>(f->cells) + (row * D + d) * q.H;
    r.h_n = leaves ? static_cast<S*>(f->h_n) + state * q.R : nullptr;
    r.c_n = leaves && kLstm ? static_cast<float*>(f->c_n) + state * q.H : nullptr;
    r.mask = mask_of(b);
    r.keep_h = q.zoneout_h == nullptr ? nullptr : q.zoneout_h + (row * D + d) * q.R;
    r.keep_c = q.zoneout_c == nullptr ? nullptr : q.zoneout_c + (row * D + d) * q.H;
    r.a_next = a[(i + 1) % 2] + j * a_row;
    r.h = h == nullptr ? nullptr : h + j * a_row;
    r.h_old = h == nullptr ? a[i % 2] + j * a_row : r.h;
    r.c = kLstm ? c + j * c_row : nullptr;
    r.hidden = hidden == nullptr ? nullptr : hidden + j * c_row;
    r.reset_next = !leaves && resets(step(i + 1), b);
    return r;
  }
};
