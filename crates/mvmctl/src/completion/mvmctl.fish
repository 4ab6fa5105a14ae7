# Completion of mvmctl for fish, by mvmctl itself.
complete --command mvmctl --no-files --keep-order --arguments '(COMPLETE=fish mvmctl -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token --cut-at-cursor) 2>/dev/null)'
