// The recurrence backward: per step the product of the later step's gate gradients with weight_hh, then the
// cell's gradients on the tile while it is in L1. Split as forward. Reads gates, cells and rstd; saves
// nothing.

template <Cell kCell, class S>
struct Backward : BackwardState<kCell, S> {
  using State = BackwardState<kCell, S>;
  using Row = typename State::Row;
  using State::a_row, State::c_row, State::hh_row;
  using State::count, State::step, State::row_of, State::mask_of;
  using State::f, State::share, State::d, State::blocks, State::group, State::w;
  using State::hh, State::kept, State::dc, State::projected, State::dh, State::shown, State::norm_c,
      State::packed, State::ranges;
  using State::kGates, State::kLstm, State::kGru, State::kOwnSaved;

  // Phases of a step; after the last step kHidden runs once more, for the gradient of h_0.
  enum Phase { kPack, kHidden, kPackProjected, kProjected, kNormalised, kPhases };

  int64_t blocks_of(int64_t i, int64_t phase) const {
    if (phase == kHidden) return blocks;
    if (phase == kPack) return i > 0 && packs_rows<S>(w->recurrent) ? blocks : 0;
    if (i == f->q.rows.T || (phase == kPackProjected && !packs_rows<S>(w->projection))) return 0;
    return (phase == kNormalised ? f->q.s.layer_norm : f->q.s.has_projection) ? blocks : 0;
  }

  void run(int64_t i, int64_t phase, int64_t block) {
    if (phase == kPack) return pack(w->recurrent, hh[(i + 1) % 2], hh_row, count(i - 1), block);
    if (phase == kPackProjected) return pack(w->projection, projected, a_row, count(i), block);
    if (phase == kHidden) return hidden(i, block);
    return phase == kProjected ? through_projection(i, block) : through_norm(i, block);
  }

  // A step's rows of a product, cut where tiles begin.
  void pack(const Weight& weight, const float* from, int64_t from_row, int64_t rows, int64_t block) {
    pack_share<S>(weight, from, from_row, rows, row_share<S>(rows, block, blocks), packed, ranges[block]);
  }

  // g(place, unit, its vector of the product): the rows' product with a weight, a pair of panels' vectors at
  // once. Rows past `rows` have no product.
  template <class G>
  FASTDL_INLINE_MEMBER void products(const Weight& weight, int64_t block, int64_t rows, int64_t all,
                                     const float* left, int64_t left_row, const G& g) {
    [[maybe_unused]] const ProductUse<S> use;
    const ProductRows all_left = product_rows<S>(weight, left, left_row, rows, packed);
    const UnitGroups vectors = {weight.vectors(), group};
    alignas(64) float tile[kTileRows * 2 * kPanelWidth];
    const int64_t last = vectors.first(block + 1, blocks);
    for (int64_t first = vectors.first(block, blocks); first < last; first += 2 * kPanelVecs) {
      const int64_t some = last - first < 2 * kPanelVecs ? last - first : 2 * kPanelVecs;
      for_tiles(all, [&](int64_t row, int64_t tile_rows) {
        const int64_t with = rows - row < tile_rows ? rows - row : tile_rows;
        if (with > 0) multiply<S>(weight, all_left, row, with, first, some, tile, some * kLanes);
        for (int64_t k = 0; k < tile_rows; ++k) g(row + k, first, some, tile + k * some * kLanes);
      });
    }
  }

  void hidden(int64_t i, int64_t block) {
    const int64_t n = count(i), before = count(i - 1);
    products(w->recurrent, block, before, n > before ? n : before, hh[(i + 1) % 2], hh_row,
             [&](int64_t j, int64_t first, int64_t some, const float* product) {
               const RnnSequence& q = f->q;
               const int64_t b = share.sequence(j);
               const bool carried = j < before, goes_on = j < n;
               const S* mask = carried ? mask_of(b) : nullptr;
               const bool was_reset = carried && this->resets(share.plan->row(step(i - 1), b));
               Row r = {};
               const S* grad_output = nullptr;
               if (goes_on) {
                 r = row_of(i, j);
                 grad_output = this->template at<const S>(f->grad_output, r.row, q.R);
               }
               for (int64_t v = 0; v < some; ++v) {
                 const int64_t unit = (first + v) * kLanes;
                 const int n_units = units_at(unit, q.R);
                 Vec grad;
                 if (!carried) {
                   grad = this->arriving(b, unit);
                 } else if (was_reset) {
                   grad = zero();
                 } else {
                   grad = load(product + v * kLanes);
                   if (mask != nullptr) grad = grad * load_units(mask + unit, n_units);
                   if (kept != nullptr) grad = grad + load(kept + j * a_row + unit);
                 }
                 if (!goes_on) {
                   store_units(this->template at_state<S>(f->grad_h_0, b, q.R) + unit, grad, n_units);
                   continue;
                 }
                 if (grad_output != nullptr) grad = grad + load_units(grad_output + unit, n_units);
                 state(r, unit, n_units, grad);
               }
             });
  }

