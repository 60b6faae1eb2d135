/* Records what a process writes to the files of one directory: every change and every sync in one total order.
 *
 * Loaded with LD_PRELOAD. POWER_DIRECTORY is the directory (absolute, without links, watched without its
 * subdirectories), POWER_LOG the file that the records go to. A change and its record are one step under one lock; a
 * sync has two records, because it covers what was written before it began and counts once it has ended. Files that
 * end in "-shm" are left out: SQLite maps them, and builds them anew after a crash. Calls that change a file in a way
 * that is not modelled leave a record too, so that a test can refuse such a log. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, UNLINK, FOREIGN };
enum { NOT_OURS = 0, DIRECTORY = 1, DESCRIPTORS_MAX = 4096, NAMES_MAX = 64, NAME_BYTES_MAX = 128 };

struct header {
    uint32_t kind;
    uint32_t file;
    uint64_t offset;
    uint64_t length;
};

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int log_descriptor = -1;
static char directory[PATH_MAX];
static volatile uint32_t file_of[DESCRIPTORS_MAX];
static struct {
    char name[NAME_BYTES_MAX];
    uint32_t file;
} names[NAMES_MAX];
static uint32_t last_file = DIRECTORY;
static uint64_t last_sync;

static void give_up(const char *why) {
    dprintf(2, "recorder: %s (errno %d)\n", why, errno);
    abort();
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWER_DIRECTORY"), *log = getenv("POWER_LOG");
    if (!where || !log) return;
    snprintf(directory, sizeof directory, "%s", where);
    log_descriptor = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_descriptor < 0) give_up("the log cannot be opened");
}

/* Appends one record. The caller holds `order`. */
static void note(uint32_t kind, uint32_t file, uint64_t offset, const void *bytes, size_t length) {
    struct header header = {kind, file, offset, length};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)bytes, length}};
    long written = syscall(SYS_writev, log_descriptor, parts, 2);
    if (written != (long)(sizeof header + length)) give_up("the log is cut short");
}

static uint32_t file_at(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS_MAX ? file_of[descriptor] : NOT_OURS;
}

/* Notes a call that the model knows nothing of. */
static void foreign(const char *call) {
    pthread_mutex_lock(&order);
    note(FOREIGN, NOT_OURS, 0, call, strlen(call));
    pthread_mutex_unlock(&order);
}

/* The name within the directory, "" for the directory itself, NULL for what is not recorded. */
static const char *name_within(int at, const char *path) {
    size_t length = strlen(directory);
    if (log_descriptor < 0 || !path) return NULL;
    if (path[0] != '/') {
        if (at != AT_FDCWD && file_at(at) == DIRECTORY) foreign("a path relative to the directory");
        return NULL;
    }
    if (strncmp(path, directory, length) != 0) return NULL;
    if (path[length] == 0) return "";
    if (path[length] != '/' || strchr(path + length + 1, '/')) return NULL;
    const char *name = path + length + 1;
    size_t bytes = strlen(name);
    if (bytes >= 4 && strcmp(name + bytes - 4, "-shm") == 0) return NULL;
    if (bytes >= NAME_BYTES_MAX) give_up("a name is too long");
    return name;
}

static int slot_of(const char *name) {
    for (int slot = 0; slot < NAMES_MAX; slot++)
        if (names[slot].file && strcmp(names[slot].name, name) == 0) return slot;
    return -1;
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    const char *name = name_within(at, path);
    if (!name) return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&order);
    int descriptor = syscall(SYS_openat, at, path, flags, mode);
    int failure = errno;
    if (descriptor >= DESCRIPTORS_MAX) give_up("too many descriptors");
    if (descriptor >= 0 && name[0] == 0) {
        file_of[descriptor] = DIRECTORY;
    } else if (descriptor >= 0) {
        int slot = slot_of(name);
        if (slot < 0) {
            for (slot = 0; slot < NAMES_MAX && names[slot].file; slot++) {
            }
            if (slot == NAMES_MAX) give_up("too many files");
            strcpy(names[slot].name, name);
            names[slot].file = ++last_file;
            note(CREATE, last_file, 0, name, strlen(name));
        } else if (flags & O_TRUNC) {
            note(TRUNCATE, names[slot].file, 0, NULL, 0);
        }
        file_of[descriptor] = names[slot].file;
    }
    pthread_mutex_unlock(&order);
    errno = failure;
    return descriptor;
}

