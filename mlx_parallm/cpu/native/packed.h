/* Weights in few bits that stand where MLX gives cblas_sgemm the address of a matrix. */
#ifndef MLX_PARALLM_PACKED_H
#define MLX_PARALLM_PACKED_H

#include <stdint.h>

/* MLX's affine quantisation: rows x columns weights, each scale * number + bias, with one scale
   and one bias for each `group` of a row's numbers. A row's numbers are one string of bits.

   Without biases it is mxfp4: each number is a float of 4 bits (1 sign, 2 exponent, 1 mantissa),
   each scale a byte, the exponent of a power of two.

   `experts` such matrices may lie behind one another. */
typedef struct {
    const uint32_t *words;
    const void *scales;
    const float *biases;
    int rows, columns, bits, group, experts;
} packed_weights;

/* The weights that this address stands for; NULL where it is a matrix's own. */
const packed_weights *packed_find(const float *address);

/* Numbers [from, from + count) of a row, of all experts' rows; both are multiples of 8, of mxfp4
   of 32. */
void packed_unpack(const packed_weights *w, int row, int from, int count, float *out);

#endif
