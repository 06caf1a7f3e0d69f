// How many threads a step has, and the one kind of region that runs on them.
//
// OpenMP says how many are wanted, and everything that limits it limits us. The threads are a crew
// of our own, because of how OpenMP's wait: libgomp's spin for milliseconds after each region, on
// processors that the matrix products of a training run want, and its barrier waits for whoever
// wakes up last (bench/README.md has what both cost; docs/threads.md tells users).
#pragma once

#include <cstddef>

namespace schuss {

// ---- Limits.

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

// Bytes that a thread must have to do before it is called. Returns the one before; the tests lower
// it so that threads really run.
std::ptrdiff_t set_grain(std::ptrdiff_t bytes);

// ---- Regions.

constexpr int most_pieces = 1024;

// How many threads should work on so many bytes, and in how many pieces.
struct division {
  int team, pieces;
};
division divide(std::ptrdiff_t bytes) noexcept;

// Calls work(piece) once for each 0 <= piece < pieces, on at most `team` threads, in the default
// floating-point environment, and ends when all pieces are done: pieces are taken, not dealt, so
// that nobody waits for a thread that isn't there yet. Each thread begins with a share of its own,
// the same one in every region. Regions of several callers don't run side by side: who finds one
// running works alone, so that many threads that step at once don't crowd the processors.
void parallel_for(division, const void* work, void (*call)(const void* work, int piece)) noexcept;

template <class Work> void parallel_for(division into, const Work& work) noexcept {
  parallel_for(into, &work,
               [](const void* own, int piece) { (*static_cast<const Work*>(own))(piece); });
}

// The most threads that a region has been open to since the last call.
int widest_region();

}  // namespace schuss
