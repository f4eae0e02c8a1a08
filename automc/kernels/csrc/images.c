/* A network on one image after another, its weights sparse (product.h), its values all in the second cache.

   A value is [channels][plane] floats: rows of zeros above and below the image, nothing at its sides. A kernel that moves
   by one over all columns reads each tap as a run of floats, moved by some rows and columns; lanes that come from beyond a
   side are masked (direct sparse convolution, Park et al. 2017, by masks instead of padding). Where many weights are left
   it pays to lay out a moved copy for each column of the kernel first. Any other kernel has its taps laid out in any
   case. */

#include "product.h"

typedef struct {
  int channels, height, width;
  int above; /* rows of zeros before the first */
  int plane; /* floats of a channel, rows of zeros and what a vector may read too far included */
} Layout;

enum { PRODUCT, SHIFT, SPREAD, ADD, AFFINE, MAXIMUM, MEAN, COPY, CLEAR, ROUND };

typedef struct {
  int kind, in, other, out; /* values; other: what is added to the output, or -1 */
  int offset;               /* COPY: the first output channel */
  int kernel[2], stride[2], padding[2], dilation[2];
  int phases, shift; /* SPREAD: row r of phase f is input row (r + shift) * stride + f */
  float low, high;   /* the output is clamped to this */
  float step, zero;    /* ROUND: width of a level and level of 0.0; MEAN: step, the share of one position */
  int64_t scale, bias; /* AFFINE: [channels] */
  Stored matrix;       /* of PRODUCT; of SHIFT its masks */
} Step;

/* A network is one piece of memory that begins with this; places in it are bytes from its beginning. */
typedef struct {
  Head head;
  int32_t steps, values;   /* how many */
  int32_t input, output;   /* values; they lie as torch has them */
  int32_t cleared;         /* how many values have rows of zeros that no other has at the same place */
  int64_t step, layout;    /* [steps], [values] */
  int64_t place;           /* int64 [values]: floats from the beginning of the scratch */
  int64_t clear;           /* int32 [cleared]: values */
  int64_t floats;          /* of scratch */
  int64_t work;            /* multiply-adds of vectors for an image; for who deals out images to threads */
} Plan;

static inline float clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* From a value's beginning to its first position. */
static ptrdiff_t origin(const Layout *l) { return (ptrdiff_t)l->above * l->width; }

/* All tiles of a product; a part's sums wait in the output for the next part. */
static void multiply(const Step *s, const Matrix *m, const Layout *other, const Layout *out, const float *x,
                     const float *added, float *y) {
  const int positions = out->height * out->width, vectors = (positions + LANES - 1) / LANES;
  const int most = most_vectors(m->block), tiles = (vectors + most - 1) / most;
  for (int tile = 0, v = 0; tile < tiles; tile++) {
    const int count = (vectors - v + tiles - tile - 1) / (tiles - tile), p = v * LANES;
    Place at = {.in = x + p,
                .other = added ? added + origin(other) + p : 0,
                .out = y + origin(out) + p,
                .masks = (const lanes_read *)m->mask + v,
                .other_row = added ? other->plane : 0,
                .out_row = out->plane,
                .lanes = smaller(LANES, positions - (v + count - 1) * LANES),
                .low = s->low,
                .high = s->high};
    product(m, count, 0, (m->rows + m->block - 1) / m->block, at);
    v += count;
  }
}

/* Planes [channels][kernel columns][plane], each the image moved by some columns: the same reads without masks, and from
   where lines of the cache begin, for who reads often enough. */
static void shift(const Step *s, const lanes_read *masks, const Layout *in, const float *x, float *y) {
  const int vectors = in->plane / LANES;
  for (int c = 0; c < in->channels; c++, x += in->plane)
    for (int t = 0; t < s->kernel[1]; t++, y += in->plane) {
      const lanes_read *read = masks + (ptrdiff_t)t * vectors;
      const float *from = x + t * s->dilation[1] - s->padding[1];
      for (int v = 0; v < vectors; v++) *(loose *)(y + v * LANES) = masked(from + v * LANES, read[v]);
    }
}

