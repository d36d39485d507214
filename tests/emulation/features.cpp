// Runs every kernel of features.cuh on odd sizes and compares with plain C++.
// Arguments: --schedule N, --bug N, --kernel NAME. One line a case; exit status 1 if one fails.
#include "features.cuh"

#include <array>
#include <cmath>
#include <vector>

#include "checked_memory.h"

namespace {

int failures = 0;
const char* only = nullptr;
bool wanted(const char* name) { return !only || !strcmp(only, name); }

template <class Reference>
void check(const char* name, int size, Array<float>& got, double tolerance, Reference reference) {
  double worst = 0;
  bool poison = false;
  const std::string error = std::move(emu::machine.error);
  emu::machine.error.clear();
  for (size_t i = 0; error.empty() && i < got.size; ++i) {
    double distance = std::fabs(got[i] - reference(i));
    poison |= distance != distance;
    worst = std::max(worst, distance);
  }
  const char* why = !error.empty() ? "emulator" : poison ? "poison" : worst > tolerance ? "wrong" : nullptr;
  failures += why != nullptr;
  printf("%s %s %s %d %s\n", why ? "FAIL" : "ok", why ? why : "", name, size,
         error.empty() ? std::to_string(worst).c_str() : error.c_str());
}

unsigned blocks(int n, int each) { return (n + each - 1) / each; }

void check_matmul(int M, int N, int K) {
  Array<float> a(M * K), b(K * N), c(M * N);
  a.random(), b.random();
  fd::launch(matmul<16>, {dim3(blocks(N, 16), blocks(M, 16)), dim3(16, 16)}, nullptr, a.data, b.data, c.data,
             M, N, K);
  check("matmul", M, c, 1e-4, [&](size_t i) {
    double sum = 0;
    for (int k = 0; k < K; ++k) sum += double(a[i / N * K + k]) * b[k * N + i % N];
    return sum;
  });
}

void check_softmax(int rows, int n, int threads) {
  Array<float> x(rows * n), y(rows * n);
  x.random(4);
  fd::launch(softmax, {dim3(rows), dim3(threads)}, nullptr, x.data, y.data, n);
  check("softmax", n, y, 1e-5, [&](size_t i) {
    double highest = -1e30, sum = 0;
    size_t row = i / n * n;
    for (int j = 0; j < n; ++j) highest = std::max<double>(highest, x[row + j]);
    for (int j = 0; j < n; ++j) sum += exp(x[row + j] - highest);
    return exp(x[i] - highest) / sum;
  });
}

void check_recurrence(bool cluster, int H, int T, int size) {
  Array<float> W(H * H), h((T + 1) * H);
  W.random(.2f);
  for (int i = 0; i < H; ++i) h[i] = 1.f / (i + 1);
  std::vector<double> reference(h.data, h.data + H);
  for (int t = 0; t < T; ++t)
    for (int i = 0; i < H; ++i) {
      double sum = 0;
      for (int k = 0; k < H; ++k) sum += W[i * H + k] * reference[t * H + k];
      reference.push_back(tanh(sum));
    }
  if (cluster)
    fd::launch(cluster_recurrence, {dim3(size), dim3(blocks(H, size)), 0, false, unsigned(size)}, nullptr,
               W.data, h.data, h.data + H, H, T);
  else
    fd::launch(recurrence, {dim3(blocks(H, size)), dim3(size), 0, true}, nullptr, W.data, h.data, H, T);
  check(cluster ? "cluster_recurrence" : "recurrence", H, h, 1e-4, [&](size_t i) { return reference[i]; });
}

void check_tensor_product(int rows, int K) {
  Array<bf16> a(rows * K), b(64 * K);
  Array<float> c(rows * 64);
  a.random(), b.random();
  fd::launch(tensor_product, {dim3(1), dim3(128), 4 * 64 * kPaddedRow * sizeof(bf16)}, nullptr, a.data,
             b.data, c.data, rows, K);
  check("tensor_product", K, c, 1e-3, [&](size_t i) {
    double sum = 0;
    for (int k = 0; k < K; ++k) sum += double(float(a[i / 64 * K + k])) * float(b[i % 64 * K + k]);
    return sum;
  });
}

template <class T>
void check_fragment_tile(const char* name) {
  constexpr int K = 48;
  Array<T> a(16 * K), b(8 * K);
  Array<float> c(128);
  a.integers(9), b.integers(9);
  fd::launch(fragment_tile<T>, {dim3(1), dim3(32)}, nullptr, a.data, b.data, c.data, K);
  check(name, K, c, 0, [&](size_t i) {
    double sum = 0;
    for (int k = 0; k < K; ++k) sum += double(float(a[i / 8 * K + k])) * float(b[i % 8 * K + k]);
    return sum;
  });
}

// C = bf16(A B^T) V of small integers: all sums are exact.
template <int N>
void check_warpgroup_products(int rows, int K) {
  const int kKeys = 128, stride = (K + 7) / 8 * 8;
  Array<bf16> a(rows * stride), b(kKeys * stride), v(kKeys * N);
  Array<float> c(64 * N);
  a.integers(2), b.integers(2), v.integers(2);
  fd::TensorMap maps[3];
  const auto map = [](fd::TensorMap& m, Array<bf16>& from, int64_t count, int64_t width, int64_t apart,
                      int box) {
    return fd::make_tensor_map(&m, from.data, {width, count, 1, 1}, {apart, 0, 0}, box);
  };
  if (map(maps[0], a, rows, K, stride, 64) || map(maps[1], b, kKeys, K, stride, kKeys) ||
      map(maps[2], v, kKeys, N, N, kKeys))
    emu::fail("a tensor map is refused", {});
  fd::launch(warpgroup_products<N>, {dim3(1), dim3(160), kWarpgroupShared}, nullptr, maps[0], maps[1],
             maps[2], c.data, K);
  check("warpgroup_products", K, c, 0, [&](size_t i) {
    const int row = i / N, column = i % N;
    double sum = 0;
    for (int j = 0; row < rows && j < kKeys; ++j) {
      float score = 0;
      for (int k = 0; k < K; ++k) score += float(a[row * stride + k]) * float(b[j * stride + k]);
      sum += double(float(bf16(score))) * float(v[j * N + column]);
    }
    return sum;
  });
}

void check_total(int n) {
  Array<float> x(n), partial(blocks(n, 64)), out(1);
  Array<int> done(1);
  x.random(), done.fill(0);
  fd::launch(total, {dim3(blocks(n, 64)), dim3(64)}, nullptr, x.data, partial.data, done.data, out.data, n);
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i];
  check("total", n, out, 1e-3, [&](size_t) { return sum; });
}

