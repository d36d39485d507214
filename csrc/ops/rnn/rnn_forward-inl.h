// The recurrence forward: per step the product with weight_hh, then the cell on the tile while it is in L1.
// A share of the sequences runs all steps alone, or workers share the units of each step (rnn_plan.h).
// Saves gates, cells and rstd where asked; h and c live in scratch as floats.

template <Cell kCell, class S>
struct Forward : ForwardState<kCell, S> {
  using State = ForwardState<kCell, S>;
  using Row = typename State::Row;
  using State::count, State::step, State::row_of, State::u_row, State::gx_row, State::staged_row,
      State::staged_by, State::turned_by;
  using State::f, State::share, State::d, State::blocks, State::chunk, State::units, State::turned, State::w,
      State::a, State::c_row, State::a_row;
  using State::kGates, State::kGroup, State::kTogether, State::kLstm, State::kOwnSaved;
  using State::u, State::hidden, State::staged, State::gx, State::offsets, State::packed_x, State::packed,
      State::ranges;

  // Phases of a step; their blocks may run at the same time.
  enum Phase { kStage, kProject, kPack, kRecurrent, kNormalise, kPackHidden, kProjectHidden, kPhases };

  int64_t blocks_of(int64_t i, int64_t phase) const {
    const RnnStructure& s = f->q.s;
    if (phase == kStage || phase == kProject) return !s.projected && !turned && i % chunk == 0 ? blocks : 0;
    if (phase == kPack) return packs_rows<S>(w->recurrent) ? blocks : 0;
    if (phase == kPackHidden) return s.has_projection && packs_rows<S>(w->projection) ? blocks : 0;
    return phase == kRecurrent || (phase == kNormalise ? s.layer_norm : s.has_projection) ? blocks : 0;
  }

  void run(int64_t i, int64_t phase, int64_t block) {
    if (phase == kStage) return stage_rows(i, block);
    if (phase == kProject) return project(i, block);
    if (phase == kPack) return pack(w->recurrent, a[i % 2], a_row, count(i), block);
    if (phase == kPackHidden) return pack(w->projection, hidden, c_row, count(i), block);
    if (phase == kRecurrent) return turned ? run_turned(block) : recurrent(i, block);
    return phase == kNormalise ? normalise(i, block) : project_hidden(i, block);
  }

  // The step after the chunk that begins with `from_step`.
  int64_t chunk_end(int64_t from_step) const {
    return from_step + chunk < f->q.rows.T ? from_step + chunk : f->q.rows.T;
  }
  int64_t chunk_rows(int64_t from_step) const {
    const int64_t last = chunk_end(from_step) - 1;
    return offsets[last] + count(last);
  }
  // Vectors of the gates' products.
  int64_t first_vector(int64_t block) const { return units.first(block, blocks) * kGates; }
  // Those of a packed input, by whole panels where the recurrent weights have none.
  int64_t first_input_vector(int64_t block) const {
    if (w->input.panels == nullptr || w->recurrent.panels != nullptr) return first_vector(block);
    return UnitGroups{units.count, kGroup}.first(block, blocks) * kGates;
  }

  // The next `chunk` steps of x, cut by rows.
  void stage_rows(int64_t from_step, int64_t block) {
    const int64_t rows = chunk_rows(from_step);
    const auto [from, to] = row_share<S>(rows, block, blocks);
    for (int64_t i = from_step, end = chunk_end(from_step); i < end; ++i)
      for (int64_t j = from > offsets[i] ? from - offsets[i] : 0; j < count(i) && offsets[i] + j < to; ++j)
        stage(i, j, staged + (offsets[i] + j) * staged_row());
    pack_share<S>(w->input, staged, staged_row(), rows, {from, to}, packed_x, ranges[block]);
  }

  // A step's rows of a product, cut likewise.
  void pack(const Weight& weight, const float* from, int64_t from_row, int64_t rows, int64_t block) {
    pack_share<S>(weight, from, from_row, rows, row_share<S>(rows, block, blocks), packed, ranges[block]);
  }

