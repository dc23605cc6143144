/* Faults of disk and clock inside of a real process, placed to the call: loaded with LD_PRELOAD by chaos.

   CHAOS_SHIM_PAGE   a file of one page, mapped here and by the nemesis: switches and counters, 64-bit each (see shim.py)
   CHAOS_SHIM_DIR    only files below this folder (the log's) are meddled with

   ptrace (strace -e inject) could do the errors too, but stops the process at every call, and cannot place a SIGSTOP
   or a SIGKILL between a commit's sync and its answer. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The order of these is shim.py's FIELDS. */
struct page {
    volatile int64_t sync_error;       /* so many syncs fail with EIO and are not done */
    volatile int64_t sync_error_after; /* so many syncs are done, and yet fail with EIO */
    volatile int64_t sync_delay_us;    /* each sync takes so much longer, while set */
    volatile int64_t write_errno;      /* what failing writes fail with */
    volatile int64_t write_errors;     /* so many writes fail */
    volatile int64_t all_errno;        /* every call fails with this, while set */
    volatile int64_t hang;             /* every call waits, while set */
    volatile int64_t stop_at_write;    /* 1: SIGSTOP to myself before the next write into a write-ahead log */
    volatile int64_t stop_after_sync;  /* 1: SIGSTOP to myself after the next sync */
    volatile int64_t kill_at_write;    /* 1: SIGKILL to myself before the next write into a write-ahead log */
    volatile int64_t kill_after_sync;  /* 1: SIGKILL to myself after the next sync of a write-ahead log: committed, not answered */
    volatile int64_t wall_offset_ns;   /* added to the wall clock */
    volatile int64_t syncs, writes, errors, delays, hangs, stops, wall_reads; /* counters */
};

enum { PLAIN = 0, LOG = 1, WAL = 2 };
#define FDS 65536

static struct page *page;
static struct page none;
static char folder[4096];
static size_t folder_length;
static unsigned char kinds[FDS];

