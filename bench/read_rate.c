/* Streaming read rate of this machine's memory, the ceiling of decoding.
 *
 *   read_rate BYTES THREADS HUGE SECONDS
 *
 * Each thread sums its own contiguous part of one block of memory over and over; BYTES should be
 * several times the last-level cache. HUGE is 1 for 2 MiB pages (madvise), 0 for 4 KiB pages.
 * Passes read with the hardware's prefetchers alone and with every line prefetched 2 KiB ahead, in
 * turn: either has been the faster one on a Zen 4, by a tenth and more.
 * Prints "median best huge_bytes" of the faster way: GB/s of all threads, and how many bytes of the
 * block really lie on huge pages.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGE = 2 << 20, MAX_PASSES = 100000, MAX_THREADS = 256 };

typedef uint64_t vec __attribute__((vector_size(64)));

static pthread_barrier_t barrier;
static volatile int running = 1;
static volatile int prefetches = 0;

struct part {
  const vec *begin;
  size_t count; /* vectors, a multiple of 8 */
  uint64_t sum; /* kept, so that no compiler drops the reads */
};

static inline __attribute__((always_inline)) void sum_part(struct part *part, int prefetches) {
  vec sums[8] = {{0}};
  for (size_t i = 0; i < part->count; i += 8) {
    /* Every line: leaving some out confuses the hardware's prefetchers and costs a third. */
    for (int j = 0; prefetches && j < 8; j++) __builtin_prefetch(part->begin + i + j + 32);
    for (int j = 0; j < 8; j++) sums[j] += part->begin[i + j];
  }
  for (int j = 1; j < 8; j++) sums[0] += sums[j];
  for (int lane = 0; lane < 8; lane++) part->sum += sums[0][lane];
}

static void read_part(struct part *part, int prefetches) {
  if (prefetches)
    sum_part(part, 1);
  else
    sum_part(part, 0);
}

static void *work(void *argument) {
  for (;;) {
    pthread_barrier_wait(&barrier);
    if (!running) return NULL;
    read_part(argument, prefetches);
    pthread_barrier_wait(&barrier);
  }
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Bytes of this process on huge pages, as the kernel counts them. */
static long huge_bytes(void) {
  FILE *f = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  long kib = 0;
  while (f && fgets(line, sizeof line, f)) sscanf(line, "AnonHugePages: %ld kB", &kib);
  if (f) fclose(f);
  return kib * 1024;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: read_rate BYTES THREADS HUGE SECONDS\n");
    return 2;
  }
  size_t bytes = strtoull(argv[1], NULL, 10) / PAGE * PAGE;
  int threads = atoi(argv[2]);
  int huge = atoi(argv[3]);
  double seconds = atof(argv[4]);
  if (bytes == 0 || threads < 1 || threads > MAX_THREADS) return 2;
  char *block = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) {
    perror("read_rate: mmap");
    return 1;
  }
  block += PAGE - (uintptr_t)block % PAGE;
  madvise(block, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  memset(block, 1, bytes);

  struct part parts[MAX_THREADS];
  pthread_t handles[MAX_THREADS];
  size_t share = bytes / (size_t)threads / (8 * sizeof(vec)) * 8;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int i = 0; i < threads; i++) {
    parts[i] = (struct part){(const vec *)block + (size_t)i * share, share, 0};
    if (i > 0 && pthread_create(&handles[i], NULL, work, &parts[i])) return 1;
  }
  static double rates[2][MAX_PASSES]; /* without prefetches, with them */
  int passes = 0;
  double end = now() + seconds;
  while (passes < MAX_PASSES && (passes < 3 || now() < end)) {
    for (int way = 0; way < 2; way++) {
      prefetches = way;
      pthread_barrier_wait(&barrier);
      double begin = now();
      read_part(&parts[0], way);
      pthread_barrier_wait(&barrier);
      rates[way][passes] =
          (double)(share * sizeof(vec) * (size_t)threads) / (now() - begin) * 1e-9;
    }
    passes++;
  }
  running = 0;
  pthread_barrier_wait(&barrier);
  uint64_t sum = 0;
  for (int i = 0; i < threads; i++) {
    if (i > 0) pthread_join(handles[i], NULL);
    sum += parts[i].sum;
  }
  for (int way = 0; way < 2; way++)
    qsort(rates[way], (size_t)passes, sizeof rates[way][0], ascending);
  const double *faster = rates[rates[1][passes / 2] > rates[0][passes / 2]];
  printf("%.2f %.2f %ld\n", faster[passes / 2], faster[passes - 1], huge_bytes());
  return sum == 0; /* never: every byte is 1 */
}
