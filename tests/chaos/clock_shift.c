/* Shifts the wall clock of a process by the seconds in the file CLOCK_SHIFT_FILE, read at most ten times a second. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real_clock)(clockid_t, struct timespec *);

static long shift(void) {
  static long seconds, read_at = -1;
  struct timespec now;
  real_clock(CLOCK_MONOTONIC, &now);
  long tenths = now.tv_sec * 10 + now.tv_nsec / 100000000;
  if (tenths != read_at) {
    read_at = tenths;
    const char *name = getenv("CLOCK_SHIFT_FILE");
    FILE *file = name ? fopen(name, "r") : NULL;
    if (file) {
      if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
      fclose(file);
    }
  }
  return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  if (!real_clock) real_clock = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real_clock(clock, time);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += shift();
  return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
