#compdef mvmctl
# Completion of mvmctl for zsh, by mvmctl itself.

_mvmctl() {
    # A path, which zsh itself knows to expand: quoted, the tilde would stand for itself.
    [[ $PREFIX != \~* || -n $QIPREFIX ]] || { _files; return }
    local offered one
    local -a open closed
    offered=$(COMPLETE=zsh mvmctl -- "${(@)words[1,CURRENT-1]}" "$QIPREFIX$IPREFIX$PREFIX" 2>/dev/null)
    for one in "${(@f)offered}"; do
        case $one in
        # No blank follows, as the word may go on.
        (+*) open+=("${one#?}") ;;
        (-*) closed+=("${one#?}") ;;
        esac
    done
    local offers=1
    (( ! $#open )) || { _describe -V mvmctl open -S '' && offers=0 }
    (( ! $#closed )) || { _describe -V mvmctl closed && offers=0 }
    return offers
}

# Found by its name it is to complete at once; read by `source` it is only made known.
if [[ $funcstack[1] = _mvmctl ]]; then
    _mvmctl "$@"
else
    compdef _mvmctl mvmctl
fi
