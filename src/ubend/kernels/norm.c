/* norm.py and norm_gradient.py, which see, for a CPU. */

#include <math.h>

#include "map.h"

/* stats (4, c): mean, 1 / deviation, scale, shift; the running statistics move. partial: (threads, 2c).
   The sums are taken of y - y[0], so that a mean far from 0 costs no digits. */
void measure_statistics(const T *restrict y, long pixels, long c, long threads, const float *weight,
                        const float *bias, double eps, double momentum, float *running_mean, float *running_var,
                        float *stats, double *partial) {
    Lines lines = cut_lines(pixels, c);
    PARALLEL {
        Share s = my_share(lines.count);
        double *sums = partial + 2 * c * s.thread;
        ALIGNED first[lines.length], total[lines.length], square[lines.length];
        for (long j = 0; j < lines.length; j++) first[j] = get(y[j % c]), total[j] = square[j] = 0;
        for (long block = s.first; block < s.last; block += BLOCK) {
            for (long l = block; l < smaller(block + BLOCK, s.last); l++) {
                const T *restrict in = y + l * lines.length;
                long n = smaller(lines.length, lines.values - l * lines.length);
                SIMD for (long j = 0; j < n; j++) {
                    float v = get(in[j]) - first[j];
                    total[j] += v;
                    square[j] += v * v;
                }
            }
            fold(total, lines.length, sums, c);
            fold(square, lines.length, sums + c, c);
        }
    }
    for (long h = 0; h < c; h++) {
        double offset = add_threads(partial, 2 * c, h, threads) / pixels;
        double var = add_threads(partial, 2 * c, c + h, threads) / pixels - offset * offset;
        if (var < 0) var = 0;
        double mean = get(y[h]) + offset, inverse = 1 / sqrt(var + eps), scale = weight[h] * inverse;
        stats[h] = mean, stats[c + h] = inverse, stats[2 * c + h] = scale, stats[3 * c + h] = bias[h] - mean * scale;
        running_mean[h] += momentum * (mean - running_mean[h]);
        running_var[h] += momentum * (var * pixels / (pixels - 1) - running_var[h]);
    }
}

/* z = relu(batch norm of y) */
void apply(const T *restrict y, const float *stats, T *restrict z, long pixels, long c, long threads) {
    Lines lines = cut_lines(pixels, c);
    PARALLEL {
        Share s = my_share(lines.count);
        ALIGNED scale[lines.length], shift[lines.length];
        repeat(stats + 2 * c, c, scale, lines.length);
        repeat(stats + 3 * c, c, shift, lines.length);
        for (long l = s.first; l < s.last; l++) {
            const T *restrict in = y + l * lines.length;
            T *restrict out = z + l * lines.length;
            long n = smaller(lines.length, lines.values - l * lines.length);
            SIMD for (long j = 0; j < n; j++) out[j] = put(normalise(get(in[j]), scale[j], shift[j]));
        }
    }
}

/* dy, and sums (2, c), the gradients of bias and weight, of relu(batch norm of y), whose gradient is dz.
   partial: (threads, 2c). */
void differentiate(const T *restrict y, const float *stats, const T *restrict dz, T *restrict dy, float *sums,
                   long pixels, long c, long threads, double *partial) {
    Lines lines = cut_lines(pixels, c);
    float a[c], b[c], d[c];
    PARALLEL {
        Share s = my_share(lines.count);
        ALIGNED mean[lines.length], scale[lines.length], shift[lines.length];
        ALIGNED total[lines.length], product[lines.length];
        repeat(stats, c, mean, lines.length);
        repeat(stats + 2 * c, c, scale, lines.length);
        repeat(stats + 3 * c, c, shift, lines.length);
        memset(total, 0, sizeof total);
        memset(product, 0, sizeof product);
        for (long block = s.first; block < s.last; block += BLOCK) {
            for (long l = block; l < smaller(block + BLOCK, s.last); l++) {
                const T *restrict in = y + l * lines.length, *restrict grad = dz + l * lines.length;
                long n = smaller(lines.length, lines.values - l * lines.length);
                SIMD for (long j = 0; j < n; j++) {
                    float v = get(in[j]), g = get(grad[j]);
                    g = v * scale[j] + shift[j] > 0 ? g : 0;
                    total[j] += g;
                    product[j] += g * (v - mean[j]);
                }
            }
            fold(total, lines.length, partial + 2 * c * s.thread, c);
            fold(product, lines.length, partial + 2 * c * s.thread + c, c);
        }
    }
    finish_gradient(partial, 2 * c, stats, pixels, c, threads, sums, a, b, d);
    PARALLEL {
        Share s = my_share(lines.count);
        ALIGNED scale[lines.length], shift[lines.length], slope[lines.length], constant[lines.length];
        repeat(a, c, scale, lines.length);
        repeat(stats + 3 * c, c, shift, lines.length);
        repeat(b, c, slope, lines.length);
        repeat(d, c, constant, lines.length);
        for (long l = s.first; l < s.last; l++) {
            const T *restrict in = y + l * lines.length, *restrict grad = dz + l * lines.length;
            T *restrict out = dy + l * lines.length;
            long n = smaller(lines.length, lines.values - l * lines.length);
            SIMD for (long j = 0; j < n; j++) {
                float v = get(in[j]), g = get(grad[j]);
                g = v * scale[j] + shift[j] > 0 ? g : 0;
                out[j] = put(scale[j] * g + slope[j] * v + constant[j]);
            }
        }
    }
}

static inline float larger(float a, float b) { return b > a ? b : a; }