/* One row of a tap: out[x] = row[x * stride + first], zeros where that is outside. */
static inline void move(const float *row, int width, int first, int stride, float *out, int count) {
  const int left = smaller(count, first >= 0 ? 0 : (-first + stride - 1) / stride);
  const int right = first >= width ? left : larger(left, smaller(count, (width - 1 - first) / stride + 1));
  for (int x = 0; x < left; x++) out[x] = 0;
  if (stride == 1)
    for (int x = left; x < right; x++) out[x] = row[x + first];
  else
    for (int x = left; x < right; x++) out[x] = row[x * stride + first];
  for (int x = right; x < count; x++) out[x] = 0;
}

/* The planes [channels][kernel columns][phases][rows][width] of a convolution that moves by more than one. */
static void spread(const Step *s, const Layout *in, const Layout *out, const float *x, float *y) {
  for (int c = 0; c < in->channels; c++)
    for (int t = 0; t < s->kernel[1]; t++)
      for (int f = 0; f < s->phases; f++) {
        float *plane = y + (ptrdiff_t)((c * s->kernel[1] + t) * s->phases + f) * out->plane;
        const float *from = x + origin(in) + (ptrdiff_t)c * in->plane;
        for (int r = 0; r < out->height; r++, plane += out->width) {
          const int row = (r + s->shift) * s->stride[0] + f;
          if (row < 0 || row >= in->height)
            memset(plane, 0, 4 * (size_t)out->width);
          else
            move(from + (ptrdiff_t)row * in->width, in->width, t * s->dilation[1] - s->padding[1], s->stride[1], plane,
                 out->width);
        }
      }
}

static vec pointwise_of(const Step *s, const char *plan, vec x, int c) {
  if (s->kind == AFFINE) return x * ((const float *)(plan + s->scale))[c] + ((const float *)(plan + s->bias))[c];
  if (s->kind == ROUND) {
    vec level = x / s->step;
    for (int l = 0; l < LANES; l++) level[l] = __builtin_rintf(level[l]);
    return (clamp(level + s->zero, s->low, s->high) - s->zero) * s->step;
  }
  return x;
}

static void pointwise(const Step *s, const char *plan, const Layout *in, const Layout *other, const Layout *out, const float *x,
                      const float *added, float *y) {
  const int positions = out->height * out->width;
  for (int c = 0; c < out->channels; c++)
    for (int p = 0; p < positions; p += LANES) {
      vec v = pointwise_of(s, plan, *(const loose *)(x + origin(in) + (ptrdiff_t)c * in->plane + p), c);
      if (added) v += *(const loose *)(added + origin(other) + (ptrdiff_t)c * other->plane + p);
      if (s->kind != ROUND) v = clamp(v, s->low, s->high);
      put(y + origin(out) + (ptrdiff_t)c * out->plane + p, v, smaller(LANES, positions - p));
    }
}

/* What a window gives at one output; `from` is the channel's first position. */
static inline float window(const Step *s, const Layout *in, const float *from, int y, int x) {
  float found = s->kind == MAXIMUM ? -__builtin_inff() : 0;
  for (int i = 0; i < s->kernel[0]; i++)
    for (int j = 0; j < s->kernel[1]; j++) {
      const int r = y * s->stride[0] - s->padding[0] + i * s->dilation[0];
      const int c = x * s->stride[1] - s->padding[1] + j * s->dilation[1];
      if (r < 0 || c < 0 || r >= in->height || c >= in->width) continue;
      const float v = from[(ptrdiff_t)r * in->width + c];
      if (s->kind == MEAN)
        found += v;
      else if (!(found >= v) && found == found)
        found = v;
    }
  return s->kind == MEAN ? found * s->step : found;
}

/* Over all positions of one channel. */
static float whole_mean(const Step *s, const float *from, int positions) {
  vec sum = {};
  int p = 0;
  for (; p + LANES <= positions; p += LANES) sum += *(const loose *)(from + p);
  float total = 0;
  for (int l = 0; l < LANES; l++) total += sum[l];
  for (; p < positions; p++) total += from[p];
  return total * s->step;
}

