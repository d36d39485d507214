// The recurrence forward: per step the product with weight_hh, then the cell on the tile while it is in L1.
// A share of the sequences runs all steps alone, or workers share the units of each step (rnn_plan.h).
// Saves gates, cells and rstd where asked; h and c live in scratch as floats.

template <Cell kCell, class S>
struct Forward : ForwardState<kCell, S> {
  using State = ForwardState<kCell, S>;
  using Row = typename State::Row;
  using State::count, State::step, State::groups, State::row_of, State::u_row, State::staged_row;
  using State::f, State::share, State::d, State::blocks, State::chunk, State::w, State::a, State::c_row,
      State::a_row;
  using State::kGates, State::kGroup, State::kTogether, State::kLstm, State::kOwnSaved;
  using State::u, State::hidden, State::staged, State::gx, State::offsets;

  // Phases of a step; their blocks may run at the same time.
  enum Phase { kProject, kRecurrent, kNormalise, kProjectHidden, kPhases };

  int64_t blocks_of(int64_t i, int64_t phase) const {
    const RnnStructure& s = f->q.s;
    if (phase == kProject) return !s.projected && i % chunk == 0 ? blocks : 0;
    return phase == kRecurrent || (phase == kNormalise ? s.layer_norm : s.has_projection) ? blocks : 0;
  }

  void run(int64_t i, int64_t phase, int64_t block) {
    if (phase == kProject) return project(i, block);
    if (phase == kRecurrent) return recurrent(i, block);
    return phase == kNormalise ? normalise(i, block) : project_hidden(i, block);
  }

  // W_ih x + b_ih of the next `chunk` steps, cut by rows.
  void project(int64_t from_step, int64_t block) {
    const RnnSequence& q = f->q;
    const int64_t end = from_step + chunk < q.rows.T ? from_step + chunk : q.rows.T;
    const int64_t rows = offsets[end - 1] + count(end - 1);
    const int64_t from = block * rows / blocks, to = (block + 1) * rows / blocks;
    const int64_t width = staged_row(), vectors = w->input.vectors();
    for (int64_t i = from_step; i < end; ++i)
      for (int64_t j = from > offsets[i] ? from - offsets[i] : 0; j < count(i) && offsets[i] + j < to; ++j)
        stage(i, j, staged + (offsets[i] + j) * width);
    alignas(64) float tile[kTileRows * kGroup * kGates * kLanes];
    for (int64_t first = 0; first < vectors; first += kGroup * kGates) {
      const int64_t some = vectors - first < kGroup * kGates ? vectors - first : kGroup * kGates;
      for_tiles(to - from, [&](int64_t row, int64_t count_rows) {
        row += from;
        multiply<S>(w->input, count_rows, staged + row * width, width, first, some, tile, some * kLanes);
        for (int64_t k = 0; k < count_rows; ++k)
          for (int64_t v = 0; v < some; ++v) {
            const int64_t unit = (first + v) / kGates * kLanes, gate = (first + v) % kGates;
            const Vec sum =
                load(tile + (k * some + v) * kLanes) + load(w->bias_ih + gate * padded(q.H) + unit);
            store_units(gx + ((row + k) * kGates + gate) * q.H + unit, sum, units_at(unit, q.H));
          }
      });
    }
  }

  void stage(int64_t i, int64_t j, float* out) const {
    const int64_t row = share.plan->row(step(i), share.sequence(j));
    const S* x = static_cast<const S*>(f->x) + row * f->x_row_stride;
    for (int64_t k = 0; k < f->q.I; k += kLanes) store(out + k, load_units(x + k, units_at(k, f->q.I)));
  }