#define MODE_OF(flags, mode)                        \
    mode_t mode = 0;                                \
    if ((flags) & (O_CREAT | O_TMPFILE)) {          \
        va_list rest;                               \
        va_start(rest, flags);                      \
        mode = va_arg(rest, mode_t);                \
        va_end(rest);                               \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(at, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int descriptor) {
    if (file_at(descriptor)) {
        pthread_mutex_lock(&order);
        file_of[descriptor] = NOT_OURS;
        pthread_mutex_unlock(&order);
    }
    return syscall(SYS_close, descriptor);
}

/* Writes at `offset`, or where the descriptor stands for a negative one. */
static ssize_t do_write(int descriptor, const void *bytes, size_t length, off_t offset) {
    uint32_t file = file_at(descriptor);
    pthread_mutex_lock(&order);
    off_t place = offset;
    struct stat found;
    if (place < 0 && fcntl(descriptor, F_GETFL) & O_APPEND) {
        place = fstat(descriptor, &found) == 0 ? found.st_size : -1;
    } else if (place < 0) {
        place = syscall(SYS_lseek, descriptor, 0, SEEK_CUR);
    }
    if (place < 0) give_up("a write has no place");
    note(WRITE, file, place, bytes, length);
    ssize_t written = offset < 0 ? syscall(SYS_write, descriptor, bytes, length)
                                 : syscall(SYS_pwrite64, descriptor, bytes, length, offset);
    if (written != (ssize_t)length) give_up("a write was cut short");
    pthread_mutex_unlock(&order);
    return written;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    return file_at(descriptor) ? do_write(descriptor, bytes, length, -1)
                               : syscall(SYS_write, descriptor, bytes, length);
}
ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    return file_at(descriptor) ? do_write(descriptor, bytes, length, offset)
                               : syscall(SYS_pwrite64, descriptor, bytes, length, offset);
}
ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    return pwrite(descriptor, bytes, length, offset);
}

static int do_sync(long call, int descriptor) {
    uint32_t file = file_at(descriptor);
    if (!file) return syscall(call, descriptor);
    pthread_mutex_lock(&order);
    uint64_t sync = ++last_sync;
    note(SYNC_BEGIN, file, sync, NULL, 0);
    pthread_mutex_unlock(&order);
    int failed = syscall(call, descriptor);
    if (!failed) {
        pthread_mutex_lock(&order);
        note(SYNC_END, file, sync, NULL, 0);
        pthread_mutex_unlock(&order);
    }
    return failed;
}
int fsync(int descriptor) { return do_sync(SYS_fsync, descriptor); }
int fdatasync(int descriptor) { return do_sync(SYS_fdatasync, descriptor); }

int ftruncate(int descriptor, off_t length) {
    uint32_t file = file_at(descriptor);
    if (!file) return syscall(SYS_ftruncate, descriptor, length);
    pthread_mutex_lock(&order);
    int failed = syscall(SYS_ftruncate, descriptor, length);
    if (!failed) note(TRUNCATE, file, length, NULL, 0);
    pthread_mutex_unlock(&order);
    return failed;
}
int ftruncate64(int descriptor, off64_t length) { return ftruncate(descriptor, length); }

int unlinkat(int at, const char *path, int flags) {
    const char *name = name_within(at, path);
    if (!name || name[0] == 0) return syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&order);
    int failed = syscall(SYS_unlinkat, at, path, flags);
    int failure = errno, slot = slot_of(name);
    if (!failed && slot >= 0) {
        note(UNLINK, names[slot].file, 0, name, strlen(name));
        names[slot].file = 0;
    }
    pthread_mutex_unlock(&order);
    errno = failure;
    return failed;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

/* What is not modelled. */
int rename(const char *from, const char *to) {
    if (name_within(AT_FDCWD, from) || name_within(AT_FDCWD, to)) foreign("rename");
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int truncate(const char *path, off_t length) {
    if (name_within(AT_FDCWD, path)) foreign("truncate");
    return syscall(SYS_truncate, path, length);
}
int truncate64(const char *path, off64_t length) { return truncate(path, length); }
ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    if (file_at(descriptor)) foreign("writev");
    return syscall(SYS_writev, descriptor, parts, count);
}
int fallocate(int descriptor, int mode, off_t offset, off_t length) {
    if (file_at(descriptor)) foreign("fallocate");
    return syscall(SYS_fallocate, descriptor, mode, offset, length);
}
int fallocate64(int descriptor, int mode, off64_t offset, off64_t length) {
    return fallocate(descriptor, mode, offset, length);
}
int posix_fallocate(int descriptor, off_t offset, off_t length) {
    return fallocate(descriptor, 0, offset, length) ? errno : 0;
}
int posix_fallocate64(int descriptor, off64_t offset, off64_t length) {
    return posix_fallocate(descriptor, offset, length);
}
void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    if (file_at(descriptor) && (protection & PROT_WRITE) && (flags & MAP_SHARED)) foreign("mmap");
    return (void *)syscall(SYS_mmap, address, length, protection, flags, descriptor, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off64_t offset) {
    return mmap(address, length, protection, flags, descriptor, offset);
}