  // From the gradient of a step's h on.
  FASTDL_INLINE_MEMBER void state(const Row& r, int64_t unit, int n, Vec grad) {
    const RnnSequence& q = f->q;
    if (kept != nullptr) {
      Vec old = zero();
      if (r.keep_h != nullptr || q.zoneout[0] != 0)
        unzoned(grad, r.keep_h == nullptr ? nullptr : r.keep_h + unit, static_cast<float>(q.zoneout[0]), n,
                grad, old);
      store(kept + r.place * a_row + unit, old);
    }
    if (projected != nullptr) {
      store_units(r.grad_projected + unit, grad, n);
      store(projected + r.place * a_row + unit, grad);
      return;
    }
    cell_or_norm(r, unit, grad);
  }

  FASTDL_INLINE_MEMBER void cell_or_norm(const Row& r, int64_t unit, Vec grad) {
    if (dh != nullptr) return store(dh + r.place * c_row + unit, grad);
    const int n = units_at(unit, f->q.H);
    if constexpr (kLstm) {
      const LstmGates s = saved_gates(r, unit, n);
      const Vec tanh_c = tanh(s.c);
      lstm(r, unit, n, s, tanh_c, grad, grad * s.o * (set1(1) - tanh_c * tanh_c));
    } else {
      plain_cell(r, unit, n, grad);
    }
  }

  void through_projection(int64_t i, int64_t block) {
    const int64_t n = count(i);
    products(w->projection, block, n, n, projected, a_row,
             [&](int64_t j, int64_t first, int64_t some, const float* product) {
               const Row r = row_of(i, j);
               for (int64_t v = 0; v < some; ++v)
                 cell_or_norm(r, (first + v) * kLanes, load(product + v * kLanes));
             });
  }

  FASTDL_INLINE_MEMBER Vec c_old(const Row& r, int64_t unit, int n) const {
    return r.c_old == nullptr ? zero() : load_units(r.c_old + unit, n);
  }

  FASTDL_INLINE_MEMBER LstmGates saved_gates(const Row& r, int64_t unit, int n) const {
    const int64_t H = f->q.H;
    LstmGates s;
    s.i = load_units(r.gates + unit, n), s.f = load_units(r.gates + H + unit, n);
    s.g = load_units(r.gates + 2 * H + unit, n), s.o = load_units(r.gates + 3 * H + unit, n);
    s.c = fma(s.f, c_old(r, unit, n), s.i * s.g);
    return s;
  }

