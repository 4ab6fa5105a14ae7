#!/bin/sh
# In place of `--serve-file`, for tests of what becomes of a host: a put that takes all and ends when
# it is told to, a get without an end.
case "$2" in
*'"put"'*)
    echo '{"type":"put-ready","path":"/there"}' >&2
    exec cat >/dev/null
    ;;
*)
    echo '{"type":"get-started","bytes":null,"mode":420}' >&2
    exec yes
    ;;
esac
