#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#else
#include <condition_variable>
#include <mutex>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace schuss {
namespace {

// ---- The floating-point environment: a library built with -ffast-math may have set flush-to-zero
// in some threads and not in others.

class default_environment {
 public:
#if defined(__SSE2__)
  default_environment() noexcept : saved_(_mm_getcsr()) {
    _mm_setcsr(0x1f80);
  }  // round to nearest, all exceptions masked
  ~default_environment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  default_environment() noexcept {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~default_environment() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
  default_environment(const default_environment&) = delete;
  default_environment& operator=(const default_environment&) = delete;
};

// ---- Forks: the crew stays behind in the parent, and a child may be as short-lived as its caller
// wants, so that it works alone.

// Whether this process was forked, and did not start a program of its own since: Linux tells, also
// of a fork before our import.
bool forked_before_import() {
#if defined(__linux__)
  constexpr unsigned long forked_no_exec = 0x40;  // PF_FORKNOEXEC, in field 9 of proc_pid_stat(5)
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::size_t name_end = text.rfind(')');  // the name, field 2, may hold anything
  if (name_end == std::string::npos) return false;
  std::size_t field = name_end + 1;
  for (int number = 2; number < 8 && field != std::string::npos; ++number)
    field = text.find(' ', field + 1);
  return field != std::string::npos &&
         (std::strtoul(text.c_str() + field, nullptr, 10) & forked_no_exec) != 0;
#else
  return false;
#endif
}

bool& forked() {
  static bool child = [] {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] { forked() = true; });
#endif
    return forked_before_import();
  }();
  return child;
}
[[maybe_unused]] const bool registered_at_load = forked();

// ---- Limits.

std::atomic<int> everywhere{0}, from_environment{0}, quota{0};
thread_local int here = 0;

int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// ---- OpenMP says how many threads are wanted: its variables, and GNU's runtime where there is
// one. It is opened, and not linked: a wheel brings no second copy along, which nobody's limits
// would reach, and needs none. So whoever has libgomp has its limits, and a slim container has
// ours.

// The first number that a variable has, 0 where there is none.
int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  const long n = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return n > 0 && n <= std::numeric_limits<int>::max() ? static_cast<int>(n) : 0;
}
const int openmp_asked = number_in("OMP_NUM_THREADS");
const int openmp_most = number_in("OMP_THREAD_LIMIT");

using openmp_number = int (*)();
std::atomic<openmp_number> max_threads{nullptr}, inside_region{nullptr};

#if defined(__linux__)
void ask_from_now_on(void* library) noexcept {
  if (library == nullptr) return;
  inside_region = reinterpret_cast<openmp_number>(dlsym(library, "omp_in_parallel"));
  max_threads = reinterpret_cast<openmp_number>(dlsym(library, "omp_get_max_threads"));
}

// At our import, so that threadpoolctl finds it from then on: the one that the process has under
// this name, PyTorch's for instance, or else the system's.
[[maybe_unused]] const bool asked_for_openmp = [] {
  ask_from_now_on(dlopen("libgomp.so.1", RTLD_LAZY));
  return true;
}();

// Where the system has none: a copy that came with another library, whose file has a name of its
// own, as scikit-learn's libgomp-e985bcbb.so.1.0.0. Python unloads no module, nor what came with
// it, so that the name stays.
void look_for_a_copy() noexcept {
  const char* path = nullptr;
  const auto look = [](dl_phdr_info* library, std::size_t, void* found) {
    const std::string_view file = library->dlpi_name;
    if (file.substr(file.rfind('/') + 1, 7) != "libgomp") return 0;
    *static_cast<const char**>(found) = library->dlpi_name;
    return 1;
  };
  if (dl_iterate_phdr(look, &path) != 0) ask_from_now_on(dlopen(path, RTLD_LAZY));
}
#endif

// What OpenMP uses where nobody called omp_set_num_threads. That counts for the calling thread
// alone, perhaps since before our import: so a new thread is asked. Not while we are loaded, where
// a new thread could wait for the loader, and the loader for it.
int openmp_untouched() noexcept {
  static const int untouched = [] {
    int threads = max_threads.load()();
    try {
      std::thread([&threads] { threads = max_threads.load()(); }).join();
    } catch (const std::exception&) {
    }
    return threads;
  }();
  return untouched;
}

// What omp_set_num_threads has set in this thread, 0 where nothing; threadpoolctl sets it so.
int openmp_set() noexcept {
#if defined(__linux__)
  if (max_threads == nullptr) look_for_a_copy();
#endif
  if (max_threads == nullptr) return 0;
  const int now = max_threads.load()();
  return now == openmp_untouched() ? 0 : now;
}

