/* What this processor can do at most, to compare kernels with: multiply-adds from registers, and with one operand from
   memory. */

#include "vectors.h"

#define SUMS 12

/* `rounds` times SUMS multiply-adds of vectors; something that depends on them. */
float limits_registers(long rounds, float x) {
  vec sums[SUMS], factor = all(x);
  _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) sums[i] = all(x + (float)i);
  for (long r = 0; r < rounds; r++)
    _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * factor + factor;
  _Pragma("GCC unroll 12") for (int i = 1; i < SUMS; i++) sums[0] += sums[i];
  return sums[0][0];
}

/* `rounds` passes over `vectors` vectors (a multiple of SUMS), each a factor of one multiply-add. */
float limits_memory(const float *from, long vectors, long rounds, float x) {
  vec sums[SUMS], factor = all(x);
  _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) sums[i] = all(0);
  for (long r = 0; r < rounds; r++)
    for (long v = 0; v < vectors; v += SUMS)
      _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) sums[i] +=
          factor * *(const loose *)(from + (v + i) * LANES);
  _Pragma("GCC unroll 12") for (int i = 1; i < SUMS; i++) sums[0] += sums[i];
  return sums[0][0];
}

int limits_lanes(void) { return LANES; }
int limits_sums(void) { return SUMS; }
