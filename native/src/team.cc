#include "team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

namespace cnnjax {
namespace {

constexpr int64_t kRanges = 4;  // of one thread
constexpr int kSpins = 2000;  // before a thread that waits gives its core to others

// It outlives the call: a task may start when all jobs are done. `body` doesn't.
struct Jobs {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0}, workers{0};
  std::mutex mutex;
  std::exception_ptr failure;

  void work() {
    if (next.load(std::memory_order_relaxed) >= count) return;
    int64_t worker = workers.fetch_add(1), job;
    OpenMP alone(1);
    while ((job = next.fetch_add(1)) < count) {
      try {
        (*body)(job, worker);
      } catch (...) {
        std::lock_guard lock(mutex);
        failure = std::current_exception();
      }
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

}  // namespace

void Team::run(int64_t jobs, const std::function<void(int64_t, int64_t)>& body) const {
  int64_t others = schedule_ ? std::min(threads_, jobs) - 1 : 0;
  if (others < 1) {
    OpenMP alone(1);
    for (int64_t job = 0; job < jobs; ++job) body(job, 0);
    return;
  }
  auto shared = std::make_shared<Jobs>();
  shared->body = &body;
  shared->count = jobs;
  try {
    for (int64_t i = 0; i < others; ++i) schedule_([shared] { shared->work(); });
  } catch (const std::bad_alloc&) {  // who has been asked helps; `body` must outlive their jobs
  }
  shared->work();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < jobs;) {
    if (spins == kSpins) {
      std::this_thread::yield();
    } else {
      ++spins;
      __builtin_ia32_pause();
    }
  }
  if (shared->failure) std::rethrow_exception(shared->failure);
}

void Team::share(int64_t count,
                 const std::function<void(int64_t, int64_t, int64_t)>& body) const {
  int64_t ranges = threads_ > 1 ? std::min(count, kRanges * threads_) : 1;
  run(ranges, [&](int64_t i, int64_t worker) {
    body(count * i / ranges, count * (i + 1) / ranges, worker);
  });
}

}  // namespace cnnjax
