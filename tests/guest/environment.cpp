// The floating-point environment of the calling thread.
#include <immintrin.h>

extern "C" unsigned get() { return _mm_getcsr(); }
extern "C" void set(unsigned csr) { _mm_setcsr(csr); }