bool in_parallel() noexcept {
  const openmp_number inside = inside_region;
  return inside != nullptr && inside() != 0;
}

thread_limit asked() {
  if (forked()) return {1, "forked child"};
  if (here > 0) return {here, "schuss.threads"};
  if (everywhere > 0) return {everywhere, "schuss.set_num_threads"};
  if (const int set = openmp_set(); set > 0) return {set, "omp_set_num_threads"};
  if (from_environment > 0) return {from_environment, "SCHUSS_NUM_THREADS"};
  if (openmp_asked > 0) return {openmp_asked, "OMP_NUM_THREADS"};
  const int allowed = processors();
  if (quota > 0 && quota < allowed) return {quota, "cgroup quota"};
  return {allowed, "processors"};
}

// ---- Waiting.

using word = std::atomic<std::uint32_t>;

#if defined(__linux__)
// Sleeps while the word has this value; may return early.
void sleep_while(word& w, std::uint32_t value) noexcept {
  syscall(SYS_futex, &w, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake(word& w, int threads) noexcept {
  syscall(SYS_futex, &w, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}
#else
// Never destroyed: the crew sleeps here while the process ends.
struct bed {
  std::mutex mutex;
  std::condition_variable changed;
};
bed& only_bed() {
  static bed* const made = new bed;
  return *made;
}
void sleep_while(word& w, std::uint32_t value) noexcept {
  std::unique_lock<std::mutex> held(only_bed().mutex);
  if (w.load() == value) only_bed().changed.wait(held);
}
void wake(word&, int) noexcept {
  const std::lock_guard<std::mutex> held(only_bed().mutex);
  only_bed().changed.notify_all();
}
#endif

// Lets the other threads of this core run ahead.
void relax() noexcept {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("yield");
#endif
}

// How long a thread spins before it sleeps: steps that follow at once find the crew awake, and who
// comes in between, a matrix product, hardly notices. Sleeping at once, two threads gained 0.5, 0.9
// and 1.2 on 32768, 131072 and 262144 elements of AdamW in place of 1.5, 1.8 and 1.8; giving up the
// processor while they spin, 0.9 to 1.0. The products take as long with all three.
using clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds patience{20};

// Whether done() comes true within that time.
template <class Done> bool spin_until(const Done& done) noexcept {
  const clock::time_point start = clock::now();
  do {
    if (done()) return true;
    relax();
  } while (clock::now() - start < patience);
  return false;
}

// ---- The crew: threads that sleep until a region opens. All of it is in static storage and needs
// no destructor, since a thread may look at it at any time: late, when its region is long over, and
// while the process exits.

constexpr int most_threads = 1024;

// The pieces of a share that nobody has taken, from `front` to `back`, in one word: its thread
// takes the first, those that have finished their own take the last. So every thread has nearly
// the same pieces in every region, and finds them in its caches. A cache line each.
class alignas(64) share {
 public:
  void fill(int front, int back) noexcept {
    left_.store(static_cast<std::uint64_t>(back) << 32 | static_cast<std::uint32_t>(front),
                std::memory_order_relaxed);
  }
  bool take(bool own, int& piece) noexcept {
    std::uint64_t left = left_.load(std::memory_order_relaxed), less;
    do {
      const int front = static_cast<int>(left & 0xffffffff), back = static_cast<int>(left >> 32);
      if (front == back) return false;
      piece = own ? front : back - 1;
      less = own ? left + 1 : left - (std::uint64_t{1} << 32);
    } while (!left_.compare_exchange_weak(left, less, std::memory_order_relaxed));
    return true;
  }

 private:
  std::atomic<std::uint64_t> left_{0};
};

// Written by its caller before the door opens, read by those who came in before it closed.
struct region {
  const void* work;
  void (*call)(const void* work, int piece);
  int team;
#if defined(__linux__)
  cpu_set_t allowed, beside;  // where its caller may run, and that without the caller's processor
#endif
  share shares[most_threads];

  // Whatever is left to take, the own share first.
  void work_as(int rank) noexcept {
    for (int other = 0, piece = 0; other < team; ++other)
      while (shares[(rank + other) % team].take(other == 0, piece)) call(work, piece);
  }
};
region current;

// Who may still come into the region, who is in it, and whether its caller sleeps until they have
// left. Closed where there is no place; nobody writes the region then but who has `taken` it.
constexpr std::uint32_t place = 1, inside = 1 << 12, caller_sleeps = 1u << 31;
constexpr std::uint32_t places = inside - 1, insiders = caller_sleeps - inside;
word door{0};
word opened{0};                           // regions so far: what the crew sleeps on
std::atomic<int> asleep{0};               // threads of the crew
std::atomic<bool> taken{false};           // by a caller
std::atomic<bool> at_work[most_threads];  // the crew, by rank

bool enter() noexcept {
  std::uint32_t now = door.load(std::memory_order_relaxed);
  do
    if ((now & places) == 0) return false;
  while (!door.compare_exchange_weak(now, now - place + inside, std::memory_order_acquire,
                                     std::memory_order_relaxed));
  return true;
}

void leave() noexcept {
  const std::uint32_t before = door.fetch_sub(inside, std::memory_order_release);
  if ((before & insiders) == inside && (before & caller_sleeps) != 0) wake(door, 1);
}

#if defined(__linux__)
// A thread that was woken runs anywhere until it leaves the region: where another one took its
// processor in the middle of a piece, it can go on on the caller's, who sleeps until that is done.
class roaming {
 public:
  explicit roaming(bool woken) noexcept : woken_(woken) {
    if (woken_) sched_setaffinity(0, sizeof current.allowed, &current.allowed);
  }
  ~roaming() {
    if (woken_) sched_setaffinity(0, sizeof current.beside, &current.beside);
  }
  roaming(const roaming&) = delete;
  roaming& operator=(const roaming&) = delete;

 private:
  bool woken_;
};
#else
struct roaming {
  explicit roaming(bool) noexcept {}
};
#endif

// What a thread of the crew does all its life; `seen` regions were opened before it.
[[noreturn]] void serve(int rank, std::uint32_t seen) noexcept {
  const default_environment environment;
  const auto called = [&seen] { return opened.load(std::memory_order_acquire) != seen; };
  for (;;) {
    asleep.fetch_add(1);
    while (!called()) sleep_while(opened, seen);
    asleep.fetch_sub(1);
    bool woken = true;
    do {
      seen = opened.load(std::memory_order_acquire);
      if (!enter()) break;  // late: the work is done
      {
        const roaming free(std::exchange(woken, false));
        at_work[rank].store(true, std::memory_order_relaxed);
        current.work_as(1 + (rank - 1) % (current.team - 1));
        at_work[rank].store(false, std::memory_order_relaxed);
      }
      leave();
    } while (spin_until(called));
  }
}

// Blocks the signals of the calling thread, which a new one inherits, but for its own faults: the
// process' signals are not for a thread that its owner doesn't know.
class signals_blocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  signals_blocked() noexcept {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &saved_);
  }
  ~signals_blocked() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
#else
  signals_blocked() noexcept {}
#endif
  signals_blocked(const signals_blocked&) = delete;
  signals_blocked& operator=(const signals_blocked&) = delete;
};

// The threads of the crew, and where they may run. Belongs to who has `taken` the region.
class roster {
 public:
  // Has as many threads at hand as a team of this size needs, or as can be started. Returns the
  // size of the team.
  int muster(int team) noexcept {
    follow();
    if (size_ < team - 1) start(team - 1);
    return std::min(team, size_ + 1);
  }

  // Brings those that are still at work to the caller's processor, which it leaves to them: after
  // all this time their own ones must have been taken from them in the middle of a piece, and the
  // system would leave them waiting. Between products the caller waited 2 ms, at times 5, in a step
  // of 6.
  void fetch() noexcept {
#if defined(__linux__)
    const int processor = sched_getcpu();
    if (processor < 0) return;
    cpu_set_t here_alone;
    CPU_ZERO(&here_alone);
    CPU_SET(static_cast<std::size_t>(processor), &here_alone);
    for (int i = 0; i < size_; ++i)
      if (at_work[i + 1].load(std::memory_order_relaxed))
        pthread_setaffinity_np(members_[i], sizeof here_alone, &here_alone);
    fetched_ = true;
#endif
  }

 private:
  void start(int wanted) noexcept {
    const signals_blocked blocked;
    try {
      for (; size_ < wanted; ++size_) {
        std::thread member(serve, size_ + 1, opened.load());
        members_[size_] = member.native_handle();
#if defined(__linux__)
        pthread_setname_np(members_[size_], "schuss");
#endif
        member.detach();
        place_one(size_);
      }
    } catch (const std::exception&) {  // no memory, or no more threads: the team stays smaller
    }
  }

#if defined(__linux__)
  // The crew is woken where the caller may run, but not on the caller's own processor. Where a
  // thread of BLAS spins on the other one, the system would wake a thread of ours beside its
  // caller, and the two would take turns: two threads gained 0.8 to 0.9, and gain 1.5 to 1.8 so.
  void follow() noexcept {
    cpu_set_t allowed;
    const int processor = sched_getcpu();
    if (processor < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    cpu_set_t beside = allowed;
    if (CPU_COUNT(&allowed) > 1) CPU_CLR(static_cast<std::size_t>(processor), &beside);
    const bool moved = std::exchange(fetched_, false) || !CPU_EQUAL(&beside, &current.beside);
    current.allowed = allowed;
    current.beside = beside;
    for (int i = 0; moved && i < size_; ++i) place_one(i);
  }
  void place_one(int member) noexcept {
    if (CPU_COUNT(&current.beside) > 0)  // 0 where there are more processors than a set can name
      pthread_setaffinity_np(members_[member], sizeof current.beside, &current.beside);
  }
#else
  void follow() noexcept {}
  void place_one(int) noexcept {}
#endif

  int size_;
  bool fetched_;  // so that some may be elsewhere than they belong
  std::thread::native_handle_type members_[most_threads];
};
roster crew;

void with_crew(int team, int pieces, const void* work, void (*call)(const void*, int)) noexcept {
  current.work = work;
  current.call = call;
  current.team = team;
  for (int rank = 0; rank < team; ++rank)
    current.shares[rank].fill(pieces * rank / team, pieces * (rank + 1) / team);
  door.store(static_cast<std::uint32_t>(team - 1) * place, std::memory_order_release);
  opened.fetch_add(1);
  if (asleep > 0) wake(opened, team - 1);

  current.work_as(0);

  door.fetch_and(~places, std::memory_order_relaxed);
  if (spin_until([] { return door.load(std::memory_order_acquire) == 0; })) return;
  crew.fetch();
  std::uint32_t now = door.fetch_or(caller_sleeps, std::memory_order_acquire) | caller_sleeps;
  for (; (now & insiders) != 0; now = door.load(std::memory_order_acquire)) sleep_while(door, now);
}

// ---- How much work is worth a thread: bytes of the arrays, each counted once. Two threads break
// even at 16384 elements of AdamW in float32, 16 bytes each, where they still spin, and at 262144
// to 524288 where the second has to be woken (bench/threshold.py, Zen 4).

std::atomic<std::ptrdiff_t> grain{3 << 17};  // for a thread that still spins
constexpr std::ptrdiff_t sleepy = 8;         // times as much for one that has to be woken
std::atomic<clock::duration> last_end{};     // of a region that could have had two threads

// What a thread takes at a time: 5 us of work in cache, so that nobody waits long for the last
// piece of another; to take one costs 0.01 to 0.1 us.
constexpr std::ptrdiff_t bytes_of_a_piece = 1 << 18;
constexpr std::ptrdiff_t least_pieces = 4;  // of a thread

std::atomic<int> widest{0};

}  // namespace

division divide(std::ptrdiff_t bytes) noexcept {
  const std::ptrdiff_t shares = bytes / grain;
  if (shares < 2) return {1, 1};  // a small step asks neither the system nor the clock
  const bool awake = clock::now().time_since_epoch() - last_end.load() <= patience;
  std::ptrdiff_t team = awake ? shares : shares / sleepy;
  team = team < 2 ? 1 : std::min<std::ptrdiff_t>({team, threads().threads, most_threads});
  // Shares of as many pieces each: 65000 elements in three pieces took 1.2 times as long.
  const std::ptrdiff_t own =
      std::min(std::max(bytes / team / bytes_of_a_piece, least_pieces), most_pieces / team);
  return {static_cast<int>(team), static_cast<int>(team * own)};
}

void parallel_for(division into, const void* work, void (*call)(const void*, int)) noexcept {
  const default_environment environment;
  int team = 1;
  if (into.team > 1 && !in_parallel() && !taken.exchange(true, std::memory_order_acquire)) {
    team = crew.muster(into.team);
    if (team > 1) {
      widest = std::max(widest.load(), team);
      with_crew(team, into.pieces, work, call);
    }
    taken.store(false, std::memory_order_release);
  }
  if (team == 1)
    for (int piece = 0; piece < into.pieces; ++piece) call(work, piece);
  if (into.pieces > 1) last_end = clock::now().time_since_epoch();
}

thread_limit threads() {
  const thread_limit limit = asked();
  if (openmp_most > 0 && openmp_most < limit.threads) return {openmp_most, "OMP_THREAD_LIMIT"};
  return limit;
}

int set_threads_here(int n) { return std::exchange(here, n); }
void set_threads_everywhere(int n) { everywhere = n; }
void set_threads_from_environment(int n) { from_environment = n; }
void set_quota(int n) { quota = n; }
std::ptrdiff_t set_grain(std::ptrdiff_t bytes) {
  return grain.exchange(std::max<std::ptrdiff_t>(1, bytes));
}
int widest_region() { return widest.exchange(0); }

}  // namespace schuss
