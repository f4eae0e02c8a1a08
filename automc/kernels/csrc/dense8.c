/* Rounding for dense layers of 8 bits, whose products are oneDNN's: from floats to levels in one pass. */

#include <stdlib.h>
#include "levels.h"

static int run(const Levels *v, const float *x, ptrdiff_t count, uint8_t *out) {
  int numbers = 1;
  ptrdiff_t at = 0;
  for (; at + 16 <= count; at += 16) numbers &= round_row(x + at, v, out + at);
  if (at < count) {
    float row[16] = {0};
    uint8_t found[16];
    memcpy(row, x + at, sizeof(float) * (size_t)(count - at));
    numbers &= round_row(row, v, found);
    memcpy(out + at, found, (size_t)(count - at));
  }
  return numbers;
}

/* So many numbers; whether all are numbers indeed */
int dense8_round(const float *levels, const float *x, ptrdiff_t count, uint8_t *out) {
  const Levels v = levels_of(levels);
  return run(&v, x, count, out);
}

/* `count` pixels of all channels, `apart` floats from each other, to [pixels][channels] */
static int turned(const Levels *v, const float *x, ptrdiff_t apart, int channels, int count, uint8_t *out) {
  int numbers = 1;
  for (int k = 0; k < count; k += 16)
    for (int c = 0; c < channels; c += 4) {
      uint8_t words[64], *to = out + (ptrdiff_t)k * channels + c;
      const int some = smaller(16, count - k), few = smaller(4, channels - c);
      numbers &= round_pixels(x + c * apart + k, apart, few, some, v, words);
      if (few == 4)
        for (int p = 0; p < some; p++) memcpy(to + (ptrdiff_t)p * channels, words + 4 * p, 4);
      else
        for (int p = 0; p < some; p++) memcpy(to + (ptrdiff_t)p * channels, words + 4 * p, (size_t)few);
    }
  return numbers;
}

typedef struct {
  int channels, height, width;
  int last;          /* whether they are [height][width][channels], else [channels][height][width] */
  int above, before; /* rows and columns of the level of 0.0 */
  int rows, columns; /* that are read: some may not be, or be of the level of 0.0 */
} Image;

typedef struct {
  Image image;
  int groups;
  int kernel[2], stride[2], dilation[2];
  int out_height, out_width;
} Windows;

int dense8_windows_bytes(void) { return sizeof(Windows); }

/* One image to [rows][columns][channels], likewise */
static int round_image(const Levels *v, const Image *i, const float *x, uint8_t *out) {
  const ptrdiff_t channels = i->channels, plane = (ptrdiff_t)i->height * i->width;
  const int height = smaller(i->height, i->rows - i->above), width = smaller(i->width, i->columns - i->before);
  const int margin = i->rows > height || i->columns > width, straight = !margin && width == i->width;
  int numbers = 1;
  if (margin) memset(out, (int)v->zero, (size_t)(channels * i->rows * i->columns));
  for (int y = 0; y < (straight ? 1 : height); y++) { /* without a margin all rows are one */
    const int count = straight ? height * width : width;
    const ptrdiff_t from = (ptrdiff_t)y * i->width;
    uint8_t *to = out + channels * ((ptrdiff_t)(y + i->above) * i->columns + i->before);
    numbers &= i->last ? run(v, x + from * channels, count * channels, to)
                       : turned(v, x + from, plane, i->channels, count, to);
  }
  return numbers;
}

#define PIECE(N) memcpy(to, from, N), memcpy(to + n - (N), from + n - (N), N)
static inline void copy(uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  for (; n > 32; n -= 32, to += 32, from += 32) memcpy(to, from, 32);
  if (n >= 16)
    PIECE(16);
  else if (n >= 8)
    PIECE(8);
  else if (n >= 4)
    PIECE(4);
  else
    for (; n > 0; n--) *to++ = *from++;
}

/* What each output of one image reads, [out_height * out_width][kernel][channels of a group], groups `apart` */
static void gather(const Windows *w, const uint8_t *x, uint8_t *out, ptrdiff_t apart) {
  const ptrdiff_t channels = w->image.channels, own = channels / w->groups, row = channels * w->image.columns;
  const int joined = w->groups == 1 && w->dilation[1] == 1; /* neighbouring taps lie side by side */
  const int taps = joined ? 1 : w->kernel[1];
  const ptrdiff_t piece = joined ? own * w->kernel[1] : own;
  for (int g = 0; g < w->groups; g++) {
    uint8_t *to = out + g * apart;
    for (int y = 0; y < w->out_height; y++)
      for (int c = 0; c < w->out_width; c++)
        for (int i = 0; i < w->kernel[0]; i++)
          for (int j = 0; j < taps; j++, to += piece)
            copy(to,
                 x + (ptrdiff_t)(y * w->stride[0] + i * w->dilation[0]) * row +
                     (ptrdiff_t)(c * w->stride[1] + j * w->dilation[1]) * channels + g * own,
                 piece);
  }
}

/* Images to what each output reads, [groups][images][out_height * out_width][kernel][channels of a group], groups
   `apart`; 0: not all that is read are numbers, 1: they are, -1: there is no memory */
int dense8_windows(const float *levels, const Windows *w, const float *x, ptrdiff_t images, uint8_t *out,
                   ptrdiff_t apart) {
  const Levels v = levels_of(levels);
  const Image *i = &w->image;
  const ptrdiff_t in = (ptrdiff_t)i->channels * i->height * i->width;
  const ptrdiff_t each = (ptrdiff_t)w->out_height * w->out_width * w->kernel[0] * w->kernel[1] * i->channels / w->groups;
  const int as_it_is = w->groups == 1 && w->kernel[0] * w->kernel[1] * w->stride[0] * w->stride[1] == 1;
  uint8_t *room = as_it_is ? NULL : malloc((size_t)i->channels * i->rows * i->columns);
  int numbers = 1;
  if (!as_it_is && !room) return -1;
  for (ptrdiff_t n = 0; n < images; n++, x += in, out += each) {
    numbers &= round_image(&v, i, x, as_it_is ? out : room);
    if (!as_it_is) gather(w, room, out, apart);
  }
  free(room);
  return numbers;
}
