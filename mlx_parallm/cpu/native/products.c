/* cblas_sgemm for MLX on x86 CPUs: products of few rows by kernels of its own, all others by the
   BLAS that products_start names, in pieces that several threads share.

   A BLAS copies the weights into an order that suits its kernels, which pays where many rows use
   the copy. With few rows that copy is nearly all of the work, and a product is as fast as the
   weights can be read. Here they are read once, as they lie.

   Weights in few bits (packed.h) are unpacked on the way, so many at a time as stay in the cache,
   and all rows use what was unpacked. Of several experts each row names its own in one more
   number behind its end.

   A row's result does not depend on how many rows there are, nor on the threads: each output
   has one accumulator of its own, which adds in the same order whatever the tile. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "packed.h"
#include "workers.h"

#if defined(__AVX512F__)
enum { LANES = 16, MOST_ROWS = 8 };
#else
enum { LANES = 8, MOST_ROWS = 4 };
#endif
enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
enum { FEW_ROWS = 40 };           /* for more rows a BLAS is as fast or faster */
enum { MANY_WEIGHTS = 1 << 16 };  /* fewer stay in the cache, where a BLAS is as fast */
enum { BLOCK = 24 };              /* columns whose weights all rows use one after another; a
                                     multiple of every tile's columns */
enum { DEPTH_BLOCK = 2048 }; /* inputs at a time, so that a block of weights stays in the cache */
enum { UNPACKED_DEPTH = 1024 }; /* inputs whose weights are unpacked at a time */
enum { EXPERT_ROWS = 64 };      /* of one expert that use what is unpacked */
enum { CHUNKS_A_THREAD = 6, BLAS_PIECE = 96 };
static const int64_t WORTH_SHARING = 1 << 18; /* multiplications; in so few no helper wakes up */

typedef float vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

typedef void sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                   const float *a, int lda, const float *b, int ldb, float beta, float *c,
                   int ldc);
static sgemm *blas;

typedef struct {
    int trans_a, trans_b, m, n, k;
    float alpha;
    const float *a;
    int lda;
    const float *b;
    int ldb;
    float beta;
    float *c;
    int ldc;
    const float *packed; /* a in the order of the tiles, see pack */
    const packed_weights *few_bits; /* what b stands for, where it is no matrix */
    const int *order;    /* which rows of a these are; NULL: the first m */
    int piece;           /* columns, or rows, of one chunk of work */
} product;

INLINE vector load(const float *p) { return *(const vector *)p; }

/* The first `count` numbers, then zeros. */
INLINE vector load_part(const float *p, int count) {
    vector v = {0};
    memcpy(&v, p, (size_t)count * sizeof(float));
    return v;
}

INLINE void store_part(float *p, vector v, int count) {
    memcpy(p, &v, (size_t)count * sizeof(float));
}

/* Rows of the tile that starts at row `at`: tiles are as equal as can be. */
INLINE int tile_rows(int rows, int at) {
    int tiles = (rows + MOST_ROWS - 1) / MOST_ROWS, size = (rows + tiles - 1) / tiles;
    return rows - at < size ? rows - at : size;
}

/* ---- b transposed: an output is the sum along a row of a and a row of b ------------------ */

