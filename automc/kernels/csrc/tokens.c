/* Linear layers on rows of features (tokens), their weights sparse.

   Blocks of up to 8 outputs: a tile of tokens is transposed into planes, multiplied as in product.h, and transposed back.
   Blocks of 16 outputs need no transposing: outputs lie across the lanes, each kept column adds a vector of weights times
   one broadcast input of each token. */

#include "product.h"

/* to[j][i] = from[i][j] for 16 by 16, rows that far apart; of both sides only so many are there. */
#if LANES == 16
/* Four rows of each four: lane l of the result is row 4 l + j, columns c to c + 3. Loads do most of the rearranging. */
static inline __m512 quarters(const float *from, ptrdiff_t row, int j, int c) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(from + j * row + c));
  x = _mm512_mask_broadcast_f32x4(x, 0x00f0, _mm_loadu_ps(from + (4 + j) * row + c));
  x = _mm512_mask_broadcast_f32x4(x, 0x0f00, _mm_loadu_ps(from + (8 + j) * row + c));
  return _mm512_mask_broadcast_f32x4(x, 0xf000, _mm_loadu_ps(from + (12 + j) * row + c));
}

static inline void transpose_whole(const float *from, ptrdiff_t from_row, float *to, ptrdiff_t to_row) {
  for (int c = 0; c < 16; c += 4) {
    const __m512 a = quarters(from, from_row, 0, c), b = quarters(from, from_row, 1, c);
    const __m512 d = quarters(from, from_row, 2, c), e = quarters(from, from_row, 3, c);
    const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(d, e)), high2 = _mm512_castps_pd(_mm512_unpackhi_ps(d, e));
    _mm512_storeu_pd((double *)(to + c * to_row), _mm512_unpacklo_pd(low, low2));
    _mm512_storeu_pd((double *)(to + (c + 1) * to_row), _mm512_unpackhi_pd(low, low2));
    _mm512_storeu_pd((double *)(to + (c + 2) * to_row), _mm512_unpacklo_pd(high, high2));
    _mm512_storeu_pd((double *)(to + (c + 3) * to_row), _mm512_unpackhi_pd(high, high2));
  }
}

static inline void transpose(const float *from, ptrdiff_t from_row, int rows, int columns, float *to, ptrdiff_t to_row) {
  if (rows == 16 && columns == 16) {
    transpose_whole(from, from_row, to, to_row);
    return;
  }
  for (int j = 0; j < columns; j++)
    for (int i = 0; i < rows; i++) to[j * to_row + i] = from[i * from_row + j];
}
#else
static inline void transpose(const float *from, ptrdiff_t from_row, int rows, int columns, float *to, ptrdiff_t to_row) {
  for (int j = 0; j < columns; j++)
    for (int i = 0; i < rows; i++) to[j * to_row + i] = from[i * from_row + j];
}
#endif

/* Adds `other`, if any, and clamps. */
static void finish(float *out, const float *other, ptrdiff_t count, float low, float high) {
  ptrdiff_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    vec x = *(const loose *)(out + i);
    if (other) x += *(const loose *)(other + i);
    *(loose *)(out + i) = clamp(x, low, high);
  }
  for (; i < count; i++) {
    const float x = other ? out[i] + other[i] : out[i];
    out[i] = x < low ? low : x > high ? high : x;
  }
}

/* in (tokens, inputs) to out (tokens, rows); `vectors` of tokens at once, for which the matrix's offsets were made. */
static void transposed(const Matrix *m, int inputs, int vectors, const float *in, const float *other, float *out,
                       int tokens, float low, float high, float *scratch) {
  const int pitch = vectors * LANES, bounded = other || low > -__builtin_inff() || high < __builtin_inff();
  const int each = m->parts == 1 ? 16 : m->rows; /* outputs whose sums wait; one part needs no more than are transposed */
  float *const planes = scratch, *const sums = scratch + (ptrdiff_t)inputs * pitch;
  const Place at = {.in = planes, .out = sums, .out_row = pitch, .lanes = LANES, .low = -__builtin_inff(),
                    .high = __builtin_inff()};
  for (int first = 0; first < tokens; first += pitch) {
    const int count = smaller(pitch, tokens - first), used = (count + LANES - 1) / LANES;
    const float *x = in + (ptrdiff_t)first * inputs;
    float *y = out + (ptrdiff_t)first * m->rows;
    for (int k = 0; k < inputs; k += 16)
      for (int t = 0; t < count; t += 16)
        transpose(x + (ptrdiff_t)t * inputs + k, inputs, smaller(16, count - t), smaller(16, inputs - k),
                  planes + (ptrdiff_t)k * pitch + t, pitch);
    if (count < used * LANES)
      for (int k = 0; k < inputs; k++)
        memset(planes + (ptrdiff_t)k * pitch + count, 0, 4 * (size_t)(used * LANES - count));
    for (int r = 0; r < m->rows; r += each) {
      const int rows = smaller(each, m->rows - r);
      product(m, used, r / m->block, (r + rows + m->block - 1) / m->block, at);
      for (int t = 0; t < count; t += 16)
        for (int i = 0; i < rows; i += 16)
          transpose(sums + (ptrdiff_t)i * pitch + t, pitch, smaller(16, rows - i), smaller(16, count - t),
                    y + (ptrdiff_t)t * m->rows + r + i, m->rows);
    }
    if (bounded) finish(y, other ? other + (ptrdiff_t)first * m->rows : 0, (ptrdiff_t)count * m->rows, low, high);
  }
}

