/* Sparse weights times dense values, positions across the lanes of a vector.

   A matrix has blocks of B outputs by one input (B = 1: single weights). What it reads are planes: runs of floats, one a
   position (a pixel, a token). For a block the sums of a tile of vectors of positions stay in registers; each kept column
   adds one broadcast weight times loads at its plane's offset. A matrix may be cut into parts by columns, so that the
   planes of a part stay in the first cache; sums then pass through the output. */

#ifndef AUTOMC_PRODUCT
#define AUTOMC_PRODUCT

#include "vectors.h"

/* What every plan begins with. */
typedef struct {
  int32_t lanes; /* of a vector, for which it was made */
  int32_t kind;  /* what it is a plan of */
  int64_t bytes; /* of all of it */
} Head;

/* A matrix as plans hold it: bytes from the plan's beginning instead of addresses. */
typedef struct {
  int32_t rows, block, parts, masks;
  int64_t start, offset, side, value, bias, mask;
} Stored;

typedef struct {
  int rows, block, parts; /* outputs; outputs of a block; runs of columns */
  int masks;              /* 0: none; 1: the same for every vector; 2: for every other one; 3: one for each */
  const int32_t *start;   /* [parts][blocks + 1]: where each block's kept columns begin */
  const int32_t *offset;  /* [kept]: floats from the base to the column's plane */
  const int32_t *side;    /* [kept]: vectors of positions from the base to the column's masks; none without masks */
  const float *value;     /* [kept][block] */
  const float *bias;      /* [blocks * block] */
  const void *mask;       /* [columns of the kernel][vectors]: lanes that are read */
} Matrix;

static inline Matrix placed(const Stored *m, const char *plan) {
  return (Matrix){m->rows,
                  m->block,
                  m->parts,
                  m->masks,
                  (const int32_t *)(plan + m->start),
                  (const int32_t *)(plan + m->offset),
                  (const int32_t *)(plan + m->side),
                  (const float *)(plan + m->value),
                  (const float *)(plan + m->bias),
                  plan + m->mask};
}

/* Which lanes of a vector are read. */
#if LANES == 16
typedef uint16_t lanes_read;
static inline vec masked(const float *x, lanes_read m) { return (vec)_mm512_maskz_loadu_ps(m, x); }
static inline vec add_masked(vec sum, vec w, const float *x, lanes_read m) {
  return (vec)_mm512_mask3_fmadd_ps((__m512)w, _mm512_loadu_ps(x), (__m512)sum, m);
}
#else
typedef loose_mask lanes_read;
static inline vec masked(const float *x, lanes_read m) { return (vec)(*(const loose_mask *)x & m); }
static inline vec add_masked(vec sum, vec w, const float *x, lanes_read m) { return sum + w * masked(x, m); }
#endif

/* The first lanes of a vector, to memory that may go on with something else. */
static inline void put(float *to, vec x, int lanes) {
  if (lanes == LANES)
    *(loose *)to = x;
  else
    memcpy(to, &x, 4 * (size_t)lanes);
}

/* A tile of vectors of positions, the last of which may not be full. */
typedef struct {
  const float *in, *other;
  float *out;
  const lanes_read *masks;
  ptrdiff_t other_row, out_row; /* between channels */
  int lanes;                    /* positions of the last vector */
  int first, last;              /* whether sums begin with the bias, and end clamped */
  float low, high;
} Place;

/* Of a tile's masks, the one for vector q. */
#define MASK_0(q) 0
#define MASK_1(q) 0
#define MASK_2(q) ((q) & 1)
#define MASK_3(q) (q)

