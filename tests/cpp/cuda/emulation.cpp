#include "emulation.h"

#include <link.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

// What a fiber that is given up held is lost; there is no other leak to look for.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 227 * 1024;
constexpr int kPoison = 0xff;

enum class State { Running, AtBarrier, AtWarp, Ended };

// What a lane brings to a warp operation. Operations of one kind at one place with one mask belong together.
struct WarpOperation {
  enum Kind { Barrier, Exchange, Ballot } kind;
  unsigned mask;
  uint64_t value;
  unsigned lane;  // Exchange: whose value
};

using Jump = void* [5];  // what __builtin_setjmp keeps

// A thread of the block. Its stack and context serve one block after another: `run_kernels` below never returns.
struct Fiber {
  explicit Fiber(unsigned id);
  ~Fiber() { munmap(stack, kStack + kPage); }
  Fiber(const Fiber&) = delete;

  static constexpr size_t kStack = 256 * 1024, kPage = 4096;
  unsigned id;
  char* stack;
  ucontext_t entry;
  Jump resume;
  bool entered = false;
  State state = State::Ended;
  Place place;
  WarpOperation operation{};
  uint64_t result = 0;
};

std::vector<std::unique_ptr<Fiber>> pool;
std::vector<Fiber*> fibers;  // those of this launch
Fiber* current = nullptr;
Jump scheduler;
const std::function<void()>* kernel = nullptr;
std::string complaint;  // an error found inside a fiber, thrown by the scheduler
std::unique_ptr<unsigned char[]> dynamic;
Order order = Order::Forward;
std::mt19937 shuffle_source;

// ucontext enters a fiber; from then on the compiler's own jumps switch: swapcontext makes two system calls each time,
// and the library's longjmp has the sanitizer clear the whole stack and, fortified, refuses to change stacks.
// A jump may not stand in the function it leaves, nor be inlined there.
[[gnu::noinline, noreturn]] void jump(Jump& to) { __builtin_longjmp(to, 1); }

[[gnu::noinline]] void leave() {
  if (__builtin_setjmp(current->resume) == 0) jump(scheduler);
}

[[gnu::noinline]] void enter(Fiber& fiber) {
  current = &fiber;
  const unsigned id = fiber.id;
  threadIdx = {id % blockDim.x, id / blockDim.x % blockDim.y, id / (blockDim.x * blockDim.y)};
  if (__builtin_setjmp(scheduler) != 0) return;
  if (fiber.entered) jump(fiber.resume);
  fiber.entered = true;
  setcontext(&fiber.entry);
}

void run_kernels() {
  for (;;) {
    (*kernel)();
    current->state = State::Ended;
    leave();
  }
}

Fiber::Fiber(unsigned id) : id(id) {
  void* const memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);                     // a stack that overflows stops there
  __asan_unpoison_memory_region(memory, kStack + kPage);  // an earlier stack at this address may have been given up
  stack = static_cast<char*>(memory);
  getcontext(&entry);
  entry.uc_stack.ss_sp = stack + kPage;
  entry.uc_stack.ss_size = kStack;
  entry.uc_link = nullptr;
  makecontext(&entry, run_kernels, 0);
}

std::string name(Place place) {
  const std::string path = place.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(place.line());
}

bool same(Place a, Place b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || std::string_view(a.file_name()) == b.file_name());
}

std::string list(dim3 of) {
  return "(" + std::to_string(of.x) + ", " + std::to_string(of.y) + ", " + std::to_string(of.z) + ")";
}

[[noreturn]] void fail(const std::string& what) {
  fibers.clear();
  pool.clear();  // those in mid-kernel cannot be used again
  throw Error("emulated block " + list({blockIdx.x, blockIdx.y, blockIdx.z}) + " of " + list(gridDim) + ": " + what);
}

// Called in a fiber: the scheduler takes over and throws.
void complain(const std::string& what) {
  complaint = "thread " + std::to_string(current->id) + " at " + name(current->place) + ": " + what;
  leave();
}

