/* The frames of a box ─► the frames of a view, bilinear and antialiased, by torch's fixed-point arithmetic: its pixels.
 *
 * All frames share one box, hence all their rows share the weights of a column. LANES rows at a time are transposed, so
 * that the horizontal pass, too, is a weighted sum of neighbouring rows of bytes, which needs no shuffles. native.py
 * compiles this file for the processor at hand, and makes the filters. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BW__)
typedef __m512i Vector;
#define OP(name) _mm512_##name
#elif defined(__AVX2__)
typedef __m256i Vector;
#define OP(name) _mm256_##name
#else
typedef __m128i Vector;
#define OP(name) _mm_##name
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define ADD_DOT(sum, pixels, weights) OP(dpwssd_epi32)(sum, pixels, weights)
#else
#define ADD_DOT(sum, pixels, weights) OP(add_epi32)(sum, OP(madd_epi16)(pixels, weights))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = sizeof(Vector), BLOCK = 16 };

/* Output i of `size` is the weighted sum of the inputs first[i], first[i] + 1, …, 2 * pairs of them. Weights are int16,
 * two in an int32, and add up to 1 << shift; inputs that do not exist have a weight of zero. */
struct filter {
    int32_t size, pairs, shift;
    const int32_t *first, *weights;
};

INLINE Vector load(const uint8_t *from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(uint8_t *to, Vector v) { memcpy(to, &v, sizeof v); }

INLINE Vector weighted(const uint8_t *row, ptrdiff_t step, int pairs, const int32_t *weights, int shift) {
    const Vector zero = {0};
    const __m128i by = _mm_cvtsi32_si128(shift);
    Vector a = OP(set1_epi32)(1 << (shift - 1)), b = a, c = a, d = a;
    for (; pairs; pairs--, row += 2 * step, weights++) {
        Vector even = load(row), odd = load(row + step), weight = OP(set1_epi32)(*weights);
        Vector low = OP(unpacklo_epi8)(even, odd), high = OP(unpackhi_epi8)(even, odd);
        a = ADD_DOT(a, OP(unpacklo_epi8)(low, zero), weight);
        b = ADD_DOT(b, OP(unpackhi_epi8)(low, zero), weight);
        c = ADD_DOT(c, OP(unpacklo_epi8)(high, zero), weight);
        d = ADD_DOT(d, OP(unpackhi_epi8)(high, zero), weight);
    }
    a = OP(sra_epi32)(a, by), b = OP(sra_epi32)(b, by), c = OP(sra_epi32)(c, by), d = OP(sra_epi32)(d, by);
    return OP(packus_epi16)(OP(packs_epi32)(a, b), OP(packs_epi32)(c, d)); /* undoes the unpacking of each 128 bits */
}

/* Write outputs of `bytes` bytes each; inputs are `step` bytes apart, and may be read up to a whole vector. */
INLINE void pass(const uint8_t *in, ptrdiff_t step, uint8_t *out, int bytes, int pairs, struct filter by) {
    for (int i = 0; i < by.size; i++, out += bytes) {
        const uint8_t *first = in + by.first[i] * step;
        const int32_t *weights = by.weights + (ptrdiff_t)i * pairs;
        int at = 0;
        for (; at + LANES <= bytes; at += LANES) store(out + at, weighted(first + at, step, pairs, weights, by.shift));
        if (at < bytes) {
            Vector rest = weighted(first + at, step, pairs, weights, by.shift);
            memcpy(out + at, &rest, bytes - at);
        }
    }
}

static void filtered(const uint8_t *in, ptrdiff_t step, uint8_t *out, int bytes, struct filter by) {
    if (by.pairs == 1) /* the compiler unrolls the common ones */
        pass(in, step, out, bytes, 1, by);
    else if (by.pairs == 2)
        pass(in, step, out, bytes, 2, by);
    else
        pass(in, step, out, bytes, by.pairs, by);
}

/* Return 16 bytes of each of LANES / 16 rows, which are 16 rows apart. */
#define PART(number) _mm_loadu_si128((const __m128i *)(rows[BLOCK * (number)] + at))
INLINE Vector gathered(const uint8_t *const *rows, ptrdiff_t at) {
#if defined(__AVX512BW__)
    __m512i half = _mm512_inserti32x4(_mm512_castsi128_si512(PART(0)), PART(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(half, PART(2), 2), PART(3), 3);
#elif defined(__AVX2__)
    return _mm256_inserti128_si256(_mm256_castsi128_si256(PART(0)), PART(1), 1);
#else
    return PART(0);
#endif
}

/* Transpose 16 x 16 bytes in each 128 bits of 16 vectors: four perfect shuffles. */
INLINE void transpose(Vector *block) {
    Vector next[BLOCK];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < BLOCK / 2; i++) {
            next[2 * i] = OP(unpacklo_epi8)(block[i], block[i + BLOCK / 2]);
            next[2 * i + 1] = OP(unpackhi_epi8)(block[i], block[i + BLOCK / 2]);
        }
        memcpy(block, next, sizeof next);
    }
}

