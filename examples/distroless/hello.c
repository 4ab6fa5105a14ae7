/* A service for a guest without a shell: answers every connection to 127.0.0.1:8080 with a line. It is
 * its own check: `hello --check` exits with 0 if the service answers.
 *
 *     cc -static -Os -o hello hello.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char LINE[] = "hello\n";

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_in place = {
        .sin_family = AF_INET,
        .sin_port = htons(8080),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int yes = 1, one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (one < 0)
        return fail("socket");
    if (argc == 2 && strcmp(argv[1], "--check") == 0) {
        char got[sizeof LINE] = "";
        if (connect(one, (void *)&place, sizeof place) < 0)
            return fail("connect");
        if (recv(one, got, sizeof LINE - 1, MSG_WAITALL) < 0)
            return fail("recv");
        fputs(got, stdout);
        return strcmp(got, LINE) == 0 ? 0 : 1;
    }
    setsockopt(one, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(one, (void *)&place, sizeof place) < 0 || listen(one, 16) < 0)
        return fail("listen");
    for (;;) {
        int peer = accept4(one, NULL, NULL, SOCK_CLOEXEC);
        if (peer < 0)
            continue;
        send(peer, LINE, sizeof LINE - 1, MSG_NOSIGNAL);
        close(peer);
    }
}
