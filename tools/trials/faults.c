// Counts the calls that change files below a folder and, at the n-th, kills the process or fails.
//
// Loaded with LD_PRELOAD. It does nothing until faults_arm is called, or where the environment
// variable FAULTS has its text from the start:
//
//   FOLDER \n FIRST \n LAST \n ACTION \n LOG
//
// FOLDER is an absolute path without symbolic links. FIRST to LAST are the numbers, from 1, of the
// events that ACTION befalls: "none", "kill" (before the call), "tear" (a write half done, then
// killed), "short" (a write half done, which then fails for want of room) or the number of an
// error that the call fails with. LOG is a file that gets one line for every event, or empty; and a
// line that begins with "read" for every file that is opened to be read, which is no event.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE = 0, KILL = -1, TEAR = -2, SHORT = -3 };

static char folder[PATH_MAX];
static size_t folder_length;
static long first, last;
static int action;
static int log_file = -1;
static atomic_long events;
static atomic_int armed;

static const char *const ends[] = {"", "/"};

void faults_arm(const char *text) {
  static char copy[2 * PATH_MAX];
  snprintf(copy, sizeof copy, "%s", text);
  char *rest = copy, *fields[5] = {0};
  for (int i = 0; i < 5; i++) fields[i] = strsep(&rest, "\n");
  if (!fields[4]) return;
  snprintf(folder, sizeof folder, "%s", fields[0]);
  folder_length = strlen(folder);
  first = atol(fields[1]);
  last = atol(fields[2]);
  action = !strcmp(fields[3], "kill")    ? KILL
           : !strcmp(fields[3], "tear")  ? TEAR
           : !strcmp(fields[3], "short") ? SHORT
           : !strcmp(fields[3], "none")  ? NONE
                                         : atoi(fields[3]);
  if (*fields[4])
    log_file = syscall(SYS_openat, AT_FDCWD, fields[4], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  atomic_store(&events, 0);
  atomic_store(&armed, 1);
}

__attribute__((constructor)) static void begin(void) {
  const char *text = getenv("FAULTS");
  if (text) faults_arm(text);
}

static int is_inside(const char *path) {
  return !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || path[folder_length] == '\0');
}

// Write the absolute path of a file that may not be there yet.
static void absolute(int at, const char *path, char *whole) {
  char base[PATH_MAX] = "";
  if (path[0] != '/') {
    if (at == AT_FDCWD) {
      if (syscall(SYS_getcwd, base, sizeof base) < 0) base[0] = '\0';
    } else {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
      ssize_t length = readlink(link, base, sizeof base - 1);
      base[length < 0 ? 0 : length] = '\0';
    }
  }
  snprintf(whole, PATH_MAX, "%s%s%s", base, ends[path[0] != '/' && *path != '\0'], path);
  char *name = strstr(whole, "/../") ? strrchr(whole, '/') : NULL;
  if (name) {
    char above[PATH_MAX], last_name[NAME_MAX + 2], joined[PATH_MAX + NAME_MAX + 2];
    snprintf(last_name, sizeof last_name, "%s", name);
    *name = '\0';
    if (realpath(whole, above)) {
      snprintf(joined, sizeof joined, "%s%s", above, last_name);
      strncpy(whole, joined, PATH_MAX - 1);
    }
  }
}

static void note(const char *call, const char *path) {
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s %s\n", call, path + folder_length);
  if (log_file >= 0) syscall(SYS_write, log_file, line, length);
}

static void note_read(int at, const char *path) {
  if (!atomic_load(&armed) || !path) return;
  char whole[PATH_MAX];
  absolute(at, path, whole);
  if (is_inside(whole)) note("read", whole);
}

// Count an event, and tell what befalls it: NONE, TEAR, SHORT or an error's number.
static int befalls(const char *call, const char *path, int is_write) {
  long number = atomic_fetch_add(&events, 1) + 1;
  note(call, path);
  if (number < first || number > last) return NONE;
  if (action == KILL || (action == TEAR && !is_write))
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
  if (action == SHORT && !is_write) return ENOSPC;
  return action;
}

static int at_path(const char *call, int at, const char *path) {
  if (!atomic_load(&armed) || !path) return NONE;
  char whole[PATH_MAX];
  absolute(at, path, whole);
  return is_inside(whole) ? befalls(call, whole, 0) : NONE;
}

static int at_file(const char *call, int file, int is_write) {
  if (!atomic_load(&armed)) return NONE;
  char link[64], whole[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, whole, sizeof whole - 1);
  if (length < 0) return NONE;
  whole[length] = '\0';
  return is_inside(whole) ? befalls(call, whole, is_write) : NONE;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define FAIL_AT(result, ...)          \
  do {                                \
    int error = __VA_ARGS__;          \
    if (error > 0) {                  \
      errno = error;                  \
      return result;                  \
    }                                 \
  } while (0)

// What a write of so many bytes may still write; kills or fails where that is what befalls it.
#define WRITE(call, count, half)                            \
  do {                                                      \
    int what = at_file(call, file, 1);                      \
    if (what == TEAR || what == SHORT) {                    \
      size_t kept = (count) / 2;                            \
      if (kept) (void)!(half);                              \
      if (what == TEAR) syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL); \
      if (kept) return (ssize_t)kept;                       \
      what = ENOSPC;                                        \
    }                                                       \
    if (what > 0) {                                         \
      errno = what;                                         \
      return -1;                                            \
    }                                                       \
  } while (0)

#define CHANGES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

