/* A network on tiles of samples: one sample in each lane of a vector, so that any number of channels fills it.

   A value is [height][width][channels][LANES] floats. A convolution is then a small matrix product at each position,
   weights broadcast; a 3x3 one with stride 1 takes 4x4 outputs at once with a quarter of the multiplications (Winograd's
   minimal filtering F(4x4, 3x3); Lavin and Gray 2016, section 4.3). Lanes never meet, hence results do not depend on how
   samples are put together or on the number of threads. */

#include "vectors.h"

#if LANES == 16
#define OUTPUTS 12 /* of a block of output channels: with two positions each they fill the registers */
#else
#define OUTPUTS 6
#endif

enum { CONV, WINOGRAD, DEPTHWISE, ADD, AFFINE, MAXIMUM, MEAN, COPY, CLEAR, ROUND };

typedef struct {
  int kind, in, other, out; /* buffers; other: what is added to the output, or -1 */
  int height, width, channels;
  int out_height, out_width, out_channels;
  int kernel[2], stride[2], padding[2], dilation[2];
  int groups;
  int offset;          /* COPY: the first output channel */
  float low, high;     /* the output is clamped to this */
  float step, zero;    /* ROUND: width of a level and level of 0.0; high and low are its levels */
  const float *weight; /* packed, see tiles.py */
  const float *bias;   /* [out_channels] */
} Step;

/* acc[p][q] += the products of `count` inputs of P positions, `apart` from each other, and weights [count][Q] */
#define MULTIPLY(P, Q)                                                                                                 \
  static inline const float *multiply_##P##_##Q(vec acc[P][Q], const float *at, ptrdiff_t apart, ptrdiff_t next,      \
                                                int count, const float *weight) {                                     \
    for (int k = 0; k < count; k++, at += next, weight += Q) {                                                         \
      vec x[P];                                                                                                        \
      _Pragma("GCC unroll 2") for (int p = 0; p < P; p++) x[p] = *(const vec *)(at + p * apart);                       \
      _Pragma("GCC unroll 12") for (int q = 0; q < Q; q++)                                                             \
          _Pragma("GCC unroll 2") for (int p = 0; p < P; p++) acc[p][q] += x[p] * weight[q];                           \
    }                                                                                                                  \
    return weight;                                                                                                     \
  }

/* P neighbouring outputs of Q channels; taps from `top` to `bottom` and `left` to `right` lie inside the input */
#define DIRECT(P, Q)                                                                                                   \
  static void direct_##P##_##Q(const Step *s, const float *x, int top, int bottom, int left, int right,                \
                               const float *weight, const float *bias, const float *other, float *out) {               \
    const int inner = s->channels / s->groups;                                                                         \
    const ptrdiff_t pixel = (ptrdiff_t)s->channels * LANES, row = pixel * s->width;                                    \
    const ptrdiff_t apart = (ptrdiff_t)s->out_channels * LANES;                                                        \
    vec acc[P][Q];                                                                                                     \
    for (int p = 0; p < P; p++)                                                                                        \
      for (int q = 0; q < Q; q++) acc[p][q] = all(bias[q]);                                                            \
    for (int i = top; i < bottom; i++)                                                                                 \
      for (int j = left; j < right; j++)                                                                               \
        multiply_##P##_##Q(acc, x + i * s->dilation[0] * row + j * s->dilation[1] * pixel, s->stride[1] * pixel,       \
                           LANES, inner, weight + (ptrdiff_t)(i * s->kernel[1] + j) * inner * Q);                      \
    for (int p = 0; p < P; p++)                                                                                        \
      for (int q = 0; q < Q; q++) {                                                                                    \
        const vec sum = other ? acc[p][q] + *(const vec *)(other + p * apart + q * LANES) : acc[p][q];                 \
        *(vec *)(out + p * apart + q * LANES) = clamp(sum, s->low, s->high);                                           \
      }                                                                                                                \
  }

/* Floats between two frequencies of two tiles: an odd number of vectors, so that they do not share cache sets. */
static inline ptrdiff_t far(int channels) { return (2 * (ptrdiff_t)channels + 1) * LANES; }

