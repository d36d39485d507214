// The functions of math-inl.h over arrays, for math_test.cpp.
#include "common/cpu/math-inl.h"

template <Vec (*kFunction)(Vec)>
void map(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int m = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    store_first(y + i, kFunction(load_first(x + i, m)), m);
  }
}

static Vec exp_or_zero_up_to_88(Vec x) { return exp_or_zero(select(x > set1(88.0f), set1(88.0f), x)); }

static Vec exp2_or_zero_up_to_127(Vec x) { return exp2_or_zero(select(x > set1(127.0f), set1(127.0f), x)); }

typedef void (*Map)(const float* x, float* y, int64_t n);
constexpr Map kFunctions[] = {map<tanh>, map<sigmoid>, map<normal_tail>, map<exp_or_zero_up_to_88>,
                              map<exp2_or_zero_up_to_127>};