/* The upper left of the four pixels that were pooled to pixel i. */
static inline long corner(long i, long columns) { return 2 * (i + i / columns * columns); }

/* pool (rows, columns, c): the 2x2 maxima of z = relu(batch norm of y). */
void apply_and_pool(const T *restrict y, const float *stats, T *restrict z, long stride, T *restrict pool, long rows,
                    long columns, long c, long threads) {
    const float *restrict scale = stats + 2 * c, *restrict shift = stats + 3 * c;
    PARALLEL {
        Share s = my_share(rows);
        for (long i = s.first * columns; i < s.last * columns; i++) {
            long pixel = corner(i, columns), below = pixel + 2 * columns;
            const T *restrict upper = y + pixel * c, *restrict lower = y + below * c;
            T *restrict out = z + pixel * stride, *restrict under = z + below * stride, *restrict most = pool + i * c;
            SIMD for (long h = 0; h < c; h++) {
                float v0 = normalise(get(upper[h]), scale[h], shift[h]);
                float v1 = normalise(get(upper[c + h]), scale[h], shift[h]);
                float v2 = normalise(get(lower[h]), scale[h], shift[h]);
                float v3 = normalise(get(lower[c + h]), scale[h], shift[h]);
                out[h] = put(v0), out[stride + h] = put(v1), under[h] = put(v2), under[stride + h] = put(v3);
                most[h] = put(larger(larger(v0, v1), larger(v2, v3)));
            }
        }
    }
}

/* Four pixels that were pooled: y, and the gradient g of batch norm's output. */
typedef struct {
    float y0, y1, y2, y3, g0, g1, g2, g3;
} Four;

/* Of channel 0 of the pixels at these places. Of equal maxima the first in reading order gets dpool. */
static inline Four differentiate_four(const T *upper, const T *lower, long c, const T *dz_upper, const T *dz_lower,
                                      long stride, float dpool, float scale, float shift) {
    float y0 = get(upper[0]), y1 = get(upper[c]), y2 = get(lower[0]), y3 = get(lower[c]);
    float z0 = normalise(y0, scale, shift), z1 = normalise(y1, scale, shift);
    float z2 = normalise(y2, scale, shift), z3 = normalise(y3, scale, shift);
    float most = larger(larger(z0, z1), larger(z2, z3));
    int won0 = z0 == most, won1 = (z1 == most) & !won0, won2 = (z2 == most) & !won0 & !won1;
    int won3 = !won0 & !won1 & !won2;
    float g0 = get(dz_upper[0]) + (won0 ? dpool : 0), g1 = get(dz_upper[stride]) + (won1 ? dpool : 0);
    float g2 = get(dz_lower[0]) + (won2 ? dpool : 0), g3 = get(dz_lower[stride]) + (won3 ? dpool : 0);
    return (Four){y0, y1, y2, y3, z0 > 0 ? g0 : 0, z1 > 0 ? g1 : 0, z2 > 0 ? g2 : 0, z3 > 0 ? g3 : 0};
}

/* As `differentiate`, of a map that was pooled and kept; rows and columns are those of dpool. */
void differentiate_pooled(const T *restrict y, const float *stats, const T *restrict dz, long stride,
                          const T *restrict dpool, T *restrict dy, float *sums, long rows, long columns, long c,
                          long threads, double *partial) {
    const float *restrict mean = stats, *restrict scale = stats + 2 * c, *restrict shift = stats + 3 * c;
    float a[c], b[c], d[c];
    PARALLEL {
        Share s = my_share(rows);
        ALIGNED total[c], product[c];
        memset(total, 0, sizeof total);
        memset(product, 0, sizeof product);
        for (long r = s.first; r < s.last; r++) {
            for (long i = r * columns; i < (r + 1) * columns; i++) {
                long pixel = corner(i, columns), below = pixel + 2 * columns;
                SIMD for (long h = 0; h < c; h++) {
                    Four f = differentiate_four(y + pixel * c + h, y + below * c + h, c, dz + pixel * stride + h,
                                                dz + below * stride + h, stride, get(dpool[i * c + h]), scale[h],
                                                shift[h]);
                    total[h] += f.g0 + f.g1 + f.g2 + f.g3;
                    product[h] += f.g0 * (f.y0 - mean[h]) + f.g1 * (f.y1 - mean[h]) + f.g2 * (f.y2 - mean[h]) +
                                  f.g3 * (f.y3 - mean[h]);
                }
            }
            fold(total, c, partial + 2 * c * s.thread, c);
            fold(product, c, partial + 2 * c * s.thread + c, c);
        }
    }
    finish_gradient(partial, 2 * c, stats, 4 * rows * columns, c, threads, sums, a, b, d);
    PARALLEL {
        Share s = my_share(rows);
        for (long i = s.first * columns; i < s.last * columns; i++) {
            long pixel = corner(i, columns), below = pixel + 2 * columns;
            T *restrict out = dy + pixel * c, *restrict under = dy + below * c;
            SIMD for (long h = 0; h < c; h++) {
                Four f = differentiate_four(y + pixel * c + h, y + below * c + h, c, dz + pixel * stride + h,
                                            dz + below * stride + h, stride, get(dpool[i * c + h]), scale[h],
                                            shift[h]);
                out[h] = put(a[h] * f.g0 + b[h] * f.y0 + d[h]), out[c + h] = put(a[h] * f.g1 + b[h] * f.y1 + d[h]);
                under[h] = put(a[h] * f.g2 + b[h] * f.y2 + d[h]), under[c + h] = put(a[h] * f.g3 + b[h] * f.y3 + d[h]);
            }
        }
    }
}
