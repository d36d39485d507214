// A weight of the recurrent kernels, as it is and packed. Saves nothing.

// y = a W^T for W [G * units, depth], or y = a W for W [depth, units].
struct Weight {
  const void* plain;
  int64_t gates, units, depth;
  bool transposed;
  float* panels;  // [vectors / kPanelVecs, depth, kPanelVecs, kLanes], or tiles; null: `plain` is read

  int64_t vectors() const { return vectors_of(units) * gates; }
  int64_t num_panels() const { return (vectors() + kPanelVecs - 1) / kPanelVecs; }
  int64_t floats() const { return num_panels() * kPanelWidth * depth; }
};
