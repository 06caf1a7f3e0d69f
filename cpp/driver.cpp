#include "driver.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <unistd.h>

#include <fstream>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
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

// ---- Forks: libgomp hangs in a child of a process that used it, through us or through any other
// library.

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

// ---- How many threads.

std::atomic<int> everywhere{0}, from_environment{0}, quota{0};
thread_local int here = 0;

// Bytes of the arrays that are worth another thread. Where steps follow at once OpenMP's idle
// threads still spin, and a step breaks even at 16k to 32k elements of AdamW in float32, 16 bytes
// each. After some milliseconds they sleep and have to be woken: then it breaks even at 512k
// (bench/threshold.py, Zen 4), so that a thread has to have `sleepy` times as much to do.
std::atomic<std::ptrdiff_t> grain{3 << 17};
constexpr std::ptrdiff_t sleepy = 11;
constexpr std::chrono::milliseconds awake{1};
std::atomic<std::chrono::steady_clock::duration> last_end{};  // of what could have had two threads
std::atomic<int> widest{0};

int processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

#if defined(_OPENMP)
// What OpenMP uses where nobody called omp_set_num_threads. That counts for the calling thread
// alone, perhaps since before our import: so a new thread is asked. Not while we are loaded, where
// a new thread could wait for the loader, and the loader for it.
int openmp_untouched() noexcept {
  static const int untouched = [] {
    int threads = omp_get_max_threads();
    try {
      std::thread([&threads] { threads = omp_get_max_threads(); }).join();
    } catch (const std::exception&) {
    }
    return threads;
  }();
  return untouched;
}

// The first number of OMP_NUM_THREADS, 0 where there is none.
const int openmp_asked = [] {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long n = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return n > 0 && n <= std::numeric_limits<int>::max() ? static_cast<int>(n) : 0;
}();

// Starts and joins as many threads as a team needs: where that fails libgomp would end the process.
// Tried again where the calling thread's last team was smaller, since libgomp keeps no more.
bool can_start(int team) noexcept {
  thread_local int last = 1;
  if (team <= std::exchange(last, team)) return true;
  std::mutex gate;
  std::vector<std::thread> crew;
  bool started = true;
  {
    const std::lock_guard<std::mutex> closed(gate);
    try {
      crew.reserve(static_cast<std::size_t>(team) - 1);
      while (static_cast<int>(crew.size()) < team - 1)
        crew.emplace_back([&gate] { const std::lock_guard<std::mutex> pass(gate); });
    } catch (const std::exception&) {
      started = false;
    }
  }
  for (std::thread& member : crew) member.join();
  if (!started) last = 1;
  return started;
}
#endif

// Calls work(rank, team) for every rank of a team. Regions of several callers don't run side by
// side: who finds one running works alone, so that many threads that step at once don't crowd the
// processors.
template <class Work> void parallel_for(int team, const Work& work) noexcept {
#if defined(_OPENMP)
  static std::atomic<bool> busy{false};
  if (team > 1 && omp_in_parallel() == 0 && !busy.exchange(true, std::memory_order_acquire)) {
    const bool enough = can_start(team);
    if (enough) {
#pragma omp parallel num_threads(team)
      {
        if (omp_get_thread_num() == 0) widest = std::max(widest.load(), omp_get_num_threads());
        work(omp_get_thread_num(), omp_get_num_threads());
      }
    }
    busy.store(false, std::memory_order_release);
    if (enough) return;
  }
#endif
  work(0, 1);
}

int team_for(std::ptrdiff_t bytes) {
  std::ptrdiff_t shares = bytes / grain;  // asked first: a small step makes no system call
  if (shares >= 2 && std::chrono::steady_clock::now().time_since_epoch() - last_end.load() > awake)
    shares /= sleepy;
  if (shares < 2) return 1;
  return static_cast<int>(std::min<std::ptrdiff_t>(shares, threads().threads));
}

bool computes_double(const span& a) { return a.x.kind == kind::float64; }

// Calls work(begin, end, first, last) for all elements of all spans, for as many spans of the same
// set at a time as there are: one region, balanced by bytes.
template <class Bytes, class Work> void over(const std::vector<span>& spans,
                                             const Bytes& bytes_per_element,
                                             const Work& work) noexcept {
  std::ptrdiff_t total = 0;
  for (const span& a : spans) total += a.size * bytes_per_element(a);

  parallel_for(team_for(total), [&](int rank, int team) {
    const default_environment environment;
    const span* a = spans.data();
    const span* const end = a + spans.size();
    // Where this thread's share begins and ends, in bytes from the present span's start.
    std::ptrdiff_t from = cut(total, rank, team), to = cut(total, rank + 1, team);
    const auto own = [&] { return share(a->size, bytes_per_element(*a), from, to); };
    const auto next = [&] {
      const std::ptrdiff_t bytes = a->size * bytes_per_element(*a);
      ++a;
      from -= bytes;
      to -= bytes;
    };
    while (a != end && to > 0) {
      if (from >= a->size * bytes_per_element(*a)) {
        next();
        continue;
      }
      const span* const begin = a;
      const std::ptrdiff_t first = own().first;
      std::ptrdiff_t last = 0;
      do {
        last = own().second;
        next();
      } while (a != end && to > 0 && a->set == begin->set &&
               computes_double(*a) == computes_double(*begin));
      work(begin, a, first, last);
    }
  });
  if (total >= 2 * grain) last_end = std::chrono::steady_clock::now().time_since_epoch();
}

