/* Products of 8-bit activations with 8-bit weights of which whole blocks are zero.

   Weights come in sets of consecutive outputs, each with the list of its blocks that are not zero. Four inputs at a
   time are multiplied and added up in 32 bits, which is what VNNI instructions do and what the layouts follow:

   16x4   a set is 16 outputs, a block 4 consecutive inputs: codes [block][output][4], places [block], in groups of 4
   4x1    a set is 4 outputs, a block any 4 of its inputs: codes [block][output][4], places [block][4]

   Activations are rounded to [group of 4 inputs][token][4] bytes, some tokens at a time, so that a group of one token
   is a word to broadcast, and one of 16 tokens a row of a tile of AMX. Sums are exact, hence the same on all processors
   and for any number of threads. */

#include <math.h>
#include <stdlib.h>
#include "levels.h"
#if defined(__AMX_INT8__) && defined(__linux__) && defined(__AVX512BW__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX 1
#else
#define AMX 0
#endif

/* FOURS: whether an instruction adds up four products */
#if LANES == 16 && defined(__AVX512VNNI__)
#define FOURS 1
#elif LANES == 8 && defined(__AVXVNNI__)
#define FOURS 1
#else
#define FOURS 0
#endif

enum { ROWS = 16, PARTS = ROWS / LANES };
enum { WIDE = 64 /* tokens of a 4x1 tile */, FEW = 6 /* for which none is worth it */ };

typedef struct {
  int inputs, outputs;
  int rows;              /* outputs of a set: 16 or 4 */
  int blocks;            /* of all sets */
  int tile_count;        /* tiles of all sets, below */
  float low, high;       /* the output is clamped to this */
  const float *levels;   /* of the activations: distance of two, the one of 0.0, the last one */
  const int32_t *starts; /* [sets + 1] first block of each set */
  const int32_t *places; /* what each block reads */
  const int8_t *codes;
  const int32_t *offset; /* [sets * rows] added to the sum: what the level of 0.0 makes too much */
  const float *scale;    /* [sets * rows] of a sum */
  const float *bias;     /* [sets * rows] */
  /* for AMX, or NULL: blocks of 16x4 once more, 16 of a set at a time, filled up with zeros */
  const int8_t *tiles;        /* [tiles][output][block][4] */
  const int32_t *tile_places; /* [tiles][16] */
  const int32_t *tile_starts; /* [sets + 1] the first tile of each set, of which every one has one */
} Layer;

/* sum + the four products of unsigned bytes of x and signed bytes of w, in each lane */
static inline vec dot(vec sum, vec x, vec w) {
#if LANES == 16 && FOURS
  return (vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
#elif LANES == 16
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512((__m512i)x, _mm512_set1_epi16(255)),
                                         _mm512_srai_epi16(_mm512_slli_epi16((__m512i)w, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16((__m512i)x, 8), _mm512_srai_epi16((__m512i)w, 8));
  return sum + (vec)even + (vec)odd;
#elif LANES == 8 && FOURS
  return (vec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
#elif LANES == 8
  /* vpmaddubsw would saturate: two products of 255 and 127 are more than 16 bits hold */
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)x, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)x, 8), _mm256_srai_epi16((__m256i)w, 8));
  return sum + (vec)even + (vec)odd;
#elif defined(__SSE2__)
  const __m128i even = _mm_madd_epi16(_mm_and_si128((__m128i)x, _mm_set1_epi16(255)),
                                      _mm_srai_epi16(_mm_slli_epi16((__m128i)w, 8), 8));
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16((__m128i)x, 8), _mm_srai_epi16((__m128i)w, 8));
  return sum + (vec)even + (vec)odd;
#else
  for (int b = 0; b < 4; b++) sum += ((x >> 8 * b) & 255) * ((w << (24 - 8 * b)) >> 24);
  return sum;
#endif
}

/* ---- tiles of rounded activations ---- */

/* The same where fewer than 16 inputs or tokens are left; the others are zero, whose products nobody reads. */
static int round_edge(const float *x, ptrdiff_t apart, int tokens, int inputs, const Levels *v, uint8_t *out,
                      ptrdiff_t next, int groups, int width) {
  float square[16 * 16] = {0};
  uint8_t found[4 * 64];
  for (int t = 0; t < tokens; t++) memcpy(square + 16 * t, x + t * apart, sizeof(float) * inputs);
  const int numbers = round_square(square, 16, v, found, 64);
  for (int g = 0; g < groups; g++) memcpy(out + g * next, found + 64 * g, 4 * smaller(width, 16));
  return numbers;
}

/* Bytes of a tile of activations; whole squares are written */
static size_t tile_bytes(const Layer *l, int width) {
  return (size_t)((l->inputs + 15) / 16) * 16 * (size_t)(width < 4 ? 4 : width);
}

/* Tokens (tokens, inputs) as [groups][width][4] bytes; whether all of them are numbers */
static int round_tile(const Layer *l, const float *x, int tokens, int width, uint8_t *out) {
  const Levels v = levels_of(l->levels);
  const ptrdiff_t apart = l->inputs, next = 4 * (ptrdiff_t)width;
  int numbers = 1;
  for (int t = 0; t < width; t += 16) {
    const int present = smaller(16, tokens - t);
    for (int k = 0; k < l->inputs; k += 16) {
      const int inputs = smaller(16, l->inputs - k);
      uint8_t *to = out + k / 4 * next + 4 * t;
      if (present <= 0)
        break;
      else if (width == 1 && inputs == 16)
        numbers &= round_row(x + k, &v, to);
      else if (present == 16 && inputs == 16)
        numbers &= round_square(x + t * apart + k, apart, &v, to, next);
      else
        numbers &= round_edge(x + t * apart + k, apart, present, inputs, &v, to, next, (inputs + 3) / 4, width - t);
    }
  }
  return numbers;
}

