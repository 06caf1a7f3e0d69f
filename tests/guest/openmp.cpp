// Another library that uses OpenMP.

extern "C" int team(int threads) {
  int members = 0;
#pragma omp parallel num_threads(threads) reduction(+ : members)
  members += 1;
  return members;
}

// Each thread of a team calls, one after the other.
extern "C" void in_region(int threads, void (*call)()) {
#pragma omp parallel num_threads(threads)
#pragma omp critical
  call();
}
