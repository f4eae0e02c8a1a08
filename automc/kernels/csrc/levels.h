/* Activations rounded to levels of 8 bits, as `automc.compression.quantize` rounds them. */

#ifndef AUTOMC_LEVELS
#define AUTOMC_LEVELS

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

typedef int vec __attribute__((vector_size(4 * LANES)));
typedef float real __attribute__((vector_size(4 * LANES)));

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline vec all(int x) { return x - (vec){}; }
static inline real same(float x) { return x - (real){}; }
static inline vec load(const void *at) {
  vec x;
  memcpy(&x, at, sizeof x);
  return x;
}
static inline void store(void *at, vec x) { memcpy(at, &x, sizeof x); }

typedef struct {
  float step, inverse, low, high, zero, top;
} Levels;

static inline Levels levels_of(const float *levels) {
  const float step = levels[0], zero = levels[1], top = levels[2];
  return (Levels){step, 1.0f / step, -(zero + 1) * step, (top - zero + 1) * step, zero, top};
}

#if LANES == 16
/* The nearest integers to x / step, as division finds it: the quotient by the reciprocal is put right by what it leaves
   (Markstein 1990). Large numbers are limited to one level above the last; what is below all integers becomes the
   least one. */
static inline __m512i nearest(__m512 x, const Levels *v) {
  x = _mm512_min_ps(x, _mm512_set1_ps(v->high));
  const __m512 q = _mm512_mul_ps(x, _mm512_set1_ps(v->inverse));
  const __m512 left = _mm512_fnmadd_ps(q, _mm512_set1_ps(v->step), x);
  return _mm512_cvtps_epi32(_mm512_fmadd_ps(left, _mm512_set1_ps(v->inverse), q));
}

/* 16 inputs of 4 tokens: lane g holds group g of all four */
static inline __m512i round_four(const float *x, ptrdiff_t apart, const Levels *v, __mmask16 *odd) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + apart);
  const __m512 c = _mm512_loadu_ps(x + 2 * apart), d = _mm512_loadu_ps(x + 3 * apart);
  *odd |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q);
  const __m512i zero = _mm512_set1_epi16((short)v->zero), top = _mm512_set1_epi16((short)v->top);
  const __m512i ab = _mm512_adds_epi16(_mm512_packs_epi32(nearest(a, v), nearest(b, v)), zero);
  const __m512i cd = _mm512_adds_epi16(_mm512_packs_epi32(nearest(c, v), nearest(d, v)), zero);
  return _mm512_packus_epi16(_mm512_min_epi16(ab, top), _mm512_min_epi16(cd, top));
}

/* 16 inputs of 16 tokens, `apart` floats from each other, to 4 groups, `next` bytes from each other; whether all are
   numbers */