void check_column() {  // 16 GB of address space, 17 MB of memory
  const int rows = 4097, stride = 1 << 20;
  const size_t bytes = size_t(rows) * stride * 4;
  void* map =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) {
    puts("skip column: no 16 GB of address space");
    return;
  }
  float* x = static_cast<float*>(map);
  Array<float> y(rows);
  for (int r = 0; r < rows; ++r) x[size_t(r) * stride] = r;
  fd::launch(column, {dim3(blocks(rows, 128)), dim3(128)}, nullptr, x, y.data, rows, stride);
  check("column", rows, y, 0, [&](size_t i) { return double(i); });
  munmap(map, bytes);
}

void check_scan() {
  const int count = 5;
  Array<float> x(count * 64), y(count * 64), partial(count);
  Array<int> flag(count);
  x.random(), flag.fill(0);
  const bool cooperative = seeded_bug != 26;  // 26: blocks wait for each other without a cooperative launch
  fd::launch(scan, {dim3(count), dim3(64), 0, cooperative}, nullptr, x.data, y.data, partial.data, flag.data);
  std::vector<double> reference;
  double sum = 0;
  for (size_t i = 0; i < x.size; ++i) reference.push_back(sum += x[i]);
  check("scan", count, y, 1e-4, [&](size_t i) { return reference[i]; });
}

}  // namespace

int main(int argc, char** argv) {
  emu::options.multiprocessors = 8;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--schedule")) emu::options.schedule = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--bug")) seeded_bug = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--kernel")) only = argv[i + 1];
  }
  if (wanted("matmul"))
    for (auto [M, N, K] : {std::array<int, 3>{1, 1, 1}, {37, 29, 45}, {16, 16, 48}, {33, 17, 64}})
      check_matmul(M, N, K);
  if (wanted("softmax"))
    for (auto [rows, n, threads] : {std::array<int, 3>{3, 5, 64}, {2, 1000, 128}, {1, 33, 32}, {2, 257, 256}})
      check_softmax(rows, n, threads);
  if (wanted("reverse_pairs")) {
    Array<float> x(192), y(192);
    x.random();
    fd::launch(reverse_pairs, {dim3(3), dim3(64)}, nullptr, x.data, y.data);
    check("reverse_pairs", 192, y, 0, [&](size_t i) { return x[i ^ 31]; });
  }
  if (wanted("recurrence")) check_recurrence(false, 50, 6, 16), check_recurrence(false, 37, 3, 32);
  if (wanted("cluster_recurrence")) check_recurrence(true, 50, 6, 4), check_recurrence(true, 37, 3, 2);
  if (wanted("tensor_product")) check_tensor_product(64, 64), check_tensor_product(50, 256);
  if (wanted("fragment_tile"))
    check_fragment_tile<__half>("fragment_tile fp16"), check_fragment_tile<float>("fragment_tile tf32");
  if (wanted("ring")) {
    Array<float> x(64 * 7), y(64 * 7);
    x.random();
    fd::launch(ring, {dim3(1), dim3(96), 2 * 64 * 4}, nullptr, x.data, y.data, 64 * 7);
    check("ring", 64 * 7, y, 0, [&](size_t i) { return 2 * x[i]; });
  }
  if (wanted("warpgroup_products"))
    check_warpgroup_products<128>(50, 200), check_warpgroup_products<64>(64, 64);
  if (wanted("total")) check_total(1), check_total(1000);
  if (wanted("column")) check_column();
  if (wanted("scan")) check_scan();
  return failures != 0;
}