/* ---- what the sums are turned into ---- */

static inline real clamped(const Layer *l, real y) {
#if LANES == 16
  return (real)_mm512_min_ps(_mm512_max_ps((__m512)y, (__m512)same(l->low)), (__m512)same(l->high));
#else
  const vec under = y < l->low, over = y > l->high;
  return (real)(((vec)y & ~under & ~over) | ((vec)same(l->low) & under) | ((vec)same(l->high) & over));
#endif
}

static inline real finished(const Layer *l, vec sum, int row) {
  const real scaled = __builtin_convertvector(sum + load(l->offset + row), real);
  return clamped(l, scaled * (real)load(l->scale + row) + (real)load(l->bias + row));
}

/* Outputs are put down in a room [token][FAR] first, so that rows of the result are written a good piece at a time:
   sixteen of them a line at a time are more pages than a processor has at hand for what it writes. */
enum { STAGED = 8 /* sets of 16 outputs */, FAR = ROWS * (STAGED + 1) };

/* The sums of the 16 outputs from `row` on of one token */
static inline void finish(const Layer *l, const vec sum[PARTS], int row, float *at) {
  _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)
      store(at + p * LANES, (vec)finished(l, sum[p], row + p * LANES));
}

/* Outputs from `row` up to, but without, `end` go to rows of the result */
static void deliver(const Layer *l, const float *room, int row, int end, int tokens, float *y) {
  const int count = smaller(end, l->outputs) - row;
  for (int t = 0; t < tokens; t++) memcpy(y + t * (ptrdiff_t)l->outputs + row, room + t * FAR, sizeof(float) * count);
}

#if LANES == 16
static inline void transpose(const int32_t *from, ptrdiff_t apart, __m512i r[16]) {
  __m512i t[16];
#define QUARTERS(A, B, C, D, I)                                                                                        \
  _mm512_inserti32x4(_mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(_mm_load_si128((void *)(A))),        \
                                                           _mm_load_si128((void *)(B)), 1),                            \
                                        _mm_load_si128((void *)(C)), 2),                                               \
                     _mm_load_si128((void *)(D)), 3)
  for (int i = 0; i < 4; i++) /* t[4 * j + i]: columns 4 j to 4 j + 3 of rows i, 4 + i, 8 + i and 12 + i */
    for (int j = 0; j < 4; j++) {
      const int32_t *at = from + i * apart + 4 * j;
      t[4 * j + i] = QUARTERS(at, at + 4 * apart, at + 8 * apart, at + 12 * apart, j);
    }
#undef QUARTERS
  for (int j = 0; j < 16; j += 4) {
    const __m512i a = _mm512_unpacklo_epi32(t[j], t[j + 1]), b = _mm512_unpackhi_epi32(t[j], t[j + 1]);
    const __m512i c = _mm512_unpacklo_epi32(t[j + 2], t[j + 3]), d = _mm512_unpackhi_epi32(t[j + 2], t[j + 3]);
    r[j] = _mm512_unpacklo_epi64(a, c);
    r[j + 1] = _mm512_unpackhi_epi64(a, c);
    r[j + 2] = _mm512_unpacklo_epi64(b, d);
    r[j + 3] = _mm512_unpackhi_epi64(b, d);
  }
}
#endif

/* Sums [16 outputs][apart] of 16 tokens, to tokens `far` floats from each other */
static void finish_square(const Layer *l, const int32_t *sums, ptrdiff_t apart, int row, float *to, ptrdiff_t far) {
#if LANES == 16
  __m512i r[16];
  transpose(sums, apart, r);
  _Pragma("GCC unroll 16") for (int t = 0; t < 16; t++) store(to + t * far, (vec)finished(l, (vec)r[t], row));
#else
  for (int t = 0; t < 16; t++) {
    int32_t one[ROWS];
    vec sum[PARTS];
    for (int o = 0; o < ROWS; o++) one[o] = sums[o * apart + t];
    memcpy(sum, one, sizeof sum);
    finish(l, sum, row, to + t * far);
  }
#endif
}

/* Tokens with an input that is no number get outputs that are none, as in torch. */
static void mark(const Layer *l, const float *x, int tokens, float *y) {
  for (int t = 0; t < tokens; t++) {
    int numbers = 1;
    for (int k = 0; k < l->inputs; k++) numbers &= x[(ptrdiff_t)t * l->inputs + k] == x[(ptrdiff_t)t * l->inputs + k];
    for (int o = 0; o < l->outputs && !numbers; o++) y[(ptrdiff_t)t * l->outputs + o] = NAN;
  }
}

/* ---- blocks of 16x4 ---- */

/* N tokens of a set, `apart` bytes from each other; blocks read x at their places times `next`. Every WAYS-th block has
   sums of its own, so that sums need not wait for one another. */