static int (*real_open)(const char *, int, ...);
static int (*real_open64)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static ssize_t (*real_pread64)(int, void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_read)(int, void *, size_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static void find(void)
{
    real_open = dlsym(RTLD_NEXT, "open");
    real_open64 = dlsym(RTLD_NEXT, "open64");
    real_close = dlsym(RTLD_NEXT, "close");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_pread = dlsym(RTLD_NEXT, "pread");
    real_pread64 = dlsym(RTLD_NEXT, "pread64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_read = dlsym(RTLD_NEXT, "read");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_ftruncate64 = dlsym(RTLD_NEXT, "ftruncate64");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
}

#define NEED(name) do { if (!real_##name) find(); } while (0)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_SHIM_PAGE"), *dir = getenv("CHAOS_SHIM_DIR");
    find();
    page = &none;
    if (!path || !dir || strlen(dir) >= sizeof folder)
        return;
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    real_close(fd);
    if (mapped == MAP_FAILED)
        return;
    strcpy(folder, dir);
    folder_length = strlen(folder);
    page = mapped;
}

static void count(volatile int64_t *field) { __atomic_add_fetch(field, 1, __ATOMIC_SEQ_CST); }

/* Take one of so many; false if none is left. */
static int take(volatile int64_t *field)
{
    int64_t left = *field;
    while (left > 0)
        if (__atomic_compare_exchange_n(field, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 1;
    return 0;
}

static void signal_myself(int number)
{
    count(&page->stops);
    kill(getpid(), number);
    /* The signal may be taken by another thread: this one must not go on before. */
    struct timespec moment = {0, 20 * 1000 * 1000};
    nanosleep(&moment, NULL);
}

static int kind_of(int fd) { return page && fd >= 0 && fd < FDS ? kinds[fd] : PLAIN; }

/* What holds for every call on the log; true if it must fail, errno is set then. */
static int gate(void)
{
    if (page->hang) {
        count(&page->hangs);
        struct timespec moment = {0, 2 * 1000 * 1000};
        while (page->hang)
            nanosleep(&moment, NULL);
    }
    int64_t number = page->all_errno;
    if (number) {
        count(&page->errors);
        errno = (int)number;
        return 1;
    }
    return 0;
}

static int named(const char *path)
{
    if (!folder_length || !path || strncmp(path, folder, folder_length) != 0)
        return PLAIN;
    size_t length = strlen(path);
    if (length > 4 && strcmp(path + length - 4, "-wal") == 0)
        return WAL;
    if (length > 3 && strcmp(path + length - 3, ".db") == 0)
        return LOG;
    return PLAIN; /* locks and shared memory stay what they are: they are not the disk */
}

static int opened(int fd, int kind)
{
    if (fd >= 0 && fd < FDS)
        kinds[fd] = (unsigned char)kind;
    return fd;
}

int open(const char *path, int flags, ...)
{
    NEED(open);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int kind = page ? named(path) : PLAIN;
    if (kind && gate())
        return -1;
    return opened(real_open(path, flags, mode), kind);
}

int open64(const char *path, int flags, ...)
{
    NEED(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    int kind = page ? named(path) : PLAIN;
    if (kind && gate())
        return -1;
    return opened(real_open64(path, flags, mode), kind);
}

int close(int fd)
{
    NEED(close);
    if (fd >= 0 && fd < FDS)
        kinds[fd] = PLAIN;
    return real_close(fd);
}

static int write_fails(int kind)
{
    if (gate())
        return 1;
    count(&page->writes);
    if (kind == WAL && take(&page->stop_at_write))
        signal_myself(SIGSTOP);
    if (kind == WAL && take(&page->kill_at_write))
        signal_myself(SIGKILL);
    if (take(&page->write_errors)) {
        count(&page->errors);
        errno = (int)page->write_errno;
        return 1;
    }
    return 0;
}

#define WRITING(name, parameters, arguments)           \
    ssize_t name parameters                            \
    {                                                  \
        NEED(name);                                    \
        int kind = kind_of(fd);                        \
        if (kind && write_fails(kind))                 \
            return -1;                                 \
        return real_##name arguments;                  \
    }

#define READING(name, parameters, arguments)           \
    ssize_t name parameters                            \
    {                                                  \
        NEED(name);                                    \
        if (kind_of(fd) && gate())                     \
            return -1;                                 \
        return real_##name arguments;                  \
    }

WRITING(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITING(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRITING(write, (int fd, const void *data, size_t size), (fd, data, size))
READING(pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
READING(pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
READING(read, (int fd, void *data, size_t size), (fd, data, size))

static int synced(int fd, int (*sync)(int))
{
    int kind = kind_of(fd);
    if (!kind)
        return sync(fd);
    if (gate())
        return -1;
    count(&page->syncs);
    int64_t delay = page->sync_delay_us;
    if (delay > 0) {
        count(&page->delays);
        struct timespec moment = {delay / 1000000, delay % 1000000 * 1000};
        nanosleep(&moment, NULL);
    }
    if (take(&page->sync_error)) {
        count(&page->errors);
        errno = EIO;
        return -1;
    }
    int done = sync(fd);
    if (take(&page->sync_error_after)) {
        count(&page->errors);
        errno = EIO;
        return -1;
    }
    if (take(&page->stop_after_sync))
        signal_myself(SIGSTOP);
    if (kind == WAL && take(&page->kill_after_sync))
        signal_myself(SIGKILL);
    return done;
}

int fsync(int fd)
{
    NEED(fsync);
    return synced(fd, real_fsync);
}

int fdatasync(int fd)
{
    NEED(fdatasync);
    return synced(fd, real_fdatasync);
}

int ftruncate(int fd, off_t size)
{
    NEED(ftruncate);
    if (kind_of(fd) && gate())
        return -1;
    return real_ftruncate(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    NEED(ftruncate64);
    if (kind_of(fd) && gate())
        return -1;
    return real_ftruncate64(fd, size);
}

/* The wall clock only: what runs on the monotonic clock must not notice. gettimeofday stays true: SQLite asks it, and the
   trigger in the log by which the harness times commits asks SQLite. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    NEED(clock_gettime);
    int done = real_clock_gettime(clock, now);
    int64_t offset = page ? page->wall_offset_ns : 0;
    if (done == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t total = now->tv_sec * 1000000000LL + now->tv_nsec + offset;
        now->tv_sec = total / 1000000000LL;
        now->tv_nsec = total % 1000000000LL;
        count(&page->wall_reads);
    }
    return done;
}