// The work of `over` on each span by itself.
template <class Work> auto one_by_one(const Work& work) {
  return [&work](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
    for (; a != end; ++a, first = 0)
      if (const std::ptrdiff_t to = a + 1 == end ? last : a->size; first < to) work(*a, first, to);
  };
}

}  // namespace

thread_limit threads() {
#if defined(_OPENMP)
  if (forked()) return {1, "forked child"};
  if (here > 0) return {here, "schuss.threads"};
  if (everywhere > 0) return {everywhere, "schuss.set_num_threads"};
  const int openmp_now = omp_get_max_threads();
  if (openmp_now != openmp_untouched())
    return {openmp_now, "omp_set_num_threads"};  // threadpoolctl's way
  if (from_environment > 0) return {from_environment, "SCHUSS_NUM_THREADS"};
  if (openmp_asked > 0) return {openmp_asked, "OMP_NUM_THREADS"};
  const int allowed = processors();
  if (quota > 0 && quota < allowed) return {quota, "cgroup quota"};
  return {allowed, "processors"};
#else
  return {1, "built without OpenMP"};
#endif
}

int set_threads_here(int n) { return std::exchange(here, n); }
void set_threads_everywhere(int n) { everywhere = n; }
void set_threads_from_environment(int n) { from_environment = n; }
void set_quota(int n) { quota = n; }
std::ptrdiff_t set_grain(std::ptrdiff_t bytes) {
  return grain.exchange(std::max<std::ptrdiff_t>(1, bytes));
}
int widest_region() { return widest.exchange(0); }

std::ptrdiff_t cut(std::ptrdiff_t total, int rank, int team) noexcept {
  return total / team * rank + total % team * rank / team;
}

std::pair<std::ptrdiff_t, std::ptrdiff_t> share(std::ptrdiff_t size,
                                                std::ptrdiff_t bytes_per_element,
                                                std::ptrdiff_t from, std::ptrdiff_t to) noexcept {
  const auto edge = [&](std::ptrdiff_t target) -> std::ptrdiff_t {
    if (target >= size * bytes_per_element) return size;
    return target <= 0 ? 0 : target / bytes_per_element / chunk * chunk;
  };
  return {edge(from), edge(to)};
}

namespace {

std::ptrdiff_t width(const span& a) { return a.width; }

const rule& rule_of(const table& kernels, const span& a, const std::vector<scalars>& sets) {
  return kernels.rules[sets[a.set].rule];
}

// The sums of a span's chunks, `stride` apart, folded pairwise by index into the first.
void fold(double* sums, std::ptrdiff_t count, std::ptrdiff_t stride) {
  for (std::ptrdiff_t n = count; n > 1; n = (n + 1) / 2) {
    for (std::ptrdiff_t k = 0; k < n / 2; ++k)
      sums[k * stride] = sums[2 * k * stride] + sums[(2 * k + 1) * stride];
    if (n % 2 == 1) sums[n / 2 * stride] = sums[(n - 1) * stride];
  }
}

}  // namespace

void run(const table& kernels, const std::vector<span>& spans,
         const std::vector<scalars>& sets) noexcept {
  over(spans, width,
       [&](const span* a, const span* end, std::ptrdiff_t first, std::ptrdiff_t last) {
         const rule& own = rule_of(kernels, *a, sets);
         const kernel update = computes_double(*a) ? own.float64 : own.float32;
         update(a, end, first, last, sets[a->set]);
       });
}

std::ptrdiff_t chunks(std::ptrdiff_t size) noexcept { return (size + chunk - 1) / chunk; }

measure norm(const table& kernels, const std::vector<span>& spans,
             std::vector<double>& sums) noexcept {
  std::atomic<bool> finite{true};
  const auto bytes_per_element = [](const span& a) { return a.g.width; };
  const auto add = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    if (!kernels.add_squares(a.g, first, last, sums.data() + a.chunk + first / chunk))
      finite = false;
  };
  over(spans, bytes_per_element, one_by_one(add));
  double total = 0;
  for (const span& a : spans) {
    fold(sums.data() + a.chunk, chunks(a.size), 1);
    if (a.size > 0) total += sums[static_cast<std::size_t>(a.chunk)];
  }
  return {total, finite};
}

void look(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
          int wanted, std::vector<double>& sums) noexcept {
  const auto regard = [&](const span& a, std::ptrdiff_t first, std::ptrdiff_t last) {
    const rule& own = rule_of(kernels, a, sets);
    const looking at = computes_double(a) ? own.look64 : own.look32;
    at(a, first, last, sets[a.set], wanted, sums.data() + most_sums * (a.chunk + first / chunk));
  };
  over(spans, width, one_by_one(regard));
  for (const span& a : spans)
    for (int s = 0; s < most_sums; ++s)
      fold(sums.data() + most_sums * a.chunk + s, chunks(a.size), most_sums);
}

}  // namespace schuss