/* Winograd's 36 products of two tiles: sums[f][q][p] from inputs[f][k][p] and weights[f][k][q] */
#define FREQUENCIES(Q)                                                                                                 \
  static void frequencies_##Q(const float *inputs, const float *weight, int channels, float *sums) {                   \
    for (int f = 0; f < 36; f++, inputs += far(channels), sums += far(Q)) {                                            \
      vec acc[2][Q];                                                                                                   \
      for (int q = 0; q < Q; q++) acc[0][q] = acc[1][q] = (vec){};                                                     \
      weight = multiply_2_##Q(acc, inputs, LANES, 2 * LANES, channels, weight);                                        \
      for (int q = 0; q < Q; q++)                                                                                      \
        for (int p = 0; p < 2; p++) *(vec *)(sums + (2 * q + p) * LANES) = acc[p][q];                                  \
    }                                                                                                                  \
  }

#define WITH(Q) MULTIPLY(1, Q) MULTIPLY(2, Q) DIRECT(1, Q) DIRECT(2, Q) FREQUENCIES(Q)
WITH(1) WITH(2) WITH(3) WITH(4) WITH(5) WITH(6) WITH(7) WITH(8) WITH(9) WITH(10) WITH(11) WITH(12)

typedef void (*Direct)(const Step *, const float *, int, int, int, int, const float *, const float *, const float *,
                       float *);
typedef void (*Frequencies)(const float *, const float *, int, float *);
#define TWO(Q) {direct_1_##Q, direct_2_##Q}
static const Direct direct[13][2] = {{0, 0}, TWO(1), TWO(2), TWO(3), TWO(4), TWO(5), TWO(6),
                                     TWO(7), TWO(8), TWO(9), TWO(10), TWO(11), TWO(12)};
static const Frequencies frequencies[13] = {
    0,             frequencies_1, frequencies_2, frequencies_3, frequencies_4,  frequencies_5,  frequencies_6,
    frequencies_7, frequencies_8, frequencies_9, frequencies_10, frequencies_11, frequencies_12};

/* Of `left` output channels in `blocks` blocks, how many are in the first: as even as can be. */
static inline int block_of(int left, int blocks) { return (left + blocks - 1) / blocks; }

/* Taps t with 0 <= at + t * dilation < size. */
static inline int first_tap(int at, int dilation) { return at >= 0 ? 0 : (-at + dilation - 1) / dilation; }
static inline int last_tap(int at, int dilation, int size, int taps) {
  return at >= size ? 0 : smaller(taps, (size - at - 1) / dilation + 1);
}

static void convolve(const Step *s, const float *in, const float *other, float *out) {
  const int inner = s->channels / s->groups, outer = s->out_channels / s->groups;
  const int area = s->kernel[0] * s->kernel[1], blocks = (outer + OUTPUTS - 1) / OUTPUTS;
  const ptrdiff_t pixel = (ptrdiff_t)s->channels * LANES, row = pixel * s->width;
  const ptrdiff_t out_pixel = (ptrdiff_t)s->out_channels * LANES;
  const float *weight = s->weight;
  for (int g = 0, done = 0; g < s->groups; g++) {
    for (int b = 0, o = 0; b < blocks; b++) {
      const int q = block_of(outer - o, blocks - b);
      for (int y = 0; y < s->out_height; y++) {
        const int at_y = y * s->stride[0] - s->padding[0];
        const int top = first_tap(at_y, s->dilation[0]);
        const int bottom = last_tap(at_y, s->dilation[0], s->height, s->kernel[0]);
        for (int x = 0; x < s->out_width;) {
          const int at_x = x * s->stride[1] - s->padding[1];
          const int last = at_x + s->stride[1] + (s->kernel[1] - 1) * s->dilation[1]; /* that two outputs read */
          const int pair = x + 1 < s->out_width && at_x >= 0 && last < s->width;
          const ptrdiff_t to = ((ptrdiff_t)y * s->out_width + x) * out_pixel + (ptrdiff_t)done * LANES;
          direct[q][pair](s, in + at_y * row + at_x * pixel + (ptrdiff_t)g * inner * LANES, top, bottom,
                          first_tap(at_x, s->dilation[1]),
                          last_tap(at_x, s->dilation[1], s->width, s->kernel[1]), weight, s->bias + done,
                          other ? other + to : 0, out + to);
          x += 1 + pair;
        }
      }
      weight += (ptrdiff_t)q * inner * area;
      o += q;
      done += q;
    }
  }
}

