#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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

namespace schuss {
namespace {

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

}  // namespace

// ---- A region.

void parallel_for(int team, const void* work, share_of_work share) noexcept {
#if defined(_OPENMP)
  static std::atomic<bool> busy{false};
  if (team > 1 && omp_in_parallel() == 0 && !busy.exchange(true, std::memory_order_acquire)) {
    const bool enough = can_start(team);
    if (enough) {
#pragma omp parallel num_threads(team)
      {
        if (omp_get_thread_num() == 0) widest = std::max(widest.load(), omp_get_num_threads());
        share(work, omp_get_thread_num(), omp_get_num_threads());
      }
    }
    busy.store(false, std::memory_order_release);
    if (enough) return;
  }
#endif
  share(work, 0, 1);
}

int team_for(std::ptrdiff_t bytes) noexcept {
  std::ptrdiff_t shares = bytes / grain;  // asked first: a small step makes no system call
  if (shares >= 2 && std::chrono::steady_clock::now().time_since_epoch() - last_end.load() > awake)
    shares /= sleepy;
  if (shares < 2) return 1;
  return static_cast<int>(std::min<std::ptrdiff_t>(shares, threads().threads));
}

void region_ended(std::ptrdiff_t bytes) noexcept {
  if (bytes >= 2 * grain) last_end = std::chrono::steady_clock::now().time_since_epoch();
}

// ---- Limits.

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

}  // namespace schuss