static void to_columns(const uint8_t *const *rows, int bytes, uint8_t *out) {
    for (int at = 0; at < bytes; at += BLOCK) {
        int from = bytes < BLOCK ? 0 : at + BLOCK <= bytes ? at : bytes - BLOCK; /* the last block overlaps */
        Vector block[BLOCK];
        if (bytes < BLOCK)
            for (int lane = 0; lane < LANES; lane++)
                memcpy((uint8_t *)&block[lane % BLOCK] + lane / BLOCK * BLOCK, rows[lane], bytes);
        else
            for (int i = 0; i < BLOCK; i++) block[i] = gathered(rows + i, from);
        transpose(block);
        for (int i = 0; i < BLOCK; i++) store(out + (ptrdiff_t)(from + i) * LANES, block[i]);
    }
}

static void to_rows(const uint8_t *columns, int bytes, uint8_t *out, ptrdiff_t step) {
    for (int at = 0; at < bytes; at += BLOCK) {
        Vector block[BLOCK];
        for (int i = 0; i < BLOCK; i++) block[i] = load(columns + (ptrdiff_t)(at + i) * LANES);
        transpose(block);
        for (int lane = 0; lane < LANES; lane++)
            memcpy(out + lane * step + at, (uint8_t *)&block[lane % BLOCK] + lane / BLOCK * BLOCK, BLOCK);
    }
}

/* Write the view of a box, whose frames and rows are at steps, into `out`, which is dense; return 1 without memory. */
int resize(const uint8_t *box, ptrdiff_t frame_step, ptrdiff_t row_step, int frames, int height, int width, int channels,
           int flip, struct filter across, struct filter down, uint8_t *out) {
    const int in_bytes = width * channels, out_bytes = across.size * channels, total = frames * height;
    const ptrdiff_t pixel = channels * LANES, step = (out_bytes + LANES - 1) / LANES * LANES;
    const ptrdiff_t beyond = 2 * across.pairs * pixel; /* on both sides: a weight of zero reads, too */
    const ptrdiff_t in_size = (ptrdiff_t)(in_bytes + BLOCK) * LANES + 2 * beyond, columns_size = step * LANES;
    uint8_t *const memory = malloc(in_size + columns_size + (height + 2 * LANES + 2 * down.pairs) * step);
    if (!memory) return 1;
    uint8_t *const in = memory + beyond, *const columns = memory + in_size, *const rows = columns + columns_size;
    int kept = 0; /* rows of the frames that are not complete */
    for (int row = 0; row < total; row += LANES) {
        const uint8_t *from[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            int number = row + lane < total ? row + lane : total - 1;
            from[lane] = box + number / height * frame_step + number % height * row_step;
        }
        to_columns(from, in_bytes, in);
        filtered(flip ? in + (width - 1) * pixel : in, flip ? -pixel : pixel, columns, pixel, across);
        to_rows(columns, out_bytes, rows + kept * step, step);
        kept += row + LANES <= total ? LANES : total - row;
        int used = 0;
        for (; used + height <= kept; used += height, out += (ptrdiff_t)down.size * out_bytes)
            filtered(rows + used * step, step, out, out_bytes, down);
        kept -= used;
        if (used) memmove(rows, rows + used * step, kept * step);
    }
    free(memory);
    return 0;
}
