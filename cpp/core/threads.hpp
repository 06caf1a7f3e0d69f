// Threads: how many, under which environment, and the one region that runs on them.
#pragma once

#include <cstddef>

#if defined(__SSE2__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace schuss {

// The default floating-point environment, and the caller's again afterwards: a library built with
// -ffast-math may have set flush-to-zero in some threads and not in others.

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

// How many threads a large step would use, and who says so.
struct thread_limit {
  int threads;
  const char* reason;
};
thread_limit threads();

// Limits, the strongest first; 0 takes one away. `here` counts for the calling thread alone.
int set_threads_here(int n);  // returns the one before
void set_threads_everywhere(int n);
void set_threads_from_environment(int n);  // SCHUSS_NUM_THREADS
void set_quota(int n);                     // what the control group allows

// Bytes that a thread must have to do before it is woken. Returns the one before; the tests lower
// it so that threads really run.
std::ptrdiff_t set_grain(std::ptrdiff_t bytes);

// The most threads that a region has had since the last call.
int widest_region();

// How many threads should share work on so many bytes, and that it is done.
int team_for(std::ptrdiff_t bytes) noexcept;
void region_ended(std::ptrdiff_t bytes) noexcept;

// Calls work(rank, team) for every rank of a team. Regions of several callers don't run side by
// side: who finds one running works alone, so that many threads that step at once don't crowd the
// processors.
using share_of_work = void (*)(const void* work, int rank, int team);
void parallel_for(int team, const void* work, share_of_work share) noexcept;

template <class Work> void parallel_for(int team, const Work& work) noexcept {
  parallel_for(team, &work, [](const void* own, int rank, int members) {
    (*static_cast<const Work*>(own))(rank, members);
  });
}

}  // namespace schuss