#define OPEN(name)                                                                 \
  int name(const char *path, int flags, ...) {                                     \
    va_list list;                                                                  \
    va_start(list, flags);                                                         \
    int mode = va_arg(list, int);                                                  \
    va_end(list);                                                                  \
    if (CHANGES(flags)) FAIL_AT(-1, at_path("open", AT_FDCWD, path));              \
    if ((flags & O_ACCMODE) != O_WRONLY) note_read(AT_FDCWD, path);                \
    return REAL(name)(path, flags, mode);                                          \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                               \
  int name(int at, const char *path, int flags, ...) {                             \
    va_list list;                                                                  \
    va_start(list, flags);                                                         \
    int mode = va_arg(list, int);                                                  \
    va_end(list);                                                                  \
    if (CHANGES(flags)) FAIL_AT(-1, at_path("open", at, path));                    \
    if ((flags & O_ACCMODE) != O_WRONLY) note_read(at, path);                      \
    return REAL(name)(at, path, flags, mode);                                      \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                \
  FILE *name(const char *restrict path, const char *restrict mode) {               \
    if (strpbrk(mode, "wa+")) FAIL_AT(NULL, at_path("open", AT_FDCWD, path));      \
    if (strpbrk(mode, "r+")) note_read(AT_FDCWD, path);                            \
    return REAL(name)(path, mode);                                                 \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define CREAT(name)                                                                \
  int name(const char *path, mode_t mode) {                                        \
    FAIL_AT(-1, at_path("open", AT_FDCWD, path));                                  \
    return REAL(name)(path, mode);                                                 \
  }
CREAT(creat)
CREAT(creat64)

ssize_t write(int file, const void *bytes, size_t count) {
  WRITE("write", count, syscall(SYS_write, file, bytes, kept));
  return REAL(write)(file, bytes, count);
}

#define PWRITE(name, type)                                                         \
  ssize_t name(int file, const void *bytes, size_t count, type offset) {           \
    WRITE("write", count, syscall(SYS_pwrite64, file, bytes, kept, offset));       \
    return REAL(name)(file, bytes, count, offset);                                 \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *pieces, int count) {
  WRITE("write", pieces[0].iov_len, syscall(SYS_write, file, pieces[0].iov_base, kept));
  return REAL(writev)(file, pieces, count);
}

#define PWRITEV(name, type)                                                        \
  ssize_t name(int file, const struct iovec *pieces, int count, type offset) {     \
    WRITE("write", pieces[0].iov_len,                                              \
          syscall(SYS_pwrite64, file, pieces[0].iov_base, kept, offset));          \
    return REAL(name)(file, pieces, count, offset);                                \
  }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t sendfile(int file, int from, off_t *offset, size_t count) {
  WRITE("write", count, syscall(SYS_sendfile, file, from, offset, kept));
  return syscall(SYS_sendfile, file, from, offset, count);
}

ssize_t copy_file_range(int from, off64_t *from_offset, int file, off64_t *offset, size_t count,
                        unsigned flags) {
  WRITE("write", count, syscall(SYS_copy_file_range, from, from_offset, file, offset, kept, flags));
  return syscall(SYS_copy_file_range, from, from_offset, file, offset, count, flags);
}

int rename(const char *from, const char *to) {
  FAIL_AT(-1, at_path("rename", AT_FDCWD, to));
  return REAL(rename)(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
  FAIL_AT(-1, at_path("rename", to_at, to));
  return REAL(renameat)(from_at, from, to_at, to);
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  FAIL_AT(-1, at_path("rename", to_at, to));
  return REAL(renameat2)(from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) {
  FAIL_AT(-1, at_path("link", AT_FDCWD, to));
  return REAL(link)(from, to);
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
  FAIL_AT(-1, at_path("link", to_at, to));
  return REAL(linkat)(from_at, from, to_at, to, flags);
}

int symlink(const char *from, const char *to) {
  FAIL_AT(-1, at_path("symlink", AT_FDCWD, to));
  return REAL(symlink)(from, to);
}

int unlink(const char *path) {
  FAIL_AT(-1, at_path("unlink", AT_FDCWD, path));
  return REAL(unlink)(path);
}

int unlinkat(int at, const char *path, int flags) {
  FAIL_AT(-1, at_path("unlink", at, path));
  return REAL(unlinkat)(at, path, flags);
}

int remove(const char *path) {
  FAIL_AT(-1, at_path("unlink", AT_FDCWD, path));
  return REAL(remove)(path);
}

int rmdir(const char *path) {
  FAIL_AT(-1, at_path("rmdir", AT_FDCWD, path));
  return REAL(rmdir)(path);
}

int mkdir(const char *path, mode_t mode) {
  FAIL_AT(-1, at_path("mkdir", AT_FDCWD, path));
  return REAL(mkdir)(path, mode);
}

int mkdirat(int at, const char *path, mode_t mode) {
  FAIL_AT(-1, at_path("mkdir", at, path));
  return REAL(mkdirat)(at, path, mode);
}

#define SIZED(name, first_type, type, at)                                          \
  int name(first_type file, type length) {                                         \
    FAIL_AT(-1, at);                                                               \
    return REAL(name)(file, length);                                               \
  }
SIZED(ftruncate, int, off_t, at_file("truncate", file, 0))
SIZED(ftruncate64, int, off64_t, at_file("truncate", file, 0))
SIZED(truncate, const char *, off_t, at_path("truncate", AT_FDCWD, file))
SIZED(truncate64, const char *, off64_t, at_path("truncate", AT_FDCWD, file))

int fsync(int file) {
  FAIL_AT(-1, at_file("fsync", file, 0));
  return REAL(fsync)(file);
}

int fdatasync(int file) {
  FAIL_AT(-1, at_file("fsync", file, 0));
  return REAL(fdatasync)(file);
}

int posix_fallocate(int file, off_t offset, off_t length) {
  int error = at_file("allocate", file, 0);
  return error > 0 ? error : REAL(posix_fallocate)(file, offset, length);
}