#define BLOCKS(N, WAYS)                                                                                                \
  static inline __attribute__((always_inline)) void blocks_##N(const Layer *l, const uint8_t *x, ptrdiff_t next,       \
                                                               const int apart, int set, float *to, int far) {         \
    const int32_t *place = l->places + l->starts[set], *end = l->places + l->starts[set + 1];                          \
    const int8_t *w = l->codes + (ptrdiff_t)l->starts[set] * 4 * ROWS;                                                 \
    vec sum[WAYS][N][PARTS] = {0};                                                                                     \
    for (; place + WAYS <= end; place += WAYS, w += 4 * ROWS * WAYS)                                                   \
      _Pragma("GCC unroll 4") for (int i = 0; i < WAYS; i++)                                                           \
        _Pragma("GCC unroll 16") for (int t = 0; t < N; t++)                                                           \
          _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) {                                                    \
            int four;                                                                                                  \
            memcpy(&four, x + place[i] * next + apart * t, 4);                                                         \
            sum[i][t][p] = dot(sum[i][t][p], all(four), load(w + 4 * (ROWS * i + LANES * p)));                         \
          }                                                                                                            \
    for (; place < end; place++, w += 4 * ROWS)                                                                        \
      _Pragma("GCC unroll 16") for (int t = 0; t < N; t++)                                                             \
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) {                                                      \
          int four;                                                                                                    \
          memcpy(&four, x + *place * next + apart * t, 4);                                                             \
          sum[0][t][p] = dot(sum[0][t][p], all(four), load(w + 4 * LANES * p));                                        \
        }                                                                                                              \
    _Pragma("GCC unroll 16") for (int t = 0; t < N; t++) {                                                             \
      _Pragma("GCC unroll 4") for (int i = 1; i < WAYS; i++)                                                           \
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) sum[0][t][p] += sum[i][t][p];                          \
      finish(l, sum[0][t], ROWS * set, to + t * far);                                                                  \
    }                                                                                                                  \
  }
BLOCKS(1, 4) BLOCKS(2, 2) BLOCKS(4, 1)
#if LANES == 16
BLOCKS(8, 1) BLOCKS(16, 1)
#endif

/* Up to 16 tokens of a set, likewise */
static inline __attribute__((always_inline)) void blocks(const Layer *l, const uint8_t *x, ptrdiff_t next,
                                                         const int apart, int tokens, int set, float *to, int far) {
  int t = 0;
#if LANES == 16
  for (; tokens - t >= 16; t += 16) blocks_16(l, x + apart * t, next, apart, set, to + t * far, far);
  for (; tokens - t >= 8; t += 8) blocks_8(l, x + apart * t, next, apart, set, to + t * far, far);
#endif
  for (; tokens - t >= 4; t += 4) blocks_4(l, x + apart * t, next, apart, set, to + t * far, far);
  for (; tokens - t >= 2; t += 2) blocks_2(l, x + apart * t, next, apart, set, to + t * far, far);
  if (t < tokens) blocks_1(l, x + apart * t, next, apart, set, to + t * far, far);
}

/* All sets */
static void all_blocks(const Layer *l, const uint8_t *x, int width, int tokens, float *y) {
  float room[16 * FAR] __attribute__((aligned(64)));
  const int sets = (l->outputs + ROWS - 1) / ROWS;
  for (int set = 0; set < sets; set += STAGED) {
    const int end = smaller(sets, set + STAGED);
    for (int s = set; s < end; s++) blocks(l, x, 4 * (ptrdiff_t)width, 4, tokens, s, room + ROWS * (s - set), FAR);
    deliver(l, room, ROWS * set, ROWS * end, tokens, y);
  }
}

static int run_blocks(const Layer *l, const float *x, ptrdiff_t tokens, float *y) {
  const int width = tokens == 1 ? 1 : 16;
  uint8_t *tile = aligned_alloc(64, tile_bytes(l, width));
  if (!tile) return 0;
  for (ptrdiff_t t = 0; t < tokens; t += 16) {
    const int present = tokens - t < 16 ? (int)(tokens - t) : 16;
    const float *from = x + t * l->inputs;
    float *to = y + t * l->outputs;
    const int numbers = round_tile(l, from, present, width, tile);
    all_blocks(l, tile, width, present, to);
    if (!numbers) mark(l, from, present, to);
  }
  free(tile);
  return 1;
}

/* ---- the same on AMX: 16 outputs by 64 inputs by 16 tokens at once ---- */

#if AMX
enum { BATCH = 4 /* tiles gathered at a time */ };

static int amx_granted(void) {
  static int granted = -1; /* threads that ask at once get the same answer */
  if (granted < 0) granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
  return granted;
}

