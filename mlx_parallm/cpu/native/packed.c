/* See packed.h. MLX multiplies by a matrix that it believes to lie at the n-th place behind an
   anchor; nobody ever reads it there, since these places are looked up here. */
#include "packed.h"

#include <immintrin.h>
#include <stddef.h>
#include <string.h>

enum { PLACES = 1 << 16, PLACE_BYTES = 64 };

static const char *anchor;
static packed_weights places[PLACES];

#define PUBLIC __attribute__((visibility("default")))

/* How many bytes there are to be behind the anchor. */
PUBLIC int64_t mlx_parallm_packed_room(void) { return (int64_t)PLACES * PLACE_BYTES; }

PUBLIC void mlx_parallm_packed_anchor(const void *address) { anchor = address; }

PUBLIC void mlx_parallm_packed_put(int place, const uint32_t *words, const void *scales,
                                   const float *biases, int rows, int columns, int bits, int group,
                                   int experts) {
    places[place] = (packed_weights){words, scales, biases, rows, columns, bits, group, experts};
}

const packed_weights *packed_find(const float *address) {
    ptrdiff_t offset = (const char *)address - anchor;
    if (!anchor || offset < 0 || offset >= (ptrdiff_t)PLACES * PLACE_BYTES) return NULL;
    return &places[offset / PLACE_BYTES];
}

/* Eight numbers of so many bits, one in each byte. */
static inline __attribute__((always_inline)) uint64_t spread(uint64_t numbers, int bits) {
    if (bits == 8) return numbers;
    uint64_t mask = (1u << bits) - 1;
#if defined(__BMI2__)
    return _pdep_u64(numbers, mask * 0x0101010101010101u);
#else
    uint64_t found = 0;
    for (int i = 0; i < 8; i++) found |= (numbers >> i * bits & mask) << 8 * i;
    return found;
#endif
}

static inline __attribute__((always_inline)) uint64_t next(const uint8_t *bytes, int bits) {
    uint64_t numbers = 0; /* eight numbers have as many bytes as one has bits */
    uint32_t four;
    uint16_t two;
    if (bits == 8) {
        memcpy(&numbers, bytes, 8);
    } else if (bits >= 4) {
        memcpy(&four, bytes, 4);
        numbers = four;
    } else {
        memcpy(&two, bytes, 2);
        numbers = two;
    }
    if (bits == 3) numbers |= (uint64_t)bytes[2] << 16;
    if (bits == 5) numbers |= (uint64_t)bytes[4] << 32;
    if (bits == 6) {
        memcpy(&two, bytes + 4, 2);
        numbers |= (uint64_t)two << 32;
    }
    return spread(numbers, bits);
}

/* Sixteen numbers of so many bits, one in each byte. */
static inline __attribute__((always_inline)) __m128i next_sixteen(const uint8_t *bytes, int bits) {
    if (bits == 8) return _mm_loadu_si128((const __m128i *)bytes);
    if (bits == 4) {
        __m128i pairs = _mm_loadl_epi64((const __m128i *)bytes), mask = _mm_set1_epi8(15);
        __m128i upper = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask);
        return _mm_unpacklo_epi8(_mm_and_si128(pairs, mask), upper);
    }
    return _mm_set_epi64x((int64_t)next(bytes + bits, bits), (int64_t)next(bytes, bits));
}

static inline __attribute__((always_inline)) void unpack(const packed_weights *w, int bits,
                                                         int row, int from, int count,
                                                         float *out) {
    int64_t groups = w->columns / w->group, at = from / w->group;
    const float *scales = (const float *)w->scales + row * groups + at;
    const float *biases = w->biases + row * groups + at;
    const uint8_t *bytes = (const uint8_t *)w->words + (row * (int64_t)w->columns + from) * bits / 8;
    int left = w->group - from % w->group; /* of the group that is begun */
    for (int i = 0; i < count; left = w->group, scales++, biases++) {
        int end = count - i < left ? count : i + left;
        __m256 scale8 = _mm256_set1_ps(*scales), bias8 = _mm256_set1_ps(*biases);
        for (; i + 16 <= end; i += 16, bytes += 2 * bits) {
            __m128i sixteen = next_sixteen(bytes, bits);
#if defined(__AVX512F__)
            __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen));
            __m512 scale = _mm512_set1_ps(*scales), bias = _mm512_set1_ps(*biases);
            _mm512_storeu_ps(out + i, _mm512_fmadd_ps(numbers, scale, bias));
#else
            __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(sixteen));
            __m256 second = _mm256_cvtepi32_ps(
                _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(sixteen, sixteen)));
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(first, scale8, bias8));
            _mm256_storeu_ps(out + i + 8, _mm256_fmadd_ps(second, scale8, bias8));
#endif
        }
        for (; i < end; i += 8, bytes += bits) {
            __m128i whole = _mm_cvtsi64_si128((int64_t)next(bytes, bits));
            __m256 numbers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(whole));
            _mm256_storeu_ps(out + i, _mm256_fmadd_ps(numbers, scale8, bias8));
        }
    }
}

/* Half of a power of two whose exponent this is. */
static inline float half_of_power(uint8_t exponent) {
    uint32_t bits = exponent ? (uint32_t)exponent << 23 : 1u << 22;
    float power;
    memcpy(&power, &bits, 4);
    return power / 2;
}

static void unpack_mxfp4(const packed_weights *w, int row, int from, int count, float *out) {
    const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const uint8_t *scales = (const uint8_t *)w->scales + (row * (int64_t)w->columns + from) / 32;
    const uint8_t *bytes = (const uint8_t *)w->words + (row * (int64_t)w->columns + from) / 2;
    for (int i = 0; i < count; i += 16, bytes += 8) {
        __m256 scale = _mm256_set1_ps(half_of_power(scales[i / 32]));
        __m128i numbers = _mm_shuffle_epi8(doubled, next_sixteen(bytes, 4));
        __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(numbers));
        __m256 second =
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(numbers, numbers)));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(first, scale));
        _mm256_storeu_ps(out + i + 8, _mm256_mul_ps(second, scale));
    }
}

void packed_unpack(const packed_weights *w, int row, int from, int count, float *out) {
    if (!w->biases) {
        unpack_mxfp4(w, row, from, count, out);
        return;
    }
#define CASE(b)                                \
    case b:                                    \
        unpack(w, b, row, from, count, out);   \
        break;
    switch (w->bits) {
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
        CASE(8)
    }
#undef CASE
}
