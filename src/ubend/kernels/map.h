/* What norm.c and join.c share: maps in memory, and how work is cut and summed.

   Compiled by compiler.py, once for each type of pixels: float32, or bfloat16 where BFLOAT16 is defined. A map is
   (pixels, c), pixels `stride` values apart where it may be some channels of a wider map, else c. Arithmetic and
   parameters are float32; sums go from float32 to double every few lines.

   Work is cut by the number of threads alone, and their sums are added in their order: the same every time.
   `partial` is zeros, a row for each thread. `omp simd` is more than a hint: without it gcc leaves a choice between
   a number and a loaded one as a branch. */

#pragma once

#include <omp.h>
#include <stdint.h>
#include <string.h>

#ifdef BFLOAT16
typedef uint16_t T;
static inline float get(T value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
static inline T put(float value) { /* to the nearest, halves to even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? 0x7fc0u : (T)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
#else
typedef float T;
static inline float get(T value) { return value; }
static inline T put(float value) { return value; }
#endif

#define PARALLEL _Pragma("omp parallel num_threads((int)threads)")
#define SIMD _Pragma("omp simd")
#define ALIGNED __attribute__((aligned(64))) float

enum {
    LINE = 512, /* values worked on together where a pixel has fewer: measured, 256 to 1024 are alike */
    BLOCK = 32, /* lines whose sums are kept in float32 before they go to the doubles */
    RUN = 256,  /* the same in pixels, where work goes pixel by pixel */
};

static inline long smaller(long a, long b) { return a < b ? a : b; }

/* This thread's items: first <= i < last. */
typedef struct {
    long first, last;
    int thread;
} Share;

static inline Share my_share(long items) {
    int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    return (Share){items * thread / threads, items * (thread + 1) / threads, thread};
}

/* A map without gaps, cut into lines of whole pixels. */
typedef struct {
    long values, length, count;
} Lines;

static inline Lines cut_lines(long pixels, long c) {
    long length = c * (c < LINE ? LINE / c : 1);
    return (Lines){pixels * c, length, (pixels * c + length - 1) / length};
}

static inline void repeat(const float *values, long c, float *out, long length) {
    for (long j = 0; j < length; j += c) memcpy(out + j, values, sizeof(float) * c);
}

/* Add n values to c doubles, channel by channel, and forget them. */
static inline void fold(float *values, long n, double *out, long c) {
    for (long j = 0; j < n; j += c)
        for (long h = 0; h < c; h++) out[h] += values[j + h];
    memset(values, 0, sizeof(float) * n);
}

static inline double add_threads(const double *partial, long width, long h, long threads) {
    double out = 0;
    for (long t = 0; t < threads; t++) out += partial[width * t + h];
    return out;
}

static inline float normalise(float y, float scale, float shift) { /* and ReLU */
    float z = y * scale + shift;
    return z < 0 ? 0 : z;
}

/* (a, b, d) of each channel, so that dy = a g + b y + d; and sums (2, c): of g, and of g times normalised y. */
static inline void finish_gradient(const double *partial, long width, const float *stats, long pixels, long c, long threads,
                            float *sums, float *a, float *b, float *d) {
    for (long h = 0; h < c; h++) {
        double mean = stats[h], inverse = stats[c + h], scale = stats[2 * c + h];
        double g = add_threads(partial, width, h, threads), gx = add_threads(partial, width, c + h, threads) * inverse;
        double slope = -scale * inverse * gx / pixels;
        sums[h] = g, sums[c + h] = gx;
        a[h] = scale, b[h] = slope, d[h] = -scale * g / pixels - slope * mean;
    }
}