/* Blocks of B outputs, Q vectors, masks as in Matrix. */
#define MULTIPLY_TILE(B, Q, M)                                                                                         \
  static void multiply_##B##_##Q##_##M(const Matrix *m, const int32_t *start, int from, int to, const Place *at) {     \
    for (int b = from; b < to; b++) {                                                                                  \
      const int rows = smaller(B, m->rows - b * B);                                                                    \
      float *const out = at->out + (ptrdiff_t)(b - from) * B * at->out_row;                                            \
      vec acc[B][Q]; /* indexed by constants alone, lest it lies in memory */                                          \
      _Pragma("GCC unroll 8") for (int i = 0; i < B; i++)                                                              \
          _Pragma("GCC unroll 8") for (int q = 0; q < Q; q++) acc[i][q] =                                              \
              at->first || i >= rows ? all(m->bias[b * B + i])                                                         \
                                     : *(const loose *)(out + i * at->out_row + q * LANES);                              \
      const int32_t *offset = m->offset + start[b], *side = m->side + start[b];                                        \
      const float *value = m->value + (ptrdiff_t)start[b] * B;                                                         \
      for (int k = start[b + 1] - start[b]; k > 0; k--, offset++, side++, value += B) {                                \
        const float *const x = at->in + *offset;                                                                       \
        const lanes_read *const read = at->masks + (M ? *side : 0);                                                    \
        vec v[Q];                                                                                                      \
        if (B == 1) {                                                                                                  \
          const vec w = all(value[0]);                                                                                 \
          _Pragma("GCC unroll 8") for (int q = 0; q < Q; q++) acc[0][q] =                                              \
              M ? add_masked(acc[0][q], w, x + q * LANES, read[MASK_##M(q)])                                           \
                : acc[0][q] + w * *(const loose *)(x + q * LANES);                                                       \
          continue;                                                                                                    \
        }                                                                                                              \
        _Pragma("GCC unroll 8") for (int q = 0; q < Q; q++) v[q] =                                                     \
            M ? masked(x + q * LANES, read[MASK_##M(q)]) : *(const loose *)(x + q * LANES);                              \
        _Pragma("GCC unroll 8") for (int i = 0; i < B; i++) {                                                          \
          const vec w = all(value[i]);                                                                                 \
          _Pragma("GCC unroll 8") for (int q = 0; q < Q; q++) acc[i][q] += w * v[q];                                   \
        }                                                                                                              \
      }                                                                                                                \
      _Pragma("GCC unroll 8") for (int i = 0; i < B; i++) {                                                            \
        if (i >= rows) break;                                                                                          \
        _Pragma("GCC unroll 8") for (int q = 0; q < Q; q++) {                                                          \
          vec sum = acc[i][q];                                                                                         \
          if (at->last) {                                                                                              \
            if (at->other) sum += *(const loose *)(at->other + (b * B + i) * at->other_row + q * LANES);                 \
            sum = clamp(sum, at->low, at->high);                                                                       \
          }                                                                                                            \
          put(out + i * at->out_row + q * LANES, sum, q < Q - 1 ? LANES : at->lanes);                                  \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }

typedef void (*Multiply)(const Matrix *, const int32_t *, int, int, const Place *);
#define MASKS(B, Q) MULTIPLY_TILE(B, Q, 0) MULTIPLY_TILE(B, Q, 1) MULTIPLY_TILE(B, Q, 2) MULTIPLY_TILE(B, Q, 3)
#define THREE(B) MASKS(B, 1) MASKS(B, 2) MASKS(B, 3)
#define SIX(B) THREE(B) MASKS(B, 4) MASKS(B, 5) MASKS(B, 6)
#define EIGHT(B) SIX(B) MASKS(B, 7) MASKS(B, 8)
EIGHT(1) EIGHT(2) SIX(4) THREE(8)

/* Vectors of a tile that fill the registers. */
static inline int most_vectors(int block) {
#if LANES == 16
  return block < 4 ? 8 : block == 4 ? 6 : 3;
#else
  return block == 1 ? 8 : block == 2 ? 4 : block == 4 ? 2 : 1;
#endif
}

#define TILES(B, Q) {multiply_##B##_##Q##_0, multiply_##B##_##Q##_1, multiply_##B##_##Q##_2, multiply_##B##_##Q##_3}
static Multiply multiply_of(int block, int vectors, int masks) {
  static const Multiply ones[8][4] = {TILES(1, 1), TILES(1, 2), TILES(1, 3), TILES(1, 4),
                                      TILES(1, 5), TILES(1, 6), TILES(1, 7), TILES(1, 8)};
  static const Multiply twos[8][4] = {TILES(2, 1), TILES(2, 2), TILES(2, 3), TILES(2, 4),
                                      TILES(2, 5), TILES(2, 6), TILES(2, 7), TILES(2, 8)};
  static const Multiply fours[6][4] = {TILES(4, 1), TILES(4, 2), TILES(4, 3), TILES(4, 4), TILES(4, 5), TILES(4, 6)};
  static const Multiply eights[3][4] = {TILES(8, 1), TILES(8, 2), TILES(8, 3)};
  return (block == 1 ? ones : block == 2 ? twos : block == 4 ? fours : eights)[vectors - 1][masks];
}

/* One tile of some blocks of outputs in all parts; a part's sums wait in the output for the next part. `at` points at the
   first of the blocks' outputs; what is added lies behind at->other for all of them. */
static inline void product(const Matrix *m, int vectors, int from, int to, Place at) {
  const int blocks = (m->rows + m->block - 1) / m->block;
  const Multiply kernel = multiply_of(m->block, vectors, m->masks);
  for (int part = 0; part < m->parts; part++) {
    at.first = part == 0;
    at.last = part == m->parts - 1;
    kernel(m, m->start + (ptrdiff_t)part * (blocks + 1), from, to, &at);
  }
}

#endif