static void windows(const Step *s, const Layout *in, const Layout *out, const float *x, float *y) {
  const int whole = s->kind == MEAN && s->kernel[0] == in->height && s->kernel[1] == in->width && !s->padding[0] &&
                    !s->padding[1];
  for (int c = 0; c < out->channels; c++) {
    const float *from = x + origin(in) + (ptrdiff_t)c * in->plane;
    float *to = y + origin(out) + (ptrdiff_t)c * out->plane;
    for (int r = 0; r < out->height; r++)
      for (int q = 0; q < out->width; q++, to++)
        *to = clamped(whole ? whole_mean(s, from, in->height * in->width) : window(s, in, from, r, q), s->low, s->high);
  }
}

/* Channels of one value as channels of another, every stride-th position. */
static void copy(const Step *s, const Layout *in, const Layout *out, const float *x, float *y) {
  for (int c = 0; c < in->channels; c++) {
    const float *from = x + origin(in) + (ptrdiff_t)c * in->plane;
    float *to = y + origin(out) + (ptrdiff_t)(s->offset + c) * out->plane;
    for (int r = 0; r < out->height; r++, to += out->width)
      move(from + (ptrdiff_t)r * s->stride[0] * in->width, in->width, 0, s->stride[1], to, out->width);
  }
}

static void clear(const Layout *out, float *y) {
  for (int c = 0; c < out->channels; c++)
    memset(y + origin(out) + (ptrdiff_t)c * out->plane, 0, 4 * (size_t)out->height * out->width);
}

static void run(const Plan *plan, const Step *s, float *scratch) {
  const char *base = (const char *)plan;
  const Layout *layouts = (const Layout *)(base + plan->layout);
  const int64_t *place = (const int64_t *)(base + plan->place);
  const Layout *in = layouts + s->in, *out = layouts + s->out, *other = s->other < 0 ? 0 : layouts + s->other;
  const float *x = scratch + place[s->in], *added = other ? scratch + place[s->other] : 0;
  float *y = scratch + place[s->out];
  const Matrix matrix = placed(&s->matrix, base);
  if (s->kind == PRODUCT)
    multiply(s, &matrix, other, out, x, added, y);
  else if (s->kind == SHIFT)
    shift(s, matrix.mask, in, x, y);
  else if (s->kind == SPREAD)
    spread(s, in, out, x, y);
  else if (s->kind == MAXIMUM || s->kind == MEAN)
    windows(s, in, out, x, y);
  else if (s->kind == COPY)
    copy(s, in, out, x, y);
  else if (s->kind == CLEAR)
    clear(out, y);
  else
    pointwise(s, base, in, other, out, x, added, y);
}

int images_lanes(void) { return LANES; }
int images_step_bytes(void) { return sizeof(Step); }
int images_plan_bytes(void) { return sizeof(Plan); }

/* A network on `count` images, one after the other, as torch has them; scratch with anything in it. */
void images_run(const Plan *plan, const float *in, float *out, int count, float *scratch) {
  const char *base = (const char *)plan;
  const Layout *layouts = (const Layout *)(base + plan->layout), *first = layouts + plan->input;
  const Layout *last = layouts + plan->output;
  const int64_t *place = (const int64_t *)(base + plan->place);
  const int32_t *cleared = (const int32_t *)(base + plan->clear);
  const Step *steps = (const Step *)(base + plan->step);
  const size_t read = (size_t)first->height * first->width, made = (size_t)last->height * last->width;
  const unsigned before = without_denormals();
  for (int i = 0; i < plan->cleared; i++) {
    const Layout *l = layouts + cleared[i];
    float *to = scratch + place[cleared[i]];
    for (int c = 0; c < l->channels; c++, to += l->plane) {
      memset(to, 0, 4 * (size_t)origin(l));
      const ptrdiff_t behind = origin(l) + (ptrdiff_t)l->height * l->width;
      memset(to + behind, 0, 4 * (size_t)(l->plane - behind));
    }
  }
  for (int i = 0; i < count; i++) {
    for (int c = 0; c < first->channels; c++, in += read)
      memcpy(scratch + place[plan->input] + origin(first) + (ptrdiff_t)c * first->plane, in, 4 * read);
    for (const Step *s = steps; s < steps + plan->steps; s++) run(plan, s, scratch);
    for (int c = 0; c < last->channels; c++, out += made)
      memcpy(out, scratch + place[plan->output] + origin(last) + (ptrdiff_t)c * last->plane, 4 * made);
  }
  usual(before);
}