static inline int round_square(const float *x, ptrdiff_t apart, const Levels *v, uint8_t *out, ptrdiff_t next) {
  __mmask16 odd = 0;
  __m512i t[4];
  for (int i = 0; i < 4; i++) t[i] = round_four(x + 4 * i * apart, apart, v, &odd);
  const __m512i a = _mm512_shuffle_i32x4(t[0], t[1], 0x44), b = _mm512_shuffle_i32x4(t[2], t[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(t[0], t[1], 0xee), d = _mm512_shuffle_i32x4(t[2], t[3], 0xee);
  _mm512_storeu_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
  _mm512_storeu_si512(out + next, _mm512_shuffle_i32x4(a, b, 0xdd));
  _mm512_storeu_si512(out + 2 * next, _mm512_shuffle_i32x4(c, d, 0x88));
  _mm512_storeu_si512(out + 3 * next, _mm512_shuffle_i32x4(c, d, 0xdd));
  return !odd;
}

/* 16 inputs of one token */
static inline int round_row(const float *x, const Levels *v, uint8_t *out) {
  const __m512 given = _mm512_loadu_ps(x);
  const __m512i zero = _mm512_set1_epi32((int)v->zero), top = _mm512_set1_epi32((int)v->top);
  const __m512i level = _mm512_max_epi32(_mm512_add_epi32(nearest(given, v), zero), _mm512_setzero_si512());
  _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8(_mm512_min_epi32(level, top)));
  return !_mm512_cmp_ps_mask(given, given, _CMP_UNORD_Q);
}
#else
/* numbers of 0 to 255 as bytes */
static inline void put_bytes(uint8_t *out, vec x) {
#if LANES == 8
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  _mm_storel_epi64((__m128i *)out, _mm_packus_epi16(half, half));
#elif defined(__SSE2__)
  const __m128i half = _mm_packs_epi32((__m128i)x, (__m128i)x);
  const int four = _mm_cvtsi128_si32(_mm_packus_epi16(half, half));
  memcpy(out, &four, 4);
#else
  for (int i = 0; i < LANES; i++) out[i] = (uint8_t)x[i];
#endif
}

static inline real either(vec first, real a, real b) { return (real)(((vec)a & first) | ((vec)b & ~first)); }

static inline int round_row(const float *x, const Levels *v, uint8_t *out) {
  vec odd = {};
  for (int k = 0; k < 16; k += LANES) {
    const real given = (real)load(x + k);
    odd |= given != given;
    const real from = either(given > v->low, given, same(v->low)); /* the lower limit of what is no number */
    /* adding and subtracting 1.5 * 2^23 rounds to even */
    real level = either(from < v->high, from, same(v->high)) / v->step + 12582912.0f - 12582912.0f + v->zero;
    level = either(level > 0, level, same(0));
    put_bytes(out + k, __builtin_convertvector(either(level < v->top, level, same(v->top)), vec));
  }
  int any = 0;
  for (int i = 0; i < LANES; i++) any |= odd[i];
  return !any;
}

static inline int round_square(const float *x, ptrdiff_t apart, const Levels *v, uint8_t *out, ptrdiff_t next) {
  int numbers = 1;
  for (int t = 0; t < 16; t++) {
    uint8_t row[16];
    numbers &= round_row(x + t * apart, v, row);
    for (int g = 0; g < 4; g++) memcpy(out + g * next + 4 * t, row + 4 * g, 4);
  }
  return numbers;
}
#endif

/* 16 pixels of up to 4 channels, `apart` floats from each other, as words; whether all of `count` are numbers */
static inline int round_pixels(const float *x, ptrdiff_t apart, int channels, int count, const Levels *v,
                               uint8_t *out) {
#if LANES == 16
  const __mmask16 present = (__mmask16)((1u << count) - 1);
  const __m512i zero = _mm512_set1_epi32((int)v->zero), top = _mm512_set1_epi32((int)v->top);
  __m512i words = _mm512_setzero_si512();
  __mmask16 odd = 0;
  _Pragma("GCC unroll 4") for (int c = 0; c < 4; c++) {
    if (c >= channels) break;
    const __m512 given = _mm512_maskz_loadu_ps(present, x + c * apart);
    const __m512i level = _mm512_max_epi32(_mm512_add_epi32(nearest(given, v), zero), _mm512_setzero_si512());
    words = _mm512_or_si512(words, _mm512_slli_epi32(_mm512_min_epi32(level, top), 8 * c));
    odd |= _mm512_cmp_ps_mask(given, given, _CMP_UNORD_Q);
  }
  _mm512_mask_storeu_epi32(out, present, words);
  return !odd;
#else
  int numbers = 1;
  for (int c = 0; c < channels; c++) {
    float row[16] = {0};
    uint8_t level[16];
    memcpy(row, x + c * apart, sizeof(float) * count);
    numbers &= round_row(row, v, level);
    for (int p = 0; p < count; p++) out[4 * p + c] = level[p];
  }
  return numbers;
#endif
}

#endif