  // through_h: what reaches c through tanh.
  FASTDL_INLINE_MEMBER void lstm(const Row& r, int64_t unit, int n, const LstmGates& s, Vec tanh_c,
                                 Vec grad_h, Vec through_h) {
    const RnnSequence& q = f->q;
    Vec p[3], now = load(r.dc + unit), old = zero();
    if (q.s.peephole)
      for (int64_t g = 0; g < 3; ++g) p[g] = load(w->peephole + g * padded(q.H) + unit);
    if (r.keep_c != nullptr || q.zoneout[1] != 0)
      unzoned(now, r.keep_c == nullptr ? nullptr : r.keep_c + unit, static_cast<float>(q.zoneout[1]), n, now,
              old);
    const LstmGradient g =
        lstm_backward(s, c_old(r, unit, n), tanh_c, grad_h, now + through_h, q.s.peephole ? p : nullptr);
    const Vec left = r.reset ? zero() : old + g.c_old;
    store(r.dc + unit, left);
    if (r.grad_c_0 != nullptr) store_units(r.grad_c_0 + unit, left, n);
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) {
      store_units(r.grad_gates + k * q.H + unit, g.gates[k], n);
      store_units(r.hh + k * q.H + unit, g.gates[k], n);
    }
  }

  FASTDL_INLINE_MEMBER void plain_cell(const Row& r, int64_t unit, int n, Vec grad) {
    const int64_t H = f->q.H;
    if constexpr (kGru) {
      const GruGates s = {load_units(r.gates + unit, n), load_units(r.gates + H + unit, n),
                          load_units(r.gates + 2 * H + unit, n)};
      const Vec h_old = r.h_old == nullptr ? zero() : load_units(r.h_old + unit, n);
      const GruGradient g = gru_backward(s, load_units(r.gates + 3 * H + unit, n), h_old, grad);
      float* const beside = kept + r.place * a_row + unit;
      store(beside, load(beside) + g.h_old);
#pragma GCC unroll 3
      for (int64_t k = 0; k < 3; ++k) {
        store_units(r.grad_gates + k * H + unit, g.gates[k], n);
        store_units(r.hh + k * H + unit, k == 2 ? g.recurrent_n : g.gates[k], n);
      }
      if (dh == nullptr) store_units(r.grad_gates_hh + unit, g.recurrent_n, n);
    } else {
      const Vec now = load_units(r.gates + unit, n);
      const Vec g = f->q.s.cell == Cell::kRnnTanh ? grad * (set1(1) - now * now)
                                                  : select(now > zero(), grad, zero() * grad);
      store_units(r.grad_gates + unit, g, n);
      store_units(r.hh + unit, g, n);
    }
  }

  // Layer norm: rows of a block, everything after the products.
  void through_norm(int64_t i, int64_t block) {
    const int64_t n = count(i);
    for (int64_t j = block * n / blocks; j < (block + 1) * n / blocks; ++j) {
      const Row r = row_of(i, j);
      if constexpr (kLstm) {
        normalised_lstm(r, shown + block * c_row, norm_c + block * c_row);
      } else {
        for (int64_t unit = 0; unit < f->q.H; unit += kLanes)
          plain_cell(r, unit, units_at(unit, f->q.H), load(dh + j * c_row + unit));
      }
      recurrent_norm(r);
    }
  }

  // Scratch of a row: tanh's value, then the gradient of the normalised c.
  void normalised_lstm(const Row& r, float* tanh_c, float* grad_c) {
    const int64_t H = f->q.H;
    const float* const arrived = dh + r.place * c_row;
    for (int64_t unit = 0; unit < H; unit += kLanes)
      store(grad_c + unit, saved_gates(r, unit, units_at(unit, H)).c);
    const Moments moments = moments_of(grad_c, H, 1, 0, kLanes);
    const Vec mean = set1(moments.mean), rstd = set1(moments.rstd);
    Vec sum = zero(), along = zero();
    for (int64_t unit = 0; unit < H; unit += kLanes) {
      const int n = units_at(unit, H);
      const Vec scale = load(w->norm_c + unit), normed = (load(grad_c + unit) - mean) * rstd;
      const Vec value = tanh(fma(normed, scale, load(w->bias_c + unit)));
      const Vec o = load_units(r.gates + 3 * H + unit, n);
      const Vec grad = load(arrived + unit) * o * (set1(1) - value * value);
      store_units(r.grad_norm_c + unit, grad, n);
      store(tanh_c + unit, value);
      store(grad_c + unit, grad * scale);
      sum = sum + grad * scale;
      along = fma(grad * scale, normed, along);
    }
    const Vec mean_grad = mean_of(sum, H), mean_along = mean_of(along, H);
    for (int64_t unit = 0; unit < H; unit += kLanes) {
      const int n = units_at(unit, H);
      const LstmGates s = saved_gates(r, unit, n);
      const Vec normed = (s.c - mean) * rstd;
      const Vec through = (load(grad_c + unit) - mean_grad - normed * mean_along) * rstd;
      lstm(r, unit, n, s, load(tanh_c + unit), load(arrived + unit), through);
    }
  }

  // The gradient of the normalised product, in r.hh -> that of the product.
  void recurrent_norm(const Row& r) {
    const int64_t H = f->q.H, D = f->q.s.directions;
    const S* const normalised = r.gates + kOwnSaved * H;
    Vec sum = zero(), along = zero();
    for (int64_t g = 0; g < kGates; ++g)
      for (int64_t unit = 0; unit < H; unit += kLanes) {
        const int n = units_at(unit, H);
        const Vec grad = load_units(r.hh + g * H + unit, n) * load(w->norm_hh + g * padded(H) + unit);
        sum = sum + grad;
        along = fma(grad, load_units(normalised + g * H + unit, n), along);
      }
    const Vec mean = mean_of(sum, kGates * H), mean_along = mean_of(along, kGates * H);
    const Vec rstd = set1(static_cast<const float*>(f->rstd)[r.row * D + d]);
    for (int64_t g = 0; g < kGates; ++g)
      for (int64_t unit = 0; unit < H; unit += kLanes) {
        const int n = units_at(unit, H);
        const Vec grad = load_units(r.hh + g * H + unit, n) * load(w->norm_hh + g * padded(H) + unit);
        const Vec through = (grad - mean - load_units(normalised + g * H + unit, n) * mean_along) * rstd;
        store_units(r.hh + g * H + unit, through, n);
        store_units(r.grad_gates_hh + g * H + unit, through, n);
      }
  }
};
