#include "buffers.h"

#include <deque>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tfmeta {
namespace {

constexpr std::size_t kSmallest = std::size_t{1} << 16;     // less is quick to get anew
constexpr std::size_t kMostBytes = std::size_t{256} << 20;  // that are kept
constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Buffer {
  void* data;
  std::size_t bytes;
};

struct Kept {
  std::mutex mutex;
  std::deque<Buffer> buffers;  // the one given back last comes last: its data may be in the cache
  std::size_t bytes = 0;
};

// Never destroyed: arrays may outlive the statics of this library.
Kept& kept = *new Kept;

std::align_val_t Alignment(std::size_t bytes) {
  return std::align_val_t{bytes < 2 * kHugePage ? 64 : kHugePage};
}

}  // namespace

void* TakeBuffer(std::size_t bytes) {
  // Where the lock is taken, in a child that was forked meanwhile even for ever, there is still
  // fresh memory. The same below.
  if (std::unique_lock lock(kept.mutex, std::try_to_lock); lock) {
    for (auto buffer = kept.buffers.rbegin(); buffer != kept.buffers.rend(); ++buffer) {
      if (buffer->bytes != bytes) continue;
      void* data = buffer->data;
      kept.bytes -= bytes;
      kept.buffers.erase(std::next(buffer).base());
      return data;
    }
  }
  void* data = ::operator new(bytes, Alignment(bytes));
#ifdef __linux__
  if (bytes >= 2 * kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

void GiveBuffer(void* data, std::size_t bytes) {
  std::deque<Buffer> unneeded;
  if (std::unique_lock lock(kept.mutex, std::try_to_lock);
      lock && bytes >= kSmallest && bytes <= kMostBytes) {
    kept.buffers.push_back({data, bytes});
    kept.bytes += bytes;
    while (kept.bytes > kMostBytes) {
      unneeded.push_back(kept.buffers.front());
      kept.bytes -= kept.buffers.front().bytes;
      kept.buffers.pop_front();
    }
  } else {
    unneeded.push_back({data, bytes});
  }
  for (const Buffer& buffer : unneeded) ::operator delete(buffer.data, Alignment(buffer.bytes));
}

}  // namespace tfmeta