/* One line of the input transform; `gap` vectors between neighbours. */
static inline void into(const vec *d, int gap, vec *t) {
  const vec a = d[4 * gap] - 4 * d[2 * gap], b = d[3 * gap] - 4 * d[1 * gap];
  const vec c = d[4 * gap] - d[2 * gap], e = 2 * (d[3 * gap] - d[1 * gap]);
  t[0] = 4 * d[0] - 5 * d[2 * gap] + d[4 * gap];
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = 4 * d[1 * gap] - 5 * d[3 * gap] + d[5 * gap];
}

/* One line of the output transform. */
static inline void back(const vec *m, int gap, vec *y) {
  const vec a = m[1 * gap] + m[2 * gap], b = m[1 * gap] - m[2 * gap];
  const vec c = m[3 * gap] + m[4 * gap], e = m[3 * gap] - m[4 * gap];
  y[0] = m[0] + a + c;
  y[1] = b + 2 * e;
  y[2] = a + 4 * c;
  y[3] = b + 8 * e + m[5 * gap];
}

/* The inputs of the tile at (y, x), transformed, zero outside of the input. */
static void transform_tile(const Step *s, const float *in, int y, int x, float *to) {
  const int inside = y >= 0 && x >= 0 && y + 6 <= s->height && x + 6 <= s->width;
  const ptrdiff_t pixel = (ptrdiff_t)s->channels * LANES, row = pixel * s->width, apart = far(s->channels);
  for (int k = 0; k < s->channels; k++, in += LANES, to += 2 * LANES) {
    const float *from = in + y * row + x * pixel;
    vec half[36], line[6];
    for (int i = 0; i < 6; i++) {
      if (inside)
        for (int j = 0; j < 6; j++) line[j] = *(const vec *)(from + i * row + j * pixel);
      else
        for (int j = 0; j < 6; j++) {
          const int there = y + i >= 0 && x + j >= 0 && y + i < s->height && x + j < s->width;
          line[j] = there ? *(const vec *)(from + i * row + j * pixel) : (vec){};
        }
      into(line, 1, half + 6 * i);
    }
    for (int j = 0; j < 6; j++) {
      into(half + j, 6, line);
      for (int i = 0; i < 6; i++) *(vec *)(to + (6 * i + j) * apart) = line[i];
    }
  }
}

/* The outputs of the tile at (y, x) from its products, `apart` by frequency. */
static void finish_tile(const Step *s, const float *sums, ptrdiff_t apart, float bias, int y, int x, const float *other,
                        float *out) {
  const ptrdiff_t pixel = (ptrdiff_t)s->out_channels * LANES, row = pixel * s->out_width;
  const int rows = smaller(4, s->out_height - y), columns = smaller(4, s->out_width - x);
  vec products[36], half[24], line[4];
  for (int f = 0; f < 36; f++) products[f] = *(const vec *)(sums + f * apart);
  for (int i = 0; i < 6; i++) back(products + 6 * i, 1, half + 4 * i);
  for (int j = 0; j < columns; j++) {
    back(half + j, 4, line);
    for (int i = 0; i < rows; i++) {
      const ptrdiff_t to = (y + i) * row + (x + j) * pixel;
      const vec sum = line[i] + bias;
      *(vec *)(out + to) = clamp(other ? sum + *(const vec *)(other + to) : sum, s->low, s->high);
    }
  }
}

/* scratch: 36 far(channels) + 36 far(OUTPUTS) floats */
static void winograd(const Step *s, const float *in, const float *other, float *out, float *scratch) {
  const int across = (s->out_width + 3) / 4, count = across * ((s->out_height + 3) / 4);
  const int blocks = (s->out_channels + OUTPUTS - 1) / OUTPUTS;
  float *sums = scratch + 36 * far(s->channels);
  for (int t = 0; t < count; t += 2) {
    const int tiles = smaller(2, count - t);
    for (int p = 0; p < tiles; p++)
      transform_tile(s, in, (t + p) / across * 4 - s->padding[0], (t + p) % across * 4 - s->padding[1],
                     scratch + p * LANES);
    const float *weight = s->weight;
    for (int b = 0, o = 0; b < blocks; b++) {
      const int q = block_of(s->out_channels - o, blocks - b);
      frequencies[q](scratch, weight, s->channels, sums);
      for (int i = 0; i < q; i++)
        for (int p = 0; p < tiles; p++) {
          const ptrdiff_t channel = (ptrdiff_t)(o + i) * LANES;
          finish_tile(s, sums + (2 * i + p) * LANES, far(q), s->bias[o + i], (t + p) / across * 4,
                      (t + p) % across * 4, other ? other + channel : 0, out + channel);
        }
      weight += (ptrdiff_t)36 * q * s->channels;
      o += q;
    }
  }
}

