// Another library that uses OpenMP.

extern "C" int team(int threads) {
  int members = 0;
#pragma omp parallel num_threads(threads) reduction(+ : members)
  members += 1;
  return members;
}
