// An allocator for large arrays, preloaded before the C library's: it keeps freed blocks for the
// next allocation of about their size.
//
// XLA allocates a step's activations anew at every step. glibc gives memory of that size back to the
// system when it is freed, which clears it page by page when it is used again: on the CPU a tenth or
// more of a training step. Retained blocks are bounded by a quarter of the most that was in use.

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

extern "C" {
void __libc_free(void*);
void* __libc_memalign(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* malloc(size_t);
}

namespace {

constexpr size_t kPage = size_t{2} << 20;   // a huge page, to which blocks are aligned
constexpr size_t kLarge = size_t{4} << 20;  // smaller allocations are the C library's
constexpr int kBlocks = 1024;

struct Block {
  char* start;
  size_t size;
  bool used;
  uint64_t freed;  // when, in frees
};

// All below is guarded by the mutex. Nothing here may allocate.
pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
Block blocks[kBlocks];
int count = 0;
size_t used = 0, retained = 0, most = 0;
uint64_t frees = 0;

struct Lock {
  Lock() { pthread_mutex_lock(&mutex); }
  ~Lock() { pthread_mutex_unlock(&mutex); }
};

// A child process must not find the mutex taken by a thread that it doesn't have.
[[gnu::constructor]] void prepare_forks() {
  pthread_atfork([] { pthread_mutex_lock(&mutex); }, [] { pthread_mutex_unlock(&mutex); },
                 [] { pthread_mutex_unlock(&mutex); });
}

bool may_be_ours(const void* p) { return p && reinterpret_cast<uintptr_t>(p) % kPage == 0; }

Block* find(const void* p) {
  for (int i = 0; i < count; ++i)
    if (blocks[i].start == p && blocks[i].used) return &blocks[i];
  return nullptr;
}

void unmap_oldest() {
  Block* oldest = nullptr;
  for (int i = 0; i < count; ++i)
    if (!blocks[i].used && (!oldest || blocks[i].freed < oldest->freed)) oldest = &blocks[i];
  munmap(oldest->start, oldest->size);
  retained -= oldest->size;
  *oldest = blocks[--count];
}

char* map(size_t size) {
  void* mapped = mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* start = static_cast<char*>(mapped);
  size_t before = (kPage - reinterpret_cast<uintptr_t>(start) % kPage) % kPage;
  if (before) munmap(start, before);
  munmap(start + before + size, kPage - before);
  madvise(start + before, size, MADV_HUGEPAGE);
  return start + before;
}

// Null where the table or memory is full.
void* allocate(size_t size) {
  size = (size + kPage - 1) / kPage * kPage;
  Lock lock;
  Block* best = nullptr;
  for (int i = 0; i < count; ++i) {
    Block& b = blocks[i];
    if (!b.used && b.size >= size && b.size <= size + size / 4 && (!best || b.size < best->size))
      best = &b;
  }
  if (best) {
    retained -= best->size;
  } else {
    size_t after = used + size;
    while (retained && used + retained + size > std::max(most, after) + std::max(most, after) / 4)
      unmap_oldest();
    if (count == kBlocks) return nullptr;
    char* start = map(size);
    while (!start && retained) {
      unmap_oldest();
      start = map(size);
    }
    if (!start) return nullptr;
    best = &blocks[count++];
    *best = {start, size, false, 0};
  }
  best->used = true;
  used += best->size;
  most = std::max(most, used);
  return best->start;
}

bool release(void* p) {
  Lock lock;
  Block* block = find(p);
  if (!block) return false;
  block->used = false;
  block->freed = ++frees;
  used -= block->size;
  retained += block->size;
  return true;
}

size_t size_of(void* p) {
  Lock lock;
  Block* block = find(p);
  return block ? block->size : 0;
}

}  // namespace

extern "C" {

int posix_memalign(void** result, size_t alignment, size_t size) noexcept {
  if (alignment % sizeof(void*) || (alignment & (alignment - 1)) || !alignment) return EINVAL;
  void* p = size >= kLarge && alignment <= kPage ? allocate(size) : nullptr;
  if (!p) p = __libc_memalign(alignment, size);
  if (!p) return ENOMEM;
  *result = p;
  return 0;
}

void free(void* p) noexcept {
  if (!may_be_ours(p) || !release(p)) __libc_free(p);
}

void* realloc(void* p, size_t size) noexcept {
  size_t old = may_be_ours(p) ? size_of(p) : 0;
  if (!old) return __libc_realloc(p, size);
  void* moved = malloc(size);
  if (moved) {
    memcpy(moved, p, std::min(old, size));
    release(p);
  }
  return moved;
}

size_t malloc_usable_size(void* p) noexcept {
  if (size_t size = may_be_ours(p) ? size_of(p) : 0) return size;
  static auto* theirs =
      reinterpret_cast<size_t (*)(void*)>(dlsym(RTLD_NEXT, "malloc_usable_size"));
  return theirs(p);
}

}  // extern "C"