  // The whole single step: every block has x and the state side by side for itself.
  void run_turned(int64_t block) {
    const int64_t rows = count(0);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t at = row / kGemmWidth * kGemmWidth, lane = row % kGemmWidth;
      const auto x_at = [&](int64_t j) { return x_row(0, row + j); };
      const auto a_at = [&](int64_t j) { return a[0] + (row + j) * a_row; };
      if (!f->q.s.projected) turn_rows<S>(x_at, rows - row, f->q.I, staged_by(block) + at * f->q.I + lane);
      turn_rows<float>(a_at, rows - row, f->q.R, turned_by(block) + at * f->q.R + lane);
    }
    if (!f->q.s.projected) project(0, block);
    recurrent(0, block);
  }

  // Pieces of rows as `product` takes them.
  template <class F>
  FASTDL_INLINE_MEMBER void for_rows(int64_t rows, const F& f) const {
    if (!turned) return for_tiles(rows, f);
    for (int64_t row = 0; row < rows; row += kGemmWidth)
      f(row, rows - row < kGemmWidth ? rows - row : kGemmWidth);
  }

  FASTDL_INLINE_MEMBER void product(const Weight& weight, const ProductRows& left, int64_t row, int64_t rows,
                                    int64_t first, int64_t some, float* out, int64_t out_row) const {
    if (turned) return multiply_turned(weight, rows, left.a + row * left.a_row, first, some, out, out_row);
    multiply<S>(weight, left, row, rows, first, some, out, out_row);
  }

  // W_ih x of the same steps, cut by units: a worker reads its part of the weight alone.
  void project(int64_t from_step, int64_t block) {
    [[maybe_unused]] const ProductUse<S> use;
    constexpr int64_t kMost = kGroup * kGates;
    const int64_t rows = chunk_rows(from_step), last = first_input_vector(block + 1);
    const ProductRows left = product_rows<S>(w->input, staged_by(block), staged_row(), rows, packed_x);
    for (int64_t first = first_input_vector(block); first < last; first += kMost) {
      const int64_t some = last - first < kMost ? last - first : kMost;
      for_rows(rows, [&](int64_t row, int64_t tile_rows) {
        product(w->input, left, row, tile_rows, first, some, gx + row * gx_row() + first * kLanes, gx_row());
      });
    }
  }

  const S* x_row(int64_t i, int64_t j) const {
    return static_cast<const S*>(f->x) + share.plan->row(step(i), share.sequence(j)) * f->x_row_stride;
  }
  void stage(int64_t i, int64_t j, float* out) const {
    const S* x = x_row(i, j);
    for (int64_t k = 0; k < f->q.I; k += kLanes) store(out + k, load_units(x + k, units_at(k, f->q.I)));
  }

  void recurrent(int64_t i, int64_t block) {
    [[maybe_unused]] const ProductUse<S> use;
    constexpr int64_t kMost = kTogether * kGroup * kGates;
    const int64_t n = count(i), last = first_vector(block + 1);
    constexpr int64_t kRows = kTileRows < kGemmWidth ? kGemmWidth : kTileRows;
    alignas(64) float tile[kRows * kMost * kLanes];
    const ProductRows left = product_rows<S>(w->recurrent, turned ? turned_by(block) : a[i % 2],
                                             turned ? f->q.R : a_row, n, packed);
    for (int64_t first = first_vector(block); first < last; first += kMost) {
      const int64_t some = last - first < kMost ? last - first : kMost;
      for_rows(n, [&](int64_t row, int64_t rows) {
        if (f->q.s.layer_norm)
          return product(w->recurrent, left, row, rows, first, some, u + row * u_row() + first * kLanes,
                         u_row());
        product(w->recurrent, left, row, rows, first, some, tile, some * kLanes);
        for (int64_t k = 0; k < rows; ++k) {
          const Row r = row_of(i, row + k);
          float* const at = tile + k * some * kLanes;
          // Two loops: the chain from a gate's sum to h is too long for one vector after the other.
          for (int64_t v = 0; v < some; v += kGates) open(r, (first + v) / kGates * kLanes, at + v * kLanes);
          for (int64_t v = 0; v < some; v += kGates) show(r, (first + v) / kGates * kLanes, at + v * kLanes);
        }
      });
    }
  }

  // One vector of units without layer norm, from its products at `at`, where `show` finds what it needs.
  FASTDL_INLINE_MEMBER void open(const Row& r, int64_t unit, float* at) {
    Vec sums[kGates];
#pragma GCC unroll 4
    for (int64_t g = 0; g < kGates; ++g)
      sums[g] = load(at + g * kLanes) + load(w->bias_hh + g * padded(f->q.H) + unit);
    open_gates(r, unit, units_at(unit, f->q.H), sums, at);
  }

  // The gates that do not wait for others; u_sums: the recurrent sums.
  FASTDL_INLINE_MEMBER void open_gates(const Row& r, int64_t unit, int n, const Vec* u_sums, float* at) {
    if constexpr (kLstm) {
      const LstmGates s = lstm(r, unit, n, u_sums);
      store(at, s.c);
      store(at + kLanes, s.o);
    } else if constexpr (kCell == Cell::kGru) {
      store(at, sigmoid(input_sum(r, 0, unit, n) + u_sums[0]));
      store(at + kLanes, sigmoid(input_sum(r, 1, unit, n) + u_sums[1]));
      store(at + 2 * kLanes, u_sums[2]);
    } else {
      store(at, input_sum(r, 0, unit, n) + u_sums[0]);
    }
  }

  FASTDL_INLINE_MEMBER void show(const Row& r, int64_t unit, const float* at) {
    const int n = units_at(unit, f->q.H);
    if constexpr (kLstm) {
      put_hidden_of_cell(r, unit, n, load(at + kLanes) * tanh(load(at)));
    } else {
      put_hidden_of_cell(r, unit, n, plain_cell(r, unit, n, at));
    }
  }

  // W_ih x + b_ih of gate g.
  FASTDL_INLINE_MEMBER Vec input_sum(const Row& r, int64_t g, int64_t unit, int n) const {
    if (r.own_gx == nullptr) return load_units(r.gx + g * f->q.H + unit, n);
    return load(r.own_gx + unit * kGates + g * kLanes) + load(w->bias_ih + g * padded(f->q.H) + unit);
  }

  // Gates and c of an lstm, saved; u: the recurrent sums.
  FASTDL_INLINE_MEMBER LstmGates lstm(const Row& r, int64_t unit, int n, const Vec* u_sums) {
    const RnnSequence& q = f->q;
    Vec pre[4], p[3];
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) pre[g] = u_sums[g] + input_sum(r, g, unit, n);
    if (q.s.peephole)
      for (int64_t g = 0; g < 3; ++g) p[g] = load(w->peephole + g * padded(q.H) + unit);
    const Vec c_old = load(r.c + unit);
    const LstmGates s = lstm_gates(pre, c_old, q.s.peephole ? p : nullptr);
    if (r.gates != nullptr) {
      store_units(r.gates + unit, s.i, n);
      store_units(r.gates + q.H + unit, s.f, n);
      store_units(r.gates + 2 * q.H + unit, s.g, n);
      store_units(r.gates + 3 * q.H + unit, s.o, n);
    }
    const bool zones = r.keep_c != nullptr || q.zoneout[1] != 0;
    const Vec kept = zones ? zoned(s.c, c_old, r.keep_c == nullptr ? nullptr : r.keep_c + unit,
                                   static_cast<float>(q.zoneout[1]), n)
                           : s.c;
    if (r.cells != nullptr) store_units(r.cells + unit, kept, n);
    if (r.c_n != nullptr) store_units(r.c_n + unit, kept, n);
    store(r.c + unit, r.reset_next ? zero() : kept);
    return s;
  }

  // h before zoneout of a gru or a plain cell, its gates saved; at: what open_gates left.
  FASTDL_INLINE_MEMBER Vec plain_cell(const Row& r, int64_t unit, int n, const float* at) {
    const int64_t H = f->q.H;
    if constexpr (kCell == Cell::kGru) {
      const Vec u_n = load(at + 2 * kLanes);
      const GruGates s = gru_gates(load(at), load(at + kLanes), input_sum(r, 2, unit, n), u_n);
      if (r.gates != nullptr) {
        store_units(r.gates + unit, s.r, n);
        store_units(r.gates + H + unit, s.z, n);
        store_units(r.gates + 2 * H + unit, s.n, n);
        store_units(r.gates + 3 * H + unit, u_n, n);
      }
      return gru_hidden(s, load(r.h_old + unit));
    } else {
      const Vec sum = load(at), now = f->q.s.cell == Cell::kRnnTanh ? tanh(sum) : relu(sum);
      if (r.gates != nullptr) store_units(r.gates + unit, now, n);
      return now;
    }
  }

  FASTDL_INLINE_MEMBER void put_hidden_of_cell(const Row& r, int64_t unit, int n, Vec now) {
    if (r.hidden == nullptr) return put_hidden(r, unit, n, now);
    store(r.hidden + unit, rounded(now, S{}));
  }

  FASTDL_INLINE_MEMBER void put_hidden(const Row& r, int64_t unit, int n, Vec now) {
    const double probability = f->q.zoneout[0];
    if (r.keep_h != nullptr || probability != 0)
      now = zoned(now, load(r.h_old + unit), r.keep_h == nullptr ? nullptr : r.keep_h + unit,
                  static_cast<float>(probability), n);
    now = rounded(now, S{});
    store_units(r.output + unit, now, n);
    if (r.h_n != nullptr) store_units(r.h_n + unit, now, n);
    if (r.reset_next) now = zero();
    if (r.mask != nullptr) {
      store(r.h + unit, now);
      now = rounded(now * load_units(r.mask + unit, n), S{});
    }
    store(r.a_next + unit, now);
  }

  void project_hidden(int64_t i, int64_t block) {
    [[maybe_unused]] const ProductUse<S> use;
    const int64_t n = count(i), panels = w->projection.num_panels();
    const ProductRows left = product_rows<S>(w->projection, hidden, c_row, n, packed);
    alignas(64) float tile[kTileRows * kPanelWidth];
    for (int64_t panel = block * panels / blocks; panel < (block + 1) * panels / blocks; ++panel) {
      const int64_t first = panel * kPanelVecs, after = w->projection.vectors() - first;
      const int64_t some = after < kPanelVecs ? after : kPanelVecs;
      for_tiles(n, [&](int64_t row, int64_t rows) {
        multiply<S>(w->projection, left, row, rows, first, some, tile, some * kLanes);
        for (int64_t k = 0; k < rows; ++k) {
          const Row r = row_of(i, row + k);
          for (int64_t v = 0; v < some; ++v) {
            const int64_t unit = (first + v) * kLanes;
            put_hidden(r, unit, units_at(unit, f->q.R), load(tile + (k * some + v) * kLanes));
          }
        }
      });
    }
  }

  void normalise(int64_t i, int64_t block) {
    const int64_t n = count(i), last = (block + 1) * n / blocks;
    for (int64_t j = block * n / blocks; j < last; ++j) normalise_row(i, j);
  }

  // A row with layer norm: everything after the product.
  void normalise_row(int64_t i, int64_t j) {
    const RnnSequence& q = f->q;
    const Row r = row_of(i, j);
    float* const sums = u + j * u_row();
    const Moments moments = moments_of(sums, q.H, kGates, kLanes, kGates * kLanes);
    if (f->rstd != nullptr) {
      const int64_t row = share.plan->row(step(i), share.sequence(j));
      static_cast<float*>(f->rstd)[row * q.s.directions + d] = moments.rstd;
    }
    const Vec mean = set1(moments.mean), rstd = set1(moments.rstd);
    for (int64_t unit = 0; unit < q.H; unit += kLanes) {
      const int n = units_at(unit, q.H);
      float* const at = sums + unit * kGates;
      Vec normed[kGates];
      for (int64_t g = 0; g < kGates; ++g) {
        const int64_t k = g * padded(q.H) + unit;
        const Vec plain = (load(at + g * kLanes) - mean) * rstd;
        if (r.gates != nullptr) store_units(r.gates + (kOwnSaved + g) * q.H + unit, plain, n);
        normed[g] = fma(plain, load(w->norm_hh + k), load(w->bias_hh + k));
      }
      open_gates(r, unit, n, normed, at);
    }
    if constexpr (kLstm) return show_normalised(r, sums);
    for (int64_t unit = 0; unit < q.H; unit += kLanes) show(r, unit, sums + unit * kGates);
  }

  // h = o tanh(LN(c)), with c and o where the sums of i and f were.
  void show_normalised(const Row& r, const float* sums) {
    const int64_t H = f->q.H;
    const Moments moments = moments_of(sums, H, 1, kLanes, kGates * kLanes);
    const Vec mean = set1(moments.mean), rstd = set1(moments.rstd);
    for (int64_t unit = 0; unit < H; unit += kLanes) {
      const float* const at = sums + unit * kGates;
      const Vec normed = fma((load(at) - mean) * rstd, load(w->norm_c + unit), load(w->bias_c + unit));
      put_hidden_of_cell(r, unit, units_at(unit, H), load(at + kLanes) * tanh(normed));
    }
  }
};
