#!/bin/sh
# QEMU 7.2.22's user emulation (Debian 12's qemu-user-static 1:7.2+dfsg-7+deb12u18+b3), running a static
# program of the machine's own architecture, x86-64. Needs gcc.
#
# Seen:     field 22 of /proc/self/stat (starttime, proc_pid_stat(5)) is that of the thread which reads the
#           file: a thread that begins 0.3 s later reads another value than the main thread, before and
#           after it. Under the kernel itself all three are the same.
# Guessed:  /proc/self/stat is the process's, whoever of its threads reads it, as /proc/thread-self/stat is
#           there for the other question.
# Matters:  number and start time together are how a process is told from another one that has its number
#           later. A program with a pool of threads that remembers its own so, and looks again from another
#           thread, takes itself for gone.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -q download qemu-user-static=1:7.2+dfsg-7+deb12u18+b3 >/dev/null 2>&1
dpkg -x ./*.deb root
cat >stat.c <<'END'
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The 22nd field: the second one, in parentheses, may have blanks in it. */
static void *print_start(void *who)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "r");
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    char *field = strtok(strrchr(text, ')') + 1, " ");
    for (int number = 3; number < 22; number++)
        field = strtok(NULL, " ");
    printf("%s %s\n", (char *)who, field);
    return NULL;
}

int main(void)
{
    pthread_t thread;
    print_start("main");
    usleep(300000);
    pthread_create(&thread, NULL, print_start, "thread");
    pthread_join(thread, NULL);
    print_start("main");
    return 0;
}
END
gcc -static -pthread -o stat stat.c
kernel=$(./stat)
emulated=$(root/usr/bin/qemu-x86_64-static ./stat)
echo "by the kernel:"
echo "$kernel"
echo "emulated:"
echo "$emulated"
of() { echo "$1" | awk -v who="$2" '$1 == who { print $2 }' | sort -u; }
[ "$(of "$kernel" main)" = "$(of "$kernel" thread)" ]
[ "$(of "$emulated" main | wc -l)" = 1 ]
[ $(($(of "$emulated" thread) - $(of "$emulated" main))) -ge 30 ]
