// One direction's parameters as the kernels read them: weights packed, small ones as padded floats.
// Panels are packed in parallel. Saves nothing.

struct Parameters {
  Weight input, recurrent, projection;
  float *bias_ih, *bias_hh, *peephole, *norm_hh, *norm_c, *bias_c;  // parts of padded(H); zeros where absent
};

template <class S>
void take_panels(Weight& w, Arena& arena) {
  if (w.plain != nullptr) w.panels = arena.take<float>(panel_floats<S>(w));
}

// Every panel of `count` weights; those without a place for panels are left alone. ranges: by worker.
template <class S>
void pack_weights(Weight* const* weights, int64_t count, RangeOf<S>* ranges, const ThreadPool& pool) {
  int64_t panels = 0;
  for (int64_t i = 0; i < count; ++i) panels += weights[i]->panels != nullptr ? weights[i]->num_panels() : 0;
  parallel_tasks(pool, panels, [&](int64_t task, int64_t worker) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t own = weights[i]->panels != nullptr ? weights[i]->num_panels() : 0;
      if (task < own) return pack_panel<S>(*weights[i], task, ranges[worker]);
      task -= own;
    }
  });
}

template <class S>
void take_small_parameters(Parameters& p, const RnnSequence& q, const RnnWeights& w, Arena& arena) {
  const int64_t G = num_gates(q.s.cell), width = padded(q.H);
  float** const places[] = {&p.bias_ih, &p.bias_hh, &p.peephole, &p.norm_hh, &p.norm_c, &p.bias_c};
  const void* const plain[] = {w.bias_ih,        w.bias_hh,       w.weight_peephole,
                               w.weight_norm_hh, w.weight_norm_c, w.bias_norm_c};
  const int64_t parts[] = {G, G, 3, G, 1, 1};
  for (int i = 0; i < 6; ++i) {
    *places[i] = arena.take<float>(parts[i] * width);
    if (arena.base != nullptr) widen_parameter<S>(plain[i], parts[i], q.H, *places[i]);
  }
}