[[noreturn]] void fail_stuck() {
  std::map<std::string, int> where;
  for (const Fiber* fiber : fibers) {
    const char* const at = fiber->state == State::AtBarrier                  ? "wait at the barrier "
                           : fiber->operation.kind == WarpOperation::Barrier ? "wait at the warp barrier "
                                                                             : "wait at the warp operation ";
    ++where[fiber->state == State::Ended ? "have ended" : at + name(fiber->place)];
  }
  std::string what;
  for (const auto& [words, count] : where)
    what += (what.empty() ? "" : ", ") + std::to_string(count) + (count == 1 ? " thread: " : " threads ") + words;
  fail(what + "; none can go on");
}

// All or none: a barrier is passed when the whole block has arrived, at one place.
bool pass_barrier() {
  for (const Fiber* fiber : fibers)
    if (fiber->state != State::AtBarrier || !same(fiber->place, fibers[0]->place)) return false;
  for (Fiber* fiber : fibers) fiber->state = State::Running;
  return true;
}

// Completes the current fiber's warp operation if it is the last lane to arrive.
void complete_warp_operation() {
  const WarpOperation& mine = current->operation;
  const unsigned first = current->id / kWarp * kWarp;
  const auto member = [&](unsigned lane) -> Fiber* {
    if (!(mine.mask >> lane & 1) || first + lane >= fibers.size()) return nullptr;
    return fibers[first + lane];
  };
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mine.mask >> lane & 1)) continue;
    const Fiber* const fiber = member(lane);
    if (fiber == nullptr) return complain("the mask names lane " + std::to_string(lane) + ", which is not there");
    const WarpOperation& theirs = fiber->operation;
    if (fiber->state != State::AtWarp || !same(fiber->place, current->place) || theirs.kind != mine.kind ||
        theirs.mask != mine.mask)
      return;
    votes |= theirs.value != 0 ? 1u << lane : 0;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (Fiber* const fiber = member(lane)) {
      fiber->result =
          mine.kind == WarpOperation::Ballot ? votes : fibers[first + fiber->operation.lane]->operation.value;
      fiber->state = State::Running;
    }
  }
}

uint64_t warp(WarpOperation operation, Place place) {
  current->place = place;
  if (!(operation.mask >> lane_id() & 1)) complain("the mask does not name the caller");
  if (!(operation.mask >> operation.lane & 1))
    complain("reads lane " + std::to_string(operation.lane) + ", which the mask does not name");
  current->operation = operation;
  current->state = State::AtWarp;
  complete_warp_operation();
  leave();
  return current->result;
}

// For leave_out_barriers.py: the barrier RWKV_EMULATION_WITHOUT=file:line does nothing; with RWKV_EMULATION_LIST all
// that were reached are printed at the end.
bool left_out(Place place) {
  static const char* const without = getenv("RWKV_EMULATION_WITHOUT");
  static const bool listing = getenv("RWKV_EMULATION_LIST") != nullptr;
  if (without == nullptr && !listing) return false;
  struct Reached : std::set<std::string> {
    ~Reached() {
      for (const auto& here : *this) std::cout << "reached " << here << "\n";
    }
  };
  static Reached reached;
  const std::string here = name(place);
  if (listing) reached.insert(here);
  return without != nullptr && here == without;
}

void arrange(std::vector<unsigned>& ids) {
  std::iota(ids.begin(), ids.end(), 0u);
  if (order == Order::Reverse) std::reverse(ids.begin(), ids.end());
  if (order == Order::Shuffled) std::shuffle(ids.begin(), ids.end(), shuffle_source);
}

// This program's thread-local variables, which are the kernels' static shared memory.
void poison_static_shared() {
  dl_iterate_phdr(
      [](dl_phdr_info* program, size_t, void*) {  // the executable comes first
        for (int i = 0; i < program->dlpi_phnum; ++i)
          if (program->dlpi_phdr[i].p_type == PT_TLS)
            memset(program->dlpi_tls_data, kPoison, program->dlpi_phdr[i].p_memsz);
        return 1;
      },
      nullptr);
}

