/* A disk that loses on a power cut what was not synced, under any program that this is preloaded into.
 *
 * Whatever lies below $AG06_POWER_LIVE has an image below $AG06_POWER_DISK, of what a power cut would leave. Only a
 * sync changes it: that of a file brings its content (inodes/NUMBER), that of a directory its names (listed/NUMBER). This
 * is the strict reading of POSIX: a file that is synced in a directory that is not has no name after the cut. What is
 * unlinked or replaced is kept (kept/NUMBER): the image may still name it, and its number must not be used again.
 * Nothing is really synced, so a cycle is quick; $AG06_POWER_SYNC_US is how long a sync takes. Every other way to sync
 * (msync, sync_file_range, sync, O_DSYNC) is taken to promise nothing: that can only find too many losses.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *live, *disk;
static size_t live_length;
static useconds_t sync_time;

__attribute__((constructor)) static void begin(void) {
    const char *micros = getenv("AG06_POWER_SYNC_US"), *of_live = getenv("AG06_POWER_LIVE");
    const char *of_disk = getenv("AG06_POWER_DISK");
    if (of_live == NULL || of_disk == NULL)
        return;
    live = strdup(of_live); /* a program that sets its title writes over its environment */
    disk = strdup(of_disk);
    live_length = strlen(live);
    sync_time = micros == NULL ? 0 : (useconds_t)atoi(micros);
}

static void fail(const char *what, const char *path) {
    fprintf(stderr, "power: cannot %s %s: %s\n", what, path, strerror(errno));
    abort();
}

static int below(const char *path) {
    return disk != NULL && strncmp(path, live, live_length) == 0
        && (path[live_length] == '/' || path[live_length] == '\0' || path[live_length] == ' ');
}

static int watched(int fd) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return below(path);
}

static void place(char *path, const char *kind, ino_t number) {
    snprintf(path, 4096, "%s/%s/%lu", disk, kind, (unsigned long)number);
}

/* Open an image for as long as this process alone changes it: two syncs at once must not undo each other. */
static int open_image(const char *path) {
    int image = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (image < 0)
        fail("open", path);
    while (flock(image, LOCK_EX) != 0)
        if (errno != EINTR)
            fail("lock", path);
    return image;
}

static void write_fully(int fd, const char *data, size_t size, off_t at) {
    while (size > 0) {
        ssize_t done = pwrite(fd, data, size, at);
        if (done < 0)
            fail("write", disk);
        data += done;
        at += done;
        size -= (size_t)done;
    }
}

/* Return what `fd` can be read through: itself if it can. A second descriptor would, when it is closed, give up every
 * lock that this process has on the file. */
static int readable(int fd) {
    char name[64];
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY)
        return fd;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    int other = open(name, O_RDONLY | O_CLOEXEC);
    if (other < 0)
        fail("read", name);
    return other;
}

static void keep_content(int fd, ino_t number) {
    char path[4096];
    static __thread char block[1 << 16];
    place(path, "inodes", number);
    int image = open_image(path);
    int source = readable(fd);
    off_t at = 0;
    ssize_t got;
    while ((got = pread(source, block, sizeof block, at)) > 0) {
        write_fully(image, block, (size_t)got, at);
        at += got;
    }
    if (got < 0 || ftruncate(image, at) != 0)
        fail("copy", path);
    if (source != fd)
        close(source);
    close(image);
}

/* One entry is its kind (d or f), a blank, its number, a blank, its name and a NUL. They change at once or not at all, as
 * a file system with a journal has it. */
static void keep_names(int fd, ino_t number) {
    char path[4096], fresh[4096], listed[4096], line[512];
    place(path, "locks", number);
    place(fresh, "fresh", number);
    place(listed, "listed", number);
    char *text = NULL;
    size_t size = 0;
    int lock = open_image(path);
    int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy < 0 ? NULL : fdopendir(copy);
    if (entries == NULL)
        fail("list", path);
    struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        int length = snprintf(line, sizeof line, "%c %lu %s", entry->d_type == DT_DIR ? 'd' : 'f',
                              (unsigned long)entry->d_ino, entry->d_name);
        text = realloc(text, size + (size_t)length + 1);
        if (text == NULL)
            fail("list", path);
        memcpy(text + size, line, (size_t)length + 1);
        size += (size_t)length + 1;
    }
    closedir(entries);
    int next = open(fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (next < 0)
        fail("write", fresh);
    write_fully(next, text, size, 0);
    close(next);
    free(text);
    if (syscall(SYS_renameat2, AT_FDCWD, fresh, AT_FDCWD, listed, 0) != 0)
        fail("rename", fresh);
    close(lock);
}

static int synced(int fd, const char *name) {
    struct stat found;
    if (!watched(fd) || fstat(fd, &found) != 0)
        return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
    usleep(sync_time);
    if (S_ISDIR(found.st_mode))
        keep_names(fd, found.st_ino);
    else
        keep_content(fd, found.st_ino);
    return 0;
}

int fsync(int fd) { return synced(fd, "fsync"); }

int fdatasync(int fd) { return synced(fd, "fdatasync"); }

/* Give the file that `path` names now another name, out of the way. */
static void keep_file(int directory, const char *path) {
    struct stat found;
    char full[4096], kept[4096];
    if (disk == NULL || fstatat(directory, path, &found, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(found.st_mode))
        return;
    int fd = openat(directory, path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    if (watched(fd)) {
        snprintf(full, sizeof full, "/proc/self/fd/%d", fd);
        place(kept, "kept", found.st_ino);
        if (linkat(AT_FDCWD, full, AT_FDCWD, kept, AT_SYMLINK_FOLLOW) != 0 && errno != EEXIST && errno != ENOENT)
            fail("keep", kept);
    }
    close(fd);
}

int unlinkat(int directory, const char *path, int flags) {
    int before = errno;
    if ((flags & AT_REMOVEDIR) == 0)
        keep_file(directory, path);
    errno = before;
    return (int)syscall(SYS_unlinkat, directory, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int remove(const char *path) {
    int done = unlinkat(AT_FDCWD, path, 0);
    return done != 0 && errno == EISDIR ? unlinkat(AT_FDCWD, path, AT_REMOVEDIR) : done;
}

int renameat2(int from, const char *old, int to, const char *new, unsigned int flags) {
    int before = errno;
    keep_file(to, new);
    errno = before;
    return (int)syscall(SYS_renameat2, from, old, to, new, flags);
}

int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
