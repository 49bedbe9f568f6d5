// Threads that share the jobs of one call.

#pragma once

#include <omp.h>

#include <cstdint>
#include <functional>
#include <utility>

namespace cnnjax {

// They are XLA's, so that its operations and ours don't fight for the cores: a thread that is busy
// elsewhere takes no jobs, and the caller does them.
class Team {
 public:
  using Task = std::function<void()>;
  using Schedule = std::function<void(Task)>;  // hands a task to another thread, at some time

  // `schedule` may be empty: the caller is alone then.
  Team(int64_t threads, Schedule schedule) : threads_(threads), schedule_(std::move(schedule)) {}

  // How many there are at most, at least 1.
  int64_t threads() const { return threads_; }

  // Calls body(job, worker) for all jobs, of which a worker, [0, threads), does one at a time, and
  // returns when all are done. Rethrows what one of them threw.
  void run(int64_t jobs, const std::function<void(int64_t job, int64_t worker)>& body) const;

  // Calls body(first, last, worker) for ranges that make up [0, count), some for each thread, so that
  // one that comes late has its share.
  void share(int64_t count,
             const std::function<void(int64_t first, int64_t last, int64_t worker)>& body) const;

 private:
  int64_t threads_;
  Schedule schedule_;
};

// The calling thread's parallel regions are so wide until the end of the scope.
class OpenMP {
 public:
  explicit OpenMP(int64_t threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(static_cast<int>(threads));
  }
  ~OpenMP() { omp_set_num_threads(before_); }
  OpenMP(const OpenMP&) = delete;
  OpenMP& operator=(const OpenMP&) = delete;

 private:
  int before_;
};

}  // namespace cnnjax