/* Blocks of 16 outputs, T tokens. */
#define WIDE (16 / LANES)
#define ACROSS(T)                                                                                                      \
  static void across_##T(const Matrix *m, int inputs, const float *in, const float *other, float *out, float low,      \
                         float high) {                                                                                 \
    for (int b = 0; b < (m->rows + 15) / 16; b++) {                                                                    \
      vec acc[T][WIDE]; /* indexed by constants alone, lest it lies in memory */                                       \
      _Pragma("GCC unroll 16") for (int t = 0; t < T; t++)                                                             \
          _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) acc[t][i] =                                           \
              *(const loose *)(m->bias + b * 16 + i * LANES);                                                          \
      const float *value = m->value + (ptrdiff_t)m->start[b] * 16;                                                     \
      for (int k = m->start[b]; k < m->start[b + 1]; k++, value += 16) {                                               \
        const float *const x = in + m->offset[k];                                                                      \
        _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) {                                                       \
          const vec w = *(const loose *)(value + i * LANES);                                                           \
          _Pragma("GCC unroll 16") for (int t = 0; t < T; t++) acc[t][i] += w * x[(ptrdiff_t)t * inputs];              \
        }                                                                                                              \
      }                                                                                                                \
      _Pragma("GCC unroll 16") for (int t = 0; t < T; t++)                                                             \
          _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) {                                                     \
        const int row = b * 16 + i * LANES, lanes = smaller(LANES, m->rows - row);                                     \
        if (lanes <= 0) break;                                                                                         \
        const ptrdiff_t place = (ptrdiff_t)t * m->rows + row;                                                          \
        vec sum = acc[t][i], added = {};                                                                               \
        if (other) memcpy(&added, other + place, 4 * (size_t)lanes);                                                   \
        put(out + place, clamp(sum + added, low, high), lanes);                                                        \
      }                                                                                                                \
    }                                                                                                                  \
  }
#if LANES == 16
#define MOST 16
ACROSS(16) ACROSS(8)
#else
#define MOST 4
#endif
ACROSS(4) ACROSS(2) ACROSS(1)

/* The same for blocks of 16; offsets are columns. */
static void across(const Matrix *m, int inputs, const float *in, const float *other, float *out, int tokens, float low,
                   float high) {
  for (int t = 0; t < tokens;) {
    const int left = tokens - t;
    const int count = left >= MOST ? MOST : left >= 8 && MOST > 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const float *x = in + (ptrdiff_t)t * inputs, *added = other ? other + (ptrdiff_t)t * m->rows : 0;
    float *y = out + (ptrdiff_t)t * m->rows;
#if LANES == 16
    if (count == 16) across_16(m, inputs, x, added, y, low, high);
    if (count == 8) across_8(m, inputs, x, added, y, low, high);
#endif
    if (count == 4) across_4(m, inputs, x, added, y, low, high);
    if (count == 2) across_2(m, inputs, x, added, y, low, high);
    if (count == 1) across_1(m, inputs, x, added, y, low, high);
    t += count;
  }
}

/* A layer is one piece of memory that begins with this; places in it are bytes from its beginning. */
typedef struct {
  Head head;
  int32_t inputs, vectors;
  float low, high;
  int32_t work;   /* multiply-adds of vectors for a vector of tokens; for who deals out tokens to threads */
  int64_t floats; /* of scratch */
  Stored matrix;
} Plan;

int tokens_lanes(void) { return LANES; }
int tokens_plan_bytes(void) { return sizeof(Plan); }

/* A layer on rows of features, as torch has them; `other`, if any, is added before the limits. */
void tokens_run(const Plan *plan, const float *in, const float *other, float *out, int tokens, float *scratch) {
  const Matrix m = placed(&plan->matrix, (const char *)plan);
  const unsigned before = without_denormals();
  if (m.block == 16)
    across(&m, plan->inputs, in, other, out, tokens, plan->low, plan->high);
  else
    transposed(&m, plan->inputs, plan->vectors, in, other, out, tokens, plan->low, plan->high, scratch);
  usual(before);
}
