// Several callers share a pool of threads, and their teams' jobs are each done once: built with the
// thread sanitizer, which says where two threads meet in one place.

#include "team.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace {

using cnnjax::Team;

// Does tasks in the order in which they come.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    for (size_t i = 0; i < threads_.size(); ++i) schedule(nullptr);
    for (auto& thread : threads_) thread.join();
  }

  void schedule(Team::Task task) {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_one();
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      Team::Task task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (!task) return;
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Team::Task> tasks_;
  std::vector<std::thread> threads_;
};

bool all_are(const std::vector<int>& values, int expected) {
  return std::all_of(values.begin(), values.end(), [&](int value) { return value == expected; });
}

// Whether jobs and ranges were done once each, by workers that do one at a time, and an exception
// came through.
bool right(const Team& team, int64_t jobs) {
  std::vector<int> done(jobs), ranges(3 * jobs), busy(team.threads());
  team.run(jobs, [&](int64_t job, int64_t worker) {
    if (busy.at(worker)++) throw std::logic_error("two jobs of one worker");
    ++done[job];
    --busy[worker];
  });
  team.share(3 * jobs, [&](int64_t first, int64_t last, int64_t) {
    for (; first < last; ++first) ++ranges[first];
  });
  bool thrown = false;
  try {
    team.run(jobs, [&](int64_t job, int64_t) {
      if (job == jobs / 2) throw std::runtime_error("a job's");
    });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  return all_are(done, 1) && all_are(ranges, 1) && thrown == (jobs > 0);
}

}  // namespace

int main() {
  constexpr int kCallers = 4, kCalls = 3000;
  int wrong[kCallers] = {};
  {
    Pool pool(3);
    auto schedule = [&](Team::Task task) { pool.schedule(std::move(task)); };
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller)
      callers.emplace_back([&, caller] {
        for (int i = 0; i < kCalls; ++i) wrong[caller] += !right(Team(1 + i % 5, schedule), i % 37);
      });
    for (auto& caller : callers) caller.join();
  }
  int sum = 0;
  for (int count : wrong) sum += count;
  std::printf("%d calls of teams, %d wrong\n", kCallers * kCalls, sum);
  return sum != 0;
}
