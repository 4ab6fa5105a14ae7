# Completion of mvmctl for bash, by mvmctl itself.

_mvmctl() {
    local offered IFS=,
    COMPREPLY=()
    # The whole line, since bash takes `--for=healthy` for three words.
    offered=$(COMPLETE=bash mvmctl -- "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
    [[ -n $offered ]] || return
    mapfile -t COMPREPLY <<<"$offered"
    # readline quotes the names of files alone, and takes all that are offered for such, or none.
    [[ ${COMPREPLY[*]} != *[!A-Za-z0-9_./:=,@%+-]* ]] || compopt -o filenames
    [[ ${COMPREPLY[0]} != *[/:=] ]] || compopt -o nospace
}

complete -o bashdefault -o nosort -F _mvmctl mvmctl