  void recurrent(int64_t i, int64_t block) {
    constexpr int64_t kMost = kTogether * kGroup * kGates;
    const int64_t n = count(i), vectors = w->recurrent.vectors();
    const int64_t end = (block + 1) * groups() / blocks * kGroup * kGates;
    const int64_t last = end < vectors ? end : vectors;
    alignas(64) float tile[kTileRows * kMost * kLanes];
    for (int64_t first = block * groups() / blocks * kGroup * kGates; first < last; first += kMost) {
      const int64_t some = last - first < kMost ? last - first : kMost;
      for_tiles(n, [&](int64_t row, int64_t rows) {
        if (f->q.s.layer_norm)
          return multiply<S>(w->recurrent, rows, a[i % 2] + row * a_row, a_row, first, some,
                             u + row * u_row() + first * kLanes, u_row());
        multiply<S>(w->recurrent, rows, a[i % 2] + row * a_row, a_row, first, some, tile, some * kLanes);
        for (int64_t k = 0; k < rows; ++k) {
          const Row r = row_of(i, row + k);
          for (int64_t v = 0; v < some; v += kGates)
            cell(r, (first + v) / kGates * kLanes, tile + (k * some + v) * kLanes);
        }
      });
    }
  }

  // One vector of units from its products, without layer norm.
  FASTDL_INLINE_MEMBER void cell(const Row& r, int64_t unit, const float* product) {
    const int n = units_at(unit, f->q.H);
    Vec sums[kGates];
#pragma GCC unroll 4
    for (int64_t g = 0; g < kGates; ++g)
      sums[g] = load(product + g * kLanes) + load(w->bias_hh + g * padded(f->q.H) + unit);
    if constexpr (kLstm) {
      const LstmGates s = lstm(r, unit, n, sums);
      put_hidden_of_cell(r, unit, n, s.o * tanh(s.c));
    } else {
      put_hidden_of_cell(r, unit, n, plain_cell(r, unit, n, sums));
    }
  }

  // Gates and c of an lstm, saved; u: the recurrent sums.
  FASTDL_INLINE_MEMBER LstmGates lstm(const Row& r, int64_t unit, int n, const Vec* u_sums) {
    const RnnSequence& q = f->q;
    Vec pre[4], p[3];
#pragma GCC unroll 4
    for (int64_t g = 0; g < 4; ++g) pre[g] = u_sums[g] + load_units(r.gx + g * q.H + unit, n);
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

  // h before zoneout of a gru or a plain cell, its gates saved.
  FASTDL_INLINE_MEMBER Vec plain_cell(const Row& r, int64_t unit, int n, const Vec* u_sums) {
    const int64_t H = f->q.H;
    Vec x[kGates];
#pragma GCC unroll 4
    for (int64_t g = 0; g < kGates; ++g) x[g] = load_units(r.gx + g * H + unit, n);
    if constexpr (kCell == Cell::kGru) {
      const GruGates s = gru_gates(x, u_sums);
      if (r.gates != nullptr) {
        store_units(r.gates + unit, s.r, n);
        store_units(r.gates + H + unit, s.z, n);
        store_units(r.gates + 2 * H + unit, s.n, n);
        store_units(r.gates + 3 * H + unit, u_sums[2], n);
      }
      return gru_hidden(s, load(r.h_old + unit));
    } else {
      const Vec sum = x[0] + u_sums[0], now = f->q.s.cell == Cell::kRnnTanh ? tanh(sum) : relu(sum);
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
    const int64_t n = count(i), panels = w->projection.num_panels();
    alignas(64) float tile[kTileRows * kGemmWidth];
    for (int64_t panel = block * panels / blocks; panel < (block + 1) * panels / blocks; ++panel) {
      const int64_t first = panel * kGemmVecs, left = w->projection.vectors() - first;
      const int64_t some = left < kGemmVecs ? left : kGemmVecs;
      for_tiles(n, [&](int64_t row, int64_t rows) {
        multiply<S>(w->projection, rows, hidden + row * c_row, c_row, first, some, tile, some * kLanes);
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
      if constexpr (kLstm) {
        const LstmGates s = lstm(r, unit, n, normed);
        store(at, s.c);
        store(at + kLanes, s.o);
      } else {
        put_hidden_of_cell(r, unit, n, plain_cell(r, unit, n, normed));
      }
    }
    if constexpr (kLstm) show_normalised(r, sums);
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
