// The packed weights kept between calls: what is admitted, what makes room, what is noticed, from many
// threads. The argument is the number of rounds. Run it built with -fsanitize=address,undefined and with
// -fsanitize=thread.
// links ops/conv_relu_maxpool/winograd_weight.cpp
#include "ops/conv_relu_maxpool/winograd_weight.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

using namespace fastdl;
using namespace fastdl::cpu;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

constexpr int64_t kWorkers = 3;

void run_threads(int64_t workers, void (*body)(void*, int64_t), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < workers; ++i) threads.emplace_back(body, context, i);
  body(context, 0);
  for (auto& thread : threads) thread.join();
}

const ThreadPool kAlone = {[](int64_t, void (*body)(void*, int64_t), void* context) { body(context, 0); },
                           [] { return int64_t{1}; }};
const ThreadPool kThreads = {run_threads, [] { return kWorkers; }};

// A weight [1, C, 3, 3] whose packed form says what it was made of; `claimed` floats count in the budget, few
// of their pages are ever touched.
struct Weight {
  explicit Weight(int64_t C, float value) : values(static_cast<size_t>(9 * C), value) {}

  std::shared_ptr<const float> look_up(size_t claimed, const ThreadPool& pool = kAlone) {
    const PackableWeight weight = {values.data(),   1,    static_cast<int64_t>(values.size()) / 9, 4,
                                   DType::kFloat32, false};
    return cached_packed_weight(weight, claimed, pool, [&](const PackableWeight& copy, float* u) {
      const float* plain = static_cast<const float*>(copy.data);
      expect(copy.data != weight.data, "packed from a copy");
      u[0] = plain[0], u[1] = plain[values.size() - 1];
      packs.fetch_add(1);
    });
  }

  std::vector<float> values;
  std::atomic<int> packs{0};
};

constexpr size_t kEighth =
    (size_t{64} << 20) / sizeof(float);  // of the 512 MiB: seven fit with their plain ones

// Ten weights in turn, of which seven fit: the seven admitted are packed once, the others never.
void check_admission() {
  std::vector<std::unique_ptr<Weight>> weights;
  for (int i = 0; i < 10; ++i) weights.push_back(std::make_unique<Weight>(4, static_cast<float>(i)));
  for (int round = 0; round < 20; ++round)
    for (int i = 0; i < 10; ++i) {
      const auto u = weights[static_cast<size_t>(i)]->look_up(kEighth);
      expect((u != nullptr) == (i < 7), "what was admitted stays, what was not stays out");
      if (u) expect(u.get()[0] == static_cast<float>(i), "its own packed weight");
    }
  for (int i = 0; i < 10; ++i)
    expect(weights[static_cast<size_t>(i)]->packs == (i < 7), "packed once, or never");

  // As long as it is asked for often enough a weight stays, whoever else wants to come in.
  Weight late(4, 99);
  for (int lookup = 0; lookup < 1010; ++lookup) expect(!late.look_up(kEighth), "not stale yet");
  expect(weights[0]->look_up(kEighth) != nullptr, "still kept");
  for (int lookup = 0; lookup < 20; ++lookup) late.look_up(kEighth);
  expect(late.look_up(kEighth) != nullptr && late.packs == 1, "stale ones made room");
  weights[0]->look_up(kEighth);
  expect(weights[0]->packs == 1, "what was asked for meanwhile was not stale");
  weights[1]->look_up(kEighth);
  expect(weights[1]->packs == 2, "what was not, was");

  Weight huge(4, 1);
  expect(!huge.look_up(9 * kEighth) && huge.packs == 0, "more than the whole budget is never packed");
}

// Enough lookups, and one that asks for room, forget everything.
void forget_all() {
  Weight other(1, 0);
  for (int lookup = 0; lookup < 1030; ++lookup) other.look_up(9 * kEighth);
}

// A weight of several compared parts: a byte changed in any of them is noticed, and packed anew in its place.
void check_changes(const ThreadPool& pool) {
  Weight weight(100000, 1);
  const size_t count = weight.values.size();
  const auto first = weight.look_up(64, pool);
  expect(weight.look_up(64, pool) == first && weight.packs == 1, "kept");
  int packs = 1;
  for (size_t at : {size_t{0}, count / 3, count / 2, count - 1}) {
    reinterpret_cast<uint8_t*>(&weight.values[at])[1] ^= 1;
    const auto u = weight.look_up(64, pool);
    expect(weight.packs == ++packs, "a changed byte is noticed");
    expect(u.get()[0] == weight.values[0] && u.get()[1] == weight.values[count - 1], "of the new bytes");
    expect(weight.look_up(64, pool) == u && weight.packs == packs, "kept again");
  }
  expect(first.get()[0] == 1 && first.get()[1] == 1, "what was returned stays valid");
}

// Callers at once, of the same weights and of others, more than fit: each gets its own bytes or none.
void check_concurrent_callers(int rounds) {
  std::vector<std::unique_ptr<Weight>> shared;
  for (int i = 0; i < 9; ++i) shared.push_back(std::make_unique<Weight>(64, static_cast<float>(i)));
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      Weight own(64, 0);
      for (int round = 0; round < rounds; ++round) {
        const size_t i = static_cast<size_t>(caller + round) % shared.size();
        const auto u = shared[i]->look_up(kEighth);
        if (u && u.get()[0] != static_cast<float>(i)) wrong.fetch_add(1);
        own.values[0] = static_cast<float>(round);
        const auto mine = own.look_up(64);
        if (mine && mine.get()[0] != static_cast<float>(round)) wrong.fetch_add(1);
      }
    });
  for (auto& caller : callers) caller.join();
  expect(wrong == 0, "every caller gets what its bytes were packed to");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  check_admission();
  forget_all();
  check_changes(kAlone);
  check_changes(kThreads);
  check_concurrent_callers(5 * rounds);
  std::printf(failures ? "%d failures\n" : "passed\n", failures);
  return failures ? 1 : 0;
}
