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

/* The first lanes of a vector, from memory that may end behind them. */
static inline vec got(const float *from, int lanes) {
  if (lanes == LANES) return *(const loose *)from;
  vec x = {};
  memcpy(&x, from, 4 * (size_t)lanes);
  return x;
}

/* x * (1 + erf(x / sqrt(2))) / 2, by the odd rational function of degrees 11 and 10 that is nowhere more than 1.6e-8 from
   erf within +-3.92; outside erf is 1 or -1 in floats. */
static inline vec gelu(vec x) {
  const vec z = x * 0.70710678f, c = clamp(z, -3.92f, 3.92f), u = c * c;
  const vec over = ((((2.034729946e-06f * u + 2.874806909e-04f) * u + 3.868374027e-03f) * u + 5.306062410e-02f) * u +
                    1.927651144e-01f) * u + 1.128379022f;
  const vec under = ((((3.807065750e-05f * u + 1.188126955e-03f) * u + 1.517238845e-02f) * u + 1.150850591e-01f) * u +
                     5.041653008e-01f) * u + 1.0f;
  return 0.5f * x * (1.0f + clamp(c * over / under + (z - c) * 1e6f, -1.0f, 1.0f));
}

/* What becomes of sums in the end. */
typedef struct {
  float low, high; /* limits */
  int32_t gelu;    /* instead of limits */
} End;

/* Adds `other`, if any, and ends sums. */
static void finish(float *out, const float *other, ptrdiff_t count, const End *end) {
  for (ptrdiff_t i = 0; i < count; i += LANES) {
    const int lanes = count - i < LANES ? (int)(count - i) : LANES;
    vec x = got(out + i, lanes);
    if (other) x += got(other + i, lanes);
    put(out + i, end->gelu ? gelu(x) : clamp(x, end->low, end->high), lanes);
  }
}

/* in (tokens, inputs) to out (tokens, rows); `vectors` of tokens at once, for which the matrix's offsets were made. */
static void transposed(const Matrix *m, int inputs, int vectors, const float *in, const float *other, float *out,
                       int tokens, const End *end, float *scratch) {
  const float none = __builtin_inff();
  const int pitch = vectors * LANES, open = !other && !end->gelu && end->low == -none && end->high == none;
  const int each = m->parts == 1 ? 16 : m->rows; /* outputs whose sums wait; one part needs no more than are transposed */
  float *const planes = scratch, *const sums = scratch + (ptrdiff_t)inputs * pitch;
  const Place at = {.in = planes, .out = sums, .out_row = pitch, .lanes = LANES, .low = -none, .high = none};
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
    if (!open) finish(y, other ? other + (ptrdiff_t)first * m->rows : 0, (ptrdiff_t)count * m->rows, end);
  }
}

/* An address that is held in a register: with an index beside it each multiply-add takes a step more. */
static inline const float *held(const float *x) {
  __asm__("" : "+r"(x));
  return x;
}

/* Of block b, whose `lanes(i)` lanes are there in its vector i: sums that an earlier part has left in `out`, and sums to
   it, the last part's with what is added, and clamped. */
#define WIDE (16 / LANES)
#define NEXT 256 /* weights between those that are multiplied and those that are asked for */
#define SUM(t, i) ((ptrdiff_t)(t) * m->rows + b * 16 + (i) * LANES)
#define BEGUN(T, lanes)                                                                                                \
  _Pragma("GCC unroll 16") for (int t = 0; t < T; t++)                                                                 \
      _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) if (lanes(i) > 0) acc[t][i] =                             \
          got(out + SUM(t, i), lanes(i));
#define ENDED(T, lanes)                                                                                                \
  _Pragma("GCC unroll 16") for (int t = 0; t < T; t++)                                                                 \
      _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) if (lanes(i) > 0) {                                       \
    vec sum = acc[t][i];                                                                                               \
    if (last && other) sum += got(other + SUM(t, i), lanes(i));                                                        \
    put(out + SUM(t, i), last ? clamp(sum, low, high) : sum, lanes(i));                                                \
  }
