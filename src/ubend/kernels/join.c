/* join.py, which see, for a CPU. */

#include "map.h"

/* half = up + bias, pixel by pixel */
void add_bias(const T *restrict up, const float *restrict bias, T *restrict half, long stride, long pixels, long c,
              long threads) {
    PARALLEL {
        Share s = my_share(pixels);
        for (long p = s.first; p < s.last; p++)
            SIMD for (long h = 0; h < c; h++) half[p * stride + h] = put(get(up[p * c + h]) + bias[h]);
    }
}

/* up = half, pixel by pixel, and sums (c): of all pixels. partial: (threads, c). */
void copy_and_sum(const T *restrict half, long stride, T *restrict up, float *sums, long pixels, long c, long threads,
                  double *partial) {
    PARALLEL {
        Share s = my_share(pixels);
        ALIGNED total[c];
        memset(total, 0, sizeof total);
        for (long run = s.first; run < s.last; run += RUN) {
            for (long p = run; p < smaller(run + RUN, s.last); p++)
                SIMD for (long h = 0; h < c; h++) {
                    up[p * c + h] = half[p * stride + h];
                    total[h] += get(half[p * stride + h]);
                }
            fold(total, c, partial + c * s.thread, c);
        }
    }
    for (long h = 0; h < c; h++) sums[h] = add_threads(partial, c, h, threads);
}

/* The head's pixels, cut into lines that do not cross pictures. */
typedef struct {
    long per_picture, count, pixels; /* lines of a picture, lines, pixels of a line */
} PictureLines;

static PictureLines cut_pictures(long n, long area, long c) {
    long pixels = c < LINE ? LINE / c : 1, per_picture = (area + pixels - 1) / pixels;
    return (PictureLines){per_picture, n * per_picture, pixels};
}

typedef struct {
    long first, pixels, place; /* of all pixels; how many; the first one's place in the plane of class 0 */
} PictureLine;

static PictureLine line_of(PictureLines lines, long l, long area, long k) {
    long picture = l / lines.per_picture, inside = l % lines.per_picture * lines.pixels;
    return (PictureLine){picture * area + inside, smaller(lines.pixels, area - inside), picture * k * area + inside};
}

/* Short loops over channels are worth unrolling: the usual widths are told to the compiler. */
#define WITH_WIDTH(f, c, ...) ((c) == 16 ? f(16, __VA_ARGS__) : (c) == 32 ? f(32, __VA_ARGS__) : f(c, __VA_ARGS__))

/* out, of k classes that lie `area` apart: z (pixels, c) by weight (k, c), plus bias. */
static inline void line_logits(long c, const float *restrict z, const float *restrict weight, const float *bias,
                               long k, long pixels, long area, float *restrict out) {
    for (long p = 0; p < pixels; p++)
        for (long m = 0; m < k; m++) {
            float sum = 0;
            _Pragma("omp simd reduction(+ : sum)") for (long h = 0; h < c; h++) sum += z[p * c + h] * weight[m * c + h];
            out[m * area + p] = sum + bias[m];
        }
}

/* dz (pixels, c): what the logits' gradients make of it. */
static inline void line_gradient(long c, const float *restrict dlogits, const float *restrict weight, long k,
                                 long pixels, long area, float *restrict dz) {
    memset(dz, 0, sizeof(float) * pixels * c);
    for (long p = 0; p < pixels; p++)
        for (long m = 0; m < k; m++) {
            float down = dlogits[m * area + p];
            SIMD for (long h = 0; h < c; h++) dz[p * c + h] += down * weight[m * c + h];
        }
}

/* dweight (k, c) += the line's part */
static inline void line_outer(long c, const float *restrict dlogits, const float *restrict z, long k, long pixels,
                              long area, float *restrict dweight) {
    for (long p = 0; p < pixels; p++)
        for (long m = 0; m < k; m++) {
            float down = dlogits[m * area + p];
            SIMD for (long h = 0; h < c; h++) dweight[m * c + h] += down * z[p * c + h];
        }
}

