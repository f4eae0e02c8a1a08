/* Vectors as wide as the processor's: LANES floats. */

#ifndef AUTOMC_VECTORS
#define AUTOMC_VECTORS

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));
/* Anywhere in memory. */
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t loose_mask __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec all(float x) { return x - (vec){}; }

/* Between low and high; what is not a number stays so: of two values x86 gives the second where they do not compare. */
static inline vec clamp(vec x, float low, float high) {
#if defined(__AVX512F__)
  return (vec)_mm512_min_ps((__m512)all(high), _mm512_max_ps((__m512)all(low), (__m512)x));
#elif defined(__AVX__)
  return (vec)_mm256_min_ps((__m256)all(high), _mm256_max_ps((__m256)all(low), (__m256)x));
#else
  const mask under = x < low, over = x > high;
  return (vec)(((mask)x & ~under & ~over) | ((mask)all(low) & under) | ((mask)all(high) & over));
#endif
}

/* Numbers below the least normal one count as zero until `usual` is given what this gave: with them a multiply-add takes
   a hundred times as long. */
static inline unsigned without_denormals(void) {
#if defined(__SSE__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  return before;
#else
  return 0;
#endif
}
static inline void usual(unsigned before) {
#if defined(__SSE__)
  _mm_setcsr(before);
#else
  (void)before;
#endif
}

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }

#endif