#define WHOLE(i) LANES
#define HALF(i) smaller(LANES, m->rows - b * 16 - (i) * LANES)

/* Blocks of 16 outputs, T tokens, one part of the columns. */
#define ACROSS(T)                                                                                                      \
  static void across_##T(const Matrix *m, int part, int inputs, const float *in, const float *other, float *out,       \
                         float low, float high) {                                                                      \
    const int blocks = (m->rows + 15) / 16, last = part == m->parts - 1;                                               \
    const int32_t *const start = m->start + (ptrdiff_t)part * (blocks + 1);                                            \
    for (int b = 0; b < blocks; b++) {                                                                                 \
      const int whole = b * 16 + 16 <= m->rows;                                                                        \
      vec acc[T][WIDE]; /* indexed by constants alone, lest it lies in memory */                                       \
      _Pragma("GCC unroll 16") for (int t = 0; t < T; t++)                                                             \
          _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) acc[t][i] =                                           \
              *(const loose *)(m->bias + b * 16 + i * LANES);                                                          \
      if (part && whole) BEGUN(T, WHOLE)                                                                               \
      if (part && !whole) BEGUN(T, HALF)                                                                               \
      const int32_t *const end = m->offset + start[b + 1];                                                             \
      const float *value = m->value + (ptrdiff_t)start[b] * 16;                                                        \
      for (const int32_t *column = m->offset + start[b]; column < end; column++, value += 16) {                        \
        vec w[WIDE];                                                                                                   \
        _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) w[i] = *(const loose *)(value + i * LANES);             \
        __builtin_prefetch(value + NEXT);                                                                              \
        const float *x = in + *column;                                                                                 \
        _Pragma("GCC unroll 16") for (int t = 0; t < T; t++, x = held(x + inputs))                                    \
            _Pragma("GCC unroll 4") for (int i = 0; i < WIDE; i++) acc[t][i] += w[i] * *x;                             \
      }                                                                                                                \
      if (whole) {                                                                                                     \
        ENDED(T, WHOLE)                                                                                                \
      } else {                                                                                                         \
        ENDED(T, HALF)                                                                                                 \
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

#define CALL(T)                                                                                                        \
  if (count == T) across_##T(m, part, inputs, x, added, y, end->low, end->high)

/* The same for blocks of 16; offsets are columns. */
static void across(const Matrix *m, int inputs, const float *in, const float *other, float *out, int tokens,
                   const End *end) {
  for (int t = 0; t < tokens;) {
    const int left = tokens - t;
    const int count = left >= MOST ? MOST : left >= 8 && MOST > 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const float *x = in + (ptrdiff_t)t * inputs, *added = other ? other + (ptrdiff_t)t * m->rows : 0;
    float *y = out + (ptrdiff_t)t * m->rows;
    for (int part = 0; part < m->parts; part++) {
#if LANES == 16
      CALL(16);
      CALL(8);
#endif
      CALL(4);
      CALL(2);
      CALL(1);
    }
    if (end->gelu) finish(y, 0, (ptrdiff_t)count * m->rows, end);
    t += count;
  }
}

/* A layer is one piece of memory that begins with this; places in it are bytes from its beginning. */
typedef struct {
  Head head;
  int32_t inputs, vectors;
  End end;
  int32_t work;   /* multiply-adds of vectors for a vector of tokens; for who deals out tokens to threads */
  int64_t floats; /* of scratch */
  Stored matrix;
} Plan;

int tokens_lanes(void) { return LANES; }
int tokens_plan_bytes(void) { return sizeof(Plan); }

/* A layer on rows of features, as torch has them; `other`, if any, is added before they end. */
void tokens_run(const Plan *plan, const float *in, const float *other, float *out, int tokens, float *scratch) {
  const Matrix m = placed(&plan->matrix, (const char *)plan);
  const unsigned before = without_denormals();
  if (m.block == 16)
    across(&m, plan->inputs, in, other, out, tokens, &plan->end);
  else
    transposed(&m, plan->inputs, plan->vectors, in, other, out, tokens, &plan->end, scratch);
  usual(before);
}
