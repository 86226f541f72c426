/* Lets oxenstored and the C xenstored run without a hypervisor, without root and side by side with others.
 *
 * LD_PRELOADed into the unmodified daemons of Debian's xen-utils-4.17. Two jobs:
 *   - answer what the daemon asks of the hypervisor (event channels, grants, domains) as a host without guests would;
 *   - move every path below /var/run/xenstored, /run/xenstored, /var/run/xen, /var/log/xen and /proc/xen into the
 *     directory named by OXENSTORED_DIRECTORY, so that nothing of the system is touched.
 *
 * The C daemon insists on its own ring: the directory must hold xsd_port (text "1") and xsd_kva (4096 zero bytes).
 *
 * gcc -shared -fPIC -O1 -o stub.so oxenstored_stub.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#define PATH_LIMIT 4096

/* ---- paths ------------------------------------------------------------------------------------------------- */

static const char *const moved[] = {"/var/run/xenstored", "/run/xenstored", "/var/run/xen",
                                    "/run/xen",           "/var/log/xen",   "/proc/xen"};

/* The same file below our directory: the last path component only, so that no sub-directory has to exist. */
static const char *redirect(const char *path, char *buffer)
{
    const char *directory = getenv("OXENSTORED_DIRECTORY");
    if (path == NULL)
        return path;
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        size_t length = strlen(moved[i]);
        if (strncmp(path, moved[i], length) != 0 || (path[length] != '/' && path[length] != '\0'))
            continue;
        if (directory == NULL) { /* never fall back to the system's own files */
            fprintf(stderr, "oxenstored_stub: OXENSTORED_DIRECTORY is not set\n");
            _exit(2);
        }
        const char *name = path[length] == '/' ? strrchr(path, '/') : "";
        snprintf(buffer, PATH_LIMIT, "%s%s", directory, name);
        return buffer;
    }
    return path;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    char buffer[PATH_LIMIT];
    struct sockaddr_un there;
    if (address->sa_family == AF_UNIX) {
        const char *path = redirect(((const struct sockaddr_un *)address)->sun_path, buffer);
        if (path == buffer) {
            memset(&there, 0, sizeof there);
            there.sun_family = AF_UNIX;
            if (strlen(path) >= sizeof there.sun_path) {
                errno = ENAMETOOLONG;
                return -1;
            }
            strcpy(there.sun_path, path);
            return NEXT(bind)(fd, (struct sockaddr *)&there, sizeof there);
        }
    }
    return NEXT(bind)(fd, address, length);
}

int unlink(const char *path)
{
    char buffer[PATH_LIMIT];
    return NEXT(unlink)(redirect(path, buffer));
}

int chmod(const char *path, mode_t mode)
{
    char buffer[PATH_LIMIT];
    return NEXT(chmod)(redirect(path, buffer), mode);
}

int mkdir(const char *path, mode_t mode)
{
    char buffer[PATH_LIMIT];
    return NEXT(mkdir)(redirect(path, buffer), mode);
}

int access(const char *path, int mode)
{
    char buffer[PATH_LIMIT];
    return NEXT(access)(redirect(path, buffer), mode);
}

int stat64(const char *path, struct stat64 *result)
{
    char buffer[PATH_LIMIT];
    return NEXT(stat64)(redirect(path, buffer), result);
}

int rename(const char *from, const char *to)
{
    char from_buffer[PATH_LIMIT], to_buffer[PATH_LIMIT];
    return NEXT(rename)(redirect(from, from_buffer), redirect(to, to_buffer));
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & O_CREAT ? va_arg(rest, mode_t) : 0;
}

int open64(const char *path, int flags, ...)
{
    char buffer[PATH_LIMIT];
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return NEXT(open64)(redirect(path, buffer), flags, mode);
}

int open(const char *path, int flags, ...)
{
    char buffer[PATH_LIMIT];
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return NEXT(open)(redirect(path, buffer), flags, mode);
}

/* ---- privileges -------------------------------------------------------------------------------------------- */

/* The daemon raises its file limit first of all and gives up when it may not. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
    (void)resource;
    (void)limit;
    return 0;
}

/* ---- hypervisor -------------------------------------------------------------------------------------------- */

static int event_fd = -1; /* polled by the daemon; never becomes readable */

void *xenevtchn_open(void *logger, unsigned int flags)
{
    (void)logger;
    (void)flags;
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return event_fd < 0 ? NULL : &event_fd;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags)
{
    (void)fd;
    return xenevtchn_open(logger, flags);
}

int xenevtchn_fd(void *handle) { return *(int *)handle; }
int xenevtchn_close(void *handle) { return close(*(int *)handle); }
int xenevtchn_bind_virq(void *handle, unsigned int virq) { (void)handle; return (int)virq + 1; }
int xenevtchn_bind_interdomain(void *handle, int domain, unsigned int port) { (void)handle; (void)domain; return (int)port; }
int xenevtchn_notify(void *handle, unsigned int port) { (void)handle; (void)port; return 0; }
int xenevtchn_pending(void *handle) { (void)handle; return -1; }
int xenevtchn_unmask(void *handle, unsigned int port) { (void)handle; (void)port; return 0; }
int xenevtchn_unbind(void *handle, unsigned int port) { (void)handle; (void)port; return 0; }

void *xc_interface_open(void *logger, void *destroy_logger, unsigned flags)
{
    static int handle;
    (void)logger;
    (void)destroy_logger;
    (void)flags;
    return &handle;
}

int xc_interface_close(void *handle) { (void)handle; return 0; }

/* No domains at all: the daemon serves its socket only. */
int xc_domain_getinfolist(void *handle, unsigned first, unsigned limit, void *list)
{
    (void)handle;
    (void)first;
    (void)limit;
    (void)list;
    return 0;
}

/* Of the C daemon: every domain asked for exists and has nothing to say; the number is the record's first field. */
int xc_domain_getinfo(void *handle, unsigned domain, unsigned limit, unsigned *info)
{
    (void)handle;
    (void)limit;
    memset(info, 0, 2 * sizeof *info);
    *info = domain;
    return 1;
}

void *xengnttab_open(void *logger, unsigned flags)
{
    static int handle;
    (void)logger;
    (void)flags;
    return &handle;
}

int xengnttab_close(void *handle) { (void)handle; return 0; }
int xengnttab_set_max_grants(void *handle, unsigned count) { (void)handle; (void)count; return 0; }
int xengnttab_unmap(void *handle, void *address, unsigned count) { (void)handle; (void)address; (void)count; return 0; }

void *xengnttab_map_grant_ref(void *handle, unsigned domain, unsigned reference, int protection)
{
    (void)handle;
    (void)domain;
    (void)reference;
    (void)protection;
    errno = ENOSYS;
    return NULL;
}