// Runs each of these threads until it has to wait; returns whether one ran.
bool run_threads(std::span<const unsigned> ids) {
  bool moved = false;
  for (const unsigned id : ids) {
    if (fibers[id]->state != State::Running) continue;
    enter(*fibers[id]);
    moved = true;
    if (!complaint.empty()) fail(std::exchange(complaint, ""));
  }
  return moved;
}

// Shuffled, all threads advance together; otherwise a warp runs as far as it can before the next one begins. Only that
// shows a warp that is ahead of another although both have met their own lanes in between.
bool run_in_order(std::span<const unsigned> ids) {
  if (order == Order::Shuffled) return run_threads(ids);
  bool moved = false;
  while (!ids.empty()) {
    const auto other = [&](unsigned id) { return id / kWarp != ids[0] / kWarp; };
    const auto mine = ids.first(std::ranges::find_if(ids, other) - ids.begin());
    while (run_threads(mine)) moved = true;
    ids = ids.subspan(mine.size());
  }
  return moved;
}

void run_block(size_t shared_bytes) {
  poison_static_shared();
  memset(dynamic.get(), kPoison, shared_bytes);
  for (Fiber* fiber : fibers) fiber->state = State::Running;
  std::vector<unsigned> ids(fibers.size());
  for (;;) {
    bool ended = true;
    arrange(ids);
    const bool moved = run_in_order(ids);
    for (const Fiber* fiber : fibers) ended = ended && fiber->state == State::Ended;
    if (ended) break;
    if (!pass_barrier() && !moved) fail_stuck();
  }
}

}  // namespace

void set_order(Order to, unsigned seed) {
  order = to;
  shuffle_source.seed(seed);
}

void in_every_order(const std::function<void(const char*)>& test) {
  set_order(Order::Forward);
  test("forward");
  set_order(Order::Reverse);
  test("reverse");
  for (unsigned seed = 1; seed <= 3; ++seed) {
    set_order(Order::Shuffled, seed);
    test("shuffled");
  }
  set_order(Order::Forward);
}

cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64 || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > kMostShared) return cudaErrorInvalidValue;
  kernel = &thread;
  gridDim = grid;
  blockDim = block;
  dynamic = std::make_unique<unsigned char[]>(shared_bytes);  // no byte more: the sanitizer watches its ends
  while (pool.size() < threads) pool.push_back(std::make_unique<Fiber>(static_cast<unsigned>(pool.size())));
  fibers.clear();
  for (size_t i = 0; i < threads; ++i) fibers.push_back(pool[i].get());
  std::vector<unsigned> ids(size_t{grid.x} * grid.y * grid.z);
  arrange(ids);
  for (const unsigned id : ids) {
    blockIdx = {id % grid.x, id / grid.x % grid.y, id / (grid.x * grid.y)};
    run_block(shared_bytes);
  }
  return cudaSuccess;
}

void* dynamic_shared() { return dynamic.get(); }

unsigned lane_id() { return current->id % kWarp; }

void barrier(Place place) {
  if (left_out(place)) return;
  current->place = place;
  current->state = State::AtBarrier;
  leave();
}

void warp_barrier(unsigned mask, Place place) {
  if (!left_out(place)) warp({WarpOperation::Barrier, mask, 0, lane_id()}, place);
}

uint64_t warp_exchange(unsigned mask, uint64_t value, unsigned lane, Place place) {
  return warp({WarpOperation::Exchange, mask, value, lane}, place);
}

unsigned warp_ballot(unsigned mask, bool vote, Place place) {
  return static_cast<unsigned>(warp({WarpOperation::Ballot, mask, vote, lane_id()}, place));
}

}  // namespace emulation