/* What a window operation does with the values under the window, for one channel of one output. */
static inline vec window(const Step *s, const float *in, int y, int x, int c) {
  const int at_y = y * s->stride[0] - s->padding[0], at_x = x * s->stride[1] - s->padding[1];
  const int top = first_tap(at_y, s->dilation[0]), left = first_tap(at_x, s->dilation[1]);
  const int bottom = last_tap(at_y, s->dilation[0], s->height, s->kernel[0]);
  const int right = last_tap(at_x, s->dilation[1], s->width, s->kernel[1]);
  vec found = s->kind == DEPTHWISE ? all(s->bias[c]) : s->kind == MAXIMUM ? all(-__builtin_inff()) : (vec){};
  for (int i = top; i < bottom; i++)
    for (int j = left; j < right; j++) {
      const int y_in = at_y + i * s->dilation[0], x_in = at_x + j * s->dilation[1];
      const vec v = *(const vec *)(in + (((ptrdiff_t)y_in * s->width + x_in) * s->channels + c) * LANES);
      if (s->kind == DEPTHWISE)
        found += v * s->weight[(ptrdiff_t)(i * s->kernel[1] + j) * s->channels + c];
      else if (s->kind == MAXIMUM) {
        const mask stays = (found >= v) | (found != found);
        found = (vec)(((mask)found & stays) | ((mask)v & ~stays));
      } else
        found += v;
    }
  return s->kind == MEAN ? found * s->step : found;
}

static void windows(const Step *s, const float *in, const float *other, float *out) {
  for (int y = 0; y < s->out_height; y++)
    for (int x = 0; x < s->out_width; x++)
      for (int c = 0; c < s->out_channels; c++) {
        const ptrdiff_t to = (((ptrdiff_t)y * s->out_width + x) * s->out_channels + c) * LANES;
        vec found = window(s, in, y, x, c);
        if (other) found += *(const vec *)(other + to);
        *(vec *)(out + to) = clamp(found, s->low, s->high);
      }
}

static void copy(const Step *s, const float *in, float *out) {
  for (int y = 0; y < smaller(s->out_height, (s->height + s->stride[0] - 1) / s->stride[0]); y++)
    for (int x = 0; x < smaller(s->out_width, (s->width + s->stride[1] - 1) / s->stride[1]); x++) {
      const float *from = in + ((ptrdiff_t)y * s->stride[0] * s->width + x * s->stride[1]) * s->channels * LANES;
      float *to = out + (((ptrdiff_t)y * s->out_width + x) * s->out_channels + s->offset) * LANES;
      for (int c = 0; c < s->channels * LANES; c += LANES) *(vec *)(to + c) = *(const vec *)(from + c);
    }
}

static void pointwise(const Step *s, const float *in, const float *other, float *out) {
  const ptrdiff_t count = (ptrdiff_t)s->out_height * s->out_width * s->out_channels;
  for (ptrdiff_t i = 0; i < count; i++, in += LANES, out += LANES) {
    const vec x = *(const vec *)in;
    vec y = x;
    if (s->kind == CLEAR)
      y = (vec){};
    else if (s->kind == AFFINE)
      y = x * s->weight[i % s->out_channels] + s->bias[i % s->out_channels];
    else if (s->kind == ROUND) {
      vec level = x / s->step;
      for (int l = 0; l < LANES; l++) level[l] = __builtin_rintf(level[l]);
      *(vec *)out = (clamp(level + s->zero, s->low, s->high) - s->zero) * s->step;
      continue;
    }
    if (other) {
      y += *(const vec *)other;
      other += LANES;
    }
    *(vec *)out = clamp(y, s->low, s->high);
  }
}