/* logits (n, k, area): the 1x1 convolution of relu(batch norm of y), y (n, area, c), by weight (k, c) and bias. */
void head(const T *restrict y, const float *stats, const float *weight, const float *bias, float *logits, long n,
          long area, long c, long k, long threads) {
    PictureLines lines = cut_pictures(n, area, c);
    PARALLEL {
        Share s = my_share(lines.count);
        long length = lines.pixels * c;
        ALIGNED z[length], scale[length], shift[length];
        repeat(stats + 2 * c, c, scale, length);
        repeat(stats + 3 * c, c, shift, length);
        for (long l = s.first; l < s.last; l++) {
            PictureLine line = line_of(lines, l, area, k);
            const T *restrict in = y + line.first * c;
            SIMD for (long j = 0; j < line.pixels * c; j++) z[j] = normalise(get(in[j]), scale[j], shift[j]);
            WITH_WIDTH(line_logits, c, z, weight, bias, k, line.pixels, area, logits + line.place);
        }
    }
}

/* Gradients of `head`: as `differentiate`, and dweight (k, c). partial: (threads, 2c + kc). */
void differentiate_head(const T *restrict y, const float *stats, const float *weight, const float *dlogits,
                        T *restrict dy, float *sums, float *dweight, long n, long area, long c, long k, long threads,
                        double *partial) {
    PictureLines lines = cut_pictures(n, area, c);
    long length = lines.pixels * c, width = 2 * c + k * c;
    float a[c], b[c], d[c];
    PARALLEL {
        Share s = my_share(lines.count);
        double *mine = partial + width * s.thread;
        ALIGNED z[length], dz[length], mean[length], scale[length], shift[length];
        ALIGNED total[length], product[length], outer[k * c];
        repeat(stats, c, mean, length);
        repeat(stats + 2 * c, c, scale, length);
        repeat(stats + 3 * c, c, shift, length);
        memset(total, 0, sizeof total);
        memset(product, 0, sizeof product);
        memset(outer, 0, sizeof outer);
        for (long block = s.first; block < s.last; block += BLOCK) {
            for (long l = block; l < smaller(block + BLOCK, s.last); l++) {
                PictureLine line = line_of(lines, l, area, k);
                const T *restrict in = y + line.first * c;
                const float *down = dlogits + line.place;
                WITH_WIDTH(line_gradient, c, down, weight, k, line.pixels, area, dz);
                SIMD for (long j = 0; j < line.pixels * c; j++) {
                    float v = get(in[j]), bright = v * scale[j] + shift[j], g = bright > 0 ? dz[j] : 0;
                    z[j] = bright < 0 ? 0 : bright;
                    total[j] += g;
                    product[j] += g * (v - mean[j]);
                }
                WITH_WIDTH(line_outer, c, down, z, k, line.pixels, area, outer);
            }
            fold(total, length, mine, c);
            fold(product, length, mine + c, c);
            fold(outer, k * c, mine + 2 * c, k * c);
        }
    }
    finish_gradient(partial, width, stats, n * area, c, threads, sums, a, b, d);
    for (long h = 0; h < k * c; h++) dweight[h] = add_threads(partial, width, 2 * c + h, threads);
    PARALLEL {
        Share s = my_share(lines.count);
        ALIGNED dz[length], scale[length], shift[length], slope[length], constant[length];
        repeat(a, c, scale, length);
        repeat(stats + 3 * c, c, shift, length);
        repeat(b, c, slope, length);
        repeat(d, c, constant, length);
        for (long l = s.first; l < s.last; l++) {
            PictureLine line = line_of(lines, l, area, k);
            const T *restrict in = y + line.first * c;
            T *restrict out = dy + line.first * c;
            WITH_WIDTH(line_gradient, c, dlogits + line.place, weight, k, line.pixels, area, dz);
            SIMD for (long j = 0; j < line.pixels * c; j++) {
                float v = get(in[j]), g = v * scale[j] + shift[j] > 0 ? dz[j] : 0;
                out[j] = put(scale[j] * g + slope[j] * v + constant[j]);
            }
        }
    }
}