static void amx_configure(void) {
  struct {
    uint8_t palette, start, zeros[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } all_full __attribute__((aligned(64))) = {.palette = 1};
  for (int i = 0; i < 8; i++) all_full.bytes[i] = 64, all_full.rows[i] = 16;
  _tile_loadconfig(&all_full);
}

/* All sets for a tile [groups][16][4] of tokens. Some tiles are gathered, then multiplied, then what is done is
   finished: a tile that is loaded waits for all that is still on its way to memory. */
static void tiled(const Layer *l, const uint8_t *x, int tokens, float *y) {
  uint8_t rows[BATCH][1024] __attribute__((aligned(64)));
  int32_t sums[BATCH][256] __attribute__((aligned(64)));
  float room[16 * FAR] __attribute__((aligned(64)));
  const int sets = (l->outputs + ROWS - 1) / ROWS, tiles = l->tile_starts[sets];
  int set = 0, opened = 0; /* sets finished, and multiplied */
  _tile_zero(0);
  for (int tile = 0; tile < tiles; tile += BATCH) {
    const int count = smaller(BATCH, tiles - tile);
    const int32_t *places = l->tile_places + 16 * (ptrdiff_t)tile;
    for (int i = 0; i < count; i++, places += 16)
      _Pragma("GCC unroll 16") for (int j = 0; j < 16; j++)
          _mm512_store_si512(rows[i] + 64 * j, _mm512_load_si512(x + 64 * (ptrdiff_t)places[j]));
    int done = 0;
    for (int i = 0; i < count; i++) {
      _tile_loadd(1, l->tiles + 1024 * (ptrdiff_t)(tile + i), 64);
      _tile_loadd(2, rows[i], 64);
      _tile_dpbsud(0, 1, 2);
      if (tile + i + 1 < l->tile_starts[opened + 1]) continue;
      opened++;
      _tile_stored(0, sums[done++], 64);
      _tile_zero(0);
    }
    for (int i = 0; i < done; i++, set++) {
      const int place = set % STAGED;
      finish_square(l, sums[i], 16, ROWS * set, room + ROWS * place, FAR);
      if (place == STAGED - 1 || set == sets - 1) deliver(l, room, ROWS * (set - place), ROWS * (set + 1), tokens, y);
    }
  }
}

static int run_tiled(const Layer *l, const float *x, ptrdiff_t tokens, float *y) {
  uint8_t *rounded = aligned_alloc(64, tile_bytes(l, 16));
  if (!rounded) return 0;
  amx_configure();
  for (ptrdiff_t t = 0; t < tokens; t += 16) {
    const int present = tokens - t < 16 ? (int)(tokens - t) : 16;
    const int numbers = round_tile(l, x + t * l->inputs, present, 16, rounded);
    tiled(l, rounded, present, y + t * l->outputs);
    if (!numbers) mark(l, x + t * l->inputs, present, y + t * l->outputs);
  }
  _tile_release();
  free(rounded);
  return 1;
}
#endif

/* ---- blocks of 4x1 ---- */

typedef unsigned char bytes __attribute__((vector_size(4 * LANES)));

#if LANES == 16
#define LANEWISE(OP, A, B) (vec) _mm512_##OP((__m512i)(A), (__m512i)(B))
#elif LANES == 8
#define LANEWISE(OP, A, B) (vec) _mm256_##OP((__m256i)(A), (__m256i)(B))
#endif
#if LANES > 4
#define LOW8(A, B) LANEWISE(unpacklo_epi8, A, B)
#define HIGH8(A, B) LANEWISE(unpackhi_epi8, A, B)
#define LOW16(A, B) LANEWISE(unpacklo_epi16, A, B)
#define HIGH16(A, B) LANEWISE(unpackhi_epi16, A, B)
#define LOW32(A, B) LANEWISE(unpacklo_epi32, A, B)
#define HIGH32(A, B) LANEWISE(unpackhi_epi32, A, B)
#define LOW64(A, B) LANEWISE(unpacklo_epi64, A, B)
#define HIGH64(A, B) LANEWISE(unpackhi_epi64, A, B)
/* the bytes of four words: first all first ones, then all second ones, ... */
static inline vec by_byte(vec x) {
  const int order[4] = {0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703};
  vec all_orders;
  for (int i = 0; i < LANES; i++) all_orders[i] = order[i % 4];
  return LANEWISE(shuffle_epi8, x, all_orders);
}
#else
typedef unsigned short shorts __attribute__((vector_size(16)));
typedef long long longs __attribute__((vector_size(16)));
#define LOW8(A, B) \
  (vec) __builtin_shufflevector((bytes)(A), (bytes)(B), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH8(A, B) \
  (vec) __builtin_shufflevector((bytes)(A), (bytes)(B), 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOW16(A, B) (vec) __builtin_shufflevector((shorts)(A), (shorts)(B), 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH16(A, B) (vec) __builtin_shufflevector((shorts)(A), (shorts)(B), 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW32(A, B) __builtin_shufflevector((vec)(A), (vec)(B), 0, 4, 1, 5)
#define HIGH32(A, B) __builtin_shufflevector((vec)(A), (vec)(B), 2, 6, 3, 7)
#define LOW64(A, B) (vec) __builtin_shufflevector((longs)(A), (longs)(B), 0, 2)
#define HIGH64(A, B) (vec) __builtin_shufflevector((longs)(A), (longs)(B), 1, 3)
static inline vec by_byte(vec x) {
  return (vec)__builtin_shufflevector((bytes)x, (bytes)x, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}
#endif

enum { SPAN = 4 * LANES /* tokens whose inputs fill a vector */ };

/* Groups [groups][WIDE][4] to columns [input][WIDE], in an order that `interleave` undoes */
static void columns_of(uint8_t *x, int groups) {
  for (int g = 0; g < groups; g++, x += 4 * WIDE) {
    vec found[WIDE / SPAN][4];
    for (int h = 0; h < WIDE / SPAN; h++) {
      vec t[4];
      for (int s = 0; s < 4; s++) t[s] = by_byte(load(x + 4 * (h * SPAN + s * LANES)));
      const vec a = LOW32(t[0], t[1]), b = LOW32(t[2], t[3]), c = HIGH32(t[0], t[1]), d = HIGH32(t[2], t[3]);
      found[h][0] = LOW64(a, b);
      found[h][1] = HIGH64(a, b);
      found[h][2] = LOW64(c, d);
      found[h][3] = HIGH64(c, d);
    }
    for (int h = 0; h < WIDE / SPAN; h++)
      for (int k = 0; k < 4; k++) store(x + k * WIDE + h * SPAN, found[h][k]);
  }
}

/* Four columns, whose places are `apart` bytes from each other, to vectors of LANES tokens with four inputs each */
static inline void interleave(const uint8_t *x, const int32_t *place, const ptrdiff_t apart, vec out[4]) {
  const vec a = load(x + place[0] * apart), b = load(x + place[1] * apart);
  const vec c = load(x + place[2] * apart), d = load(x + place[3] * apart);
  const vec low = LOW8(a, b), high = HIGH8(a, b), low2 = LOW8(c, d), high2 = HIGH8(c, d);
  out[0] = LOW16(low, low2);
  out[1] = HIGH16(low, low2);
  out[2] = LOW16(high, high2);
  out[3] = HIGH16(high, high2);
}

/* Sums of a set, SPAN tokens: those of each output in the order of `interleave` */
static inline __attribute__((always_inline)) void quarter(const Layer *l, const uint8_t *x, const ptrdiff_t apart,
                                                          int set, vec sum[4][4]) {
  const int8_t *w = l->codes + 16 * (ptrdiff_t)l->starts[set];
  memset(sum, 0, 16 * sizeof(vec));
  for (int b = l->starts[set]; b < l->starts[set + 1]; b++, w += 16) {
    vec four[4];
    interleave(x, l->places + 4 * (ptrdiff_t)b, apart, four);
    _Pragma("GCC unroll 4") for (int o = 0; o < 4; o++) {
      int code;
      memcpy(&code, w + 4 * o, 4);
      _Pragma("GCC unroll 4") for (int s = 0; s < 4; s++) sum[o][s] = dot(sum[o][s], four[s], all(code));
    }
  }
}

/* Sums [4][WIDE] of a set, SPAN tokens */
static inline void quarter_tokens(const Layer *l, const uint8_t *x, int set, int32_t *sums) {
  vec sum[4][4];
  quarter(l, x, WIDE, set, sum);
  for (int o = 0; o < 4; o++)
    for (int s = 0; s < 4; s++) store(sums + o * WIDE + s * LANES, sum[o][s]);
}

static void columns(const Layer *l, const uint8_t *x, int tokens, float *y) {
  int32_t sums[ROWS * WIDE] __attribute__((aligned(64)));
  float room[WIDE * FAR] __attribute__((aligned(64)));
  const int sets = (l->outputs + 3) / 4;
  for (int set = 0; set < sets; set += 4 * STAGED) {
    const int end = smaller(sets, set + 4 * STAGED);
    for (int s = set; s < end; s += 4) {
      for (int i = 0; i < 4 && s + i < sets; i++)
        for (int h = 0; h * SPAN < tokens; h++) quarter_tokens(l, x + h * SPAN, s + i, sums + 4 * i * WIDE + h * SPAN);
      for (int t = 0; t < tokens; t += 16) finish_square(l, sums + t, WIDE, 4 * s, room + t * FAR + 4 * (s - set), FAR);
    }
    deliver(l, room, 4 * set, 4 * end, tokens, y);
  }
}

/* One token, x [inputs] */
static void column_token(const Layer *l, const uint8_t *x, float *y) {
  float room[FAR] __attribute__((aligned(64)));
  const int sets = (l->outputs + 3) / 4;
  for (int set = 0; set < sets; set += 4) {
    int32_t sums[ROWS] __attribute__((aligned(64))) = {0};
    for (int i = 0; i < 4 && set + i < sets; i++) {
      const int32_t *place = l->places + 4 * (ptrdiff_t)l->starts[set + i];
      const int8_t *w = l->codes + 16 * (ptrdiff_t)l->starts[set + i];
#if defined(__AVX512VL__) && defined(__AVX512VNNI__)
      __m128i sum = _mm_setzero_si128();
      for (int b = l->starts[set + i]; b < l->starts[set + i + 1]; b++, place += 4, w += 16) {
        const uint32_t four = x[place[0]] | x[place[1]] << 8 | x[place[2]] << 16 | (uint32_t)x[place[3]] << 24;
        sum = _mm_dpbusd_epi32(sum, _mm_set1_epi32((int)four), _mm_loadu_si128((const __m128i *)w));
      }
      _mm_store_si128((__m128i *)(sums + 4 * i), sum);
#else
      for (int b = l->starts[set + i]; b < l->starts[set + i + 1]; b++, place += 4, w += 16)
        for (int k = 0; k < 4; k++)
          for (int o = 0; o < 4; o++) sums[4 * i + o] += x[place[k]] * w[4 * o + k];
#endif
    }
    vec sum[PARTS];
    memcpy(sum, sums, sizeof sum);
    finish(l, sum, 4 * set, room);
    deliver(l, room, 4 * set, 4 * set + ROWS, 1, y);
  }
}

static int run_columns(const Layer *l, const float *x, ptrdiff_t tokens, float *y) {
  const int one_by_one = tokens < FEW;
  uint8_t *tile = aligned_alloc(64, tile_bytes(l, WIDE));
  if (!tile) return 0;
  for (ptrdiff_t t = 0, step = one_by_one ? 1 : WIDE; t < tokens; t += step) {
    const int present = tokens - t < step ? (int)(tokens - t) : (int)step;
    const float *from = x + t * l->inputs;
    float *to = y + t * l->outputs;
    const int numbers = round_tile(l, from, present, (int)step, tile);
    if (one_by_one) {
      column_token(l, tile, to);
    } else {
      columns_of(tile, (l->inputs + 3) / 4);
      columns(l, tile, present, to);
    }
    if (!numbers) mark(l, from, present, to);
  }
  free(tile);
  return 1;
}

/* ---- convolutions ---- */

typedef struct {
  int channels, height, width, out_height, out_width;
  int kernel[2], stride[2], padding[2], dilation[2];
  int groups;  /* each with its own channels and outputs, whose sets are filled up: a layer's outputs are all sets' */
  int outputs; /* of all groups */
} Image;

/* Of one group */
static inline int own_channels(const Image *i) { return i->channels / i->groups; }
static inline int own_outputs(const Image *i) { return i->outputs / i->groups; }
static inline int own_sets(const Layer *l, const Image *i) { return (own_outputs(i) + l->rows - 1) / l->rows; }

/* The first output of a set, and how many it has */
static inline int first_output(const Layer *l, const Image *i, int set) {
  const int sets = own_sets(l, i);
  return set / sets * own_outputs(i) + set % sets * l->rows;
}
static inline int count_outputs(const Layer *l, const Image *i, int set) {
  return smaller(l->rows, own_outputs(i) - set % own_sets(l, i) * l->rows);
}

/* Outputs that read what is no number are none. */
static void mark_pixels(const Image *i, const float *x, float *y) {
  const ptrdiff_t plane = (ptrdiff_t)i->height * i->width, out = (ptrdiff_t)i->out_height * i->out_width;
  for (ptrdiff_t at = 0; at < plane * i->channels; at++) {
    if (x[at] == x[at]) continue;
    const int row = (int)(at % plane / i->width) + i->padding[0], column = (int)(at % i->width) + i->padding[1];
    const int first = (int)(at / plane) / own_channels(i) * own_outputs(i);
    for (int tap = 0; tap < i->kernel[0] * i->kernel[1]; tap++) {
      const int down = row - tap / i->kernel[1] * i->dilation[0], right = column - tap % i->kernel[1] * i->dilation[1];
      if (down < 0 || right < 0 || down % i->stride[0] || right % i->stride[1]) continue;
      if (down / i->stride[0] >= i->out_height || right / i->stride[1] >= i->out_width) continue;
      float *to = y + first * out + (ptrdiff_t)(down / i->stride[0]) * i->out_width + right / i->stride[1];
      for (int o = 0; o < own_outputs(i); o++) to[o * out] = NAN;
    }
  }
}

/* A convolution that moves along without a margin sees one long row. */
static Image straightened(const Image *i) {
  Image row = *i;
  if (i->kernel[0] * i->kernel[1] * i->stride[0] * i->stride[1] > 1 || i->padding[0] || i->padding[1]) return row;
  row.height = row.out_height = 1;
  row.width = row.out_width = i->height * i->width;
  return row;
}

/* ---- with blocks of 16x4, channels of a group four at a time ---- */

typedef struct {
  int fours, height, width; /* of the padded planes [groups][fours][height][width][4] bytes */
  size_t bytes;
} Planes;

static Planes planes_of(const Image *i) {
  Planes p = {(own_channels(i) + 3) / 4, i->height + 2 * i->padding[0], i->width + 2 * i->padding[1], 0};
  p.bytes = (size_t)i->groups * p.fours * p.height * p.width * 4 + 64 * (size_t)i->stride[1]; /* 16 may be read there */
  p.bytes = (p.bytes + 63) / 64 * 64;
  return p;
}

/* An image [channels][height][width] in planes, the level of 0.0 around it; whether all pixels are numbers. Four
   channels are rounded to `plane` [height * width + 16][4] first, since rows may be short. */
static int round_image(const Layer *l, const Image *i, const Planes *p, const float *x, uint8_t *plane, uint8_t *out) {
  const Levels v = levels_of(l->levels);
  const int size = i->height * i->width, margin = p->width > i->width;
  int numbers = 1;
  memset(out, (int)v.zero, p->bytes);
  for (int g = 0; g < i->groups * p->fours; g++) {
    const int four = 4 * (g % p->fours), channels = smaller(4, own_channels(i) - four);
    const float *from = x + (ptrdiff_t)(g / p->fours * own_channels(i) + four) * size;
    uint8_t *to = out + 4 * (((ptrdiff_t)g * p->height + i->padding[0]) * p->width + i->padding[1]);
    for (int k = 0; k < size; k += 16)
      numbers &= round_pixels(from + k, size, channels, smaller(16, size - k), &v, (margin ? plane : to) + 4 * k);
    for (int y = 0; y < i->height && margin; y++)
      memcpy(to + 4 * (ptrdiff_t)y * p->width, plane + 4 * (ptrdiff_t)y * i->width, 4 * (size_t)i->width);
  }
  return numbers;
}

/* Where in the planes each block lies from the first tap on, in words */
static void place_taps(const Layer *l, const Image *i, const Planes *p, int32_t *out) {
  const int sets = own_sets(l, i);
  for (int set = 0; set < i->groups * sets; set++)
    for (int b = l->starts[set]; b < l->starts[set + 1]; b++) {
      const int tap = l->places[b] / p->fours, four = set / sets * p->fours + l->places[b] % p->fours;
      const int y = tap / i->kernel[1] * i->dilation[0], x = tap % i->kernel[1] * i->dilation[1];
      out[b] = (four * p->height + y) * p->width + x;
    }
}

/* Tokens [tokens][16] to `count` rows of the result, `plane` from each other */
static void turn(const float *room, int tokens, int count, ptrdiff_t plane, float *y) {
#if LANES == 16
  __m512i r[16];
  transpose((const int32_t *)room, 16, r);
  const __mmask16 present = (__mmask16)((1u << tokens) - 1);
  for (int o = 0; o < count; o++) _mm512_mask_storeu_ps(y + o * plane, present, (__m512)r[o]);
#else
  for (int o = 0; o < count; o++)
    for (int t = 0; t < tokens; t++) y[o * plane + t] = room[16 * t + o];
#endif
}

/* Up to 16 neighbouring outputs of all sets; some more are worked out where that takes fewer passes over the weights */
static void pixels(const Layer *l, const Image *i, const uint8_t *x, int count, float *y) {
  float room[16 * ROWS] __attribute__((aligned(64))) = {0};
  const ptrdiff_t plane = (ptrdiff_t)i->out_height * i->out_width;
  const int whole = count > 8 ? 16 : count > 4 ? 8 : count;
  for (int set = 0; set * ROWS < l->outputs; set++) {
    if (i->stride[1] == 1)
      blocks(l, x, 4, 4, whole, set, room, ROWS);
    else if (i->stride[1] == 2)
      blocks(l, x, 4, 8, whole, set, room, ROWS);
    else
      for (int t = 0; t < count; t++)
        blocks_1(l, x + 4 * (ptrdiff_t)i->stride[1] * t, 4, 4, set, room + t * ROWS, ROWS);
    turn(room, count, count_outputs(l, i, set), plane, y + first_output(l, i, set) * plane);
  }
}

static int run_images(const Layer *given, const Image *i, const float *x, ptrdiff_t images, float *y) {
  const Planes p = planes_of(i);
  const ptrdiff_t in = (ptrdiff_t)i->channels * i->height * i->width;
  const ptrdiff_t out = (ptrdiff_t)i->outputs * i->out_height * i->out_width;
  uint8_t *planes = aligned_alloc(64, p.bytes);
  int32_t *places = malloc(sizeof(int32_t) * ((size_t)given->blocks + 1));
  uint8_t *plane = malloc(4 * ((size_t)i->height * i->width + 16));
  const int possible = planes && places && plane;
  Layer l = *given;
  l.places = places;
  if (possible) place_taps(given, i, &p, places);
  for (ptrdiff_t n = 0; n < images && possible; n++, x += in, y += out) {
    const int numbers = round_image(&l, i, &p, x, plane, planes);
    for (int row = 0; row < i->out_height; row++)
      for (int column = 0; column < i->out_width; column += 16)
        pixels(&l, i, planes + 4 * ((ptrdiff_t)row * i->stride[0] * p.width + (ptrdiff_t)column * i->stride[1]),
               smaller(16, i->out_width - column), y + (ptrdiff_t)row * i->out_width + column);
    if (!numbers) mark_pixels(i, x, y);
  }
  free(planes);
  free(places);
  free(plane);
  return possible;
}

/* ---- with blocks of 4x1: every tap of every channel is a column, its positions side by side ----

   Planes hold every stride-th row and column of the padded image, those of each phase by themselves, so that what
   neighbouring outputs read lies side by side for any stride. Positions run over whole rows of the planes: the few at
   the end of each that are no outputs are worked out and left behind. */

typedef struct {
  int height, width; /* of the planes [phase][phase][channels][height][width] bytes */
  int positions;     /* from the first output to the last */
  size_t bytes;
} Phases;

static Phases phases_of(const Image *i) {
  Phases p = {(i->height + 2 * i->padding[0] + i->stride[0] - 1) / i->stride[0],
              (i->width + 2 * i->padding[1] + i->stride[1] - 1) / i->stride[1], 0, 0};
  p.positions = (i->out_height - 1) * p.width + i->out_width;
  p.bytes = (size_t)i->stride[0] * i->stride[1] * i->channels * p.height * p.width + SPAN; /* may be read at the end */
  p.bytes = (p.bytes + 63) / 64 * 64;
  return p;
}

/* Where the plane of a channel and of a phase begins */
static inline ptrdiff_t plane_at(const Image *i, const Phases *p, int row, int column, int channel) {
  const ptrdiff_t phase = row % i->stride[0] * i->stride[1] + column % i->stride[1];
  return (phase * i->channels + channel) * p->height * p->width;
}

/* A row of levels to where it lies; its first column is `column` of the padded image */
static void place_row(const Image *i, const Phases *p, const uint8_t *from, int row, int channel, uint8_t *out) {
  const int column = i->padding[1], step = i->stride[1];
  out += (ptrdiff_t)(row / i->stride[0]) * p->width;
  if (step == 1) {
    memcpy(out + plane_at(i, p, row, 0, channel) + column, from, (size_t)i->width);
    return;
  }
  for (int c = 0; c < step && c < i->width; c++) { /* the phases, from the first column on */
    uint8_t *to = out + plane_at(i, p, row, column + c, channel) + (column + c) / step;
    for (int k = c; k < i->width; k += step) *to++ = from[k];
  }
}

/* An image [channels][height][width] in planes, the level of 0.0 around it; whether all pixels are numbers */
static int round_phases(const Layer *l, const Image *i, const Phases *p, const float *x, uint8_t *plane, uint8_t *out) {
  const Levels v = levels_of(l->levels);
  const int size = i->height * i->width;
  int numbers = 1;
  memset(out, (int)v.zero, p->bytes);
  for (int channel = 0; channel < i->channels; channel++, x += size) {
    int k = 0;
    for (; k + 16 <= size; k += 16) numbers &= round_row(x + k, &v, plane + k);
    if (k < size) {
      float row[16] = {0};
      memcpy(row, x + k, sizeof(float) * (size_t)(size - k));
      numbers &= round_row(row, &v, plane + k);
    }
    for (int y = 0; y < i->height; y++)
      place_row(i, p, plane + (ptrdiff_t)y * i->width, y + i->padding[0], channel, out);
  }
  return numbers;
}

/* Where in the planes each input of each block lies from the first output on */
static void place_columns(const Layer *l, const Image *i, const Phases *p, int32_t *out) {
  const int sets = own_sets(l, i), own = own_channels(i);
  for (int set = 0; set < i->groups * sets; set++)
    for (int b = 4 * l->starts[set]; b < 4 * l->starts[set + 1]; b++) {
      const int tap = l->places[b] / own, channel = set / sets * own + l->places[b] % own;
      const int y = tap / i->kernel[1] * i->dilation[0], x = tap % i->kernel[1] * i->dilation[1];
      out[b] = (int32_t)(plane_at(i, p, y, x, channel) + (ptrdiff_t)(y / i->stride[0]) * p->width + x / i->stride[1]);
    }
}

/* What one output's sums in the order of `interleave` are turned into, SPAN positions in their own order */
static inline void finish_positions(const Layer *l, const vec sum[4], int row, float *to) {
  for (int s = 0; s < 4; s++) {
    real y = __builtin_convertvector(sum[s] + all(l->offset[row]), real) * same(l->scale[row]) + same(l->bias[row]);
    y = clamped(l, y);
    for (int part = 0; part < LANES / 4; part++) memcpy(to + 16 * part + 4 * s, (const float *)&y + 4 * part, 16);
  }
}

/* SPAN positions from `at` on of all sets */
static void positions(const Layer *l, const Image *i, const Phases *p, const uint8_t *x, int at, float *y) {
  float room[4][SPAN];
  const ptrdiff_t plane = (ptrdiff_t)i->out_height * i->out_width;
  const int end = smaller(p->positions, at + SPAN);
  for (int set = 0; set * 4 < l->outputs; set++) {
    vec sum[4][4];
    quarter(l, x + at, 1, set, sum);
    const int count = count_outputs(l, i, set);
    float *const to = y + first_output(l, i, set) * plane;
    for (int o = 0; o < count; o++) finish_positions(l, sum[o], 4 * set + o, room[o]);
    for (int from = at, next; from < end; from = next) { /* a row of outputs after the other */
      const int row = from / p->width, column = from % p->width, present = smaller(end - from, i->out_width - column);
      next = from + p->width - column;
      for (int o = 0; o < count && present > 0; o++)
        memcpy(to + o * plane + (ptrdiff_t)row * i->out_width + column, room[o] + (from - at), sizeof(float) * (size_t)present);
    }
  }
}

static int run_image_columns(const Layer *given, const Image *i, const float *x, ptrdiff_t images, float *y) {
  const Phases p = phases_of(i);
  const ptrdiff_t in = (ptrdiff_t)i->channels * i->height * i->width;
  const ptrdiff_t out = (ptrdiff_t)i->outputs * i->out_height * i->out_width;
  uint8_t *planes = aligned_alloc(64, p.bytes);
  int32_t *places = malloc(sizeof(int32_t) * (4 * (size_t)given->blocks + 1));
  uint8_t *plane = malloc((size_t)i->height * i->width + 16);
  const int possible = planes && places && plane;
  Layer l = *given;
  l.places = places;
  if (possible) place_columns(given, i, &p, places);
  for (ptrdiff_t n = 0; n < images && possible; n++, x += in, y += out) {
    const int numbers = round_phases(&l, i, &p, x, plane, planes);
    for (int at = 0; at < p.positions; at += SPAN) positions(&l, i, &p, planes, at, y);
    if (!numbers) mark_pixels(i, x, y);
  }
  free(planes);
  free(places);
  free(plane);
  return possible;
}

/* ---- what others call ---- */

/* Of a Layer, so that the two sides can tell whether they mean the same. */
int sparse8_layer_bytes(void) { return sizeof(Layer); }

/* What multiplies: 2: AMX, 1: instructions that add up four products, 0: neither */
int sparse8_level(void) {
#if AMX
  if (amx_granted()) return 2;
#endif
  return FOURS;
}

/* Whether all blocks lie inside: what was saved may have been changed since. */
static int sound(const Layer *l) {
  const int sets = (l->outputs + l->rows - 1) / l->rows, reads = l->rows == 4 ? 4 : 1;
  const uint32_t places = (uint32_t)(l->rows == 4 ? l->inputs : (l->inputs + 3) / 4);
  int good = l->starts[0] == 0 && l->starts[sets] == l->blocks;
  for (int set = 0; set < sets; set++) good &= l->starts[set] <= l->starts[set + 1];
  for (ptrdiff_t b = 0; b < (ptrdiff_t)l->blocks * reads; b++) good &= (uint32_t)l->places[b] < places;
  if (!l->tiles || !good) return good;
  good = l->tile_starts[0] == 0 && l->tile_starts[sets] == l->tile_count;
  for (int set = 0; set < sets; set++) good &= l->tile_starts[set] < l->tile_starts[set + 1];
  for (ptrdiff_t b = 0; b < 16 * (ptrdiff_t)l->tile_count; b++) good &= (uint32_t)l->tile_places[b] < places;
  return good;
}

enum { DONE, NO_MEMORY, NOT_SOUND };

/* Tokens x (tokens, inputs) to y (tokens, outputs) */
int sparse8_linear(const Layer *l, const float *x, ptrdiff_t tokens, float *y) {
  if (!sound(l)) return NOT_SOUND;
  if (l->rows == 4) return run_columns(l, x, tokens, y) ? DONE : NO_MEMORY;
#if AMX
  if (l->tiles && amx_granted()) return run_tiled(l, x, tokens, y) ? DONE : NO_MEMORY;
#endif
  return run_blocks(l, x, tokens, y) ? DONE : NO_MEMORY;
}

int sparse8_image_bytes(void) { return sizeof(Image); }

/* Images x [images][channels][height][width] to y [images][outputs][out_height][out_width]; a layer's inputs are the
   channels of a group for each tap, with blocks of 16x4 filled up to whole fours. */
int sparse8_conv2d(const Layer *l, const Image *image, const float *x, ptrdiff_t images, float *y) {
  if (!sound(l)) return NOT_SOUND;
  const Image row = straightened(image);
  return (l->rows == 4 ? run_image_columns : run_images)(l, &row, x, images, y) ? DONE : NO_MEMORY;
}