INLINE __m128 to_four(vector v) {
#if defined(__AVX512F__)
    __m512 whole = (__m512)v;
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(whole),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)whole, 1)));
#else
    __m256 half = (__m256)v;
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* c[i][j] = alpha * sum + beta * c[i][j], or += where it is not the first part of the depth. */
INLINE void put_sums(const product *p, float *c, const vector *sums, int count, float beta) {
    __m128 part[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    for (int j = 0; j < count; j++) part[j] = to_four(sums[j]);
    __m128 result = _mm_hadd_ps(_mm_hadd_ps(part[0], part[1]), _mm_hadd_ps(part[2], part[3]));
    result = _mm_mul_ps(_mm_set1_ps(p->alpha), result);
    if (beta != 0) {
        __m128 before = _mm_setzero_ps();
        memcpy(&before, c, (size_t)count * sizeof(float));
        result = _mm_add_ps(result, _mm_mul_ps(_mm_set1_ps(beta), before));
    }
    memcpy(c, &result, (size_t)count * sizeof(float));
}

/* rows x columns outputs from `depth` inputs; `next`: weights to fetch meanwhile. */
INLINE void sum_tile(const product *p, int rows, int columns, int depth, const float *a,
                     const float *b, const float *next, float *c, float beta) {
    vector sums[MOST_ROWS][8] = {{{0}}};
    int k = 0;
    for (; k + LANES <= depth; k += LANES) {
        vector weights[8];
        for (int j = 0; j < columns; j++) {
            weights[j] = load(b + (int64_t)j * p->ldb + k);
            if (next) __builtin_prefetch(next + (int64_t)j * p->ldb + k);
        }
        for (int i = 0; i < rows; i++) {
            vector x = load(a + (int64_t)k * rows + i * LANES);
            if (columns > 1) __asm__("" : "+v"(x)); /* once into a register, not for each sum */
            for (int j = 0; j < columns; j++) sums[i][j] += x * weights[j];
        }
    }
    for (int j = 0; k < depth && j < columns; j++) {
        vector weights = load_part(b + (int64_t)j * p->ldb + k, depth - k);
        for (int i = 0; i < rows; i++)
            sums[i][j] += load(a + (int64_t)k * rows + i * LANES) * weights;
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j += 4)
            put_sums(p, c + (int64_t)i * p->ldc + j, &sums[i][j], columns - j < 4 ? columns - j : 4,
                     beta);
}

/* Columns of a tile: with its rows, as many sums as there are registers for. */
#if defined(__AVX512F__)
#define SUM_COLUMNS(rows) ((rows) <= 2 ? 8 : (rows) <= 4 ? 6 : (rows) <= 6 ? 4 : 3)
#else
#define SUM_COLUMNS(rows) ((rows) == 1 ? 8 : (rows) <= 3 ? 4 : 3)
#endif

INLINE void sum_columns(const product *p, int rows, int at, int from, int to, int k, int depth) {
    const int wide = SUM_COLUMNS(rows);
    const int64_t padded = (p->k + LANES - 1) / LANES * LANES;
    const float *a = p->packed + at * padded + (int64_t)k * rows;
    float beta = k ? 1 : p->beta;
    int skip = p->few_bits ? 0 : k; /* what is unpacked begins at k */
    int n = from;
    for (; n + wide <= to; n += wide) {
        const float *b = p->b + (int64_t)n * p->ldb + skip;
        float *c = p->c + (int64_t)at * p->ldc + n;
        if (at == 0 && n + 2 * wide <= p->n)
            sum_tile(p, rows, wide, depth, a, b, b + (int64_t)wide * p->ldb, c, beta);
        else
            sum_tile(p, rows, wide, depth, a, b, NULL, c, beta);
    }
    for (; n < to; n++) {
        const float *b = p->b + (int64_t)n * p->ldb + skip;
        sum_tile(p, rows, 1, depth, a, b, NULL, p->c + (int64_t)at * p->ldc + n, beta);
    }
}

/* ---- a kernel for each number of rows ---------------------------------------------------- */

static void columns_of_rows(const product *p, int rows, int at, int from, int to, int k, int depth) {
#define CASE(r)                                    \
    case r:                                        \
        sum_columns(p, r, at, from, to, k, depth); \
        break;
    switch (rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
#if defined(__AVX512F__)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
#endif
    }
#undef CASE
}

static void kernel_piece(const void *job, int chunk) {
    const product *p = job;
    int64_t from = (int64_t)chunk * p->piece, to = from + p->piece;
    if (to > p->n) to = p->n;
    for (int64_t n = from; n < to; n += BLOCK) {
        int end = (int)(n + BLOCK < to ? n + BLOCK : to), rows;
        for (int k = 0; k < p->k; k += DEPTH_BLOCK) {
            int depth = p->k - k < DEPTH_BLOCK ? p->k - k : DEPTH_BLOCK;
            for (int at = 0; at < p->m; at += rows) {
                rows = tile_rows(p->m, at);
                columns_of_rows(p, rows, at, (int)n, end, k, depth);
            }
        }
    }
}

/* All rows by `n` columns, whose weights begin at `row` and are unpacked into `block`. */
static void unpacked_columns(product p, int row, float *block) {
    p.b = block;
    for (int k = 0, rows; k < p.k; k += UNPACKED_DEPTH) {
        int depth = p.k - k < UNPACKED_DEPTH ? p.k - k : UNPACKED_DEPTH;
        p.ldb = depth;
        for (int i = 0; i < p.n; i++)
            packed_unpack(p.few_bits, row + i, k, depth, block + (int64_t)i * depth);
        for (int at = 0; at < p.m; at += rows) {
            rows = tile_rows(p.m, at);
            columns_of_rows(&p, rows, at, 0, p.n, k, depth);
        }
    }
}

/* The same with weights that are unpacked a block at a time. */
static void unpacking_piece(const void *job, int chunk) {
    _Alignas(64) float block[BLOCK * UNPACKED_DEPTH];
    const product *p = job;
    product of_block = *p;
    int64_t from = (int64_t)chunk * p->piece, to = from + p->piece;
    if (to > p->n) to = p->n;
    for (int64_t n = from; n < to; n += BLOCK) {
        of_block.c = p->c + n;
        of_block.n = (int)(n + BLOCK < to ? BLOCK : to - n);
        unpacked_columns(of_block, (int)n, block);
    }
}

/* A tile's rows of a beside each other, LANES numbers of each in turn, zeros at the end. */
static void pack(const product *p, float *packed) {
    int64_t padded = (p->k + LANES - 1) / LANES * LANES;
    int64_t row = p->trans_a ? 1 : p->lda, column = p->trans_a ? p->lda : 1;
    for (int at = 0, rows; at < p->m; at += rows) {
        rows = tile_rows(p->m, at);
        for (int i = 0; i < rows; i++) {
            const float *from = p->a + (p->order ? p->order[at + i] : at + i) * row;
            float *to = packed + at * padded + i * LANES;
            int64_t k = 0;
            for (; column == 1 && k + LANES <= p->k; k += LANES, to += rows * LANES)
                *(vector *)to = load(from + k);
            for (; k < padded; k += LANES, to += rows * LANES)
                for (int64_t l = 0; l < LANES; l++)
                    to[l] = k + l < p->k ? from[(k + l) * column] : 0;
        }
    }
}

/* One for each thread that calls, kept until the thread ends. */
typedef struct {
    size_t size;
    float *numbers;
} scratch;

static pthread_key_t scratch_key;

static void free_scratch(void *ended) {
    free(((scratch *)ended)->numbers);
    free(ended);
}

__attribute__((constructor)) static void make_scratch_key(void) {
    if (pthread_key_create(&scratch_key, free_scratch)) abort();
}

/* Room for so many numbers, aligned for vectors; NULL where there is no memory. */
static float *scratch_for(int64_t numbers) {
    scratch *mine = pthread_getspecific(scratch_key);
    size_t size = (size_t)(numbers * 4 + 4095) / 4096 * 4096;
    if (!mine) {
        mine = calloc(1, sizeof *mine);
        if (!mine || pthread_setspecific(scratch_key, mine)) {
            free(mine);
            return NULL;
        }
    }
    if (size > mine->size) {
        free(mine->numbers);
        mine->numbers = aligned_alloc(64, size);
        mine->size = mine->numbers ? size : 0;
    }
    return mine->numbers;
}

/* Whether the kernels have computed it. */
static int by_kernel(product *p) {
    int64_t weights = (int64_t)p->n * p->k, padded = (p->k + LANES - 1) / LANES * LANES;
    if (!p->trans_b || p->m > FEW_ROWS) return 0;
    if (weights < MANY_WEIGHTS && !p->few_bits) return 0;
    float *room = scratch_for(p->m * padded);
    if (!room) return 0;
    pack(p, room);
    p->packed = room;
    int most = (p->m + 1) * weights < WORTH_SHARING ? 1 : CHUNKS_A_THREAD * workers_count();
    int blocks = (p->n + BLOCK - 1) / BLOCK, each = (blocks + most - 1) / most;
    p->piece = each * BLOCK;
    workers_run(p->few_bits ? unpacking_piece : kernel_piece, p, (blocks + each - 1) / each);
    return 1;
}

/* ---- many rows ---------------------------------------------------------------------------- */

static void blas_piece(const void *job, int chunk) {
    const product *p = job;
    int by_rows = p->m > p->n;
    int whole = by_rows ? p->m : p->n, from = chunk * p->piece;
    int size = whole - from < p->piece ? whole - from : p->piece;
    const float *a = p->a, *b = p->b;
    if (by_rows)
        a += (int64_t)from * (p->trans_a ? 1 : p->lda);
    else
        b += (int64_t)from * (p->trans_b ? p->ldb : 1);
    blas(ROW_MAJOR, p->trans_a ? TRANSPOSED : PLAIN, p->trans_b ? TRANSPOSED : PLAIN,
         by_rows ? size : p->m, by_rows ? p->n : size, p->k, p->alpha, a, p->lda, b, p->ldb,
         p->beta, p->c + (int64_t)from * (by_rows ? p->ldc : 1), p->ldc);
}

static void by_blas(product *p) {
    int whole = p->m > p->n ? p->m : p->n;
    int64_t work = (int64_t)p->m * p->n * p->k;
    int shared = workers_count() > 1 && work >= 4 * WORTH_SHARING;
    int most = shared ? CHUNKS_A_THREAD * workers_count() : 1;
    int each = (whole + most - 1) / most;
    p->piece = shared && each < BLAS_PIECE ? BLAS_PIECE : (each + 15) / 16 * 16;
    workers_run(blas_piece, p, (whole + p->piece - 1) / p->piece);
}

/* A matrix times one column, as sums of rows are computed: the same as one row times the rows
   of the matrix, which the kernels take for weights. */
static product one_column(product p) {
    const float *column = p.b;
    p.b = p.a;
    p.ldb = p.lda;
    p.trans_b = 1;
    p.a = column;
    p.lda = p.k;
    p.n = p.m;
    p.m = 1;
    p.ldc = p.n;
    return p;
}

/* ---- many rows by weights in few bits ------------------------------------------------------ */

/* Rows of weights that a BLAS gets at a time, unpacked; NULL where there is no memory. */
static float *unpacked_rows(const packed_weights *w, int from, int count) {
    float *rows = scratch_for((int64_t)count * w->columns);
    for (int i = 0; rows && i < count; i++)
        packed_unpack(w, from + i, 0, w->columns, rows + (int64_t)i * w->columns);
    return rows;
}

/* Where there is no memory: nobody takes such a result for a right one. */
static void fill_with_nan(const product *p, int from, int count) {
    for (int i = 0; i < p->m; i++)
        for (int j = 0; j < count; j++) p->c[(int64_t)i * p->ldc + from + j] = __builtin_nanf("");
}

static void unpacked_blas_piece(const void *job, int chunk) {
    const product *p = job;
    int from = chunk * p->piece, count = p->n - from < p->piece ? p->n - from : p->piece;
    const float *rows = unpacked_rows(p->few_bits, from, count);
    if (!rows) {
        fill_with_nan(p, from, count);
        return;
    }
    blas(ROW_MAJOR, p->trans_a ? TRANSPOSED : PLAIN, TRANSPOSED, p->m, count, p->k, p->alpha, p->a,
         p->lda, rows, p->k, p->beta, p->c + from, p->ldc);
}

/* A product with the weights themselves, which is what a gradient needs: one that sums over
   their rows, a piece of them after another. */
static void untransposed(const product *p) {
    for (int k = 0; k < p->k; k += BLAS_PIECE) {
        int count = p->k - k < BLAS_PIECE ? p->k - k : BLAS_PIECE;
        const float *rows = unpacked_rows(p->few_bits, k, count);
        if (!rows) {
            fill_with_nan(p, 0, p->n);
            return;
        }
        blas(ROW_MAJOR, p->trans_a ? TRANSPOSED : PLAIN, PLAIN, p->m, p->n, count, p->alpha,
             p->a + (int64_t)k * (p->trans_a ? p->lda : 1), p->lda, rows, p->n, k ? 1 : p->beta,
             p->c, p->ldc);
    }
}

/* ---- rows that name their expert --------------------------------------------------------- */

/* Rows of one expert, beside each other in the order of experts. */
typedef struct {
    int expert, first, count;
} expert_rows;

typedef struct {
    product of_all;
    const expert_rows *groups;
    const int *order;
    int pieces; /* of a group's columns */
} experts_job;

static void expert_piece(const void *job, int chunk) {
    _Alignas(64) float block[BLOCK * UNPACKED_DEPTH], found[EXPERT_ROWS * BLOCK];
    const experts_job *j = job;
    const expert_rows *group = j->groups + chunk / j->pieces;
    const int *order = j->order + group->first;
    int64_t padded = (j->of_all.k + LANES - 1) / LANES * LANES;
    product p = j->of_all;
    p.m = group->count;
    p.packed += group->first * padded;
    p.c = found;
    p.ldc = BLOCK;
    int from = chunk % j->pieces * p.piece, to = from + p.piece < p.n ? from + p.piece : p.n;
    for (int n = from; n < to; n += BLOCK) {
        p.n = n + BLOCK < to ? BLOCK : to - n;
        unpacked_columns(p, group->expert * p.few_bits->rows + n, block);
        for (int i = 0; i < p.m; i++)
            memcpy(j->of_all.c + (int64_t)order[i] * j->of_all.ldc + n, found + i * BLOCK,
                   (size_t)p.n * sizeof(float));
    }
}

/* The expert that a row names; -1 where there is none of that number. */
static int expert_of(const product *p, int row) {
    float named = p->a[(int64_t)row * p->lda + p->k];
    return named >= 0 && named < p->few_bits->experts ? (int)named : -1;
}

/* Sorts rows by their experts into groups of at most EXPERT_ROWS; returns how many there are. */
static int group_rows(const product *p, int *order, int *ends, expert_rows *groups) {
    int experts = p->few_bits->experts, found = 0;
    memset(ends, 0, (size_t)(experts + 1) * sizeof *ends);
    for (int row = 0; row < p->m; row++) ends[expert_of(p, row) + 1]++;
    for (int e = 1; e <= experts; e++) ends[e] += ends[e - 1];
    for (int e = experts; e > 0; e--) ends[e] = ends[e - 1]; /* where each begins, for now */
    ends[0] = 0;
    for (int row = 0; row < p->m; row++) order[ends[expert_of(p, row) + 1]++] = row;
    for (int e = 0; e < experts; e++)
        for (int at = ends[e]; at < ends[e + 1]; at += EXPERT_ROWS) {
            int left = ends[e + 1] - at;
            groups[found++] = (expert_rows){e, at, left < EXPERT_ROWS ? left : EXPERT_ROWS};
        }
    return found;
}

static void by_experts(product *p) {
    int64_t padded = (p->k + LANES - 1) / LANES * LANES;
    int experts = p->few_bits->experts, most = p->m / EXPERT_ROWS + (p->m < experts ? p->m : experts);
    float *room = scratch_for(p->m * (padded + 1) + experts + 1 + 3 * (int64_t)most);
    if (!room) {
        fill_with_nan(p, 0, p->n);
        return;
    }
    int *order = (int *)(room + p->m * padded), *ends = order + p->m;
    expert_rows *groups = (expert_rows *)(ends + experts + 1);
    int found = group_rows(p, order, ends, groups);
    for (int i = 0; i < ends[0]; i++) { /* of rows that name no expert */
        product row = *p;
        row.m = 1;
        row.c += (int64_t)order[i] * p->ldc;
        fill_with_nan(&row, 0, p->n);
    }
    for (int g = 0; g < found; g++) {
        product mine = *p;
        mine.m = groups[g].count;
        mine.order = order + groups[g].first;
        pack(&mine, room + groups[g].first * padded);
    }
    p->packed = room;
    int wanted = 2 * CHUNKS_A_THREAD * workers_count(), blocks = (p->n + BLOCK - 1) / BLOCK;
    int pieces = found && wanted > found ? wanted / found : 1, each = (blocks + pieces - 1) / pieces;
    p->piece = each * BLOCK;
    experts_job job = {*p, groups, order, (blocks + each - 1) / each};
    workers_run(expert_piece, &job, found * job.pieces);
}

static void by_few_bits(product *p) {
    const packed_weights *w = p->few_bits;
    if (w->experts) {
        int right = p->trans_b && !p->trans_a && p->n == w->rows && p->k == w->columns + 1;
        if (right && p->ldb == p->k && p->beta == 0) {
            p->k--;
            by_experts(p);
        } else
            fill_with_nan(p, 0, p->n);
        return;
    }
    int outputs = p->trans_b ? p->n : p->k, inputs = p->trans_b ? p->k : p->n;
    if (outputs != w->rows || inputs != w->columns || p->ldb != w->columns)
        fill_with_nan(p, 0, p->n); /* a part of the matrix, which MLX never asks for */
    else if (!p->trans_b)
        untransposed(p);
    else if (!by_kernel(p)) {
        p->piece = BLAS_PIECE;
        workers_run(unpacked_blas_piece, p, (p->n + p->piece - 1) / p->piece);
    }
}

/* ---- what MLX calls ------------------------------------------------------------------------ */

/* The only names that others see: a library of this process may have its own workers. */
#define PUBLIC __attribute__((visibility("default")))

/* Name the BLAS for all other products. It must compute with one thread, and be callable from
   several at a time. */
PUBLIC void mlx_parallm_products_start(sgemm *other) { blas = other; }

PUBLIC void mlx_parallm_products_set_threads(int n) { workers_set(n); }

PUBLIC int mlx_parallm_products_threads(void) { return workers_count(); }

PUBLIC void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    int known = (trans_a == PLAIN || trans_a == TRANSPOSED) &&
                (trans_b == PLAIN || trans_b == TRANSPOSED);
    if (order != ROW_MAJOR || !known || m < 1 || n < 1 || k < 1) {
        blas(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    product p = {.trans_a = trans_a == TRANSPOSED, .trans_b = trans_b == TRANSPOSED,
                 .m = m, .n = n, .k = k, .alpha = alpha, .a = a, .lda = lda, .b = b, .ldb = ldb,
                 .beta = beta, .c = c, .ldc = ldc, .few_bits = packed_find(b)};
    if (p.few_bits) {
        by_few_bits(&p);
        return;
    }
    if (n == 1 && ldc == 1 && trans_a == PLAIN && (trans_b == TRANSPOSED || ldb == 1))
        p = one_column(p);
    if (!by_kernel(&p)) by_blas(&p);
}
