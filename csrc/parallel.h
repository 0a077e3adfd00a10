// A loop whose turns are shared between threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

namespace tfmeta {

// Calls turn(number, worker) for every number below `turns`, in any order, on the calling thread
// (worker 0) and on up to threads - 1 others. Returns when all turns are done, or throws what one
// of them threw.
//
// Threads are started for each call: a pool would not survive a fork. The caller waits for turns,
// not for threads: where other programs keep a thread from starting, all has been done without it
// by the time it finds that nothing is left, and it then looks at nothing but `shared`.
template <typename Turn>
void ParallelFor(std::int64_t turns, std::int64_t threads, const Turn& turn) {
  struct Shared {
    std::atomic<std::int64_t> next{0};
    std::mutex mutex;
    std::condition_variable changed;
    std::int64_t done = 0;
    std::exception_ptr failure;
  };
  const auto shared = std::make_shared<Shared>();
  const auto work = [shared, turns, &turn](std::int64_t worker) {
    for (std::int64_t number; (number = shared->next.fetch_add(1)) < turns;) {
      std::exception_ptr failure;
      try {
        turn(number, worker);
      } catch (...) {
        failure = std::current_exception();
      }
      const std::lock_guard lock(shared->mutex);
      if (failure) shared->failure = failure;
      if (++shared->done == turns) shared->changed.notify_all();
    }
  };
  try {
    for (std::int64_t worker = 1; worker < threads; ++worker) std::thread(work, worker).detach();
  } catch (...) {
    // There is no room for more threads: those that there are share the work.
  }
  work(0);
  std::unique_lock lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->done == turns; });
  if (shared->failure) std::rethrow_exception(shared->failure);
}

}  // namespace tfmeta
