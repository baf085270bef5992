/* Weights in few bits that stand where MLX gives cblas_sgemm the address of a matrix. */
#ifndef MLX_PARALLM_PACKED_H
#define MLX_PARALLM_PACKED_H

#include <stdint.h>

/* MLX's affine quantisation: rows x columns weights, each scale * number + bias, with one scale
   and one bias for each `group` of a row's numbers. A row's numbers are one string of bits. */
typedef struct {
    const uint32_t *words;
    const float *scales, *biases;
    int rows, columns, bits, group;
} packed_weights;

/* The weights that this address stands for; NULL where it is a matrix's own. */
const packed_weights *packed_find(const float *address);

/* Numbers [from, from + count) of a row; both are multiples of 8. */
void packed_unpack(const packed_weights *w, int row, int from, int count, float *out);

#endif
