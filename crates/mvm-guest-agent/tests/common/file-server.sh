#!/bin/sh
# In place of `--serve-file`, for tests of what becomes of a host: a put that takes all and takes its
# time at the end, a get without an end.
case "$2" in
*'"put"'*)
    echo '{"type":"put-ready","path":"/there"}' >&2
    cat >/dev/null
    sleep 0.5
    echo '{"type":"put-done","bytes":1}' >&2
    ;;
*)
    echo '{"type":"get-started","bytes":null,"mode":420}' >&2
    exec yes
    ;;
esac
