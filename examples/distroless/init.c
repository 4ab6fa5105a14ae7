/* PID 1 of a guest without a shell: makes a system of the kernel and these few files, keeps the agent
 * and the services running, and powers off when it is told to. Linked statically, it is all that such a
 * guest needs besides the agent and its services.
 *
 *     cc -static -Os -o init init.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What is kept running: in which cgroup, and what. The agent has one of its own, beside the services',
 * which stand still while the guest sleeps. */
static struct {
    const char *cgroup;
    char *argv[4];
    pid_t pid;
    time_t not_before;
} kept[] = {
    {"/sys/fs/cgroup/agent", {"/usr/bin/mvm-guest-agent", NULL}, 0, 0},
    {"/sys/fs/cgroup/services/hello", {"/usr/bin/hello", NULL}, 0, 0},
};
#define KEPT (sizeof kept / sizeof *kept)

static void say(const char *what, const char *about) {
    dprintf(2, "init: %s%s: %s\n", what, about, strerror(errno));
}

static void mounted(const char *type, const char *path, unsigned long flags, const char *options) {
    mkdir(path, 0755);
    if (mount(type, path, type, flags, options) < 0)
        say("cannot mount ", path);
}

/* The modules in the order in which they are listed; those that are `optional` may fail, if there is no
 * such device. */
static void load_modules(void) {
    char line[128], path[160];
    FILE *list = fopen("/etc/mvm-init/modules", "re");
    while (list && fgets(line, sizeof line, list)) {
        char *optional = strchr(line, ' ');
        line[strcspn(line, " \n")] = 0;
        snprintf(path, sizeof path, "/lib/modules/%s.ko", line);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if ((file < 0 || syscall(SYS_finit_module, file, "", 0) < 0) && !optional)
            say("cannot load module ", line);
        if (file >= 0)
            close(file);
    }
    if (list)
        fclose(list);
}

/* Services are dialled on 127.0.0.1, by their checks too. */
static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (any < 0 || ioctl(any, SIOCSIFFLAGS, &request) < 0)
        say("cannot bring up ", "lo");
    if (any >= 0)
        close(any);
}

static void name_it(void) {
    char name[65] = "";
    FILE *file = fopen("/etc/hostname", "re");
    if (!file || !fgets(name, sizeof name, file) || sethostname(name, strcspn(name, "\n")) < 0)
        say("cannot take the name in ", "/etc/hostname");
    if (file)
        fclose(file);
}

static void in_cgroup(const char *folder) {
    char path[160];
    snprintf(path, sizeof path, "%s/cgroup.procs", folder);
    int procs = open(path, O_WRONLY | O_CLOEXEC);
    if (procs < 0 || write(procs, "0", 1) < 0)
        say("cannot use ", folder);
}

static void start(size_t which, const sigset_t *all) {
    pid_t pid = fork();
    if (pid == 0) {
        char *none[] = {"PATH=/usr/bin", NULL};
        sigprocmask(SIG_UNBLOCK, all, NULL);
        setsid();
        in_cgroup(kept[which].cgroup);
        execve(kept[which].argv[0], kept[which].argv, none);
        say("cannot run ", kept[which].argv[0]);
        _exit(127);
    }
    kept[which].pid = pid;
    kept[which].not_before = time(NULL) + 1;
}

/* TERM to all, and two seconds later the power is gone: the kernel ends whoever is left. */
static void power_off(void) {
    struct timespec two = {2, 0};
    sigset_t ended;
    kill(-1, SIGTERM);
    sigemptyset(&ended);
    sigaddset(&ended, SIGCHLD);
    while (waitpid(-1, NULL, WNOHANG) >= 0)
        if (sigtimedwait(&ended, NULL, &two) < 0)
            break;
    sync();
    reboot(RB_POWER_OFF);
}

int main(void) {
    sigset_t awaited;
    umask(022);
    mounted("devtmpfs", "/dev", MS_NOSUID, NULL);
    mounted("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mounted("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mounted("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
    mounted("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, NULL);
    mounted("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mkdir("/sys/fs/cgroup/agent", 0755);
    mkdir("/sys/fs/cgroup/services", 0755);
    for (size_t which = 0; which < KEPT; which++)
        mkdir(kept[which].cgroup, 0755);
    load_modules();
    loopback_up();
    name_it();
    /* Ctrl-Alt-Del, which is how a VMM asks for an end, is SIGINT from here on. */
    reboot(RB_DISABLE_CAD);
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGINT);
    sigaddset(&awaited, SIGTERM);
    sigaddset(&awaited, SIGUSR2);
    sigprocmask(SIG_BLOCK, &awaited, NULL);
    for (;;) {
        struct timespec pause = {3600, 0};
        pid_t gone;
        /* Whoever lost its parent is reaped here as well. */
        while ((gone = waitpid(-1, NULL, WNOHANG)) > 0)
            for (size_t which = 0; which < KEPT; which++)
                if (kept[which].pid == gone)
                    kept[which].pid = 0;
        for (size_t which = 0; which < KEPT; which++) {
            if (kept[which].pid > 0)
                continue;
            if (time(NULL) >= kept[which].not_before)
                start(which, &awaited);
            else
                pause.tv_sec = 1;
        }
        int signal = sigtimedwait(&awaited, NULL, &pause);
        if (signal == SIGINT || signal == SIGTERM || signal == SIGUSR2)
            power_off();
    }
}
