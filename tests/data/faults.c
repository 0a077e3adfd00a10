// Lets calls that change files below a folder fail, or end the process, as a disk does that is
// full, fails or cannot be written. To be loaded before the C library; set from outside.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char faults_below[4096];  // the folder; nothing where it is empty
int faults_count;         // calls so far
int faults_at = -1;       // the number of the call that fails
int faults_last = -1;     // and of the last that does
int faults_errno;         // 0: the process is killed
int faults_failed;        // how many have

static int Fails(const char* path) {
  size_t length = strlen(faults_below);
  if (length == 0 || strncmp(path, faults_below, length) != 0) return 0;
  int number = faults_count++;
  if (faults_at < 0 || number < faults_at || number > faults_last) return 0;
  if (faults_errno == 0) kill(getpid(), SIGKILL);
  faults_failed++;
  errno = faults_errno;
  return 1;
}

static int FailsOf(int file) {
  if (faults_below[0] == 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return Fails(path);
}

// Of a path that may be relative to an open folder.
static int FailsAt(int folder, const char* path) {
  if (path == NULL) return FailsOf(folder);
  return folder == AT_FDCWD || path[0] == '/' ? Fails(path) : FailsOf(folder);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define OPEN(name)                               \
  int name(const char* path, int flags, ...) {   \
    va_list more;                                \
    va_start(more, flags);                       \
    mode_t mode = va_arg(more, mode_t);          \
    va_end(more);                                \
    if (WRITES(flags) && Fails(path)) return -1; \
    return NEXT(name)(path, flags, mode);        \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int file, const void* data, size_t size) {
  if (!FailsOf(file)) return NEXT(write)(file, data, size);
  // Half of it still finds room; the next call will fail.
  if (size > 1 && faults_errno == ENOSPC && faults_last > faults_at) {
    return NEXT(write)(file, data, size / 2);
  }
  return -1;
}
#define PWRITE(name, offset)                                             \
  ssize_t name(int file, const void* data, size_t size, offset at) {     \
    return FailsOf(file) ? -1 : NEXT(name)(file, data, size, at);        \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
int fsync(int file) { return FailsOf(file) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return FailsOf(file) ? -1 : NEXT(fdatasync)(file); }
int ftruncate(int file, off_t size) { return FailsOf(file) ? -1 : NEXT(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) {
  return FailsOf(file) ? -1 : NEXT(ftruncate64)(file, size);
}
int futimens(int file, const struct timespec times[2]) {
  return FailsOf(file) ? -1 : NEXT(futimens)(file, times);
}
int utimensat(int folder, const char* path, const struct timespec times[2], int flags) {
  return FailsAt(folder, path) ? -1 : NEXT(utimensat)(folder, path, times, flags);
}
int rename(const char* from, const char* to) { return Fails(to) ? -1 : NEXT(rename)(from, to); }
int unlink(const char* path) { return Fails(path) ? -1 : NEXT(unlink)(path); }
int unlinkat(int folder, const char* path, int flags) {
  return FailsAt(folder, path) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
int mkdir(const char* path, mode_t mode) { return Fails(path) ? -1 : NEXT(mkdir)(path, mode); }
int rmdir(const char* path) { return Fails(path) ? -1 : NEXT(rmdir)(path); }

// TensorFlow writes by streams of C, whose own calls of the above cannot be replaced.
#define FOPEN(name)                                                            \
  FILE* name(const char* path, const char* mode) {                             \
    int writes = mode[0] != 'r' || strchr(mode, '+') != NULL;                  \
    return writes && Fails(path) ? NULL : NEXT(name)(path, mode);              \
  }
FOPEN(fopen)
FOPEN(fopen64)
size_t fwrite(const void* data, size_t size, size_t count, FILE* stream) {
  return FailsOf(fileno(stream)) ? 0 : NEXT(fwrite)(data, size, count, stream);
}
int fflush(FILE* stream) {
  return stream != NULL && FailsOf(fileno(stream)) ? EOF : NEXT(fflush)(stream);
}