/* Moments. Columns are what one output position reads, in the order of a weight [channels][kernel], and then what it
   should give; rows are samples. A block holds [columns][GATHERED + 1][LANES]: the odd number of vectors keeps columns
   out of each other's cache sets. */
#define GATHERED 32
#define COLUMN ((GATHERED + 1) * LANES)
#define SIDE (LANES == 16 ? 5 : 3) /* columns of a block of products: they fill the registers */

typedef struct {
  int height, width, channels, wanted; /* of the input; how many columns it should give */
  int kernel[2], stride[2], padding[2], dilation[2];
} Reading;

typedef struct {
  int tile, y, x; /* of an output */
} Position;

/* Over all lanes; halves first, which leaves hardly anything to add one by one. */
static inline double sum_of(vec v) {
  typedef float quarter __attribute__((vector_size(16)));
  union {
    vec whole;
    quarter parts[LANES / 4];
  } u = {v};
  quarter sum = u.parts[0];
  for (int i = 1; i < LANES / 4; i++) sum += u.parts[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void gather(const Reading *r, const float *in, const float *shift, Position at, float *to) {
  const int taps = r->kernel[0] * r->kernel[1];
  for (int i = 0; i < r->kernel[0]; i++)
    for (int j = 0; j < r->kernel[1]; j++) {
      const int y = at.y * r->stride[0] - r->padding[0] + i * r->dilation[0];
      const int x = at.x * r->stride[1] - r->padding[1] + j * r->dilation[1];
      const int there = y >= 0 && x >= 0 && y < r->height && x < r->width;
      const float *from =
          in + (((ptrdiff_t)at.tile * r->height + y) * r->width + x) * (ptrdiff_t)r->channels * LANES;
      for (int c = 0, n = i * r->kernel[1] + j; c < r->channels; c++, n += taps)
        *(vec *)(to + (ptrdiff_t)n * COLUMN) = (there ? *(const vec *)(from + (ptrdiff_t)c * LANES) : (vec){}) - shift[n];
    }
}

/* Products of columns. Where the processor multiplies pairs of 16-bit floats (bfloat16, sums in 32 bits) a cell holds two
   rows: rounding each entry to 8 bits, without bias, is far less than what a sample of rows leaves open. */
#if defined(__AVX512BF16__)
typedef __m512bh cell;
#define ROWS_OF_CELL 2
static inline vec multiply_add(vec sum, cell a, cell b) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef vec cell;
#define ROWS_OF_CELL 1
static inline vec multiply_add(vec sum, cell a, cell b) { return sum + a * b; }
#endif
#define CELLS (GATHERED / ROWS_OF_CELL + 1) /* of a column, and one more */

/* Gathered rows of one column as cells. */
static void pack(const float *from, int rows, cell *to) {
#if defined(__AVX512BF16__)
  for (int r = 0; r < rows; r += 2, from += 2 * LANES) {
    const __m512 second = r + 1 < rows ? *(const __m512 *)(from + LANES) : _mm512_setzero_ps();
    *to++ = _mm512_cvtne2ps_pbh(second, *(const __m512 *)from);
  }
#else
  for (int r = 0; r < rows; r++, from += LANES) *to++ = *(const vec *)from;
#endif
}

/* products[i][j] += columns i and j of `count` cells, for SIDE by SIDE columns */
static void multiply_columns(const cell *left, const cell *right, int count, double *products, ptrdiff_t apart) {
  vec acc[SIDE][SIDE];
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) acc[i][j] = (vec){};
  for (int r = 0; r < count; r++, left++, right++) {
    cell across[SIDE];
    _Pragma("GCC unroll 5") for (int j = 0; j < SIDE; j++) across[j] = right[j * CELLS];
    _Pragma("GCC unroll 5") for (int i = 0; i < SIDE; i++) {
      const cell down = left[i * CELLS];
      _Pragma("GCC unroll 5") for (int j = 0; j < SIDE; j++) acc[i][j] = multiply_add(acc[i][j], down, across[j]);
    }
  }
  for (int i = 0; i < SIDE; i++)
    for (int j = 0; j < SIDE; j++) products[i * apart + j] += sum_of(acc[i][j]);
}

int tiles_side(void) { return SIDE; }
int tiles_columns(int columns) { return (columns + SIDE - 1) / SIDE * SIDE; }

/* Adds to sums [padded] and to some rows, `from` to `to`, of products [padded][padded], the columns filled up to
   tiles_columns; products are right where the column is no smaller than the row. Wanted values are
   [count][wanted][LANES]; what is near each column's mean is subtracted first, lest squares round away a small variance.
   from, to: multiples of tiles_side; scratch: tiles_moments_floats, zero at first. */
void tiles_moments(const Reading *r, const float *in, const float *wanted, const float *shift, const Position *at,
                   int count, double *sums, int from, int to, double *products, float *scratch) {
  const int read = r->channels * r->kernel[0] * r->kernel[1], columns = read + r->wanted;
  const int padded = tiles_columns(columns);
  cell *cells = (cell *)(scratch + (ptrdiff_t)columns * COLUMN);
  for (int start = 0; start < count; start += GATHERED) {
    const int rows = smaller(GATHERED, count - start);
    for (int s = 0; s < rows; s++) {
      gather(r, in, shift, at[start + s], scratch + s * LANES);
      for (int c = 0; c < r->wanted; c++)
        *(vec *)(scratch + (ptrdiff_t)(read + c) * COLUMN + s * LANES) =
            *(const vec *)(wanted + ((ptrdiff_t)(start + s) * r->wanted + c) * LANES) - shift[read + c];
    }
    for (int n = 0; n < columns; n++) {
      const float *column = scratch + (ptrdiff_t)n * COLUMN;
      vec total = {};
      for (int s = 0; s < rows; s++) total += *(const vec *)(column + s * LANES);
      sums[n] += sum_of(total);
      pack(column, rows, cells + (ptrdiff_t)n * CELLS);
    }
    for (int i = from; i < to; i += SIDE)
      for (int j = i; j < padded; j += SIDE)
        multiply_columns(cells + (ptrdiff_t)i * CELLS, cells + (ptrdiff_t)j * CELLS,
                         (rows + ROWS_OF_CELL - 1) / ROWS_OF_CELL, products + (ptrdiff_t)i * padded + j, padded);
  }
}

/* Adds to sums and squares [channels] those of `positions` positions of whole tiles, `shift` [channels] subtracted.
   scratch: 2 channels LANES floats. */
void tiles_spread(const float *in, size_t positions, int channels, const float *shift, double *sums, double *squares,
                  float *scratch) {
  vec *first = (vec *)scratch, *second = first + channels;
  for (size_t start = 0; start < positions; start += 256) {
    for (int c = 0; c < channels; c++) first[c] = second[c] = (vec){};
    for (size_t p = start; p < positions && p < start + 256; p++)
      for (int c = 0; c < channels; c++, in += LANES) {
        const vec x = *(const vec *)in - shift[c];
        first[c] += x;
        second[c] += x * x;
      }
    for (int c = 0; c < channels; c++) {
      sums[c] += sum_of(first[c]);
      squares[c] += sum_of(second[c]);
    }
  }
}

int tiles_moments_exact(void) { return ROWS_OF_CELL == 1; }

size_t tiles_moments_floats(int columns) {
  return (size_t)columns * COLUMN + (size_t)tiles_columns(columns) * CELLS * LANES;
}

int tiles_lanes(void) { return LANES; }
int tiles_outputs(void) { return OUTPUTS; }
int tiles_step_bytes(void) { return sizeof(Step); }

/* Runs `count` steps on one tile; buffers hold its values by number. */
void tiles_run(const Step *steps, int count, float *const *buffers, float *scratch) {
  for (const Step *s = steps; s < steps + count; s++) {
    const float *in = buffers[s->in], *other = s->other < 0 ? 0 : buffers[s->other];
    float *out = buffers[s->out];
    if (s->kind == CONV)
      convolve(s, in, other, out);
    else if (s->kind == WINOGRAD)
      winograd(s, in, other, out, scratch);
    else if (s->kind == COPY)
      copy(s, in, out);
    else if (s->kind == ADD || s->kind == AFFINE || s->kind == CLEAR || s->kind == ROUND)
      pointwise(s, in, other, out);
    else
      windows(s, in, other, out);
  }
}
